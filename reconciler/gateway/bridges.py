"""Bridges: which translator an exchange needs, if any.

A target that speaks the client's dialect is spoken to in it, byte for byte; a llama-server's answers are mended on
their way where they are not what the dialect says. Which of the two it is, and what is remembered from one exchange to
the next, is decided here; the translators know nothing of targets.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from reconciler.dialects.bridge import Bridge, Unmappable
from reconciler.dialects.chat_fit import fit_chat
from reconciler.dialects.chat_on_messages import ChatOnMessages
from reconciler.dialects.compose import Composed
from reconciler.dialects.errors import Error, anthropic_error
from reconciler.dialects.kept import Kept
from reconciler.dialects.mend import FixedMessages, check_messages, fix_error, fix_message, for_anthropic, for_local
from reconciler.dialects.messages_on_chat import MessagesOnChat
from reconciler.dialects.responses_fix import ResponsesFix
from reconciler.dialects.responses_native import fits
from reconciler.dialects.responses_on_chat import ResponsesOnChat
from reconciler.gateway import errors
from reconciler.gateway.operations import Operation
from reconciler.gateway.routes import Target

MOST_TOKENS = 4096  # of an answer where Anthropic's API wants a limit and the client gives none

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is known from earlier exchanges: signed thinking, and of a responses request what it goes on from."""

    kept: Kept
    history: list[Item] | None = None
    referred: Mapping[str, Item] = field(default_factory=dict)


class Way(NamedTuple):
    """How a target is asked: in which API, by which operation, with which document, translated or mended by whom."""

    api: str
    path: str
    document: dict[str, Any]
    bridge: Bridge | None
    ignored: tuple[str, ...] = ()


def way(
    operation: Operation,
    document: dict[str, Any],
    target: Target,
    remembered: Remembered,
    request_id: str,
    context: int | None,
) -> Way:
    """Raises `Unmappable` for a field that cannot be said to the target, `Refusal` where it offers no such thing.

    The document is the very same object where nothing is to be changed.
    """
    if operation.api in target.speaks:
        return _straight(operation, document, target, remembered, request_id, context)
    made = _translated(operation, document, target, remembered, request_id)
    api = "anthropic" if made.path == "/messages" else "openai"
    return Way(api, made.path, made.document, made, made.ignored)


def error(status: int, body: bytes, dialect: Literal["openai", "anthropic"], request_id: str) -> tuple[int, bytes]:
    """A target's error as the client's dialect tells it; the same bytes where they are that already."""
    return fix_error(status, body, dialect, request_id)


def _straight(
    operation: Operation,
    document: dict[str, Any],
    target: Target,
    remembered: Remembered,
    request_id: str,
    context: int | None,
) -> Way:
    local = not target.provider
    if local and operation.path == "/responses":
        made = _responses(document, target, remembered, request_id, context)
        return Way("responses", made.path, made.document, made, made.ignored)
    if operation.path == "/chat/completions" and not local:
        fitted, ignored = fit_chat(document, target.quirks)
        return Way("openai", operation.forwarded, fitted, None, ignored)
    if operation.api != "anthropic":
        return Way(operation.api, operation.forwarded, document, None)
    if not local:
        return Way("anthropic", operation.forwarded, for_anthropic(document), None)
    if operation.path == "/messages":
        check_messages(document)
        return Way("anthropic", operation.forwarded, for_local(document), MendedMessages(document, request_id))
    return Way("anthropic", operation.forwarded, for_local(document), None)


def _responses(
    document: dict[str, Any], target: Target, remembered: Remembered, request_id: str, context: int | None
) -> ResponsesFix | ResponsesOnChat:
    """A llama-server answers them itself where it does all that is asked."""
    if fits(document):
        return ResponsesFix(
            document, request_id, remembered.history, referred=remembered.referred, context=context, clock=time.time
        )
    return _responses_on_chat(document, target, remembered, request_id)


def _responses_on_chat(
    document: dict[str, Any], target: Target, remembered: Remembered, request_id: str
) -> ResponsesOnChat:
    return ResponsesOnChat(
        document,
        target.quirks,
        request_id,
        remembered.history,
        referred=remembered.referred,
        clock=time.time,
        drop_built_in=True,  # some clients offer one with every request
    )


def _translated(
    operation: Operation, document: dict[str, Any], target: Target, remembered: Remembered, request_id: str
) -> Bridge:
    on_messages = "openai" not in target.speaks
    match operation.path:
        case "/messages" if not on_messages:
            return MessagesOnChat(document, target.quirks, request_id)
        case "/chat/completions" if on_messages:
            return _chat_on_messages(document, target, remembered, request_id)
        case "/responses":
            first = _responses_on_chat(document, target, remembered, request_id)
            if not on_messages:
                return first
            return Composed(first, _chat_on_messages(first.document, target, remembered, request_id))
    raise errors.cannot_do(target.label, operation.path)


def _chat_on_messages(
    document: dict[str, Any], target: Target, remembered: Remembered, request_id: str
) -> ChatOnMessages:
    now = int(time.time())
    return ChatOnMessages(document, target.quirks, request_id, MOST_TOKENS, created=now, kept=remembered.kept)


class MendedMessages:
    """A `Bridge` to a llama-server that speaks messages itself: ids and errors become those of the dialect."""

    path = "/messages"

    def __init__(self, document: dict[str, Any], request_id: str) -> None:
        self.document = document
        self.ignored: tuple[str, ...] = ()
        self.failed: tuple[int, bytes] | None = None
        self._request_id = request_id
        self._stream = FixedMessages(request_id)
        self._said = False
        self._closed = True  # whether what was said last is a whole event

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """As `Bridge`."""
        return error(status, body, "anthropic", self._request_id) if status >= 400 else (status, fix_message(body))

    def feed(self, data: bytes) -> bytes:
        """As `Bridge`."""
        said = self._stream.feed(data)
        if said:
            self._said = True
            self._closed = said.endswith((b"\n\n", b"\n\r\n"))
        return said

    def end(self) -> bytes:
        """As `Bridge`."""
        said = self._stream.end()
        if self._stream.over:
            return said
        return self.broke(502, "the stream ended before the answer did") if self._said else b""

    def broke(self, status: int, message: str) -> bytes:
        """As `Bridge`."""
        if self._stream.over:
            return b""
        told = anthropic_error(Error(status, "", message), self._request_id)
        return b"%bevent: error\ndata: %b\n\n" % (b"" if self._closed else b"\n\n", told)


__all__ = ["MendedMessages", "Remembered", "Unmappable", "Way", "error", "way"]
