"""Chat answer: what an Anthropic provider said, in chat's words.

PURE. Shared by whole answers and streams.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.errors import Error, error_in, from_object, openai_error, openai_status, parse_error
from reconciler.dialects.kept import Kept
from reconciler.dialects.text import decode, dumps, encode

_FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def finish_reason(stop: object, called: bool) -> str:
    """Chat's reason; a tool call that is there counts for more than a plain end."""
    reason = _FINISHES.get(stop, "stop") if isinstance(stop, str) else "stop"
    if reason in ("stop", "tool_calls"):
        return "tool_calls" if called else "stop"
    return reason


def usage(messages: dict[str, Any]) -> dict[str, Any]:
    """Chat's usage: everything that was read is the prompt, also from a cache."""
    read, written = _count(messages, "cache_read_input_tokens"), _count(messages, "cache_creation_input_tokens")
    prompt, answer = _count(messages, "input_tokens") + read + written, _count(messages, "output_tokens")
    details = messages.get("output_tokens_details")
    thought = _count(details, "thinking_tokens") if isinstance(details, dict) else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def completion(
    status: int, body: bytes, request_id: str, model: str, created: int, kept: Kept | None
) -> tuple[int, bytes]:
    """A whole answer or error, as chat's; `created` in seconds since 1970."""
    if not 200 <= status < 300:
        return refusal(parse_error(status, body))
    try:
        document = decode(body)
        if (error := error_in(document)) is not None:
            return refusal(from_object(status, error))
        if not isinstance(document, dict) or not isinstance(document.get("content"), list):
            raise ValueError("it holds no content")
        message = _message(document["content"], kept)
        said = document.get("usage")
        return 200, encode(
            {
                "id": f"chatcmpl-{request_id}",
                "object": "chat.completion",
                "created": created,
                "model": model,
                "choices": [
                    {
                        "index": 0,
                        "message": message,
                        "logprobs": None,
                        "finish_reason": finish_reason(document.get("stop_reason"), "tool_calls" in message),
                    }
                ],
                "usage": usage(said if isinstance(said, dict) else {}),
            }
        )
    except ValueError as error:
        return refusal(Error(502, "", f"The provider's answer cannot be read: {error}"))


def refusal(error: Error) -> tuple[int, bytes]:
    """Status and body of an error."""
    return openai_status(error.status), openai_error(error)


def _message(content: list[Any], kept: Kept | None) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    thinking: list[dict[str, Any]] = []
    for block in content:
        if not isinstance(block, dict):
            continue
        match block.get("type"):
            case "text" if isinstance(block.get("text"), str):
                texts.append(block["text"])
            case "thinking" | "redacted_thinking":
                thinking.append(block)
                if isinstance(block.get("thinking"), str):
                    thoughts.append(block["thinking"])
            case "tool_use":
                calls.append(_call(block))
                if calls[-1]["id"] in [call["id"] for call in calls[:-1]]:
                    raise ValueError("it holds two tool calls with one id")
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(texts) or (None if calls else ""),
        "refusal": None,
    }
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
        keep(kept, calls[0]["id"], thinking)
    return message


def keep(kept: Kept | None, ident: str, thinking: list[dict[str, Any]]) -> None:
    """Keep signed thinking for the first call that it led to."""
    if kept is not None and thinking:
        kept.put(ident, thinking)


def _call(block: dict[str, Any]) -> dict[str, Any]:
    ident, name, given = block.get("id"), block.get("name"), block.get("input")
    if not (isinstance(ident, str) and ident and isinstance(name, str) and name and isinstance(given, dict)):
        raise ValueError("it holds a tool call without id, name or input")
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": dumps(given)}}


def _count(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
