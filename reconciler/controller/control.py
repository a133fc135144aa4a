"""The control API: JSON lines over a Unix socket that only this user can reach.

A request is one line, `{"method": "status", …}`; answers are lines too: one for most methods, many for `follow`.
Whoever connects must be the same user (checked with the kernel, not only by file mode).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

from reconciler import __version__
from reconciler.controller.daemon import Controller
from reconciler.core.diagnostics import Exit

API = 1
LINE_LIMIT = 1 << 20
TELL_EVERY = 0.1  # seconds between two snapshots of progress


async def serve(controller: Controller) -> None:
    """Serve until cancelled."""
    path = controller.tools.layout.control_socket
    controller.tools.files.private_folder(path.parent)
    controller.tools.files.remove(path)
    old = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(lambda r, w: _client(controller, r, w), path, limit=LINE_LIMIT)
    finally:
        os.umask(old)
    mine = path.stat().st_ino
    try:
        async with server:
            await server.serve_forever()
    finally:
        with contextlib.suppress(OSError):
            if path.stat().st_ino == mine:  # else it is a successor's by now
                path.unlink()


async def _client(controller: Controller, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        if not _same_user(writer.get_extra_info("socket")):
            return
        while line := await reader.readline():
            await _answer(controller, line, writer)
    except (ConnectionError, ValueError, asyncio.CancelledError):
        pass  # the client went away, sent a line without end, or we are stopping
    finally:
        writer.close()


async def _answer(controller: Controller, line: bytes, writer: asyncio.StreamWriter) -> None:
    try:
        request = json.loads(line)
        method = request["method"]
    except (ValueError, KeyError, TypeError):
        await _send(writer, {"error": "a request is one JSON object with a method"})
        return
    match method:
        case "hello":
            await _send(
                writer, {"api": API, "version": __version__, "pid": os.getpid(), "path": str(controller.source.path)}
            )
        case "status":
            await _send(writer, controller.snapshot())
        case "apply":
            turn = await controller.apply(Path(request["manifest"]), bool(request.get("allow_empty")))
            await _send(writer, {"turn": turn, **controller.snapshot()})
        case "follow":
            await _follow(controller, writer)
        case "down":
            controller.take_down(bool(request.get("purge")))
            await _follow(controller, writer)
        case "shutdown":
            controller.stop()
            await _send(writer, {"stopping": True})
        case _:
            await _send(writer, {"error": f"there is no method {method!r}", "exit_code": Exit.ERROR})


async def _follow(controller: Controller, writer: asyncio.StreamWriter) -> None:
    """Send every event, and a snapshot at each turn and while something progresses, until the client leaves."""
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=1000)

    def hear(message: dict[str, Any]) -> None:
        if not queue.full():
            queue.put_nowait(message)

    end = controller.listen(hear)
    try:
        await _send(writer, {"type": "status", **controller.snapshot()})
        while not writer.is_closing():
            try:
                async with asyncio.timeout(TELL_EVERY):
                    message = await queue.get()
            except TimeoutError:
                if not controller.progress:
                    continue
                message = {"type": "status", **controller.snapshot()}
            await _send(writer, message)
    finally:
        end()


async def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()


def _same_user(sock: Any) -> bool:
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True  # not offered here; the socket's mode and its private folder stand guard
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return bool(uid == os.getuid())
