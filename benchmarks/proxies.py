"""The proxies that are compared, and the upstream behind them, as processes pinned to a core.

Proxies have the first core to themselves as far as the machine allows it; upstream and clients share the second.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.measure import CHECKOUT, ENVIRONMENT, Failed
from tests.support.processes import alive, wait_until

# Debian keeps nginx where only root's PATH leads.
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
PROXY_CORE, LOAD_CORE = _CORES[0], _CORES[-1]

_NGINX_COMMON = """\
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off; default_type application/json; keepalive_requests 1000000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
"""
_NGINX_UPSTREAM = """\
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{answer}'; }} }}
}}
"""
_NGINX_PROXY = """\
    proxy_http_version 1.1; proxy_set_header Connection "";
    upstream whole {{ server 127.0.0.1:{whole}; keepalive 64; keepalive_requests 1000000000; }}
    upstream stream {{ server 127.0.0.1:{stream}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://whole; }}
        location /stream/ {{ proxy_pass http://stream; proxy_buffering off; }}
    }}
}}
"""


def pinned(core: int, argv: Sequence[str]) -> list[str]:
    """The same command on one core, where the system can do that."""
    return ["taskset", "-c", str(core), *argv] if shutil.which("taskset") else list(argv)


@contextmanager
def running(core: int, argv: Sequence[str], port: int, log: Path, seconds: float = 20) -> Iterator[int]:
    """A process that listens on `port` within `seconds` → its pid. Stopped at the end, with its children."""
    with log.open("wb") as out:
        child = subprocess.Popen(pinned(core, argv), cwd=CHECKOUT, env=ENVIRONMENT, stdout=out, stderr=out)
    try:
        wait_until(lambda: _listening(port) or not alive(child.pid), seconds, f"{argv[0]} listens on {port}")
        if not alive(child.pid):
            raise Failed(f"{' '.join(argv)} ended: {log.read_text(errors='replace')}")
        yield child.pid
    finally:
        _stop(child)


def nginx_upstream(folder: Path, port: int, answer: str) -> list[str]:
    """nginx that gives `answer` to every request."""
    return _nginx(folder, _NGINX_UPSTREAM.format(port=port, answer=answer))


def nginx_proxy(folder: Path, port: int, whole: int, stream: int) -> list[str]:
    """nginx as a plain reverse proxy: buffered to port `whole`, and under /stream/ unbuffered to port `stream`."""
    return _nginx(folder, _NGINX_PROXY.format(port=port, whole=whole, stream=stream))


def _nginx(folder: Path, rest: str) -> list[str]:
    assert NGINX is not None
    folder.mkdir()
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX_COMMON.format(folder=folder) + rest, encoding="utf-8")
    return [NGINX, "-e", "stderr", "-p", str(folder), "-c", str(configuration)]


def gateway(folder: Path, port: int, whole: int, stream: int) -> list[str]:
    """The gateway with two models, `whole` and `stream`, that lead to these ports, and providers of both.

    The providers, far-whole and far-stream, speak chat completions only, so that messages to them are translated.
    """
    folder.mkdir()
    routes = folder / "routes.json"
    routes.write_text(json.dumps(_routes(port, {"whole": whole, "stream": stream})), encoding="utf-8")
    arguments = ["--routes", str(routes), "--socket", str(folder / "gateway.sock")]
    return [sys.executable, "-m", "reconciler.gateway", *arguments]


def hand_over(folder: Path) -> None:
    """What the providers are asked with, as the controller hands it over; without it they are not asked."""
    body = json.dumps({"secrets": {f"far-{name}": {"keys": ["k"]} for name in ("whole", "stream")}}).encode()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(folder / "gateway.sock"))
        head = f"POST /reload HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode() + body)
        if b" 200 " not in (answer := sock.recv(65536)).partition(b"\r\n")[0]:
            raise Failed(f"the gateway does not take its keys: {answer!r}")


def _routes(port: int, models: dict[str, int]) -> dict[str, object]:
    targets = {name: {"id": f"server/{name}#1", "host": "127.0.0.1", "port": to} for name, to in models.items()}
    return {
        "format": 2,
        "serial": 1,
        "digest": "benchmark",
        "listen": {"host": "127.0.0.1", "port": port},
        "trusted_hosts": ["127.0.0.1"],
        "models": {name: {"target": target} for name, target in targets.items()},
        "names": {name: name for name in models},
        "providers": {f"far-{name}": _provider(name, to) for name, to in models.items()},
    }


def _provider(name: str, port: int) -> dict[str, object]:
    base = f"http://127.0.0.1:{port}/v1"
    return {"speaks": {"openai": base}, "auth": "bearer", "models": [name], "private": True}


def _listening(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    members = psutil.Process(child.pid).children(recursive=True)
    child.terminate()
    try:
        child.wait(15)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for member in psutil.wait_procs(members, timeout=2)[1]:
        member.kill()
