"""Upstream: one keep-alive HTTP/1.1 connection to an engine, one exchange at a time.

Small on purpose: POST with a whole body out, one response in, read piece by piece as it comes. Bytes wait here only
up to a fixed amount; past that the socket is no longer read. Deadlines are plain numbers that a ticker compares
with the clock, so waiting costs no timer. Nothing here knows about models, keys or clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import httptools

if TYPE_CHECKING:
    from reconciler.gateway.pool import Lane

HIGH_WATER = 256 * 1024
HEAD_LIMIT = 64 * 1024


class Broken(Exception):
    """The connection ended, or spoke something that is not HTTP, before the response was complete."""


class Stalled(Exception):
    """Nothing came within the given time."""


class Connection(asyncio.Protocol):
    """One connection, owned by whoever took it from the pool until it is given back or closed.

    After `send`, `receive_head` fills `status` and `headers` (names lower case); `read` then yields the body.
    `began` tells whether any byte of the response has come, `complete` that the last one has.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, lane: Lane) -> None:
        self.lane = lane
        self.uses = 0
        self.idle_since = 0.0
        self._loop = loop
        self.usable = False  # open, as far as we know, and nothing went wrong
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = inf
        self._failure: Exception | None = None
        self._paused = False
        self.heard: Callable[[bytes], None] | None = None  # is told each piece of a body as it is read
        self._full = False
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.began = False
        self.complete = False
        self._framed = False
        self._has_head = False
        self._head_size = 0
        self._chunks: list[bytes] = []
        self._size = 0
        self._reusable = False
        self._unsent = memoryview(b"")

    # What the owner does.

    @property
    def reused(self) -> bool:
        """True when the exchange under way is not the first on this connection."""
        return self.uses > 1

    def send(self, head: bytes, body: bytes) -> None:
        """Write one request; raises `Broken` when the connection is already gone."""
        self.uses += 1
        self._reset()
        transport = self._transport
        if transport is None or not self.usable:
            raise Broken("the connection was closed")
        self.lane.waiting[self] = self._loop.time()
        if len(body) < HIGH_WATER:
            transport.write(head + body)
        else:
            transport.write(head)
            self._unsent = memoryview(body)
            self._push()

    def _push(self) -> None:
        """Hand over what the socket takes: a transport copies all that it is given at once."""
        while self._unsent and not self._full and self._transport is not None:
            piece, self._unsent = self._unsent[:HIGH_WATER], self._unsent[HIGH_WATER:]
            self._transport.write(piece)

    async def receive_head(self, seconds: float) -> None:
        """Wait for the response head, at most `seconds`; raises `Broken` or `Stalled`."""
        deadline = self._loop.time() + seconds
        while not self._has_head:
            await self._wait(deadline)

    async def read(self, seconds: float) -> bytes:
        """All body bytes that are there, waiting for some at most `seconds`; b"" once the body is complete.

        Raises `Broken` or `Stalled`, after the bytes that came before the break have been read.
        """
        deadline = self._loop.time() + seconds
        while not self._chunks:
            if self.complete:
                return b""
            await self._wait(deadline)
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self._size = 0
        if self.heard is not None:
            self.heard(data)
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def _wait(self, deadline: float) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        self._deadline = deadline
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._deadline = inf

    def tick(self, now: float) -> None:
        """Compare the deadline of the wait under way with the clock, in loop time."""
        if now >= self._deadline:
            self._fail(Stalled("nothing came in time"))

    def finished_cleanly(self) -> bool:
        """True when the exchange is over, read to its end, and another may follow on this connection."""
        transport = self._transport
        if not (self.complete and self._reusable and self.usable and not self._chunks) or transport is None:
            return False
        if self._unsent:
            return False
        return transport.get_write_buffer_size() == 0

    def close(self) -> None:
        """Cut the connection at once; an engine takes this as "stop generating"."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.usable = True
        self.lane.open.add(self)

    def data_received(self, data: bytes) -> None:
        if self.uses == 0 or self.complete:
            self._fail(Broken("data came that nobody asked for"))
            return
        if not self.began:
            self.began = True
            self.lane.waiting.pop(self, None)
        if not self._has_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Broken(f"not HTTP: {type(error).__name__}"))
            return
        if not self._has_head and self._head_size > HEAD_LIMIT:
            self._fail(Broken("the response head is too large"))
            return
        if self._size > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if self._has_head:
            self._wake()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._push()

    def eof_received(self) -> None:
        self.usable = False
        # A body without length or chunks ends where the connection does.
        if self._has_head and not self._framed:
            self.complete = True

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.complete and self._failure is None:
            self._failure = Broken("the connection was reset" if exc else "the connection was closed")
        self.usable = False
        self._transport = None
        self._wake()
        self.lane.forget(self)

    # What the parser tells.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.complete:
            raise ValueError("a second response to one request")
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200

    def on_body(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)

    def on_message_complete(self) -> None:
        if self._has_head:
            self.complete = True
            self._reusable = self._parser.should_keep_alive()
        else:  # 100 Continue and its like
            self.headers = []
            self._framed = False

    def _fail(self, failure: Exception) -> None:
        self.usable = False
        if self._failure is None:
            self._failure = failure
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._failure is None or self._chunks or self.complete:
            waiter.set_result(None)
        else:
            waiter.set_exception(self._failure)
