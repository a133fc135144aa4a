"""Messages stream: chat's chunks in, Anthropic's events out.

PURE, sans-I/O. Chat names several tool calls at once and says things in any order; Anthropic tells one content block
after the other, each begun, filled and stopped, from index 0. So what is said queues up as blocks, and only the
head of the queue is told:

- text and thinking are told as they come, and are over when something else begins;
- a tool call is begun once its id and name are known, and is over when something else waits behind it and
  its arguments are a whole JSON object, or when the provider has finished;
- nothing at all is told before the first block can begin: until then the answer may still come from somebody else.

The provider's stream is over at [DONE], or when its body ends after a finish_reason. Everything else is an error.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from reconciler.dialects.errors import Error, anthropic_error, error_in, from_object
from reconciler.dialects.messages_answer import (
    SIGNATURE,
    Calls,
    arguments,
    refusal,
    said,
    signature,
    stop_reason,
    stopped_by,
    usage,
)
from reconciler.dialects.sse import EVENT_LIMIT, Event, event
from reconciler.dialects.stream import DONE, Broken, Stream, nonsense
from reconciler.dialects.text import decode, encode

KEPT_LIMIT = EVENT_LIMIT
"""Characters of arguments, and of what waits behind them, that are kept."""
_CALL_SIZE = 256
_READ_OFTEN = 4096  # characters
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}\n\n'
)
_KINDS = {
    "text": (b"text_delta", b"text"),
    "thinking": (b"thinking_delta", b"thinking"),
    "tool": (b"input_json_delta", b"partial_json"),
}
_CUT = ("max_tokens", "model_context_window_exceeded")


class _Block:
    """One content block: `pending` is not told yet; of a tool call `arguments` is all that came."""

    __slots__ = ("again", "arguments", "ident", "kind", "name", "open", "over", "pending", "signature", "size")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.open = False
        self.over = False
        self.pending: list[str] = []
        self.arguments: list[str] = []
        self.size = 0
        self.again = 0
        self.ident = ""
        self.name = ""
        self.signature = ""

    def add(self, piece: str) -> None:
        """Take a piece of the arguments."""
        self.arguments.append(piece)
        self.pending.append(piece)
        self.size += len(piece)

    def whole(self, *, last: bool = False) -> bool:
        """Whether the arguments are a JSON object; long ones are not read after each piece, but for the `last` time."""
        if not self.arguments or not self.arguments[-1].rstrip().endswith("}"):
            return False
        if self.size < self.again and not last:
            return False
        try:
            return isinstance(decode("".join(self.arguments)), dict)
        except ValueError:
            self.again = self.size + 1 + (self.size // 4 if self.size > _READ_OFTEN else 0)
            return False


class MessageStream(Stream):
    """Feed it a chat stream; see `bridge.Bridge` for `failed`, `feed`, `end` and `broke`."""

    def __init__(self, model: str, request_id: str, stops: tuple[str, ...], thinking: bool) -> None:
        """`stops`: the stop sequences that were asked for; `thinking`: whether the caller takes thinking."""
        super().__init__()
        self._model = model
        self._request_id = request_id
        self._stops = stops
        self._thinking = thinking
        self._queue: deque[_Block] = deque()
        self._by_key: dict[object, _Block] = {}
        self._last: _Block | None = None  # the tool call that was spoken of last
        self._calls = Calls(request_id)
        self._index = 0
        self._kept = 0
        self._finish: str | None = None
        self._matched: str | None = None
        self._refused = False
        self._usage: dict[str, Any] = {}

    def _refusal(self, error: Error) -> tuple[int, bytes]:
        return refusal(error, self._request_id)

    def _error_event(self, error: Error) -> bytes:
        return b"event: error\ndata: " + anthropic_error(error, self._request_id) + b"\n\n"

    def _event(self, one: Event, out: list[bytes]) -> None:
        if one.data.strip() == DONE:
            self._close(out)
            return
        try:
            document = decode(one.data)
        except ValueError as error:
            raise nonsense(f"The provider's stream holds an event that is not JSON: {error}") from None
        found = error_in(document)
        if found is None and one.name == "error":
            found = document if isinstance(document, dict) else {}
        if found is not None:
            raise Broken(from_object(0, found))
        if not isinstance(document, dict):
            raise nonsense("The provider's stream holds an event that is not an object")
        counted = document.get("usage")
        if not counted and isinstance(groq := document.get("x_groq"), dict):
            counted = groq.get("usage")
        if isinstance(counted, dict) and counted:
            self._usage = counted
        choices = document.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and not choice.get("index"):
                self._choice(choice, out)

    def _choice(self, choice: dict[str, Any], out: list[bytes]) -> None:
        delta = choice.get("delta") or choice.get("message")
        if isinstance(delta, dict):
            for kind, text in said(delta):
                self._say(kind, text, out)
            if isinstance(refused := delta.get("refusal"), str) and refused:
                self._refused = True
                self._say("text", refused, out)
            calls = delta.get("tool_calls")
            for call in calls if isinstance(calls, list) else ():
                if isinstance(call, dict):
                    self._call(call, out)
            if isinstance(function := delta.get("function_call"), dict):
                self._call({"index": 0, "function": function}, out)
        finish = choice.get("finish_reason")
        if finish == "error":
            raise nonsense("The provider ended the stream with an error that it did not name")
        if isinstance(finish, str) and finish:
            self._finish = finish
            self._matched = stopped_by(choice, self._stops)

    def _say(self, kind: str, text: str, out: list[bytes]) -> None:
        if kind == "thinking" and not self._thinking:
            return
        if not self._queue or self._queue[-1].kind != kind:
            self._queue.append(_Block(kind))
        self._queue[-1].pending.append(text)
        if len(self._queue) > 1:
            self._keep(len(text))
        self._flush(out)

    def _keep(self, size: int) -> None:
        self._kept += size
        if self._kept > KEPT_LIMIT:
            raise nonsense(f"The provider's tool calls are longer than {KEPT_LIMIT} characters")

    def _call(self, call: dict[str, Any], out: list[bytes]) -> None:
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        name, ident = _word(function.get("name")), _word(call.get("id"))
        block = self._block(call.get("index"), ident, name)
        block.ident = block.ident or ident
        block.name = block.name or name
        block.signature = block.signature or signature(call)
        try:
            piece = arguments(function)
        except ValueError:
            raise nonsense("The provider's tool call cannot be said as JSON") from None
        if piece and block.over:
            if piece.strip():
                raise nonsense("The provider's tool call goes on after its arguments were whole")
        elif piece:
            self._keep(len(piece))
            block.add(piece)
        self._flush(out)

    def _block(self, index: object, ident: str, name: str) -> _Block:
        """The call that is spoken of: by its index; without one by its id, else the one before."""
        key = index if isinstance(index, int) and not isinstance(index, bool) else None
        if key is not None:
            known = self._by_key.get(key)
            if known is not None and ident and name and known.ident and ident != known.ident:
                known = None  # another call under an index that was used already
        elif ident:
            known = next((block for block in self._by_key.values() if block.ident == ident), None)
            if known is None and not name:
                known = self._last
        else:
            known = self._last
            if known is not None and name and (known.name != name or known.whole()):
                known = None
        if known is None:
            self._keep(_CALL_SIZE)
            known = _Block("tool")
            self._queue.append(known)
            self._by_key[("other", len(self._by_key)) if key is None else key] = known
        self._last = known
        return known

    def _flush(self, out: list[bytes], *, finishing: bool = False, cut: bool = False) -> None:
        """Tell the head of the queue, and what follows where the head is over."""
        queue = self._queue
        while queue:
            head = queue[0]
            alone = len(queue) == 1 and not finishing
            if not head.open and not self._open(head, alone, finishing, out):
                return
            if head.pending:
                kind, field = _KINDS[head.kind]
                text = head.pending[0] if len(head.pending) == 1 else "".join(head.pending)
                out.append(_DELTA % (self._index, kind, field, encode(text)))
                head.pending.clear()
            if alone or (head.kind == "tool" and not self._settled(head, finishing, cut, out)):
                return
            self._stop(head, out)
            head.over = True
            queue.popleft()

    def _settled(self, block: _Block, finishing: bool, cut: bool, out: list[bytes]) -> bool:
        """Whether a tool call is over. Raises `Broken` where it never will be."""
        if block.whole(last=finishing):
            return True
        if not finishing:
            return False
        if not "".join(block.arguments).strip():
            out.append(_DELTA % (self._index, *_KINDS["tool"], b'"{}"'))
        elif not cut:
            message = f"The arguments of the tool call {block.name[:100]} are not a JSON object"
            raise nonsense(message)
        return True

    def _open(self, block: _Block, alone: bool, finishing: bool, out: list[bytes]) -> bool:
        """Begin a block; False where it cannot begin yet."""
        content: dict[str, Any]
        if block.kind == "tool":
            if not block.name and finishing:
                raise nonsense("The provider's stream holds a tool call without a name")
            if not block.name or not (block.ident or finishing or (not alone and block.whole())):
                return False
            ident = self._calls.ident(block.ident, block.signature)
            content = {"type": "tool_use", "id": ident, "name": block.name, "input": {}}
        elif block.kind == "thinking":
            content = {"type": "thinking", "thinking": "", "signature": ""}
        else:
            content = {"type": "text", "text": ""}
        if not self._begun:
            self._begin(out)
        block.open = True
        start = {"type": "content_block_start", "index": self._index, "content_block": content}
        out.append(event("content_block_start", start))
        return True

    def _stop(self, block: _Block, out: list[bytes]) -> None:
        if block.kind == "thinking":
            out.append(_DELTA % (self._index, b"signature_delta", b"signature", encode(SIGNATURE)))
        out.append(event("content_block_stop", {"type": "content_block_stop", "index": self._index}))
        self._index += 1

    def _begin(self, out: list[bytes]) -> None:
        self._begun = True
        message: dict[str, Any] = {
            "id": f"msg_{self._request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(self._usage) | {"output_tokens": 0},
        }
        out.append(event("message_start", {"type": "message_start", "message": message}))
        out.append(event("ping", {"type": "ping"}))

    def _close(self, out: list[bytes]) -> None:
        """The provider's stream is over: tell the rest, and the end."""
        if self._finish is None:
            raise nonsense("The provider ended the stream before it had finished its answer")
        self._flush(out, finishing=True, cut=stop_reason(self._finish, False, False) in _CUT)
        if not self._begun:
            self._begin(out)
        reason = stop_reason(self._finish, self._calls.any, self._refused)
        matched = self._matched if reason == "end_turn" else None
        delta = {"stop_reason": "stop_sequence" if matched else reason, "stop_sequence": matched}
        out.append(event("message_delta", {"type": "message_delta", "delta": delta, "usage": usage(self._usage)}))
        out.append(event("message_stop", {"type": "message_stop"}))
        self._over = True


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""
