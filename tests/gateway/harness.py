"""A gateway process and an upstream for tests, both real: own processes, own sockets.

`Gateway` is `python -m reconciler.gateway` in a folder of its own; `Stub` is an upstream that a test scripts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
SESSION_KEY = "session-key-canary-5b1f"
CLIENT_KEY = "sk-client-canary-77aa"


def target(port: int, name: str = "chat#1", key: str | None = SESSION_KEY) -> dict[str, Any]:
    return {"id": f"server/{name}", "host": "127.0.0.1", "port": port, "key": key}


def model(target: dict[str, Any] | None, *, task: str = "chat", reason: str | None = None) -> dict[str, Any]:
    return {
        "owned_by": "llama.cpp",
        "created": 1795393006,
        "context": 4096,
        "task": task,
        "aliases": [],
        "target": target,
        "reason": reason,
    }


def provider(base: str, models: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    """One that speaks OpenAI's dialect at `base`, or what `speaks` says."""
    told = {"speaks": {"openai": base}, "auth": "bearer", "models": models or [], "private": True}
    return told | changes


def route(
    *targets: str | tuple[str, int], on: tuple[str, ...] = ("unavailable", "overloaded", "timeout")
) -> dict[str, Any]:
    """Targets in order, or each with its weight."""
    shares = [(t, None) if isinstance(t, str) else t for t in targets]
    return {"targets": [{"to": to, "weight": weight} for to, weight in shares], "on": list(on)}


class Gateway:
    """One gateway process. `write` replaces routes.json as the controller does; `use` also has it read at once."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.options = options
        self.folder = folder
        self.port = free_port()
        self.routes_path = folder / "routes.json"
        self.socket_path = folder / "gateway.sock"
        self.log_path = folder / "gateway.log"
        self.serial = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def routes(self, models: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        self.serial += 1
        models = models or {}
        document = {
            "format": 2,
            "serial": self.serial,
            "digest": hashlib.sha256(str(self.serial).encode()).hexdigest(),
            "listen": {"host": "127.0.0.1", "port": self.port},
            "prefix": "/v1",
            "trusted_hosts": ["localhost", "127.0.0.1"],
            "api_keys": [],
            "limits": {},
            "models": models,
            "names": {name: name for name in models},
        }
        return document | changes

    def write(self, document: dict[str, Any] | bytes) -> None:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        new = self.routes_path.with_suffix(".new")
        new.write_bytes(data)
        new.replace(self.routes_path)

    def use(
        self, models: dict[str, Any] | None = None, secrets: dict[str, Any] | None = None, **changes: Any
    ) -> dict[str, Any]:
        self.write(self.routes(models, **changes))
        state = self.reload({name: {} for name in changes.get("providers", ())} if secrets is None else secrets)
        assert state["error"] is None
        assert state["serial"] == self.serial
        return state

    def start(self, **env: str) -> None:
        if not self.routes_path.exists():
            self.write(self.routes())
        self.spawn(**env)
        wait_until(self._healthy, message="the gateway answers /health")

    def spawn(self, **env: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "reconciler.gateway"]
        command += ["--routes", str(self.routes_path), "--socket", str(self.socket_path), *self.options]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=log, env={**os.environ, **env})
        return self.process

    def _healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def state(self) -> dict[str, Any]:
        return self._control("GET", "/state")

    def reload(self, secrets: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._control("POST", "/reload", b"" if secrets is None else json.dumps({"secrets": secrets}).encode())

    def _control(self, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(self.socket_path))
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            sock.sendall(head.encode() + body)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        result: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return result

    def log(self) -> str:
        return self.log_path.read_text()

    def terminate(self, seconds: float = 15) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@dataclass
class Asked:
    """One request as the stub received it."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int
    nth: int  # on this connection, from 1

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


@dataclass
class Stub:
    """An upstream on a free port. `script` writes the response; returning False closes the connection."""

    script: Callable[[Asked, asyncio.StreamWriter], Awaitable[bool | None]]
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)  # a client has gone
    on_close: Callable[[int], None] = lambda number: None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def hang_up(self) -> None:
        """End what others keep open; the loop is about to be closed."""
        for writer in self.writers:
            writer.transport.abort()
        while self.writers:  # noqa: ASYNC110 - they end by themselves, one after the other
            await asyncio.sleep(0.005)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        number, nth = self.connections, 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *lines = head.decode().strip().split("\r\n")
                headers = [(k.lower(), v.strip()) for k, _, v in (entry.partition(":") for entry in lines)]
                length = next((int(v) for k, v in headers if k == "content-length"), 0)
                nth += 1
                asked = Asked(line, headers, await reader.readexactly(length), number, nth)
                self.asked.append(asked)
                run = asyncio.ensure_future(self.script(asked, writer))
                gone = asyncio.ensure_future(_gone(reader))
                await asyncio.wait({run, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not run.done():
                    self.closed.set()
                for task in (run, gone):
                    task.cancel()
                results = await asyncio.gather(run, gone, return_exceptions=True)
                if results[0] is not None and results[0] is not True:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed.set()
            self.on_close(number)
            self.writers.discard(writer)
            writer.close()


async def _gone(reader: asyncio.StreamReader) -> None:
    while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 - StreamReader has no event for it
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def stub(
    script: Callable[[Asked, asyncio.StreamWriter], Awaitable[bool | None]],
    on_close: Callable[[int], None] = lambda number: None,
) -> AsyncIterator[Stub]:
    """A running `Stub`; `on_close` is told the number of each connection that ends."""
    upstream = Stub(script, on_close=on_close)
    server = await asyncio.start_server(upstream._serve, "127.0.0.1", 0)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        await upstream.hang_up()
        await asyncio.sleep(0)


def response(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """A whole JSON response as bytes."""
    named = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status}\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


EVENTS_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; b"" is the last."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def raw_exchange(port: int, data: bytes, seconds: float = 5, *, one: bool = True) -> bytes:
    """Send bytes, and return what comes until `one` response is whole, the other side closes, or `seconds` are over."""
    received = b""
    deadline = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sock:
        sock.sendall(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while time.monotonic() < deadline and (piece := sock.recv(65536)):
                received += piece
                if one and _is_whole(received):
                    break
    return received


def _is_whole(raw: bytes) -> bool:
    head, end, body = raw.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: (\d+)", head, re.MULTILINE)
    return bool(end and length and len(body) >= int(length[1]))


def status_of(raw: bytes) -> int:
    return int(raw.split(b" ", 2)[1])


def error_of(raw: bytes) -> dict[str, Any]:
    """The error object of a raw response; fails when the body is not exactly OpenAI's error shape."""
    body = raw.partition(b"\r\n\r\n")[2]
    document = json.loads(body)
    assert set(document) == {"error"}
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
