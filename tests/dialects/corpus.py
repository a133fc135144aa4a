"""Streams as providers send them, good and bad, by name; and requests to go with them."""

from __future__ import annotations

import json
from typing import Any

CHAT_REQUEST: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
MESSAGES_REQUEST: dict[str, Any] = {**CHAT_REQUEST, "max_tokens": 100, "stop_sequences": ["END"]}
CHAT_WITH_USAGE: dict[str, Any] = {**CHAT_REQUEST, "stream_options": {"include_usage": True}}
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def data(*documents: object, end: bytes = b"\n\n", space: bytes = b" ") -> bytes:
    """Documents as events without names."""
    said = (one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in documents)
    return b"".join(b"data:" + space + text.encode() + end for text in said)


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a chat stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more.pop("choice", {})}
    return {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


def call(index: int | None = None, ident: str | None = None, name: str | None = None, arguments: Any = None) -> Any:
    """A delta with a piece of one tool call."""
    return {"tool_calls": [piece(index, ident, name, arguments)]}


def piece(index: int | None, ident: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
    """A piece of a tool call."""
    said: dict[str, Any] = {"function": {}}
    for where, key, value in ((said, "index", index), (said, "id", ident)):
        if value is not None:
            where[key] = value
    for key, value in (("name", name), ("arguments", arguments)):
        if value is not None:
            said["function"][key] = value
    return said


ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk({}, "stop")
CALLED = chunk({}, "tool_calls")
COUNTED = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": USAGE}
DONE = "[DONE]"
TEXT = (chunk({"content": "Grüße "}), chunk({"content": "🙂!"}))
ONE_CALL = (
    chunk(call(0, "call_a", "look", "")),
    chunk(call(0, None, None, '{"where": ')),
    chunk(call(0, None, None, '"Köln"}')),
)
SIGNED = {
    **piece(0, "call_a", "look", '{"where": "Köln"}'),
    "extra_content": {"google": {"thought_signature": "Cs+/="}},
}

CHAT: dict[str, bytes] = {
    "text": data(ROLE, *TEXT, STOP, COUNTED, DONE),
    "no usage": data(ROLE, *TEXT, STOP, DONE),
    "usage before finish": data(ROLE, *TEXT, COUNTED, STOP, DONE),
    "usage with finish": data(ROLE, *TEXT, STOP | {"usage": USAGE}, DONE),
    "usage in every chunk": data(*(one | {"usage": USAGE} for one in (ROLE, *TEXT, STOP)), DONE),
    "usage null": data(*(one | {"usage": None} for one in (ROLE, *TEXT, STOP)), COUNTED, DONE),
    "usage as groq says it": data(ROLE, *TEXT, STOP | {"x_groq": {"id": "r", "usage": USAGE}}, DONE),
    "no done": data(ROLE, *TEXT, STOP, COUNTED),
    "no empty line at the end": data(ROLE, *TEXT, STOP, COUNTED, DONE)[:-2],
    "no space": data(ROLE, *TEXT, STOP, COUNTED, DONE, space=b""),
    "crlf": data(ROLE, *TEXT, STOP, COUNTED, DONE, end=b"\r\n\r\n"),
    "cr": data(ROLE, *TEXT, STOP, COUNTED, DONE, end=b"\r\r"),
    "mark": b"\xef\xbb\xbf" + data(ROLE, *TEXT, STOP, COUNTED, DONE),
    "comments": b": hi\n\n" + data(ROLE) + b":\n:x\n" + data(*TEXT) + b": OPENROUTER PROCESSING\n\n" + data(STOP, DONE),
    "ids and retries": b"retry: 10\nid: 1\n" + data(ROLE, *TEXT) + b"id: 2\nevent: message\n" + data(STOP, DONE),
    "lines": b'data: {"choices": [{"index": 0,\ndata: "delta": {"content": "Gr\xc3\xbc\xc3\x9fe \xf0\x9f\x99\x82!"},\n'
    b'data: "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n',
    "null content": data(chunk({"role": "assistant", "content": None}), *TEXT, chunk({"content": None}), STOP, DONE),
    "empty deltas": data(ROLE, chunk({}), *TEXT, chunk({"content": ""}), chunk({}), STOP, DONE),
    "no delta": data(ROLE, *TEXT, {"choices": [{"index": 0, "finish_reason": "stop"}]}, DONE),
    "whole message": data(chunk({}, "stop", choice={"message": {"content": "Grüße 🙂!"}}), DONE),
    "no index": data(*({"choices": [{"delta": {"content": text}}]} for text in ("Grüße ", "🙂!")), STOP, DONE),
    "other choices": data(ROLE, *TEXT, chunk({"content": "B"}, "length", choice={"index": 1}), STOP, DONE),
    "prompt filter first": data({"choices": [], "prompt_filter_results": []}, ROLE, *TEXT, STOP, DONE),
    "unknown finish": data(ROLE, *TEXT, chunk({}, "eos"), DONE),
    "length": data(ROLE, *TEXT, chunk({}, "length"), DONE),
    "filtered": data(ROLE, *TEXT, chunk({}, "content_filter"), DONE),
    "stop sequence": data(ROLE, *TEXT, chunk({}, "stop", choice={"stop_reason": "END"}), DONE),
    "nothing": data(ROLE, STOP, COUNTED, DONE),
    "refusal": data(ROLE, chunk({"refusal": "No."}), STOP, DONE),
    "reasoning": data(ROLE, chunk({"reasoning_content": "Hm"}), chunk({"reasoning_content": "m."}), *TEXT, STOP, DONE),
    "reasoning under its other name": data(chunk({"reasoning": "Hmm.", "content": ""}), *TEXT, STOP, DONE),
    "reasoning in parts": data(
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hmm."}]}]}),
        chunk({"content": [{"type": "text", "text": "Grüße "}]}),
        chunk({"content": "🙂!"}),
        STOP,
        DONE,
    ),
    "reasoning, text, tools": data(ROLE, chunk({"reasoning_content": "Hmm."}), *TEXT, *ONE_CALL, CALLED, COUNTED, DONE),
    "reasoning twice": data(
        chunk({"reasoning": "A"}), chunk({"content": "x"}), chunk({"reasoning": "B"}),
            chunk({"content": "y"}), STOP, DONE
    ),
    "one call": data(ROLE, *ONE_CALL, CALLED, COUNTED, DONE),
    "call, finish stop": data(ROLE, *ONE_CALL, STOP, DONE),
    "whole call": data(chunk(call(0, "call_a", "look", '{"where": "Köln"}')), CALLED, DONE),
    "call without index": data(chunk(call(None, "call_a", "look", '{"where": "Köln"}')), CALLED, DONE),
    "calls without index": data(
        chunk({"tool_calls": [piece(None, "call_a", "look", "{}"), piece(None, "call_b", "look",
            '{"b": 1}')]}), CALLED, DONE
    ),
    "calls without index or id": data(
        chunk({"tool_calls": [piece(None, None, "look", "{}"), piece(None, None, "look", '{"b": 1}')]}), CALLED, DONE
    ),
    "pieces without index": data(
        chunk(call(None, "call_a", "look", '{"a"')), chunk(call(None, None, None, ": 1}")), CALLED, DONE
    ),
    "pieces with their id only": data(
        chunk(call(None, "call_a", "look", '{"a"')),
        chunk(call(None, "call_a", None, ": 1}")),
        chunk(call(None, "call_b", "see", '{"b"')),
        chunk(call(None, "call_b", "see", ": 1}")),
        CALLED,
        DONE,
    ),
    "one index for all": data(
        chunk(call(0, "call_a", "look", '{"a": 1}')), chunk(call(0, "call_b", "see", '{"b": 2}')), CALLED, DONE
    ),
    "id and name again": data(
        chunk(call(0, "call_a", "look", '{"a"')), chunk(call(0, "call_a", "look", ": 1")), chunk(call(0, "", "", "}")),
        CALLED, DONE,
    ),
    "id after arguments": data(
        chunk(call(0, None, "look", '{"a"')), chunk(call(0, "call_a", None, ": 1}")), CALLED, DONE
    ),
    "no id": data(chunk(call(0, "", "look", '{"a": 1}')), chunk(call(1, "", "see", '{"b": 2}')), CALLED, DONE),
    "one id for all": data(chunk(call(0, "x", "look", '{"a": 1}')), chunk(call(1, "x", "see", '{"b": 2}')),
        CALLED, DONE),
    "odd id": data(chunk(call(0, "functions.look:0", "look", '{"a": 1}')), CALLED, DONE),
    "arguments as an object": data(chunk(call(0, "call_a", "look", {"where": "Köln"})), CALLED, DONE),
    "no arguments": data(chunk(call(0, "call_a", "look")), chunk(call(1, "call_b", "see", "")), CALLED, DONE),
    "calls in a row": data(*ONE_CALL, chunk(call(1, "call_b", "see", '{"b"')), chunk(call(1, None, None,
        ": 2}")), CALLED, DONE),
    "calls that mix": data(
        chunk(call(0, "call_a", "look", '{"a"')),
        chunk(call(1, "call_b", "see", '{"b"')),
        chunk(call(0, None, None, ": 1")),
        chunk(call(1, None, None, ": 2}")),
        chunk(call(0, None, None, "}")),
        CALLED,
        COUNTED,
        DONE,
    ),
    "calls at once": data(
        chunk({"tool_calls": [piece(0, "call_a", "look", '{"a"'), piece(1, "call_b", "see", '{"b"')]}),
        chunk({"tool_calls": [piece(1, None, None, ": 2}"), piece(0, None, None, ": 1}")]}),
        CALLED,
        DONE,
    ),
    "text after a call": data(*ONE_CALL, *TEXT, CALLED, DONE),
    "text inside a call": data(ONE_CALL[0], ONE_CALL[1], *TEXT, ONE_CALL[2], CALLED, DONE),
    "text between calls": data(*ONE_CALL, *TEXT, chunk(call(1, "call_b", "see", "{}")), CALLED, DONE),
    "signed call": data(chunk({"role": "assistant", "tool_calls": [SIGNED]}), CALLED, DONE),
    "old call": data(
        chunk({"function_call": {"name": "look", "arguments": '{"a"'}}),
        chunk({"function_call": {"arguments": ": 1}"}}), chunk({}, "function_call"), DONE,
    ),
    "cut in arguments": data(ONE_CALL[0], ONE_CALL[1], chunk({}, "length"), DONE),
}  # fmt: skip
"""Chat streams that come to an end."""

ERROR = {"error": {"message": "Slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded", "param": None}}
BAD_CHAT: dict[str, tuple[bytes, str]] = {
    "cut": (data(ROLE, *TEXT), "api_error"),
    "cut in an event": (data(ROLE, *TEXT) + b'data: {"choi', "api_error"),
    "done without finish": (data(ROLE, *TEXT, DONE), "api_error"),
    "error object": (data(ROLE, *TEXT, ERROR), "rate_limit_error"),
    "error event": (data(ROLE, *TEXT) + b"event: error\n" + data(ERROR), "rate_limit_error"),
    "error text": (data(ROLE, *TEXT, {"error": "overloaded", "code": 503}), "overloaded_error"),
    "error with a message beside it": (data(*TEXT, {"error": {"code": 429, "message": "x", "metadata": {}}}),
        "rate_limit_error"),
    "error as an array": (
        data(*TEXT, [{"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}}]), "rate_limit_error",
    ),
    "error of vllm": (data(*TEXT, {"object": "error", "message": "boom", "type": "BadRequestError",
        "code": 400}), "invalid_request_error"),
    "error of openrouter": (
        data(*TEXT, chunk({"content": ""}, "error", error={"code": 502, "message": "gone"})), "api_error",
    ),
    "finish error": (data(*TEXT, chunk({}, "error")), "api_error"),
    "error of anthropic": (
        data(*TEXT, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
            "overloaded_error",
    ),
    "error named by its event only": (data(*TEXT) + b"event: error\n" + data({"reason": "x"}), "api_error"),
    "error after a call": (data(ONE_CALL[0], ONE_CALL[1], ERROR), "rate_limit_error"),
    "not json": (data(*TEXT, "{oops"), "api_error"),
    "not an object": (data(*TEXT, "7"), "api_error"),
    "a number that is none": (data(*TEXT, '{"choices": [NaN]}'), "api_error"),
    "arguments cut": (data(ONE_CALL[0], ONE_CALL[1], CALLED, DONE), "api_error"),
    "arguments that are a list": (data(chunk(call(0, "a", "look", "[]")), CALLED, DONE), "api_error"),
    "arguments that are null": (data(chunk(call(0, "a", "look", "null")), CALLED, DONE), "api_error"),
    "arguments that go on": (data(*ONE_CALL, *TEXT, chunk(call(0, None, None, "{}")), CALLED, DONE), "api_error"),
    "call without name": (data(*TEXT, chunk(call(0, "a", None, "{}")), CALLED, DONE), "api_error"),
}  # fmt: skip
"""Chat streams that fail once something was said, with Anthropic's type of the error."""


def event(name: str, **fields: Any) -> bytes:
    """An event of a messages stream."""
    return f"event: {name}\n".encode() + data({"type": name, **fields})


def start(usage: dict[str, Any] | None = None) -> bytes:
    """The beginning of a messages stream."""
    counted = {"input_tokens": 5, "output_tokens": 1, "cache_read_input_tokens": 12, "cache_creation_input_tokens": 3}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [],
        "usage": usage or counted,
    }
    return event("message_start", message={**message, "stop_reason": None, "stop_sequence": None})


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> bytes:
    """A content block, begun, filled and stopped."""
    begun = event("content_block_start", index=index, content_block=content)
    filled = b"".join(event("content_block_delta", index=index, delta=delta) for delta in deltas)
    return begun + filled + event("content_block_stop", index=index)


def stop(reason: str | None, **usage: int) -> bytes:
    """The end of a messages stream."""
    delta = {"stop_reason": reason, "stop_sequence": None}
    return event("message_delta", delta=delta, usage={"output_tokens": 7, **usage}) + event("message_stop")


def text_block(index: int = 0) -> bytes:
    """A block that says the same as `TEXT`."""
    return block(index, {"type": "text", "text": ""}, _text("Grüße "), _text("🙂!"))


def _text(text: str) -> dict[str, Any]:
    return {"type": "text_delta", "text": text}


def _json(text: str) -> dict[str, Any]:
    return {"type": "input_json_delta", "partial_json": text}


def use(ident: str = "toolu_1", name: str = "look", **given: Any) -> dict[str, Any]:
    """The beginning of a tool_use block."""
    return {"type": "tool_use", "id": ident, "name": name, "input": given}


THOUGHT = block(
    0,
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "Hm"},
    {"type": "thinking_delta", "thinking": "m."},
    {"type": "signature_delta", "signature": "c2ln"},
)
LOOK = block(1, use(), _json(""), _json('{"where": '), _json('"Köln"}'))
PING = event("ping")
_SEARCH = block(0, {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {}}, _json('{"query": "x"}'))
_CITED = {"type": "citations_delta", "citation": {"type": "char_location", "cited_text": "x"}}

MESSAGES: dict[str, bytes] = {
    "text": start() + PING + text_block() + stop("end_turn"),
    "pings": start() + PING + event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    + PING + event("content_block_delta", index=0, delta=_text("Grüße ")) + PING
    + event("content_block_delta", index=0, delta=_text("🙂!")) + event("content_block_stop",
        index=0) + stop("end_turn"),
    "crlf": (start() + text_block() + stop("end_turn")).replace(b"\n", b"\r\n"),
    "no names": (start() + text_block() + stop("end_turn")).replace(b"event: ", b": "),
    "no message_stop": (start() + text_block() + stop("end_turn")).removesuffix(event("message_stop")),
    "usage in full at the end": start() + text_block() + stop("end_turn", input_tokens=5, cache_read_input_tokens=12),
    "no usage": start({"input_tokens": 0, "output_tokens": 0}) + text_block()
    + event("message_delta", delta={"stop_reason": "end_turn"}) + event("message_stop"),
    "text in the beginning": start() + block(0, {"type": "text", "text": "Grüße 🙂!"}) + stop("end_turn"),
    "nothing": start() + stop("end_turn"),
    "max_tokens": start() + text_block() + stop("max_tokens"),
    "context": start() + text_block() + stop("model_context_window_exceeded"),
    "refusal": start() + text_block() + stop("refusal"),
    "pause": start() + text_block() + stop("pause_turn"),
    "stop sequence": start() + text_block() + stop("stop_sequence"),
    "unknown stop": start() + text_block() + stop("tired"),
    "thinking": start() + THOUGHT + text_block(1) + stop("end_turn"),
    "thinking whole": start() + block(0, {"type": "thinking", "thinking": "Hmm.", "signature": "c2ln"}) + text_block(1)
    + stop("end_turn"),
    "redacted": start() + block(0, {"type": "redacted_thinking", "data": "xyz"}) + text_block(1) + stop("end_turn"),
    "call": start() + text_block(0) + LOOK + stop("tool_use"),
    "thinking and call": start() + THOUGHT + LOOK + stop("tool_use"),
    "call, end_turn": start() + LOOK + stop("end_turn"),
    "calls": start() + LOOK + block(2, use("toolu_2", "see"), _json('{"b": 2}')) + stop("tool_use"),
    "call without arguments": start() + block(0, use()) + stop("tool_use"),
    "call with its arguments at once": start() + block(0, use(where="Köln")) + stop("tool_use"),
    "call that is not stopped": start() + event("content_block_start", index=0, content_block=use()) + stop("tool_use"),
    "text after a call": start() + LOOK + text_block(2) + stop("tool_use"),
    "cut in arguments": start() + block(0, use(), _json('{"whe')) + stop("max_tokens"),
    "server tools": start() + _SEARCH + block(1, {"type": "web_search_tool_result", "tool_use_id": "srv",
        "content": []})
    + text_block(2) + stop("end_turn"),
    "citations": start()
    + block(0, {"type": "text", "text": "", "citations": []}, _text("Grüße "), _CITED, _text("🙂!"))
    + stop("end_turn"),
    "unknown event": start() + event("weather", sky="blue") + text_block() + stop("end_turn"),
    "unknown block and delta": start() + block(0, {"type": "hologram"}, {"type": "light_delta",
        "light": 1}) + text_block(1)
    + stop("end_turn"),
    "no block start": start() + event("content_block_delta", index=0, delta=_text("Grüße 🙂!")) + stop("end_turn"),
}  # fmt: skip
"""Messages streams that come to an end."""

OVERLOADED = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
BAD_MESSAGES: dict[str, tuple[bytes, str]] = {
    "arguments cut": (start() + text_block() + block(1, use(), _json('{"a')) + stop("tool_use"), "server_error"),
    "call twice": (start() + text_block() + LOOK + LOOK + stop("tool_use"), "server_error"),
    "cut": (start() + text_block(), "server_error"),
    "no stop reason": (start() + text_block() + stop(None), "server_error"),
    "stop alone": (start() + text_block() + event("message_stop"), "server_error"),
    "error": (start() + text_block() + OVERLOADED, "overloaded_error"),
    "error without its name": (start() + text_block() + OVERLOADED.removeprefix(b"event: error\n"), "overloaded_error"),
    "error of openai": (start() + text_block() + data(ERROR), "rate_limit_error"),
    "error named by its event only": (start() + text_block() + b"event: error\n" + data({"reason": "x"}),
        "server_error"),
    "error as an array": (start() + text_block() + data([{"error": {"code": 429, "message": "x"}}]),
        "rate_limit_error"),
    "not json": (start() + text_block() + b"event: content_block_delta\n" + data("{oops"), "server_error"),
    "not an object": (start() + text_block() + data("7"), "server_error"),
    "call without name": (start() + text_block() + block(1, {"type": "tool_use",
        "id": "a"}) + stop("tool_use"), "server_error"),
    "arguments of no call": (
        start() + text_block() + event("content_block_delta", index=9, delta=_json("{}")) + stop("tool_use"),
            "server_error",
    ),
}  # fmt: skip
"""Messages streams that fail once something was said, with chat's type of the error."""
