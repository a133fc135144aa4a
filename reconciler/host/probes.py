"""Looking at the network side of the machine: small HTTP questions, who listens where, which ports are free."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


async def http_get(host: str, port: int, path: str, timeout: float = 2.0, key: str = "") -> tuple[int, bytes]:
    """(status, body) of a GET with HTTP/1.0, with a bearer `key` if there is one.

    Raises OSError, TimeoutError, or ValueError for no HTTP.
    """
    shown = {"Authorization": f"Bearer {key}"} if key else {}
    async with asyncio.timeout(timeout):
        return await _exchange(host, port, f"GET {path}", shown, b"")


async def http_post(
    host: str, port: int, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> tuple[int, dict[str, Any]]:
    """(status, JSON object) of a POST of one, in whatever time it takes. Raises OSError, or ValueError for no such
    answer."""
    data = json.dumps(body).encode()
    typed = {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}
    status, raw = await _exchange(host, port, f"POST {path}", typed, data)
    answer = json.loads(raw)
    if not isinstance(answer, dict):
        raise ValueError("the answer is no JSON object")
    return status, answer


async def _exchange(host: str, port: int, what: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
    """At most 1 MiB of an answer."""
    reader, writer = await asyncio.open_connection(host, port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    try:
        head = f"{what} HTTP/1.0\r\nHost: {host}:{port}\r\n{lines}Connection: close\r\n\r\n"
        writer.write(head.encode() + body)
        raw = await reader.read(1 << 20)
        while len(raw) < 1 << 20 and (more := await reader.read(1 << 16)):
            raw += more
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return _parse(raw)


def unix_request(
    path: Path, method: str, target: str, timeout: float = 1.0, body: bytes = b""
) -> dict[str, Any] | None:
    """The JSON object that a local server on a Unix socket answers; None when nobody answers well."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(str(path))
            head = f"{method} {target} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body)
            raw = b""
            while piece := sock.recv(1 << 16):
                raw += piece
        status, body = _parse(raw)
        answer = json.loads(body)
    except (OSError, ValueError):
        return None
    return answer if status == 200 and isinstance(answer, dict) else None


def _parse(raw: bytes) -> tuple[int, bytes]:
    head, gap, body = raw.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split()
    if not gap or len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ValueError("the answer is not HTTP")
    return int(words[1]), body


def free_port(host: str = "127.0.0.1", avoid: int = 0) -> int:
    """A port that nobody listens on now, picked by the kernel; never the one to `avoid`."""
    with socket.socket(_family(host)) as sock:
        sock.bind((host, 0))
        port = int(sock.getsockname()[1])
        return port if port != avoid else free_port(host, avoid)  # which the kernel has no second time: it is bound


def bindable(host: str, port: int) -> str:
    """Empty when (host, port) can be bound now, else the reason."""
    try:
        with socket.socket(_family(host)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def holder_of(port: int) -> str:
    """Who listens on a TCP port, for people: `pid 412 (ollama)`; `another process` when it may not be known."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for conn in psutil.net_connections("tcp"):
            if conn.status == psutil.CONN_LISTEN and conn.laddr and conn.laddr.port == port and conn.pid:
                with contextlib.suppress(psutil.Error):
                    return f"pid {conn.pid} ({psutil.Process(conn.pid).name()})"
                return f"pid {conn.pid}"
    return "another process"


def listens(pid: int, port: int) -> bool | None:
    """Whether this process, or a descendant, is the one listening on `port`; None when it may not be looked at."""
    where = listening(pid, port)
    return None if where is None else bool(where)


def listening(pid: int, port: int) -> tuple[str, ...] | None:
    """The addresses at which this process, or a descendant, listens on `port`; None when it may not be looked at."""
    import psutil

    found: set[str] = set()
    try:
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            for conn in member.net_connections("tcp"):
                if conn.status == psutil.CONN_LISTEN and conn.laddr and conn.laddr.port == port:
                    found.add(conn.laddr.ip)
    except psutil.AccessDenied:
        return tuple(sorted(found)) or None
    except psutil.Error:
        return tuple(sorted(found))
    return tuple(sorted(found))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
