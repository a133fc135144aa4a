"""The control API: JSON lines over a Unix socket that only this user can reach.

A request is one line, `{"method": "status", …}`; answers are lines too: one for most methods, many for `follow`,
`events` and `down`. Methods, their values and answers are described in schemas/control.schema.json. Every line gets an
answer, if only what is wrong with it; whatever a client does, or fails to do, touches only its own connection.
Whoever connects must be the same user (checked with the kernel, not only by file mode).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from reconciler import __version__
from reconciler.controller import asking, garbage, proving
from reconciler.controller import request as asked
from reconciler.controller.daemon import Controller
from reconciler.controller.hands import Hold
from reconciler.controller.request import API, Request, parse
from reconciler.controller.source import Ask
from reconciler.core.diagnostics import Fault, Refused
from reconciler.core.ids import Ref
from reconciler.host.files import disk_faults
from reconciler.store.schema import EVENTS_KEPT

log = logging.getLogger(__name__)

LINE_LIMIT = 1 << 20  # bytes
MOST_CLIENTS = 200  # at a time: each costs a file descriptor, and the controller needs some for its work
TELL_EVERY = 0.25  # seconds between two snapshots of progress
LEFT_EVERY = 0.2  # seconds between two looks whether one who waits is still there
EVENTS_WAITING = 1000  # for a client that reads slowly; what comes while so many wait is lost to it
SNAPSHOTS_WAITING = 10  # fewer: they are large, and the next one says the same and more


async def serve(controller: Controller) -> None:
    """Serve until cancelled."""
    path = controller.tools.layout.control_socket
    controller.tools.files.private_folder(path.parent)
    controller.tools.files.remove(path)
    clients: set[asyncio.StreamWriter] = set()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.add(writer)
        try:
            await _client(controller, reader, writer, crowded=len(clients) > MOST_CLIENTS)
        finally:
            clients.discard(writer)

    sock = _bound(path)
    mine = path.stat().st_ino
    server = await asyncio.start_unix_server(meet, sock=sock, limit=LINE_LIMIT, backlog=MOST_CLIENTS)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        server.close()
        for writer in clients:  # one that does not read would keep us from ending
            writer.transport.abort()
        with contextlib.suppress(OSError):
            if path.stat().st_ino == mine:  # else it is a successor's by now
                path.unlink()


def _bound(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with disk_faults(path):
        sock.bind(str(path))
        path.chmod(0o600)  # nobody can connect before it listens, which is later
    return sock


async def _client(
    controller: Controller, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, crowded: bool
) -> None:
    try:
        if not _same_user(writer.get_extra_info("socket")):
            return
        if crowded:
            await _send(writer, _error(Refused(f"{MOST_CLIENTS} clients are connected", hint="close some of them")))
            return
        while line := await reader.readline():
            await _answer(controller, line, reader, writer)
    except ValueError:
        with contextlib.suppress(ConnectionError):
            await _send(writer, _error(Refused(f"a request is one line of at most {LINE_LIMIT} bytes")))
    except (ConnectionError, asyncio.CancelledError):
        pass  # the client went away, or we are stopping
    finally:
        writer.close()


async def _answer(
    controller: Controller, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        request = parse(line)
        if request.method in ("follow", "events", "down"):
            await _stream(controller, request, reader, writer)
            return
        if request.method == "ensure_ready":
            answer = await _unless_gone(_value(controller, request), reader)
        else:
            answer = await _value(controller, request)
    except Refused as refused:
        answer = _error(refused)
    except Fault as fault:
        answer = _error(Refused(fault.message, hint=fault.hint))
    except ConnectionError:
        raise
    except Exception as error:
        log.exception("bug request=%r", line[:200])
        answer = _error(Refused(f"internal error: {type(error).__name__}: {error}", hint="see the controller's log"))
    await _send(writer, answer)


async def _value(controller: Controller, request: Request) -> dict[str, Any]:
    """The answer to a method that has one. Raises Refused."""
    match request:
        case asked.Plan():
            return await asyncio.to_thread(controller.plan_now, Path(request.manifest))
        case asked.Apply():
            turn = await controller.apply(Path(request.manifest), _ask(request))
            return {"turn": turn, **controller.snapshot()}
        case asked.Rollback():
            turn = await controller.back(request.generation)
            return {"turn": turn, **controller.snapshot()}
        case asked.Lock():
            names = request.upgrade
            return await controller.lock([Ref.parse(name) for name in names] if names is not None else None)
        case asked.Gc():
            return await garbage.collect(controller, garbage.Ask(request.older, request.keep_generations), request.yes)
        case asked.Suspect():
            return {"suspected": proving.suspect(controller, request.digests)}
        case asked.Pause():
            return await controller.pause(Hold(request.refs, discard=request.discard))
        case asked.Resume():
            return await controller.resume(Hold(request.refs, resume=True))
        case asked.EnsureReady():
            return await asking.ensure_ready(controller, request.model, request.timeout)
        case asked.Load():
            return await asking.load(controller, request.model, request.timeout)
        case asked.Unload():
            return await asking.unload(controller, request.model, request.timeout)
    match request.method:
        case "hello":
            return {"api": API, "version": __version__, "pid": os.getpid(), "path": str(controller.source.path)}
        case "status":
            return controller.snapshot()
        case "confirm":
            return {"confirmed": controller.source.confirm().number}
        case "shutdown":
            controller.stop()
            return {"stopping": True}
    raise AssertionError(request.method)


def _ask(request: asked.Apply) -> Ask:
    return Ask(
        allow_empty=request.allow_empty,
        targets=frozenset(Ref.parse(name) for name in request.targets),
        locked=request.locked,
        confirm=request.confirm_within,
        binding=request.binding,
    )


def _error(refused: Refused) -> dict[str, Any]:
    return {
        "error": str(refused.diagnostics[0].summary) if refused.diagnostics else "refused",
        "exit_code": int(refused.exit_code),
        "diagnostics": [d.to_json() for d in refused.diagnostics],
    }


async def _stream(
    controller: Controller, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answers without end, until the client closes its side; what it says meanwhile is not heard."""
    if isinstance(request, asked.Down):
        controller.take_down(request.purge)
    after = request.after if isinstance(request, asked.Events) else None
    telling = asyncio.ensure_future(_follow(controller, writer, after))
    leaving = asyncio.ensure_future(_gone(reader))
    try:
        done, _ = await asyncio.wait((telling, leaving), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (telling, leaving):
            task.cancel()
        await asyncio.gather(telling, leaving, return_exceptions=True)


async def _unless_gone(work: Coroutine[Any, Any, dict[str, Any]], reader: asyncio.StreamReader) -> dict[str, Any]:
    """The answer; nobody waits for it any more once the client has closed its side."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(reader))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ConnectionResetError("the client has gone")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(reader: asyncio.StreamReader) -> None:
    """Until the client has closed its side; what it has said meanwhile stays to be read."""
    while not reader.at_eof():  # noqa: ASYNC110  a reader tells of its end only who takes from it
        await asyncio.sleep(LEFT_EVERY)


async def _gone(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


async def _follow(controller: Controller, writer: asyncio.StreamWriter, after: int | None) -> None:
    """Send every event, and a snapshot at each turn and while something progresses; or only events `after` one."""
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def hear(message: dict[str, Any]) -> None:
        event = message["type"] == "event"
        if queue.qsize() < (EVENTS_WAITING if event else SNAPSHOTS_WAITING) and (event or after is None):
            queue.put_nowait(message)

    earlier = controller.tools.ledger.events(after, EVENTS_KEPT) if after is not None else []
    end = controller.listen(hear)
    try:
        for event in earlier:
            await _send(writer, {"type": "event", "event": event})
        if after is None:
            await _send(writer, {"type": "status", **controller.snapshot()})
        while True:
            try:
                async with asyncio.timeout(TELL_EVERY if after is None else None):
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
