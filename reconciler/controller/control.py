"""The control API: JSON lines over a Unix socket that only this user can reach.

A request is one line, `{"method": "status", …}`; answers are lines too: one for most methods, many for `follow`,
`events` and `down`. Methods, their values and answers are described in schemas/control.schema.json.
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
from reconciler.controller.source import Ask
from reconciler.core.diagnostics import Fault, Refused
from reconciler.core.ids import Ref

API = 1
LINE_LIMIT = 1 << 20
METHODS = (
    "hello", "status", "plan", "apply", "rollback", "confirm", "lock", "ensure_ready", "follow", "events", "down",
    "shutdown",
)  # fmt: skip
_UPGRADE = "use the same version of reconciler on both sides"
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
        if request.get("api", API) != API:
            raise Refused(f"this controller speaks version {API} of the API, not {request['api']}", hint=_UPGRADE)
        if method in ("follow", "events", "down"):
            await _stream(controller, request, writer)
        else:
            await _send(writer, await _value(controller, request))
    except (ValueError, KeyError, TypeError) as error:
        await _send(writer, _error(Refused(f"not a request: {error!r}", hint="see schemas/control.schema.json")))
    except Refused as refused:
        await _send(writer, _error(refused))
    except Fault as fault:
        await _send(writer, _error(Refused(fault.message, hint=fault.hint)))


async def _value(controller: Controller, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a method that has one. Raises Refused."""
    match request["method"]:
        case "hello":
            return {"api": API, "version": __version__, "pid": os.getpid(), "path": str(controller.source.path)}
        case "status":
            return controller.snapshot()
        case "plan":
            return await asyncio.to_thread(controller.plan_now, _path(request))
        case "apply":
            turn = await controller.apply(Path(request["manifest"]), _ask(request))
            return {"turn": turn, **controller.snapshot()}
        case "rollback":
            number = request.get("generation")
            turn = await controller.back(int(number) if number is not None else None)
            return {"turn": turn, **controller.snapshot()}
        case "confirm":
            return {"confirmed": controller.source.confirm().number}
        case "lock":
            names = request.get("upgrade")
            return await controller.lock([Ref.parse(name) for name in names] if names is not None else None)
        case "ensure_ready":
            return await controller.ensure_ready(str(request["model"]), float(request.get("timeout", 600.0)))
        case "shutdown":
            controller.stop()
            return {"stopping": True}
        case unknown:
            raise Refused(f"there is no method {unknown!r}", hint=f"there are: {', '.join(METHODS)}")


async def _stream(controller: Controller, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """Answers without end. `events` begins with those after a sequence number."""
    only_events = request["method"] == "events"
    if request["method"] == "down":
        controller.take_down(bool(request.get("purge")))
    earlier = controller.tools.ledger.events(int(request.get("after", 0)), 1000) if only_events else []
    await _follow(controller, writer, earlier, only_events)


def _path(request: dict[str, Any]) -> Path:
    return Path(request["manifest"])


def _ask(request: dict[str, Any]) -> Ask:
    return Ask(
        allow_empty=bool(request.get("allow_empty")),
        targets=frozenset(Ref.parse(name) for name in request.get("targets", ())),
        locked=bool(request.get("locked")),
        confirm=float(request.get("confirm_within") or 0.0),
        binding=request.get("binding"),
    )


def _error(refused: Refused) -> dict[str, Any]:
    return {
        "error": str(refused.diagnostics[0].summary) if refused.diagnostics else "refused",
        "exit_code": int(refused.exit_code),
        "diagnostics": [d.to_json() for d in refused.diagnostics],
    }


async def _follow(
    controller: Controller, writer: asyncio.StreamWriter, earlier: list[dict[str, Any]], only_events: bool
) -> None:
    """Send every event, and a snapshot at each turn and while something progresses, until the client leaves."""
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=1000)

    def hear(message: dict[str, Any]) -> None:
        if not queue.full() and (message["type"] == "event" or not only_events):
            queue.put_nowait(message)

    end = controller.listen(hear)
    try:
        for event in earlier:
            await _send(writer, {"type": "event", "event": event})
        if not only_events:
            await _send(writer, {"type": "status", **controller.snapshot()})
        while not writer.is_closing():
            try:
                async with asyncio.timeout(TELL_EVERY):
                    message = await queue.get()
            except TimeoutError:
                if only_events or not controller.progress:
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
