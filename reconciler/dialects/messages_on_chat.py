"""Messages on chat: a client that speaks Anthropic messages, an upstream that speaks OpenAI chat.

PURE, sans-I/O: a `bridge.Bridge`.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.errors import Error, parse_error
from reconciler.dialects.messages_answer import message, refusal
from reconciler.dialects.messages_request import chat_request, count_on_chat, shows_thinking
from reconciler.dialects.messages_stream import MessageStream
from reconciler.dialects.quirks import Quirks
from reconciler.dialects.text import decode, encode

__all__ = ["MessagesOnChat", "count_on_chat", "counted"]


class MessagesOnChat:
    """One exchange; raises `Unmappable` for a request that chat cannot say."""

    def __init__(self, document: dict[str, Any], quirks: Quirks, request_id: str) -> None:
        """`document`: the caller's request; `request_id`: letters, digits, _ and -, unique; ids are made from it."""
        self.path = "/chat/completions"
        self.document, self.ignored = chat_request(document, quirks)
        self._model: str = self.document["model"]
        self._request_id = request_id
        self._stops = tuple(self.document.get("stop", ()))
        self._thinking = shows_thinking(document)
        self._stream = MessageStream(self._model, request_id, self._stops, self._thinking)

    @property
    def failed(self) -> tuple[int, bytes] | None:
        """Status and body, where the stream failed before any content."""
        return self._stream.failed

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Anthropic's message, or its error."""
        return message(status, body, self._request_id, self._model, self._stops, self._thinking)

    def feed(self, data: bytes) -> bytes:
        """Anthropic's events, maybe none yet."""
        return self._stream.feed(data)

    def end(self) -> bytes:
        """The last events."""
        return self._stream.end()

    def broke(self, status: int, message: str) -> bytes:
        """Anthropic's error event."""
        return self._stream.broke(status, message)


def counted(status: int, body: bytes, request_id: str = "") -> tuple[int, bytes]:
    """Anthropic's count_tokens answer from a count of llama-server's.

    Reads `input_tokens` (chat/completions/input_tokens) or the length of `tokens` (tokenize).
    """
    if not 200 <= status < 300:
        return refusal(parse_error(status, body), request_id)
    try:
        said = decode(body)
    except ValueError:
        said = None
    tokens = said.get("input_tokens", said.get("tokens")) if isinstance(said, dict) else None
    count = len(tokens) if isinstance(tokens, list) else tokens
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        return refusal(Error(502, "", "The engine's count of tokens cannot be read"), request_id)
    return 200, encode({"input_tokens": count})
