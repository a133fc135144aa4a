"""Chat stream: Anthropic's events in, chat's chunks out.

PURE, sans-I/O. Blocks come one after the other, so each piece can be told at once; tool calls are counted by
themselves, since chat's index is that of the call, not of the block. Nothing is told before there is content:
until then the answer may still come from somebody else. Kinds of events, blocks and deltas that nobody here knows are
passed over.

The provider's stream is over at message_stop, or when its body ends after a stop_reason. Everything else is an error.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.chat_answer import finish_reason, keep, refusal, usage
from reconciler.dialects.errors import Error, error_in, from_object, openai_error
from reconciler.dialects.kept import Kept
from reconciler.dialects.sse import Event
from reconciler.dialects.stream import Broken, Stream, nonsense
from reconciler.dialects.text import decode, dumps, encode

KEPT_LIMIT = 4 << 20
"""Characters of thinking that are kept to be sent back; longer thinking is told, but not kept."""
ARGUED_LIMIT = 16 << 20
"""Characters of arguments that are kept, to see whether they are JSON."""
_CALL_SIZE = 256
_PING = b": ping\n\n"


class _Call:
    """A tool call under way: chat's index, what its block began with, and the arguments that came."""

    __slots__ = ("arguments", "index", "input", "name")

    def __init__(self, index: int, name: str, given: dict[str, Any]) -> None:
        self.index = index
        self.name = name
        self.input = given
        self.arguments: list[str] = []

    def whole(self) -> bool:
        """Whether the arguments are a JSON object."""
        try:
            return isinstance(decode("".join(self.arguments)), dict)
        except ValueError:
            return False


class ChatStream(Stream):
    """Feed it a messages stream; see `bridge.Bridge` for `failed`, `feed`, `end` and `broke`."""

    def __init__(self, model: str, request_id: str, created: int, counted: bool, kept: Kept | None) -> None:
        """`created` in seconds since 1970; `counted`: whether the caller asked for usage."""
        super().__init__()
        head = {"id": f"chatcmpl-{request_id}", "object": "chat.completion.chunk", "created": created, "model": model}
        self._head = b"data: " + encode(head)[:-1]
        self._counted = counted
        self._kept = kept
        self._open: dict[object, _Call] = {}
        self._other: set[object] = set()  # blocks under way that chat has no word for
        self._idents: dict[str, None] = {}  # of tool calls, in order
        self._cut = ""  # a call whose arguments are no JSON object
        self._argued = 0
        self._thinking: list[dict[str, Any]] = []
        self._thought = 0
        self._stop: str | None = None
        self._usage: dict[str, Any] = {}

    def _refusal(self, error: Error) -> tuple[int, bytes]:
        return refusal(error)

    def _error_event(self, error: Error) -> bytes:
        return b"data: " + openai_error(error) + b"\n\n"

    def _event(self, one: Event, out: list[bytes]) -> None:
        try:
            document = decode(one.data)
        except ValueError as error:
            if one.name == "ping":
                return
            raise nonsense(f"The provider's stream holds an event that is not JSON: {error}") from None
        if not isinstance(document, dict):
            found = error_in(document)
            message = "The provider's stream holds an event that is not an object"
            raise Broken(Error(502, "", message) if found is None else from_object(0, found))
        kind = document.get("type") or one.name
        match kind:
            case "content_block_delta":
                self._delta(document, out)
            case "content_block_start":
                self._start(document, out)
            case "content_block_stop":
                self._settle(document.get("index"), out)
            case "message_start":
                begun = document.get("message")
                self._count(begun.get("usage") if isinstance(begun, dict) else None)
            case "message_delta":
                self._count(document.get("usage"))
                delta = document.get("delta")
                stop = delta.get("stop_reason") if isinstance(delta, dict) else None
                if isinstance(stop, str) and stop:
                    self._stop = stop
            case "message_stop":
                self._close(out)
            case "ping":
                if self._begun:
                    out.append(_PING)
            case _:
                found = error_in(document)
                if found is None and one.name == "error":
                    found = document
                if found is not None:
                    raise Broken(from_object(0, found))

    def _count(self, said: object) -> None:
        """What is said later counts; a field that is left out stays."""
        if isinstance(said, dict):
            self._usage |= {key: value for key, value in said.items() if value is not None}

    def _start(self, document: dict[str, Any], out: list[bytes]) -> None:
        block = document.get("content_block")
        if not isinstance(block, dict):
            return
        match block.get("type"):
            case "text":
                self._say(b"content", block.get("text"), out)
            case "thinking":
                self._thinking.append({"type": "thinking", "thinking": "", "signature": ""})
                self._think(block, out)
            case "redacted_thinking":
                self._keep(block.get("data"))
                self._thinking.append(block)
            case "tool_use":
                self._call(document.get("index"), block, out)
            case _ if _hashable(index := document.get("index")):
                self._other.add(index)

    def _call(self, index: object, block: dict[str, Any], out: list[bytes]) -> None:
        ident, name, given = block.get("id"), block.get("name"), block.get("input")
        if not (isinstance(ident, str) and ident and isinstance(name, str) and name and _hashable(index)):
            raise nonsense("The provider's stream holds a tool call without id or name")
        if ident in self._idents:
            raise nonsense("The provider's stream holds two tool calls with one id")
        self._settle(index, out)
        call = _Call(len(self._idents), name, given if isinstance(given, dict) else {})
        self._open[index] = call
        self._idents[ident] = None
        self._argue_more(_CALL_SIZE)
        function = {"name": name, "arguments": ""}
        said = {"index": call.index, "id": ident, "type": "function", "function": function}
        self._chunk({"tool_calls": [said]}, out)

    def _delta(self, document: dict[str, Any], out: list[bytes]) -> None:
        delta = document.get("delta")
        if not isinstance(delta, dict):
            return
        match delta.get("type"):
            case "text_delta":
                self._say(b"content", delta.get("text"), out)
            case "thinking_delta" | "signature_delta":
                self._think(delta, out)
            case "input_json_delta":
                self._argue(document.get("index"), delta.get("partial_json"), out)

    def _argue(self, index: object, piece: object, out: list[bytes]) -> None:
        call = self._open.get(index) if _hashable(index) else None
        if not isinstance(piece, str) or not piece:
            return
        if call is None:
            if index in self._other:
                return
            raise nonsense("The provider's stream holds arguments of a tool call that never began")
        self._argue_more(len(piece))
        call.arguments.append(piece)
        self._arguments(call, encode(piece), out)

    def _argue_more(self, size: int) -> None:
        self._argued += size
        if self._argued > ARGUED_LIMIT:
            raise nonsense(f"The provider's tool calls are longer than {ARGUED_LIMIT} characters")

    def _arguments(self, call: _Call, piece: bytes, out: list[bytes]) -> None:
        out.append(
            b'%b,"choices":[{"index":0,"delta":{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]},'
            b'"logprobs":null,"finish_reason":null}]}\n\n' % (self._head, call.index, piece)
        )

    def _settle(self, index: object, out: list[bytes]) -> None:
        """A call whose arguments came with its beginning, or that has none, still tells them."""
        if not _hashable(index):
            return
        self._other.discard(index)
        call = self._open.pop(index, None)
        if call is None:
            return
        if call.arguments:
            self._cut = self._cut or ("" if call.whole() else call.name)
            return
        try:
            self._arguments(call, encode(dumps(call.input)), out)
        except ValueError as error:
            raise nonsense(f"The provider's tool call cannot be read: {error}") from None

    def _think(self, said: dict[str, Any], out: list[bytes]) -> None:
        text, signature = said.get("thinking"), said.get("signature")
        if self._kept is not None:
            if not self._thinking:
                self._thinking.append({"type": "thinking", "thinking": "", "signature": ""})
            for key, piece in (("thinking", text), ("signature", signature)):
                if isinstance(piece, str) and piece and self._keep(piece):
                    block = self._thinking[-1]
                    block[key] = block.get(key, "") + piece
        self._say(b"reasoning_content", text, out)

    def _keep(self, piece: object) -> bool:
        self._thought += len(piece) if isinstance(piece, str) else 0
        return self._thought <= KEPT_LIMIT

    def _say(self, field: bytes, text: object, out: list[bytes]) -> None:
        if not isinstance(text, str) or not text:
            return
        if not self._begun:
            self._begin(out)
        out.append(
            b'%b,"choices":[{"index":0,"delta":{"%b":%b},"logprobs":null,"finish_reason":null}]}\n\n'
            % (self._head, field, encode(text))
        )

    def _chunk(self, delta: dict[str, Any], out: list[bytes], finish: str | None = None) -> None:
        if not self._begun:
            self._begin(out)
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        out.append(b'%b,"choices":[%b]}\n\n' % (self._head, encode(choice)))

    def _begin(self, out: list[bytes]) -> None:
        self._begun = True
        self._chunk({"role": "assistant", "content": ""}, out)

    def _close(self, out: list[bytes]) -> None:
        """The provider's stream is over: tell the rest, and the end."""
        if self._stop is None:
            raise nonsense("The provider ended the stream before it had finished its answer")
        for index in list(self._open):
            self._settle(index, out)
        finish = finish_reason(self._stop, bool(self._idents))
        if self._cut and finish != "length":
            message = f"The arguments of the tool call {self._cut[:100]} are not a JSON object"
            raise nonsense(message)
        self._chunk({}, out, finish)
        if self._counted:
            out.append(b'%b,"choices":[],"usage":%b}\n\n' % (self._head, encode(usage(self._usage))))
        out.append(b"data: [DONE]\n\n")
        self._over = True
        if self._idents and self._thought <= KEPT_LIMIT:
            keep(self._kept, next(iter(self._idents)), self._thinking)


def _hashable(index: object) -> bool:
    return index is None or isinstance(index, int | str | float)
