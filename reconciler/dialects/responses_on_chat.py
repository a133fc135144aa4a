"""A caller that speaks responses, and an upstream that speaks chat completions.

PURE. A whole answer is told by the same code as a stream, so both come to the same response. Conversations are kept
by somebody else: `history` and `referred` are handed in, `items` and `answer` are what there is to keep.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.errors import Error, error_in, from_object, openai_error, openai_status, parse_error
from reconciler.dialects.quirks import Quirks
from reconciler.dialects.responses_items import Item
from reconciler.dialects.responses_request import asked, references
from reconciler.dialects.responses_stream import Listening, Wrong
from reconciler.dialects.responses_tell import Telling
from reconciler.dialects.sse import Event, Events, TooLong
from reconciler.dialects.text import decode, encode

__all__ = ["ResponsesOnChat", "Unmappable", "references"]

_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_\-]")
_BROKEN = 502


class ResponsesOnChat:
    """One exchange; a `Bridge`.

    `request_id` must be unlike any other: the ids of the response and of its items are made of it. `history` is the
    conversation that previous_response_id names, oldest item first, and None where it is not known. `referred` are
    kept items by id, for those that `references(document)` names. `clock` gives Unix times; without it `created_at`
    is the upstream's and `completed_at` null. With `drop_built_in`, built-in tools (web_search …) are left out and
    named in `ignored` rather than refused, unless the request insists on one. Raises `Unmappable`.
    """

    path = "/chat/completions"

    def __init__(
        self,
        document: dict[str, Any],
        quirks: Quirks,
        request_id: str,
        history: list[Item] | None = None,
        *,
        referred: Mapping[str, Item] | None = None,
        clock: Callable[[], float] | None = None,
        drop_built_in: bool = False,
    ) -> None:
        ident = _NOT_IN_IDS.sub("", request_id)
        self._asked = asked(document, quirks, ident, history, referred or {}, drop_built_in=drop_built_in)
        self.document = self._asked.document
        self.ignored = self._asked.ignored
        self.failed: tuple[int, bytes] | None = None
        self.items = self._asked.items
        """The request's own input items, as they are to be kept."""
        self.store = self._asked.store
        """Whether the caller lets the answer be kept."""
        self.previous: str | None = self._asked.echo["previous_response_id"]
        """The response that this one goes on from."""
        self._telling = Telling(self._asked, ident, document.get("model"), clock)
        self._listening = Listening(self._telling, with_logprobs=self._asked.with_logprobs, own_times=clock is not None)
        self._events = Events()

    @property
    def answer(self) -> dict[str, Any] | None:
        """The Response object once it is over, also incomplete or failed; None before."""
        return self._telling.response if self._telling.over else None

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """As `Bridge`."""
        if status >= 400:
            return self._refused(parse_error(status, body))
        try:
            document = decode(body)
        except ValueError:
            return self._refused(Error(_BROKEN, "", "the upstream's answer is not JSON"))
        if not isinstance(document, dict) or not isinstance(document.get("choices"), list) or not document["choices"]:
            if error_in(document) is not None:
                return self._refused(parse_error(status, body))
            return self._refused(Error(_BROKEN, "", "the upstream's answer has no choices"))
        try:
            self._listening.chunk(_as_chunk(document))
            self._listening.finish()
        except Wrong as wrong:
            return self._refused(Error(_BROKEN, "", str(wrong)))
        self._telling.take()
        return 200, encode(self._telling.response)

    def feed(self, data: bytes) -> bytes:
        """As `Bridge`."""
        if self._over:
            return b""
        try:
            events, error = self._events.feed(data), None
        except TooLong as long:
            events, error = long.events, Error(_BROKEN, "", str(long))
        for event in events:
            if self._over:
                break
            self._event(event)
        if error is not None:
            self._fail(error)
        return self._telling.take()

    def end(self) -> bytes:
        """As `Bridge`."""
        said = b""
        if not self._over:
            try:
                for event in self._events.finish():
                    self._event(event)
            except TooLong as long:
                self._fail(Error(_BROKEN, "", str(long)))
            said = self._telling.take()
        if self.failed is None and not self._telling.over:
            self._finish()
            said += self._telling.take()
        if self.failed is not None and not self._telling.over:
            status, body = self.failed
            self._telling.fail(parse_error(status, body))
        return said + self._telling.take()

    def broke(self, status: int, message: str) -> bytes:
        """As `Bridge`."""
        if not self._telling.over:
            self._telling.fail(Error(status, "", message))
        return self._telling.take()

    @property
    def _over(self) -> bool:
        return self._telling.over or self.failed is not None

    def _event(self, event: Event) -> None:
        if event.data.strip() == "[DONE]":
            self._finish()
            return
        try:
            document = decode(event.data)
        except ValueError:
            self._fail(Error(_BROKEN, "", "the upstream's stream holds what is not JSON"))
            return
        found = error_in(document) if event.name == "error" or not _is_chunk(document) else None
        if found is not None:
            self._fail(from_object(0, found))
        elif event.name == "error":
            self._fail(parse_error(0, event.data.encode("utf-8", "replace")))
        elif isinstance(document, dict):
            try:
                self._listening.chunk(document)
            except Wrong as wrong:
                self._fail(Error(_BROKEN, "", str(wrong)))

    def _finish(self) -> None:
        try:
            self._listening.finish()
        except Wrong as wrong:
            self._fail(Error(_BROKEN, "", str(wrong)))

    def _fail(self, error: Error) -> None:
        if self._telling.begun:
            self._telling.fail(error)
        else:
            self.failed = self._refused(error)

    def _refused(self, error: Error) -> tuple[int, bytes]:
        return openai_status(error.status), openai_error(error)


def _is_chunk(document: object) -> bool:
    return isinstance(document, dict) and "choices" in document and not document.get("error")


def _as_chunk(document: dict[str, Any]) -> dict[str, Any]:
    """A whole answer as a chunk: each call is one of its own, and an answer that does not say why it ended is over."""
    choices = []
    for choice in document["choices"]:
        if not isinstance(choice, dict):
            continue
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            numbered = [{**call, "index": index} for index, call in enumerate(calls) if isinstance(call, dict)]
            message = {**message, "tool_calls": numbered}
        choices.append({**choice, "delta": message, "finish_reason": choice.get("finish_reason") or "stop"})
    return {**document, "choices": choices}
