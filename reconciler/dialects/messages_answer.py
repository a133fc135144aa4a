"""Messages answer: what a chat provider said, in Anthropic's words.

PURE. Shared by whole answers and streams: why it ended, what it cost, how tool calls are called.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.errors import Error, anthropic_error, anthropic_status, error_in, from_object, parse_error
from reconciler.dialects.ids import pack
from reconciler.dialects.text import decode, dumps, encode

SIGNATURE = "unsigned"
"""Of thinking that no Anthropic model did: a client that keeps it cannot take it for one of theirs."""
_STOPS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "max_tokens": "max_tokens",
    "MAX_TOKENS": "max_tokens",
    "model_length": "model_context_window_exceeded",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
    "SAFETY": "refusal",
}


class Calls:
    """Names tool calls: each id once, and never none."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._seen: set[str] = set()

    def ident(self, said: str, signature: str) -> str:
        """The id for the caller, from what the provider said."""
        number = len(self._seen)
        said = said or f"call_{self._request_id}_{number}"
        if said in self._seen:
            said = f"{said}_{number}"
        self._seen.add(said)
        return pack(said, signature)

    @property
    def any(self) -> bool:
        """Whether there was one."""
        return bool(self._seen)


def stop_reason(finish: object, called: bool, refused: bool) -> str:
    """Anthropic's reason; a tool call that is there counts for more than what the provider calls a plain end."""
    reason = _STOPS.get(finish, "end_turn") if isinstance(finish, str) else "end_turn"
    if reason in ("end_turn", "tool_use"):
        return "tool_use" if called else "refusal" if refused else "end_turn"
    return reason


def stopped_by(choice: dict[str, Any], stops: tuple[str, ...]) -> str | None:
    """The stop sequence that ended the answer, where the provider says which (vLLM's stop_reason)."""
    said = choice.get("stop_reason")
    return said if isinstance(said, str) and said in stops else None


def usage(chat: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's usage: what was read from a cache or written into it is not counted as input again."""
    prompt = chat.get("prompt_tokens_details")
    details = prompt if isinstance(prompt, dict) else {}
    cached = _count(details.get("cached_tokens")) or _count(chat.get("prompt_cache_hit_tokens"))
    written = _count(details.get("cache_write_tokens"))
    said: dict[str, Any] = {
        "input_tokens": max(0, _count(chat.get("prompt_tokens")) - cached - written),
        "output_tokens": _count(chat.get("completion_tokens")),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
    }
    completion = chat.get("completion_tokens_details")
    if isinstance(completion, dict) and (thought := _count(completion.get("reasoning_tokens"))):
        said["output_tokens_details"] = {"thinking_tokens": thought}
    return said


def texts(content: object) -> list[tuple[str, str]]:
    """(kind, text) of content that is text, or parts of text and thinking (Mistral); kind is text or thinking."""
    if isinstance(content, str):
        return [("text", content)] if content else []
    found = []
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        if part.get("type") == "thinking":
            found += [("thinking", text) for _, text in texts(part.get("thinking"))]
        elif isinstance(text := part.get("text"), str) and text:
            found.append(("text", text))
    return found


def said(delta: dict[str, Any]) -> list[tuple[str, str]]:
    """(kind, text) of a message or a piece of one, reasoning first."""
    reasoning = delta.get("reasoning_content") or delta.get("reasoning")
    found = texts(delta.get("content"))
    return [("thinking", reasoning), *found] if isinstance(reasoning, str) and reasoning else found


def signature(call: dict[str, Any]) -> str:
    """Gemini's thought signature of a tool call; "" for none."""
    extra = call.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    found = google.get("thought_signature") if isinstance(google, dict) else None
    return found if isinstance(found, str) else ""


def arguments(function: dict[str, Any]) -> str:
    """Arguments as JSON text, also where a provider sends the object itself. Raises ValueError."""
    given = function.get("arguments")
    if isinstance(given, dict):
        return dumps(given)
    return given if isinstance(given, str) else ""


def message(
    status: int, body: bytes, request_id: str, model: str, stops: tuple[str, ...], thinking: bool
) -> tuple[int, bytes]:
    """A whole answer or error, as Anthropic's; `thinking`: whether the caller takes it."""
    if not 200 <= status < 300:
        return refusal(parse_error(status, body), request_id)
    try:
        document = decode(body)
        if (error := error_in(document)) is not None:
            return refusal(from_object(status, error), request_id)
        return 200, encode(_message(document, request_id, model, stops, thinking))
    except ValueError as error:
        return refusal(Error(502, "", f"The provider's answer cannot be read: {error}"), request_id)


def refusal(error: Error, request_id: str) -> tuple[int, bytes]:
    """Status and body of an error."""
    return anthropic_status(error.status), anthropic_error(error, request_id)


def _message(document: object, request_id: str, model: str, stops: tuple[str, ...], thinking: bool) -> dict[str, Any]:
    choices = document.get("choices") if isinstance(document, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    answer = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(document, dict) or not isinstance(choice, dict) or not isinstance(answer, dict):
        raise ValueError("it holds no message")
    finish = choice.get("finish_reason")
    calls = Calls(request_id)
    content: list[dict[str, Any]] = []
    for kind, text in said(answer):
        if kind == "text":
            content.append({"type": "text", "text": text})
        elif thinking:
            content.append({"type": "thinking", "thinking": text, "signature": SIGNATURE})
    refused = answer.get("refusal")
    if isinstance(refused, str) and refused:
        content.append({"type": "text", "text": refused})
    cut = stop_reason(finish, False, False) in ("max_tokens", "model_context_window_exceeded")
    content += _calls(answer, calls, cut)
    matched = stopped_by(choice, stops) if not calls.any else None
    counted = document.get("usage")
    return {
        "id": f"msg_{request_id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": "stop_sequence" if matched else stop_reason(finish, calls.any, bool(refused)),
        "stop_sequence": matched,
        "usage": usage(counted if isinstance(counted, dict) else {}),
    }


def _calls(answer: dict[str, Any], calls: Calls, cut: bool) -> list[dict[str, Any]]:
    given = answer.get("tool_calls")
    listed = list(given) if isinstance(given, list) else []
    if isinstance(answer.get("function_call"), dict):
        listed.append({"function": answer["function_call"]})
    blocks = []
    for call in listed:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError("it holds a tool call without a name")
        try:
            parsed = decode(arguments(function).strip() or "{}")
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            if cut:  # the limit came in the middle of the arguments, and the stop reason says so
                continue
            raise ValueError(f"the arguments of the tool call {function['name'][:100]} are not a JSON object")
        ident = call["id"] if isinstance(call.get("id"), str) else ""
        name = calls.ident(ident, signature(call))
        blocks.append({"type": "tool_use", "id": name, "name": function["name"], "input": parsed})
    return blocks


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
