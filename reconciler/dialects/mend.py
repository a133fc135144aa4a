"""Mend: what a local engine leaves open where it speaks Anthropic messages by itself.

PURE, sans-I/O. llama-server answers a request without messages, says errors in OpenAI's shape, gives messages ids of
chat completions, and says end_turn where a stop sequence ended one. Everything else passes byte for byte.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.errors import (
    anthropic_error,
    anthropic_status,
    error_in,
    from_object,
    openai_error,
    openai_status,
    parse_error,
)
from reconciler.dialects.fields import integer, mapping, sequence
from reconciler.dialects.messages_answer import SIGNATURE
from reconciler.dialects.messages_turns import without_billing
from reconciler.dialects.text import decode, encode

HELD_LIMIT = 1 << 20
"""Bytes of an event that are held until it is whole; a longer one passes unseen."""
_ID = re.compile(rb'("id"\s*:\s*")chatcmpl-')
_STOPPED = re.compile(rb'("stop_reason"\s*:\s*)"end_turn"(\s*,\s*"stop_sequence"\s*:\s*")')
_LAST = re.compile(rb"event: ?(message_stop|error)\b")
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


def check_messages(document: dict[str, Any]) -> None:
    """Raises `Unmappable` for a messages request that Anthropic refuses and a local engine does not."""
    messages = sequence(document.get("messages"), "messages")
    if not messages:
        raise Unmappable("messages", "must hold at least one message")
    for position, item in enumerate(messages):
        message = mapping(item, f"messages.{position}")
        if message.get("role") not in ("user", "assistant", "system"):
            raise Unmappable(f"messages.{position}.role", "must be user, assistant or system")
        if not isinstance(message.get("content"), str | list):
            raise Unmappable(f"messages.{position}.content", "must be a string or an array of content blocks")
    if "max_tokens" not in document:
        raise Unmappable("max_tokens", "is missing")
    integer(document["max_tokens"], "max_tokens", 0)


def for_local(document: dict[str, Any]) -> dict[str, Any]:
    """The messages request without the billing line that would spoil a local engine's prefix cache; maybe the same."""
    system = document.get("system")
    if isinstance(system, str):
        kept = without_billing(system)
        return document if kept is system or kept == system else document | {"system": kept}
    if not isinstance(system, list):
        return document
    blocks = []
    for block in system:
        text = block.get("text") if isinstance(block, dict) else None
        if isinstance(text, str) and (kept := without_billing(text)) != text:
            if kept.strip():
                blocks.append({**block, "text": kept})
        else:
            blocks.append(block)
    return document if blocks == system else document | {"system": blocks}


def for_anthropic(document: dict[str, Any]) -> dict[str, Any]:
    """The messages request without other models' thinking, whose signature Anthropic would refuse; maybe the same."""
    messages = document.get("messages")
    if not isinstance(messages, list) or not any(_unsigned(message) for message in messages):
        return document
    kept = []
    for message in messages:
        if _unsigned(message):
            message = {**message, "content": [block for block in message["content"] if not _is_unsigned(block)]}
            if not message["content"]:
                continue
        kept.append(message)
    return document | {"messages": kept}


def fix_error(
    status: int, body: bytes, dialect: Literal["openai", "anthropic"], request_id: str = ""
) -> tuple[int, bytes]:
    """Status and body of an error in the caller's dialect; one that is in its shape already stays as it is."""
    if dialect == "anthropic":
        if _is_anthropic(body):
            return anthropic_status(status), body
        error = parse_error(status, body)
        return anthropic_status(error.status), anthropic_error(error, request_id)
    if _is_openai(body):
        return openai_status(status), body
    error = parse_error(status, body)
    return openai_status(error.status), openai_error(error)


def fix_message(body: bytes) -> bytes:
    """A whole message, its id one of a message; its stop reason that of its stop sequence."""
    body = _ID.sub(rb"\1msg_", body, count=1)
    if _STOPPED.search(body) is None:
        return body
    try:
        document = decode(body)
    except ValueError:
        return body
    # The same words may stand in what a tool is called with.
    if not isinstance(document, dict) or document.get("stop_reason") != "end_turn" or not document.get("stop_sequence"):
        return body
    return encode(document | {"stop_reason": "stop_sequence"})


class FixedMessages:
    """A messages stream of a local engine, mended: feed it bytes cut anywhere.

    Only the events that start and end the message, and errors, are changed. `over` once its last event has come.
    """

    def __init__(self, request_id: str = "") -> None:
        self._request_id = request_id
        self.over = False
        self._held = b""
        self._started = False

    def feed(self, data: bytes) -> bytes:
        """Whole events at once; the beginning of one waits for its end."""
        data = self._held + data
        out: list[bytes] = []
        at = 0
        for end in _END.finditer(data):
            out.append(self._event(data[at : end.end()]))
            at = end.end()
        self._held = data[at:]
        if len(self._held) > HELD_LIMIT:
            out.append(self._held)
            self._held = b""
        return b"".join(out)

    def end(self) -> bytes:
        """What was held."""
        held, self._held = self._held, b""
        return self._event(held)

    def _event(self, data: bytes) -> bytes:
        if not self._started and b"message_start" in data:
            self._started = True
            return fix_message(data)
        if _LAST.match(data):
            self.over = True
        if data.startswith(b"event: message_delta"):
            return _STOPPED.sub(rb'\1"stop_sequence"\2', data, count=1)
        # Text that speaks of errors has its quotes escaped, so that this is not found in what a model says.
        return self._error(data) if b'"error"' in data or data.startswith(b"event: error") else data

    def _error(self, data: bytes) -> bytes:
        lines = [line.removeprefix(b"data:") for line in data.splitlines() if line.startswith(b"data:")]
        try:
            document = decode(b"\n".join(lines))
        except ValueError:
            return data
        found = error_in(document)
        if found is None or _is_anthropic_document(document):
            return data
        self.over = True
        return b"event: error\ndata: " + anthropic_error(from_object(0, found), self._request_id) + b"\n\n"


def _unsigned(message: object) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, list) and any(_is_unsigned(block) for block in content)


def _is_unsigned(block: object) -> bool:
    return (
        isinstance(block, dict) and block.get("type") == "thinking" and block.get("signature") in ("", None, SIGNATURE)
    )


def _is_anthropic(body: bytes) -> bool:
    try:
        return _is_anthropic_document(decode(body))
    except ValueError:
        return False


def _is_anthropic_document(document: object) -> bool:
    inner = document.get("error") if isinstance(document, dict) else None
    return (
        isinstance(document, dict)
        and document.get("type") == "error"
        and isinstance(inner, dict)
        and isinstance(inner.get("type"), str)
        and isinstance(inner.get("message"), str)
    )


def _is_openai(body: bytes) -> bool:
    try:
        document = decode(body)
    except ValueError:
        return False
    inner = document.get("error") if isinstance(document, dict) and "type" not in document else None
    return isinstance(inner, dict) and isinstance(inner.get("message"), str) and isinstance(inner.get("type"), str)
