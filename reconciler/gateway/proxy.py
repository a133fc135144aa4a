"""Proxy: one request goes to one target, and the target's answer comes back as it is made.

Bytes pass through where both sides speak one dialect: the body is forwarded as it was handed over, and each piece of
the response is written as soon as it has been read. Where they do not, a bridge translates, piece by piece too; only a
gathered answer is put together first. A client that goes away (cancellation) cuts the target's connection at once. A
stream that breaks ends with an error event, any other body with a cut connection; neither ever looks complete.

Nothing is written before the target has answered with success: what it says else is raised, so that another can be
asked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from reconciler.dialects.bridge import Bridge
from reconciler.gateway import errors
from reconciler.gateway.dial import Unreachable
from reconciler.gateway.errors import Refusal
from reconciler.gateway.gather import Gathering
from reconciler.gateway.log import log
from reconciler.gateway.operations import Dialect
from reconciler.gateway.pool import Pool
from reconciler.gateway.reply import EVENTS, JSON, Reply
from reconciler.gateway.routes import Base, Target
from reconciler.gateway.upstream import Broken, Connection, Stalled
from reconciler.gateway.usage import WithoutUsage

HELD_LIMIT = 64 * 1024
WHOLE_LIMIT = 256 << 20  # bytes of an answer that has to be held to be translated
TAIL = 4096  # bytes of a stream's end that are looked at for its end
# What the last events of a stream that came to its end hold, in each dialect; or its error.
_ENDS = re.compile(
    rb"^data: ?\[DONE\]|\"finish_reason\": ?\"|^event: (message_stop|error|response\.(completed|incomplete|failed))|"
    rb"^data: ?\{\"error\"|\"stop\": ?true",
    re.MULTILINE,
)
ERROR_LIMIT = 1 << 20  # bytes of an error that are read
_PASSED = frozenset(
    (
        b"content-type", b"content-encoding", b"cache-control", b"retry-after", b"retry-after-ms", b"x-should-retry",
        b"openai-processing-ms", b"openai-version", b"request-id", b"x-accel-buffering",
    )
)  # fmt: skip
_PASSED_PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-")


class Call(NamedTuple):
    """What goes to a target. `headers` are ready lines, what the client sends along; `key` is shown to the target.

    `gather`: the client wants a whole answer, and the target is asked for a stream. `told` are ready lines for the
    client's answer. `early`: nobody else could be asked, so a stream begins as soon as the target says 200.
    `before_end` is done once the bridge has the whole answer, before the client can know that it is whole.
    `hide_usage`: the target was asked for the usage of a stream, the client has not asked for it.
    """

    target: Target
    base: Base
    path: str
    headers: bytes
    body: bytes
    key: str | None
    dialect: Dialect = "openai"
    gather: bool = False
    bridge: Bridge | None = None
    told: bytes = b""
    early: bool = True
    before_end: Callable[[], Awaitable[None]] | None = None
    hide_usage: bool = False
    method: str = "POST"


class Failure(Exception):
    """The target's answer is an error: its whole body, in its own dialect, and ready header lines."""

    def __init__(self, status: int, headers: bytes, body: bytes, retry_after: float | None) -> None:
        super().__init__(f"it answered {status}")
        self.status = status
        self.headers = headers
        self.body = body
        self.retry_after = retry_after


class Proxy:
    """Carries calls to targets. By target id it counts those under way, and knows when the last ended (Unix time)."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.inflight: dict[str, int] = {}
        self.used: dict[str, float] = {}

    def last_used(self, targets: Iterable[Target]) -> dict[str, float]:
        """When a call of each target last ended; targets that are no more are forgotten."""
        known = {target.id for target in targets} | self.inflight.keys()
        self.used = {ident: at for ident, at in self.used.items() if ident in known}
        return self.used

    async def carry(self, call: Call, reply: Reply) -> None:
        """Answer `reply` from the target; raises `Refusal` or `Failure` while nothing has been written yet."""
        ident = call.target.id
        self.inflight[ident] = self.inflight.get(ident, 0) + 1
        try:
            meter = reply.record.meter()
            connection = await self._open(call)
            connection.heard = meter
            try:
                await _relay(connection, call, reply)
            finally:
                connection.heard = None
                reply.record.count(meter)
                connection.lane.give(connection)
        finally:
            self.used[ident] = time.time()
            left = self.inflight[ident] - 1
            if left:
                self.inflight[ident] = left
            else:
                del self.inflight[ident]

    async def _open(self, call: Call) -> Connection:
        """Send the request and wait for the head of the response, with one retry.

        Only a connection that was kept from an earlier exchange is retried, and only when it ended without a byte:
        then the other side closed it while idle, and the request was never looked at.
        """
        target, limits, head = call.target, call.target.limits, _request_head(call)
        fresh = False
        while True:
            try:
                connection = await self._pool.take(call.base.peer, limits.connect_seconds, fresh=fresh)
            except Unreachable as error:
                log("warning", "upstream-unreachable", target=target.label, reason=error)
                if target.provider:
                    raise errors.target_unreachable(target.label, str(error)) from None
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


class _Answer(NamedTuple):
    """What the head of a response says: lines for the client, the body's length where it is known, and its kind."""

    headers: bytes
    length: bytes | None
    is_events: bool
    encoded: bool


async def _relay(connection: Connection, call: Call, reply: Reply) -> None:
    target = call.target
    if connection.status == 401 and not target.provider:
        # The engine does not know the gateway's key: it is another process than the routes say. Not the client's fault.
        log("warning", "upstream-refused-key", target=target.label)
        raise errors.target_restarting(target.label)
    answer = _answer(connection, call)
    if connection.status >= 300:
        raise await _failure(connection, call, answer)
    if call.bridge is not None and answer.encoded:
        raise errors.target_broke(target.label, "its answer is compressed, which was not asked for")
    if call.bridge is not None and answer.is_events:
        await _relay_translated(connection, call, call.bridge, answer, reply)
        return
    if call.bridge is not None:
        status, body = call.bridge.whole(connection.status, await _all(connection, call, WHOLE_LIMIT))
        if status >= 400:
            raise Failure(status, call.told, body, None)
        if call.before_end is not None:
            await call.before_end()
        reply.whole(status, JSON + call.told, body)
        return
    if call.gather and answer.is_events:
        await _relay_gathered(connection, call, reply)
        return
    if reply.opened and not answer.is_events:  # an answer that is no stream, in one that was opened for it
        reply.whole(connection.status, answer.headers, await _all(connection, call, WHOLE_LIMIT))
        return
    # A stream without a length has to show itself that it is whole.
    if connection.complete and not reply.opened and (not answer.is_events or (call.early and answer.length)):
        reply.whole(connection.status, answer.headers, await connection.read(0))
        return
    try:
        if answer.is_events and (answer.length is None or call.hide_usage or not call.early):
            await _relay_events(connection, call, answer, reply)
        else:
            await _relay_body(connection, call, answer, reply)
    except (Broken, Stalled) as error:
        log("warning", "upstream-cut", target=target.label, reason=error)
        _note(reply, call, "upstream_cut")
        reply.abort()


async def _failure(connection: Connection, call: Call, answer: _Answer) -> Exception:
    """What is to be raised for an answer that is no success."""
    if connection.status < 400:
        log("warning", "upstream-redirects", target=call.target.label, status=connection.status)
        return errors.target_broke(call.target.label, f"it redirects ({connection.status}), which is not followed")
    body = await _all(connection, call, ERROR_LIMIT)
    headers = dict(connection.headers)
    return Failure(connection.status, answer.headers, body, _retry_after(headers))


def _retry_after(headers: dict[bytes, bytes]) -> float | None:
    """Seconds that it asks to be left alone for; dates are not understood."""
    for name, unit in ((b"retry-after-ms", 1000.0), (b"retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    return None


async def _all(connection: Connection, call: Call, most: int) -> bytes:
    """The body to its end; raises `Refusal` where it breaks off or is too large."""
    pieces, size, label = [], 0, call.target.label
    try:
        while data := await connection.read(call.target.limits.idle_seconds):
            pieces.append(data)
            size += len(data)
            if size > most:
                raise errors.target_broke(label, f"its answer is larger than {most} bytes")
    except Stalled:
        raise errors.target_silent(label, call.target.limits.idle_seconds) from None
    except Broken as error:
        log("warning", "upstream-broken", target=label, reason=error)
        raise errors.target_broke(label, str(error)) from None
    return b"".join(pieces)


async def _relay_gathered(connection: Connection, call: Call, reply: Reply) -> None:
    """Nothing is written before the answer is whole, so that a break can still be told by a status."""
    gathering, label, seconds = Gathering(), call.target.label, call.target.limits.idle_seconds
    try:
        while data := await connection.read(seconds):
            gathering.feed(data)
        if not gathering.complete:
            raise Broken("the stream ended without its end")
    except Stalled:
        raise errors.target_silent(label, seconds) from None
    except (Broken, ValueError) as error:
        log("warning", "upstream-broken", target=label, reason=error)
        raise errors.target_broke(label, str(error)) from None
    status, body = gathering.result()
    if status >= 400:
        raise Failure(status, JSON + call.told, body, None)
    reply.whole(status, JSON + call.told, body)


async def _relay_translated(connection: Connection, call: Call, bridge: Bridge, answer: _Answer, reply: Reply) -> None:
    """What the bridge makes of each piece; nothing is written before it has something to say."""
    label, seconds = call.target.label, call.target.limits.idle_seconds
    begun = False

    def say(data: bytes) -> None:
        nonlocal begun
        if bridge.failed is not None and not begun:
            raise Failure(bridge.failed[0], JSON + call.told, bridge.failed[1], None)
        if not data:
            return
        if begun:
            reply.write(data)
        else:
            begun = True
            reply.begin(200, EVENTS + call.told, None, data)

    try:
        while data := await connection.read(seconds):
            said = bridge.feed(data)
            if call.before_end is not None and said:
                await call.before_end()
            say(said)
            if reply.congested:
                await reply.drain(seconds)
        said = bridge.end()
        if call.before_end is not None:
            await call.before_end()
        say(said)
    except (Broken, Stalled) as error:
        refusal = (
            errors.target_silent(label, seconds)
            if isinstance(error, Stalled)
            else errors.target_broke(label, f"{error} in the middle of the stream")
        )
        if not begun:
            raise refusal from None
        log("warning", "stream-broken", reason=refusal.message)
        _note(reply, call, refusal.code)
        reply.keep_alive = False
        reply.write(bridge.broke(refusal.status, refusal.message))
    if not begun:
        raise errors.target_broke(label, "its stream said nothing")
    reply.end()


async def _relay_body(connection: Connection, call: Call, answer: _Answer, reply: Reply) -> None:
    seconds = call.target.limits.idle_seconds
    reply.begin(connection.status, answer.headers, answer.length, b"")
    while data := await connection.read(seconds):
        reply.write(data)
        if reply.congested:
            await reply.drain(seconds)
    reply.end()


async def _relay_events(connection: Connection, call: Call, answer: _Answer, reply: Reply) -> None:
    """Whole lines are passed on at once; the beginning of a line waits for its end.

    So there is always a clean place for an error event: a line that was cut in the middle is dropped. Where somebody
    else could still be asked, the head waits for the first piece, too.
    """
    label, seconds = call.target.label, call.target.limits.idle_seconds
    first, tail = b"" if call.early else await _first_events(connection, call), b""
    reply.begin(connection.status, answer.headers, None, b"")
    held = b""
    without = WithoutUsage() if call.hide_usage else None
    try:
        data = first
        while data or (data := await connection.read(seconds)):
            if held:
                data = held + data
            cut = data.rfind(b"\n") + 1
            if cut == len(data) or len(data) - cut > HELD_LIMIT:
                held = b""
            else:
                held, data = data[cut:], data[:cut]
            reply.write(data if without is None else without.feed(data))
            tail = (tail + data)[-TAIL:] if len(data) < TAIL else data[-TAIL:]
            data = b""
            if reply.congested:
                await reply.drain(seconds)
        reply.write(held if without is None else without.feed(held))
        if not _ENDS.search(tail + held):
            raise Broken("it ended")
    except Broken as error:
        _end_with_error(reply, call, errors.target_broke(label, f"{error} in the middle of the stream"), tail)
    except Stalled:
        _end_with_error(reply, call, errors.target_silent(label, seconds), tail)
    else:
        reply.end()


async def _first_events(connection: Connection, call: Call) -> bytes:
    """The first piece of a stream; raises `Refusal` where none comes, and `Failure` where it is an error."""
    label, seconds = call.target.label, call.target.limits.first_byte_seconds
    try:
        data = await connection.read(seconds)
    except Stalled:
        raise errors.target_silent(label, seconds) from None
    except Broken as error:
        raise errors.target_broke(label, str(error)) from None
    if not data:
        raise errors.target_broke(label, "its stream said nothing")
    start = data[:512].lstrip()
    if start.startswith((b"event: error", b'data: {"error"', b'data:{"error"')):
        said = next((line[5:].strip() for line in data.splitlines() if line.startswith(b"data:")), b"")
        raise Failure(502, JSON + call.told, said, None)
    return data


def _end_with_error(reply: Reply, call: Call, refusal: Refusal, tail: bytes) -> None:
    """Closes whatever event was open after `tail`, and the last one carries the error: no [DONE] follows."""
    log("warning", "stream-broken", reason=refusal.message)
    _note(reply, call, refusal.code)
    reply.keep_alive = False
    closed = not tail or tail.endswith((b"\n\n", b"\n\r\n"))
    reply.write((b"" if closed else b"\n" if tail.endswith(b"\n") else b"\n\n") + refusal.event(call.dialect))
    reply.end()


def _note(reply: Reply, call: Call, code: str | None) -> None:
    """An answer that had begun was not brought to its end."""
    reply.record.broke = code or "upstream_broken"
    reply.record.trouble(call.target.label, "broken")


def _request_head(call: Call) -> bytes:
    target, peer = call.target, call.base.peer
    lines = [f"{call.method} {call.base.path}{call.path} HTTP/1.1", f"Host: {peer.authority}"]
    if call.key and target.auth != "none":
        lines.append(f"Authorization: Bearer {call.key}" if target.auth == "bearer" else f"{target.auth}: {call.key}")
    if target.headers:
        own = call.headers.lower()  # a client that says which version it speaks means it
        lines += [f"{name}: {value}" for name, value in target.headers if f"{name.lower()}:".encode() not in own]
    head = "\r\n".join(lines).encode("utf-8", "surrogateescape")
    return b"%b\r\n%bContent-Length: %d\r\n\r\n" % (head, call.headers, len(call.body))


def _answer(connection: Connection, call: Call) -> _Answer:
    lines, length, is_events, encoded = [call.told], None, False, False
    for name, value in connection.headers:
        if name in _PASSED or name.startswith(_PASSED_PREFIXES):
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-type":
                is_events = value.lower().startswith(b"text/event-stream")
            elif name == b"content-encoding":
                encoded = value.strip().lower() != b"identity"
        elif name == b"content-length":
            length = value
    return _Answer(b"".join(lines), length, is_events, encoded)
