"""An AI service that stands in for real ones: OpenAI's and Anthropic's dialect at one address, and its bad days.

    with FakeProvider(keys=("k1",), models=("small", "large")) as fake:
        ... # base URL: fake.url ("http://127.0.0.1:PORT/v1"), for both dialects
        fake.reply = Reply("Hello", tools=(Tool("look", '{"at": 1}'),))     # what it says from now on
        fake.script(Way(status=429, headers={"retry-after": "2"}), Way())   # the next two requests, in order
        fake.ways["large"] = Way(cut=2)                                     # each request for that model
        fake.listing = Way(status=503, error="html")                        # each request for the list of models
        fake.asked[-1].headers["authorization"]                             # all that it was asked

It is a real HTTP/1.1 server on a thread, with TLS where it is given a context (`tests/support/authority.py`). A path is
known by its end, so that any prefix will do. It answers chat/completions, completions, embeddings, responses, messages,
messages/count_tokens and models, whole and streamed. A request without a right key gets a 401 that repeats the key that
was shown, as some services do. How long a stream runs and who hung up is told in `running` and `left`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

MOST_BODY = 64 << 20


@dataclass(frozen=True)
class Tool:
    """One call of a tool; `arguments` is the JSON text as the model says it, right or wrong."""

    name: str
    arguments: str = "{}"
    ident: str = ""


@dataclass(frozen=True)
class Reply:
    """What is said. `finish` is in OpenAI's words: stop, length, tool_calls, content_filter; empty: what fits."""

    text: str = "Hello from afar."
    reasoning: str = ""
    tools: tuple[Tool, ...] = ()
    finish: str = ""
    prompt_tokens: int = 11
    cached_tokens: int = 3
    completion_tokens: int = 7

    @property
    def end(self) -> str:
        return self.finish or ("tool_calls" if self.tools else "stop")


@dataclass(frozen=True)
class Way:
    """How one request is answered; everything that is not said is as it should be.

    Of the head: `status` other than 200 gives an error in the form `error` (openai, anthropic, gemini, html, text,
    empty; where it is empty, that of the path) with `message`; `headers` are added; `redirect` sends on to that address
    with 307; `stall` "head" says nothing at all, "body" nothing after the head, "stream" nothing more after `after`
    events.

    Of a stream: `cut` hangs up after that many events, in the middle of the transfer; `ends` ends it there as if that
    were all; `fails` sends an error event there, `garbage` an event that is no JSON; `split` writes byte by byte (so
    that UTF-8 is cut, too); `drip` waits that long (seconds) between events; `endless` repeats the text for ever;
    `repeats` says id and name of a tool again in each piece, `no_index` leaves out the index of tools, `whole` sends
    all of a call at once; `no_usage` never tells the usage; `raw` is sent in place of everything.

    Of a whole answer: `gzip` packs it, `cut` hangs up after that many bytes, `split` and `drip` send byte by byte.
    """

    status: int = 200
    error: str = ""
    message: str = "something is wrong here"
    headers: Mapping[str, str] = field(default_factory=dict)
    redirect: str = ""
    stall: str = ""
    after: int = 1
    cut: int | None = None
    ends: int | None = None
    fails: int | None = None
    garbage: int | None = None
    split: bool = False
    drip: float = 0.0
    endless: bool = False
    repeats: bool = False
    no_index: bool = False
    whole: bool = False
    no_usage: bool = False
    raw: bytes | None = None
    gzip: bool = False


@dataclass(frozen=True)
class Asked:
    """One request as it came. Header names are lower case; `body` is its JSON, or None."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    raw: bytes
    body: Any
    key: str


class FakeProvider:
    """`keys` that are right (none: everybody may ask); `models` that it lists, in Anthropic's list `page` at a time."""

    def __init__(
        self,
        keys: Iterable[str] = (),
        models: Iterable[str] = ("small", "large"),
        tls: ssl.SSLContext | None = None,
        page: int = 1000,
        port: int = 0,
    ) -> None:
        self.keys, self.models, self.page, self.port = set(keys), list(models), page, port
        self.refused: dict[str, int] = {}  # key → the status that it gets, though it is right
        self.reply = Reply()
        self.ways: dict[str, Way] = {}
        self.listing = Way()
        self.asked: list[Asked] = []
        self.running = 0
        self.left = 0
        self._script: deque[Way] = deque()
        self._tls = tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    # -- life -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; at the same port as before where it was stopped."""
        there = threading.Event()
        failed: list[Exception] = []

        def run() -> None:
            try:
                asyncio.run(self._serve(there))
            except Exception as error:  # noqa: BLE001  (told to who starts it)
                failed.append(error)
                there.set()

        self._thread = threading.Thread(target=run, name="fake-provider", daemon=True)
        self._thread.start()
        there.wait()
        if failed:
            raise failed[0]

    def stop(self) -> None:
        """Hang up on everybody, and listen no more."""
        if self._thread is not None and self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None

    async def _serve(self, there: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        serving: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            serving.add(task)
            try:
                await self._talk(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, asyncio.LimitOverrunError):
                pass
            finally:
                serving.discard(task)
                writer.close()  # what was written is sent first
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await writer.wait_closed()

        server = await asyncio.start_server(connected, "127.0.0.1", self.port, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        there.set()
        await self._stop.wait()
        server.close()
        for task in tuple(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    # -- what tests say and see -------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The base URL, of both dialects."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    def script(self, *ways: Way) -> None:
        """How the next requests are answered, in their order (lists of models do not count); then as ever."""
        self._script.extend(ways)

    def of(self, path: str) -> list[Asked]:
        """All requests whose path ends so."""
        return [asked for asked in tuple(self.asked) if asked.path.endswith(path)]

    # -- one connection ---------------------------------------------------------------------------------------

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (asked := await self._read(reader)) is not None:
            self.asked.append(asked)
            way = self._way(asked)
            try:
                if not await self._answer(asked, way, reader, writer):
                    return
            except ConnectionError:
                self.left += 1
                return

    async def _read(self, reader: asyncio.StreamReader) -> Asked | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ", 2)
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        raw = await _body(reader, headers)
        parts = urlsplit(target)
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = None
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        key = bearer or headers.get("x-api-key") or headers.get("api-key") or ""
        return Asked(method, parts.path, parse_qs(parts.query), headers, raw, body, key)

    def _way(self, asked: Asked) -> Way:
        if asked.path.endswith("/models"):
            way = self.listing
        else:
            model = asked.body.get("model") if isinstance(asked.body, dict) else None
            way = self.ways.get(str(model), Way())
            if self._script:
                way = self._script.popleft()
        if way.status == 200 and not way.stall:
            if self.keys and asked.key not in self.keys:
                return Way(status=401, message=f"the key {asked.key} is not right")
            if asked.key in self.refused:
                return Way(status=self.refused[asked.key], message=f"the key {asked.key} is refused")
        return way

    async def _answer(self, asked: Asked, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        if way.stall == "head":
            return await self._wait(reader)
        if way.redirect:
            await _send(writer, 307, {"location": way.redirect, **way.headers}, b"")
            return True
        if way.status != 200:
            kind, body = _error(way, asked)
            await _send(writer, way.status, {"content-type": kind, **way.headers}, body)
            return True
        streamed = isinstance(asked.body, dict) and asked.body.get("stream") is True
        events = self._events(asked, way) if streamed else None
        if events is not None:
            return await self._stream(events, way, reader, writer)
        document = self._document(asked)
        if document is None:
            await _send(writer, 404, {"content-type": "application/json"}, b'{"error":{"message":"no such path"}}')
            return True
        return await self._whole(json.dumps(document).encode(), way, reader, writer)

    async def _whole(self, body: bytes, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        headers = {"content-type": "application/json", **way.headers}
        body = way.raw if way.raw is not None else body
        if way.gzip:
            headers["content-encoding"], body = "gzip", gzip.compress(body)
        writer.write(_head(200, {**headers, "content-length": str(len(body))}))
        if way.stall == "body":
            await writer.drain()
            return await self._wait(reader)
        if way.cut is not None:
            writer.write(body[: way.cut])
            await writer.drain()
            return False
        if way.split or way.drip:
            for at in range(len(body)):
                writer.write(body[at : at + 1])
                await writer.drain()
                await asyncio.sleep(way.drip)
        else:
            writer.write(body)
        await writer.drain()
        return True

    async def _stream(
        self, events: AsyncIterator[bytes], way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        headers = {"content-type": "text/event-stream", "transfer-encoding": "chunked", **way.headers}
        writer.write(_head(200, headers))
        await writer.drain()
        if way.stall == "body":
            return await self._wait(reader)
        self.running += 1
        gone = asyncio.ensure_future(reader.read(1))
        try:
            count = 0
            async for event in events:
                if gone.done() and not gone.result():
                    self.left += 1
                    return False
                if way.cut == count:
                    return False
                if way.stall == "stream" and way.after == count:
                    await gone
                    self.left += 1
                    return False
                await self._write(event, way, writer)
                count += 1
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            self.running -= 1
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await gone
        return False  # a byte of the next request may have been read: clients make a new connection

    async def _write(self, event: bytes, way: Way, writer: asyncio.StreamWriter) -> None:
        for piece in [event[i : i + 1] for i in range(len(event))] if way.split else [event]:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        await asyncio.sleep(way.drip)

    async def _wait(self, reader: asyncio.StreamReader) -> bool:
        """Say nothing until the client hangs up."""
        self.running += 1
        try:
            while await reader.read(1 << 16):
                pass
        finally:
            self.running -= 1
            self.left += 1
        return False

    # -- what it says -----------------------------------------------------------------------------------------

    def _document(self, asked: Asked) -> dict[str, Any] | None:
        path, body = asked.path, asked.body if isinstance(asked.body, dict) else {}
        model, reply = str(body.get("model", "")), self.reply
        if path.endswith("/models"):
            return self._list(asked)
        if path.endswith("/chat/completions"):
            return chat_document(reply, model)
        if path.endswith("/completions"):
            choice = {"index": 0, "text": reply.text, "finish_reason": reply.end, "logprobs": None}
            return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": model, "choices": [choice],
                    "usage": chat_usage(reply)}  # fmt: skip
        if path.endswith("/embeddings"):
            given = body.get("input")
            count = len(given) if isinstance(given, list) else 1
            data = [{"object": "embedding", "index": i, "embedding": [0.5, float(i)]} for i in range(count)]
            usage = {"prompt_tokens": reply.prompt_tokens, "total_tokens": reply.prompt_tokens}
            return {"object": "list", "model": model, "data": data, "usage": usage}
        if path.endswith("/responses"):
            return response_document(reply, model)
        if path.endswith("/messages/count_tokens"):
            return {"input_tokens": reply.prompt_tokens}
        if path.endswith("/messages"):
            return message_document(reply, model)
        return None

    def _list(self, asked: Asked) -> dict[str, Any]:
        if "anthropic-version" not in asked.headers:
            data = [{"id": m, "object": "model", "created": 1, "owned_by": "fake"} for m in self.models]
            return {"object": "list", "data": data}
        after = asked.query.get("after_id", [""])[0]
        start = self.models.index(after) + 1 if after in self.models else 0
        part = self.models[start : start + self.page]
        entries = [
            {"type": "model", "id": m, "display_name": m.title(), "created_at": "2026-01-01T00:00:00Z"} for m in part
        ]
        ends = {"first_id": part[0] if part else None, "last_id": part[-1] if part else None}
        return {"data": entries, "has_more": start + self.page < len(self.models), **ends}

    def _events(self, asked: Asked, way: Way) -> AsyncIterator[bytes] | None:
        path, model = asked.path, str(asked.body.get("model", ""))
        if way.raw is not None:
            return _paced([way.raw], way)
        if path.endswith("/chat/completions"):
            options = asked.body.get("stream_options") or {}
            return _paced(chat_events(self.reply, model, way, bool(options.get("include_usage"))), way)
        if path.endswith("/responses"):
            return _paced(response_events(self.reply, model, way), way)
        if path.endswith("/messages"):
            return _paced(message_events(self.reply, model, way), way)
        return None


# --- bytes on the wire -----------------------------------------------------------------------------------------------


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(min(int(headers.get("content-length", "0")), MOST_BODY))
    out = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        out += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return out


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Whatever\r\nx-request-id: req-fake\r\n{lines}\r\n".encode("latin-1")


async def _send(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: bytes) -> None:
    writer.write(_head(status, {**headers, "content-length": str(len(body))}) + body)
    await writer.drain()


def _error(way: Way, asked: Asked) -> tuple[str, bytes]:
    """(content type, body) of an error."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
    kinds |= {413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error"}
    kind = kinds.get(way.status, "api_error")
    form = way.error or ("anthropic" if "/messages" in asked.path else "openai")
    document: Any = {"error": {"message": way.message, "type": kind, "param": None, "code": None}}
    match form:
        case "html":
            return "text/html", f"<html><body><h1>{way.status}</h1>{way.message}</body></html>".encode()
        case "text":
            return "text/plain", way.message.encode()
        case "empty":
            return "application/json", b""
        case "gemini":
            document = [{"error": {"code": way.status, "message": way.message, "status": "UNAVAILABLE"}}]
        case "anthropic":
            document = {"type": "error", "error": {"type": kind, "message": way.message}, "request_id": "req-fake"}
    return "application/json", json.dumps(document).encode()


async def _paced(events: Iterable[bytes], way: Way) -> AsyncIterator[bytes]:
    with contextlib.suppress(_Over):
        for count, event in enumerate(events):
            if way.ends == count:
                return
            if way.garbage == count:
                yield b"data: {this is no JSON\n\n"
            yield event
            await asyncio.sleep(0)


def _sse(document: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


def _words(text: str) -> list[str]:
    """In pieces that together are the text."""
    return [text[i : i + 5] for i in range(0, len(text), 5)]


# --- OpenAI's chat ---------------------------------------------------------------------------------------------------


def chat_usage(reply: Reply) -> dict[str, Any]:
    total = reply.prompt_tokens + reply.completion_tokens
    details = {"prompt_tokens_details": {"cached_tokens": reply.cached_tokens}}
    counts = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    return {**counts, "total_tokens": total, **details}


def _ident(tool: Tool, at: int) -> str:
    return tool.ident or f"call_{at}"


def chat_document(reply: Reply, model: str) -> dict[str, Any]:
    calls = [
        {"id": _ident(t, i), "type": "function", "function": {"name": t.name, "arguments": t.arguments}}
        for i, t in enumerate(reply.tools)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
    message |= {"reasoning_content": reply.reasoning} if reply.reasoning else {}
    message |= {"tool_calls": calls} if calls else {}
    choice = {"index": 0, "message": message, "finish_reason": reply.end, "logprobs": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model}
    return {**head, "choices": [choice], "usage": chat_usage(reply)}


def chat_events(reply: Reply, model: str, way: Way, usage: bool) -> Iterable[bytes]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
        return _sse({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": piece} for piece in _words(reply.reasoning)]
    deltas += [{"content": piece} for piece in _words(reply.text)]
    for at, tool in enumerate(reply.tools):
        deltas += [{"tool_calls": [call]} for call in _chat_calls(tool, at, way)]
    yield from _failing([chunk(delta) for delta in deltas], way, _sse(_stream_error(way)))
    while way.endless:
        yield chunk({"content": "and on "})
    yield chunk({}, reply.end)
    if usage and not way.no_usage:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
        yield _sse({**head, "choices": [], "usage": chat_usage(reply)})
    yield b"data: [DONE]\n\n"


def _chat_calls(tool: Tool, at: int, way: Way) -> Iterable[dict[str, Any]]:
    index = {} if way.no_index else {"index": at}
    named = {"id": _ident(tool, at), "type": "function"}
    if way.whole:
        yield {**index, **named, "function": {"name": tool.name, "arguments": tool.arguments}}
        return
    yield {**index, **named, "function": {"name": tool.name, "arguments": ""}}
    for i in range(0, len(tool.arguments), 1000):
        piece: dict[str, Any] = {"arguments": tool.arguments[i : i + 1000]}
        yield {
            **index,
            **(named if way.repeats else {}),
            "function": piece | ({"name": tool.name} if way.repeats else {}),
        }


def _stream_error(way: Way) -> dict[str, Any]:
    return {"error": {"message": way.message, "type": "server_error", "param": None, "code": None}}


def _failing(events: list[bytes], way: Way, error: bytes) -> Iterable[bytes]:
    """The events, and an error in the place of all that follows where there is to be one."""
    for count, event in enumerate(events):
        if way.fails == count:
            yield error
            raise _Over
        yield event


class _Over(Exception):
    """Nothing more is said in this stream."""


# --- Anthropic's messages --------------------------------------------------------------------------------------------

_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def message_usage(reply: Reply) -> dict[str, Any]:
    fresh = reply.prompt_tokens - reply.cached_tokens
    cached = {"cache_read_input_tokens": reply.cached_tokens, "cache_creation_input_tokens": 0}
    return {"input_tokens": fresh, "output_tokens": reply.completion_tokens, **cached}


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return {}


def message_document(reply: Reply, model: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if reply.reasoning:
        content.append({"type": "thinking", "thinking": reply.reasoning, "signature": "c2lnbmVk"})
    if reply.text:
        content.append({"type": "text", "text": reply.text})
    content += [
        {"type": "tool_use", "id": _ident(t, i), "name": t.name, "input": _parsed(t.arguments)}
        for i, t in enumerate(reply.tools)
    ]
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": content}
    return {**head, "stop_reason": _STOPS[reply.end], "stop_sequence": None, "usage": message_usage(reply)}


def message_events(reply: Reply, model: str, way: Way) -> Iterable[bytes]:
    usage = message_usage(reply)
    empty = {**message_document(Reply(text=""), model), "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    events = [_event({"type": "message_start", "message": empty}), _event({"type": "ping"})]
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if reply.reasoning:
        told = [{"type": "thinking_delta", "thinking": piece} for piece in _words(reply.reasoning)]
        signed = {"type": "signature_delta", "signature": "c2lnbmVk"}
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, [*told, signed]))
    if reply.text:
        texts = [{"type": "text_delta", "text": piece} for piece in _words(reply.text)]
        blocks.append(({"type": "text", "text": ""}, texts))
    for at, tool in enumerate(reply.tools):
        start = {"type": "tool_use", "id": _ident(tool, at), "name": tool.name, "input": {}}
        pieces = [tool.arguments[i : i + 1000] for i in range(0, len(tool.arguments), 1000)]
        blocks.append((start, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]))
    for index, (start, deltas) in enumerate(blocks):
        events.append(_event({"type": "content_block_start", "index": index, "content_block": start}))
        events += [_event({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas]
        while way.endless and start["type"] == "text":
            yield from events
            more = {"type": "text_delta", "text": "and on "}
            events = [_event({"type": "content_block_delta", "index": index, "delta": more})]
        events.append(_event({"type": "content_block_stop", "index": index}))
    stop = {"stop_reason": _STOPS[reply.end], "stop_sequence": None}
    told_usage = {} if way.no_usage else {"usage": {"output_tokens": reply.completion_tokens}}
    events += [_event({"type": "message_delta", "delta": stop, **told_usage}), _event({"type": "message_stop"})]
    error = _event({"type": "error", "error": {"type": "api_error", "message": way.message}})
    yield from _failing(events, way, error)


def _event(document: dict[str, Any]) -> bytes:
    return _sse(document, str(document["type"]))


# --- OpenAI's responses ----------------------------------------------------------------------------------------------


def _items(reply: Reply) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if reply.reasoning:
        summary = [{"type": "summary_text", "text": reply.reasoning}]
        items.append({"type": "reasoning", "id": "rs_1", "summary": summary})
    if reply.text:
        part = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        items.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
    items += [
        {"type": "function_call", "id": f"fc_{i}", "call_id": _ident(t, i), "name": t.name, "arguments": t.arguments,
         "status": "completed"}
        for i, t in enumerate(reply.tools)
    ]  # fmt: skip
    return items


def response_document(reply: Reply, model: str, status: str = "") -> dict[str, Any]:
    cut = reply.end == "length"
    usage = {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"cached_tokens": reply.cached_tokens},
        "output_tokens": reply.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }
    over = status == ""
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "model": model,
        "status": status or ("incomplete" if cut else "completed"),
        "incomplete_details": {"reason": "max_output_tokens"} if cut and over else None,
        "output": _items(reply) if over else [], "error": None, "instructions": None, "metadata": {},
        "parallel_tool_calls": True, "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto", "tools": [],
        "usage": usage if over else None,
    }  # fmt: skip


def response_events(reply: Reply, model: str, way: Way) -> Iterable[bytes]:
    events: list[dict[str, Any]] = [
        {"type": f"response.{kind}", "response": response_document(reply, model, "in_progress")}
        for kind in ("created", "in_progress")
    ]
    for at, item in enumerate(_items(reply)):
        place = {"output_index": at, "item_id": item["id"]}
        begun = {**item, "status": "in_progress"}
        begun |= {"content": []} if item["type"] == "message" else {}
        begun |= {"arguments": ""} if item["type"] == "function_call" else {}
        begun |= {"summary": []} if item["type"] == "reasoning" else {}
        events.append({"type": "response.output_item.added", "output_index": at, "item": begun})
        match item["type"]:
            case "message":
                part = item["content"][0]
                where = {**place, "content_index": 0}
                events.append({"type": "response.content_part.added", **where, "part": {**part, "text": ""}})
                events += [
                    {"type": "response.output_text.delta", **where, "delta": piece, "logprobs": []}
                    for piece in _words(reply.text)
                ]
                done = {"type": "response.output_text.done", **where, "text": reply.text, "logprobs": []}
                events += [done, {"type": "response.content_part.done", **where, "part": part}]
            case "function_call":
                text = item["arguments"]
                events += [
                    {"type": "response.function_call_arguments.delta", **place, "delta": text[i : i + 1000]}
                    for i in range(0, len(text), 1000)
                ]
                events.append({"type": "response.function_call_arguments.done", **place, "arguments": text})
        events.append({"type": "response.output_item.done", "output_index": at, "item": item})
    whole = response_document(reply, model)
    events.append({"type": f"response.{whole['status']}", "response": whole})
    numbered = [_event({**event, "sequence_number": at}) for at, event in enumerate(events)]
    failed = {**response_document(reply, model, "failed"), "error": {"code": "server_error", "message": way.message}}
    error = _event({"type": "response.failed", "response": failed, "sequence_number": way.fails or 0})
    yield from _failing(numbered[:-1], way, error)
    while way.endless:
        yield _event({"type": "response.in_progress", "response": response_document(reply, model, "in_progress")})
    yield numbered[-1]
