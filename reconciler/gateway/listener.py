"""Listener: the public port. aiohttp parses; this adds what aiohttp lacks.

A deadline for the request head and for a body that trickles, a cap on connections, OpenAI-shaped errors for requests
that are not even HTTP, and a drain that lets running replies finish. It knows no routes and no paths.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from math import inf
from typing import Any

from aiohttp import web
from aiohttp.streams import StreamReader

from reconciler.gateway import errors
from reconciler.gateway.errors import Refusal
from reconciler.gateway.log import log
from reconciler.gateway.record import GONE, Record
from reconciler.gateway.reply import JSON, Reply
from reconciler.gateway.routes import Limits

KEEP_ALIVE_SECONDS = 75.0
SLOWEST = 1024  # bytes of a body a second, once its first `header_seconds` are over
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_TOO_SLOW = Refusal(408, "The request did not arrive in time", code="request_timeout", close=True)
_NOT_HTTP = Refusal(400, "The request body is not valid HTTP", code="bad_http", close=True)
_CROWDED = Refusal(503, "Too many connections", kind=errors.OURS, code="too_many_connections", close=True)

Answer = Callable[[web.BaseRequest, Reply], Awaitable[None]]
Done = Callable[[Record, float], None]


class _Answered(web.StreamResponse):
    """Tells aiohttp that the response has been written already, and whether the connection goes on."""

    def __init__(self, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class ClientConnection(web.RequestHandler):
    """One client's connection. `deadline` (loop time) is what it has to meet next; `busy` while a reply is made."""

    def __init__(self, listener: Listener, **options: Any) -> None:
        super().__init__(listener, **options)
        self.listener = listener
        self.busy = False
        self.address = ""
        self.deadline = inf
        self.body: StreamReader | None = None
        self._began = False
        self._body_held = False
        self._counted = False
        self._failed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.listener.open >= self.listener.limits().connections:
            self.force_close()
            assert isinstance(transport, asyncio.Transport)
            transport.write(_bare(_CROWDED))
            transport.close()
            return
        self.deadline = self._loop.time() + self.listener.limits().header_seconds
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        self.listener.open += 1
        self._counted = True
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._counted:
            self._counted = False
            self.listener.open -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not (self.busy or self._began):
            self._began = True
            self.deadline = self._loop.time() + self.listener.limits().header_seconds
        super().data_received(data)
        if self.body is not None and self.broken:
            # What came before the fault may just have woken who reads, who then waits again without a look: let it.
            self._loop.call_soon(self._fail_body, _NOT_HTTP)

    @property
    def broken(self) -> bool:
        """The parser gave up in a body that has not ended; nothing else can be queued behind one. aiohttp leaves who
        reads the body waiting for the rest.
        """
        return bool(self._messages) and self._current_request is not None and not self._current_request.content.is_eof()

    def _fail_body(self, refusal: Refusal) -> None:
        if self.body is not None:
            self._failed = True
            self.body.set_exception(refusal)

    def pause_reading(self) -> None:
        self._body_held = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp calls this after every read of a body, and then feeds its parser with nothing: 5 µs per request.
        if self._body_held:
            self._body_held = False
            super().resume_reading(resume_parser)

    @property
    def quiet(self) -> bool:
        """Between requests: nothing of a next one has come."""
        return not (self.busy or self._began)

    def begin_reply(self) -> None:
        self.busy = True
        self.deadline = inf

    def end_reply(self) -> None:
        self.busy = self._began = False
        self.body = None
        self.deadline = self._loop.time() + KEEP_ALIVE_SECONDS
        if self._failed:  # or aiohttp would go on to read what is left of the body, and log that it cannot
            self.force_close()

    def tick(self, now: float) -> None:
        """Enforce the deadline: a slow body fails in its reader, a slow head or an idle connection is closed."""
        if now < self.deadline:
            return
        self.deadline = inf
        if self.body is not None:
            self._fail_body(_TOO_SLOW)
            return
        if self._began and self.transport is not None:
            self.transport.write(_bare(_TOO_SLOW))
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp could not parse the request. Its own text quotes the bytes, so it is not repeated."""
        refusal = Refusal(status, "This is not a valid HTTP request", code="bad_http", close=True)
        response = web.Response(status=status, body=refusal.body(), content_type="application/json")
        response.force_close()
        return response


class Listener(web.Server):
    """Makes connections, runs `answer` for each request, and turns whatever goes wrong there into a response.

    Each of `done` is told of every request that is over, and how many seconds it took.
    """

    def __init__(self, answer: Answer, limits: Callable[[], Limits], done: Sequence[Done] = ()) -> None:
        super().__init__(self._handle, handler_cancellation=True)
        self.limits = limits
        self.draining = False
        self.open = 0  # connections that were let in; to list them all for each new one would take long where many are
        self._answer = answer
        self._done = done
        self._request_ids = count(1)
        self._request_prefix = os.urandom(6).hex()
        self._kept, self._closed = _Answered(True), _Answered(False)

    def __call__(self) -> ClientConnection:
        return ClientConnection(
            self,
            loop=self._loop,
            keepalive_timeout=KEEP_ALIVE_SECONDS + 5,  # a net under our own deadline
            access_log=None,
            auto_decompress=False,
        )

    @property
    def busy(self) -> bool:
        return self.running > 0

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return sum(c.busy for c in self.connections if isinstance(c, ClientConnection))

    def tick(self, now: float) -> None:
        """Once or more a second, in loop time: enforce deadlines."""
        for connection in self.connections:
            if isinstance(connection, ClientConnection):
                connection.tick(now)

    async def drain(self, seconds: float) -> None:
        """Close idle connections, let running replies finish for at most `seconds`, then cut the rest."""
        self.draining = True
        deadline = self._loop.time() + seconds
        while True:
            for connection in self.connections:
                if isinstance(connection, ClientConnection) and connection.quiet:
                    connection.force_close()
            if not self.busy or self._loop.time() >= deadline:
                break
            await asyncio.sleep(0.05)
        await self.shutdown(0.2)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, ClientConnection)
        connection.begin_reply()
        record = Record(self._request_id(request), connection.address)
        reply = Reply(request, record, keep_alive=not self.draining)
        try:
            await self._answer(request, reply)
        except Refusal as refusal:
            record.broke = refusal.code or "refused"
            _refuse(reply, refusal)
        except ConnectionError:
            record.broke = GONE
            reply.abort()
        except asyncio.CancelledError:
            record.broke = "stopped" if self.draining else GONE
            raise
        except Exception as error:  # noqa: BLE001 - a bug of ours must reach the client as a JSON 500, and the log
            log("error", "bug", error=type(error).__name__, at=_place(error))
            record.broke = "internal_error"
            _refuse(
                reply, Refusal(500, "The gateway failed; its log says where", kind=errors.OURS, code="internal_error")
            )
        finally:
            connection.end_reply()
            seconds = time.perf_counter() - record.began
            for done in self._done:
                done(record, seconds)
        return self._kept if reply.keep_alive else self._closed

    def _request_id(self, request: web.BaseRequest) -> str:
        given = request.headers.get("x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return f"req-{self._request_prefix}-{next(self._request_ids):x}"


async def read_body(request: web.BaseRequest, limits: Limits) -> bytes:
    """The whole request body; raises `Refusal` 413 past `limits.body`, 408 when it stops coming, 417, 400."""
    content = request.content
    if content.is_eof():
        data = content.read_nowait(-1)
        if len(data) > limits.body:
            raise errors.body_too_large(int(limits.body))
        return data
    declared = request.content_length
    if declared is not None and declared > limits.body:
        raise errors.body_too_large(int(limits.body))
    _continue_if_expected(request)
    connection = request.protocol
    assert isinstance(connection, ClientConnection)
    if connection.broken:
        raise _NOT_HTTP
    connection.body = content
    whole = io.BytesIO()  # whose value is handed over without a copy: a file that is sent is in memory once
    size, now = 0, connection._loop.time
    latest = now() + limits.header_seconds
    try:
        while True:
            # Neither a pause nor a drip may hold a connection: it has so long for each piece, and a least pace for all.
            connection.deadline = min(now() + limits.header_seconds, latest + size / SLOWEST)
            chunk = await content.readany()
            if not chunk and content.is_eof():
                return whole.getvalue()
            whole.write(chunk)
            size += len(chunk)
            if size > limits.body:
                raise errors.body_too_large(int(limits.body))
    except web.RequestPayloadError:
        raise _NOT_HTTP from None
    finally:
        connection.body = None
        connection.deadline = inf


def _continue_if_expected(request: web.BaseRequest) -> None:
    expected = request.headers.get("Expect")
    if expected is None:
        return
    if expected.lower() != "100-continue":
        raise Refusal(417, "Only 100-continue can be expected", code="bad_expect", close=True)
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _refuse(reply: Reply, refusal: Refusal) -> None:
    if reply.started and not reply.opened:
        reply.abort()
        return
    try:
        reply.refuse(refusal)
    except ConnectionError:
        reply.abort()


def _bare(refusal: Refusal) -> bytes:
    """A whole response for a client with whom no exchange has begun."""
    body = refusal.body()
    return b"HTTP/1.1 %d \r\n%bContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
        refusal.status,
        JSON,
        len(body),
        body,
    )


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "-" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
