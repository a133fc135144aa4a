"""Chat on messages: a client that speaks OpenAI chat, an upstream that speaks Anthropic messages.

PURE, sans-I/O: a `bridge.Bridge`.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.chat_answer import completion
from reconciler.dialects.chat_request import messages_request, wants_usage
from reconciler.dialects.chat_stream import ChatStream
from reconciler.dialects.kept import Kept
from reconciler.dialects.quirks import Quirks


class ChatOnMessages:
    """One exchange; raises `Unmappable` for a request that Anthropic's API cannot say."""

    def __init__(
        self,
        document: dict[str, Any],
        quirks: Quirks,
        request_id: str,
        max_tokens: int,
        *,
        created: int = 0,
        kept: Kept | None = None,
    ) -> None:
        """`max_tokens`: the limit where the caller gives none; `created`: now, in seconds since 1970.

        `request_id`: letters, digits, _ and -, unique. `kept`: where signed thinking waits for the results of tools.
        """
        self.path = "/messages"
        self.document, self.ignored = messages_request(document, quirks, max_tokens, kept)
        self._model: str = self.document["model"]
        self._request_id = request_id
        self._created = created
        self._kept = kept
        self._stream = ChatStream(self._model, request_id, created, wants_usage(document), kept)

    @property
    def failed(self) -> tuple[int, bytes] | None:
        """Status and body, where the stream failed before any content."""
        return self._stream.failed

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Chat's completion, or its error."""
        return completion(status, body, self._request_id, self._model, self._created, self._kept)

    def feed(self, data: bytes) -> bytes:
        """Chat's chunks, maybe none yet."""
        return self._stream.feed(data)

    def end(self) -> bytes:
        """The last chunks."""
        return self._stream.end()

    def broke(self, status: int, message: str) -> bytes:
        """Chat's error event."""
        return self._stream.broke(status, message)
