"""Proxy: one request goes to one engine, and the engine's answer comes back as it is made.

Bytes pass through: the body is forwarded as it was handed over, and each piece of the response is written as soon as
it has been read; only a gathered answer is put together first. A client that goes away (cancellation) cuts the
engine's connection at once. A stream that breaks ends with an error event, any other body with a cut connection;
neither ever looks complete.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from reconciler.gateway import errors
from reconciler.gateway.errors import Refusal
from reconciler.gateway.gather import Gathering
from reconciler.gateway.log import log
from reconciler.gateway.pool import Pool, Unreachable
from reconciler.gateway.reply import JSON, Reply
from reconciler.gateway.routes import Limits, Routes, Target
from reconciler.gateway.upstream import Broken, Connection, Stalled

HELD_LIMIT = 64 * 1024
_PASSED = frozenset(
    (b"content-type", b"content-encoding", b"cache-control", b"retry-after", b"retry-after-ms", b"x-should-retry")
)
_PASSED_PREFIX = b"x-ratelimit-"


class Call(NamedTuple):
    """What goes to the engine. `content_type` and `accept` are the client's, and empty where it sent none."""

    target: Target
    path: str
    content_type: str
    accept: str
    body: bytes
    gather: bool = False  # the client wants a whole answer; the engine is asked for a stream


class Proxy:
    """Carries calls to engines. By target id it counts those under way, and knows when the last ended (Unix time)."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.inflight: dict[str, int] = {}
        self.used: dict[str, float] = {}

    def last_used(self, routes: Routes) -> dict[str, float]:
        """When a call of each target last ended; targets that are no more are forgotten."""
        known = {model.target.id for model in routes.models.values() if model.target is not None} | self.inflight.keys()
        self.used = {ident: at for ident, at in self.used.items() if ident in known}
        return self.used

    async def carry(self, call: Call, limits: Limits, reply: Reply) -> None:
        """Answer `reply` from the engine; raises `Refusal` while nothing has been written yet."""
        ident = call.target.id
        self.inflight[ident] = self.inflight.get(ident, 0) + 1
        try:
            connection = await self._open(call, limits)
            try:
                await _relay(connection, call, limits, reply)
            finally:
                connection.lane.give(connection)
        finally:
            self.used[ident] = time.time()
            left = self.inflight[ident] - 1
            if left:
                self.inflight[ident] = left
            else:
                del self.inflight[ident]

    async def _open(self, call: Call, limits: Limits) -> Connection:
        """Send the request and wait for the head of the response, with one retry.

        Only a connection that was kept from an earlier exchange is retried, and only when it ended without a byte:
        then the engine closed it while idle, and the request was never looked at.
        """
        target, head = call.target, _request_head(call)
        fresh = False
        while True:
            try:
                connection = await self._pool.take((target.host, target.port), limits.connect_seconds, fresh=fresh)
            except Unreachable as error:
                log("warning", "upstream-unreachable", target=target.label, reason=error)
                raise errors.target_restarting(target.label) from None
            try:
                connection.send(head, call.body)
                await connection.receive_head(limits.first_byte_seconds)
            except Stalled:
                connection.close()
                log("warning", "upstream-silent", target=target.label, seconds=limits.first_byte_seconds)
                raise errors.target_silent(target.label, limits.first_byte_seconds) from None
            except Broken as error:
                connection.close()
                if connection.reused and not connection.began:
                    fresh = True
                    continue
                log("warning", "upstream-broken", target=target.label, reason=error)
                raise errors.target_broke(target.label, str(error)) from None
            except BaseException:  # the client has gone
                connection.close()
                raise
            return connection


async def _relay(connection: Connection, call: Call, limits: Limits, reply: Reply) -> None:
    target = call.target
    if connection.status == 401:
        # The engine does not know the gateway's key: it is another process than the routes say. Not the client's fault.
        log("warning", "upstream-refused-key", target=target.label)
        raise errors.target_restarting(target.label)
    headers, length, is_events = _response_headers(connection, target)
    if call.gather and is_events:
        await _relay_gathered(connection, target, limits, reply)
        return
    if reply.opened and not is_events:  # an answer that is no stream, in one that was opened for it
        reply.whole(connection.status, headers, await _all(connection, target, limits))
        return
    if connection.complete and not reply.opened:
        reply.whole(connection.status, headers, await connection.read(0))
        return
    try:
        if is_events and length is None:
            await _relay_events(connection, target, headers, limits, reply)
        else:
            await _relay_body(connection, headers, length, limits, reply)
    except (Broken, Stalled) as error:
        log("warning", "upstream-cut", target=target.label, reason=error)
        reply.abort()


async def _all(connection: Connection, target: Target, limits: Limits) -> bytes:
    """The body to its end; raises `Refusal` where it breaks off."""
    pieces = []
    try:
        while data := await connection.read(limits.idle_seconds):
            pieces.append(data)
    except (Broken, Stalled) as error:
        log("warning", "upstream-broken", target=target.label, reason=error)
        raise errors.target_broke(target.label, str(error)) from None
    return b"".join(pieces)


async def _relay_gathered(connection: Connection, target: Target, limits: Limits, reply: Reply) -> None:
    """Nothing is written before the answer is whole, so that a break can still be told by a status."""
    gathering = Gathering()
    try:
        while data := await connection.read(limits.idle_seconds):
            gathering.feed(data)
        if not gathering.complete:
            raise Broken("the stream ended without its end")
    except Stalled:
        raise errors.target_silent(target.label, limits.idle_seconds) from None
    except (Broken, ValueError) as error:
        log("warning", "upstream-broken", target=target.label, reason=error)
        raise errors.target_broke(target.label, str(error)) from None
    status, body = gathering.result()
    reply.whole(status, JSON + b"x-reconciler-target: %b\r\n" % target.label.encode(), body)


async def _relay_body(
    connection: Connection, headers: bytes, length: bytes | None, limits: Limits, reply: Reply
) -> None:
    seconds = limits.idle_seconds
    reply.begin(connection.status, headers, length, b"")
    while data := await connection.read(seconds):
        reply.write(data)
        if reply.congested:
            await reply.drain(seconds)
    reply.end()


async def _relay_events(connection: Connection, target: Target, headers: bytes, limits: Limits, reply: Reply) -> None:
    """Whole lines are passed on at once; the beginning of a line waits for its end.

    So there is always a clean place for an error event: a line that was cut in the middle is dropped.
    """
    seconds = limits.idle_seconds
    reply.begin(connection.status, headers, None, b"")
    held = b""
    try:
        while data := await connection.read(seconds):
            if held:
                data = held + data
            cut = data.rfind(b"\n") + 1
            if cut == len(data) or len(data) - cut > HELD_LIMIT:
                held = b""
            else:
                held, data = data[cut:], data[:cut]
            reply.write(data)
            if reply.congested:
                await reply.drain(seconds)
    except Broken as error:
        _end_with_error(reply, errors.target_broke(target.label, f"{error} in the middle of the stream"))
    except Stalled:
        _end_with_error(reply, errors.target_silent(target.label, seconds))
    else:
        reply.write(held)
        reply.end()


def _end_with_error(reply: Reply, refusal: Refusal) -> None:
    """An event that closes whatever event was open, carries the error, and is the last: no [DONE] follows."""
    log("warning", "stream-broken", reason=refusal.message)
    reply.keep_alive = False
    reply.write(b"\ndata: " + refusal.body() + b"\n\n")
    reply.end()


def _request_head(call: Call) -> bytes:
    target = call.target
    host = f"[{target.host}]" if ":" in target.host else target.host
    accept = f"Accept: {call.accept}\r\n" if call.accept else ""
    key = f"Authorization: Bearer {target.key}\r\n" if target.key else ""
    head = (
        f"POST {call.path} HTTP/1.1\r\nHost: {host}:{target.port}\r\n{key}{accept}"
        f"Content-Type: {call.content_type or 'application/json'}\r\nContent-Length: {len(call.body)}\r\n\r\n"
    )
    return head.encode("utf-8", "surrogateescape")


def _response_headers(connection: Connection, target: Target) -> tuple[bytes, bytes | None, bool]:
    """Header lines for the client, the body's length where the engine gave one, whether it is an event stream."""
    lines = [b"x-reconciler-target: %b\r\n" % target.label.encode()]
    length = None
    is_events = False
    for name, value in connection.headers:
        if name in _PASSED or name.startswith(_PASSED_PREFIX):
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-type":
                is_events = value.lower().startswith(b"text/event-stream")
        elif name == b"content-length":
            length = value
    return b"".join(lines), length, is_events
