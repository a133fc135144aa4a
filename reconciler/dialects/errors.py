"""Errors: what went wrong, read from any provider's words and said in either dialect.

PURE. Types and statuses follow the published error tables of both APIs; Anthropic says 529 where OpenAI says 503.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any

from reconciler.dialects.text import decode, encode

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_STATUS = {name: status for table in (OPENAI_TYPES, ANTHROPIC_TYPES) for status, name in table.items()} | {
    "gateway_timeout_error": 504,
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "model_not_found": 404,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "tokens": 429,
    "requests": 429,
    # gRPC's words, as Google uses them
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_TOO_LONG = ("exceed_context_size_error", "context_length_exceeded")  # llama-server's type, OpenAI's code
_MOST = 4000  # characters of a message; some upstreams send the request back
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_HIDDEN = re.compile(r"<(script|style)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]{0,2000}>")


@dataclass(frozen=True, slots=True)
class Error:
    """`status` is HTTP's; `type` and `code` are the upstream's own words, "" and None where it gave none."""

    status: int
    type: str
    message: str
    code: str | None = None
    param: str | None = None


def openai_status(status: int) -> int:
    """The status as OpenAI's clients know it."""
    return 503 if status == 529 else status


def anthropic_status(status: int) -> int:
    """The status as Anthropic's clients know it."""
    return 529 if status == 503 else status


def openai_error(error: Error) -> bytes:
    """OpenAI's error object, as a body or as the data of an event."""
    kind = error.type if _own_word(error.type, "api_error") else _named(OPENAI_TYPES, openai_status(error.status))
    code = error.code
    if error.type in _TOO_LONG:
        kind, code = OPENAI_TYPES[400], _TOO_LONG[1]
    return encode({"error": {"message": error.message, "type": kind, "param": error.param, "code": code}})


def anthropic_error(error: Error, request_id: str = "") -> bytes:
    """Anthropic's error object, as a body or as the data of an `error` event.

    A prompt that is too long is called so in Anthropic's words, by which clients know to sum up and ask again.
    """
    kind = error.type if error.type in ANTHROPIC_TYPES.values() else ""
    kind = kind or _named(ANTHROPIC_TYPES, anthropic_status(error.status))
    too_long = error.type in _TOO_LONG or error.code in _TOO_LONG
    message = f"prompt is too long: {error.message}" if too_long else error.message
    document: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
    if request_id:
        document["request_id"] = request_id
    return encode(document)


def parse_error(status: int, body: bytes) -> Error:
    """What an upstream's error says: OpenAI's or Anthropic's object, a JSON array of one, text, HTML, or nothing.

    A `status` below 400 (an error inside a stream or a success) is replaced by what the error itself says, else 502.
    Never raises.
    """
    try:
        document = decode(body)
    except ValueError:
        return Error(_status(status, {}), "", _plain(body) or _nothing(status))
    found = error_in(document)
    if found is None:
        found = {"message": document} if isinstance(document, str) and document.strip() else {}
    return from_object(status, found)


def error_in(document: object) -> dict[str, Any] | None:
    """The error object inside an answer or a stream's event; None where it is no error."""
    if isinstance(document, list):
        return error_in(document[0]) if document and isinstance(document[0], dict) else None
    if not isinstance(document, dict):
        return None
    inner = document.get("error")
    if isinstance(inner, dict) and inner:
        return inner
    if isinstance(inner, str) and inner:
        return {**document, "message": document.get("message") or inner}
    if document.get("type") == "error" or document.get("object") == "error":
        return {key: value for key, value in document.items() if (key, value) != ("type", "error")}
    if "choices" in document or "content" in document:
        return None
    if any(isinstance(document.get(key), str) for key in ("message", "detail")):
        return document
    detail = document.get("detail")  # what FastAPI says of a request that it cannot read
    if isinstance(detail, list) and detail:
        return {"message": dumps_short(detail)}
    return None


def from_object(status: int, found: dict[str, Any]) -> Error:
    """An `Error` from the object that `error_in` found."""
    message = next((found[key] for key in ("message", "detail", "msg") if isinstance(found.get(key), str)), "")
    why = message.strip() or _nothing(status)
    status = _status(status, found)
    code = found.get("code")
    if isinstance(code, bool) or not isinstance(code, str | int):
        code = None
    param = found.get("param")
    return Error(
        status,
        _word(found.get("type")) or _word(found.get("status")),
        _short(why),
        None if code is None else _short(str(code) if isinstance(code, str) or abs(code) < 10**9 else ""),
        param if isinstance(param, str) else None,
    )


def dumps_short(value: object) -> str:
    """JSON of at most a message's length."""
    return _short(encode(value).decode())


def _own_word(kind: str, *but: str) -> bool:
    """Whether OpenAI's clients may see the type as the upstream said it."""
    if not kind or kind in but or kind.isupper():
        return False
    return kind in OPENAI_TYPES.values() or kind not in ANTHROPIC_TYPES.values()


def _named(table: dict[int, str], status: int) -> str:
    if status in table:
        return table[status]
    return table[400] if 400 <= status < 500 else table[500]


def _status(status: int, found: dict[str, Any]) -> int:
    if 400 <= status <= 599:
        return status
    for key in ("status", "code", "status_code", "type"):
        value = found.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
            return value
        if isinstance(value, str) and value in _STATUS:
            return _STATUS[value]
        if isinstance(value, str) and re.fullmatch("[45][0-9][0-9]", value):
            return int(value)
    return 502


def _word(value: object) -> str:
    return value[:100] if isinstance(value, str) else ""


def _short(message: str) -> str:
    return message if len(message) <= _MOST else message[: _MOST - 1] + "…"


def _nothing(status: int) -> str:
    return f"The upstream answered {status} without saying why" if status else "The upstream did not say why"


def _plain(body: bytes) -> str:
    """The text of a body that is no JSON; of a page, its title or what it shows."""
    text = body[: 64 * _MOST].decode("utf-8", "replace").strip()
    if text.startswith("<"):
        title = _TITLE.search(text)
        text = html.unescape(title.group(1) if title else _TAG.sub(" ", _HIDDEN.sub(" ", text)))
    return _short(" ".join(text.split()))
