"""Reply: one HTTP response, written straight to the client's transport.

aiohttp parses requests; its response objects cost more than all the rest of an exchange, so the bytes of a response
are put together here. The promise: a body that could not be finished never looks finished.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import HttpVersion11, web

from reconciler.gateway.errors import Refusal
from reconciler.gateway.record import Record

JSON = b"Content-Type: application/json\r\n"
# An nginx in front would hold events back until it has a buffer full of them.
EVENTS = b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Reply:
    """The response to one request. `headers` arguments are ready lines, each ended by CRLF.

    Methods that write raise ConnectionResetError when the client has gone.
    """

    __slots__ = (
        "_chunked",
        "_fixed",
        "_head_only",
        "_protocol",
        "_transport",
        "_version11",
        "_writer",
        "dialect",
        "keep_alive",
        "opened",
        "record",
        "request_id",
        "started",
    )

    def __init__(self, request: web.BaseRequest, record: Record, *, keep_alive: bool) -> None:
        self._protocol = request.protocol
        self._transport = request.transport
        self._writer = request.writer
        self._version11 = request.version >= HttpVersion11
        self._head_only = request.method == "HEAD"
        self._fixed = b"x-request-id: %b\r\n" % record.request_id.encode()
        self.record = record
        self.request_id = record.request_id
        self.dialect = "openai"
        self._chunked = False
        self.keep_alive = keep_alive and request.keep_alive
        self.started = False
        self.opened = False

    def also(self, lines: bytes) -> None:
        """Put these lines into the head, whatever it will be."""
        self._fixed += lines

    def say(self, comment: bytes) -> None:
        """A comment in an event stream, which is opened for it if need be: the client sees that something is done."""
        if not self.started:
            self.begin(200, EVENTS, None, b"")
            self.opened = True
        self.write(b": %b\n\n" % comment)
        self.record.first = 0.0  # nothing of the answer has come yet

    def whole(self, status: int, headers: bytes, body: bytes) -> None:
        """Head and body in one write; in a stream that was opened before there was an answer, its one event."""
        if self.opened:
            self.keep_alive = False
            name = b"event: error\n" if self.dialect == "anthropic" and status >= 400 else b""
            self.write(b"%bdata: %b\n\n" % (name, body.replace(b"\n", b" ")))
            self.end()
            return
        head = self._head(status, headers, b"Content-Length: %d\r\n" % len(body))
        self._note(body)
        self._write(head if self._head_only else head + body)

    def refuse(self, refusal: Refusal) -> None:
        """The refusal as a JSON response."""
        if refusal.close:
            self.keep_alive = False
        lines = "".join(f"{name}: {value}\r\n" for name, value in refusal.headers.items())
        self.whole(refusal.status, JSON + lines.encode(), refusal.body(self.dialect, self.request_id))

    def begin(self, status: int, headers: bytes, length: bytes | None, first: bytes) -> None:
        """Head, and `first` as the first piece of the body. `length` is the body's length where it is known.

        Of an event stream that was opened already only what is first is written.
        """
        if self.opened:
            self.write(first)
            return
        self._chunked = length is None and self._version11
        if length is not None:
            framing = b"Content-Length: %b\r\n" % length
        elif self._version11:
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            framing = b""
            self.keep_alive = False
        self._write(self._head(status, headers, framing) + self._frame(first))

    def write(self, data: bytes) -> None:
        """One more piece of the body."""
        if data:
            self._write(self._frame(data))

    def end(self) -> None:
        """The body is complete."""
        if self._chunked:
            self._write(b"0\r\n\r\n")

    def abort(self) -> None:
        """The body will never be complete: cut the connection so that the client can tell."""
        self.keep_alive = False
        transport = self._transport
        if transport is None:
            return
        if not self._version11:
            # For HTTP/1.0 the end of the connection is the end of the body; only a reset tells the difference.
            sock = transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()

    @property
    def congested(self) -> bool:
        """The client reads more slowly than we write: `await drain()` before the next piece."""
        return self._protocol.writing_paused

    async def drain(self, seconds: float) -> None:
        """Wait until the client has caught up; raises ConnectionResetError when it takes longer than `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._writer.drain()
        except TimeoutError:
            raise ConnectionResetError("the client stopped reading") from None

    def _head(self, status: int, headers: bytes, framing: bytes) -> bytes:
        line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        self.record.status = status
        if self.dialect == "anthropic" and b"request-id: " not in headers:  # where Anthropic's clients look for it
            headers += b"request-id: %b\r\n" % self.request_id.encode()
        return b"%b%b%b%b%b%b\r\n" % (line, headers, self._fixed, framing, _date_line(), self._connection_line())

    def _connection_line(self) -> bytes:
        if not self.keep_alive:
            return b"Connection: close\r\n"
        return b"" if self._version11 else b"Connection: keep-alive\r\n"

    def _note(self, data: bytes) -> None:
        """A piece of the body is about to be written."""
        record = self.record
        if not record.first:
            record.first = time.perf_counter()
        if record.copy is not None:
            record.copy.add(data)

    def _frame(self, data: bytes) -> bytes:
        if data:
            self._note(data)
        return b"%x\r\n%b\r\n" % (len(data), data) if data and self._chunked else data

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        self.started = True
        self.record.sent += len(data)
        transport.write(data)


_date: tuple[int, bytes] = (0, b"")


def _date_line() -> bytes:
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, f"Date: {formatdate(now, usegmt=True)}\r\n".encode())
    return _date[1]
