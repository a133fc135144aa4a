"""The strict readers refuse what the official clients accept, and everything else that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.dialects.corpus import block, data, event, start, stop
from tests.support.streams import chat_stream, messages_stream

TEXT = block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Hi"})
THOUGHT = block(
    0,
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "Hm"},
    {"type": "signature_delta", "signature": "s"},
)
COUNTS = {"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
END = stop("end_turn", **COUNTS)
START = start(COUNTS)


def use(*pieces: str, index: int = 0, **more: Any) -> bytes:
    content = {"type": "tool_use", "id": f"a{index}", "name": "look", "input": {}, **more}
    return block(index, content, *({"type": "input_json_delta", "partial_json": piece} for piece in pieces))


def without(data: bytes, name: str) -> bytes:
    return b"".join(
        one + b"\n\n" for one in data.split(b"\n\n") if one and not one.startswith(f"event: {name}\n".encode())
    )


def test_a_good_messages_stream() -> None:
    said = messages_stream(
        START
        + event("ping")
        + THOUGHT
        + block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Hi"})
        + use("{}", index=2)
        + stop("tool_use", **COUNTS)
    )
    assert (said.text, said.reasoning, said.kinds, said.finish) == (
        "Hi",
        "Hm",
        ["thinking", "text", "tool_use"],
        "tool_use",
    )
    assert (said.usage, said.pings, said.error) == (COUNTS, 1, None)
    assert messages_stream(event("error", error={"type": "api_error", "message": "x"})).error is not None


WRONG_MESSAGES: dict[str, bytes] = {
    "no usage in the beginning": START.replace(b'"usage"', b'"used"') + TEXT + END,
    "no usage at the end": START + TEXT + END.replace(b'"usage"', b'"used"'),
    "usage that is no count": START + TEXT + END.replace(b'"output_tokens": ', b'"output_tokens": -'),
    "delta without its block": START
    + event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x"}) + END,
    "first index 1": START + TEXT.replace(b'"index": 0', b'"index": 1') + END,
    "index left out": START + TEXT + use("{}", index=2) + stop("tool_use", **COUNTS),
    "no event lines": (START + TEXT + END).replace(b"event: ", b": "),
    "thinking in a text block": START + TEXT.replace(b"text_delta", b"thinking_delta") + END,
    "beginning twice": START + START + TEXT + END,
    "no message_stop": START + TEXT + without(END, "message_stop"),
    "no message_delta": START + TEXT + without(END, "message_delta"),
    "message_delta twice": START + TEXT + without(END, "message_stop") + END,
    "input cut": START + use('{"a": ') + stop("tool_use", **COUNTS),
    "input that is a list": START + use("[]") + stop("tool_use", **COUNTS),
    "no input": START + use() + stop("tool_use", **COUNTS),
    "error in openai's shape": START + TEXT + data({"error": {"message": "x", "type": "y"}}),
    "error without its envelope": START + b"event: error\n" + data({"error": {"message": "x", "type": "api_error"}}),
    "error of an unknown type": START + event("error", error={"type": "oops", "message": "x"}),
    "error that says nothing": START + event("error", error={"type": "api_error", "message": ""}),
    "something after the error": START + event("error", error={"type": "api_error", "message": "x"}) + END,
    "something after the end": START + TEXT + END + event("ping"),
    "content before the beginning": TEXT + START + END,
    "ping before the beginning": event("ping") + START + TEXT + END,
    "block inside a block": START + without(TEXT, "content_block_stop") + use("{}", index=1) + END,
    "block not stopped": START + without(TEXT, "content_block_stop") + END,
    "block stopped twice": START + TEXT + event("content_block_stop", index=0) + END,
    "block after message_delta": START + without(END, "message_stop") + TEXT + event("message_stop"),
    "empty text block": START + block(0, {"type": "text", "text": ""}) + END,
    "empty delta": START + block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": ""}) + END,
    "text in the beginning of a block": START + block(0, {"type": "text", "text": "x"}) + END,
    "thinking without a signature": START
    + block(0, {"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": "x"})
    + END,
    "thinking after its signature": START
    + block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "signature_delta", "signature": "s"},
        {"type": "thinking_delta", "thinking": "Hm"},
    ) + END,
    "unknown block": START + block(0, {"type": "hologram"}) + END,
    "unknown event": START + event("weather") + TEXT + END,
    "unknown stop reason": START + TEXT + stop("stop", **COUNTS),
    "no stop reason": START + TEXT + stop(None, **COUNTS),
    "end_turn after a call": START + use("{}") + END,
    "tool_use without a call": START + TEXT + stop("tool_use", **COUNTS),
    "bad id of a call": START + use("{}", id="a b") + stop("tool_use", **COUNTS),
    "id of a call twice": START + use("{}") + use("{}", index=1, id="a0") + stop("tool_use", **COUNTS),
    "id of a completion": START.replace(b"msg_1", b"chatcmpl-1") + TEXT + END,
    "name and type differ": START + TEXT.replace(b"event: content_block_stop", b"event: ping") + END,
    "not json": START + b"event: ping\ndata: {\n\n" + TEXT + END,
    "nan": START + TEXT + END.replace(b'"output_tokens": 1', b'"output_tokens": NaN'),
    "no empty line": (START + TEXT + END)[:-1],
    "two empty lines": START + b"\n" + TEXT + END,
    "crlf": (START + TEXT + END).replace(b"\n", b"\r\n"),
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_MESSAGES)
def test_a_messages_stream_that_is_wrong(name: str) -> None:
    with pytest.raises((AssertionError, ValueError, KeyError)):
        messages_stream(WRONG_MESSAGES[name])


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


ROLE, HI, STOP = chunk({"role": "assistant", "content": ""}), chunk({"content": "Hi"}), chunk({}, "stop")
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
COUNTED = chunk({}) | {"choices": [], "usage": USAGE}
DONE = "[DONE]"
CALLED = chunk({}, "tool_calls")
BAD = {"error": {"message": "x", "type": "y", "param": None, "code": None}}


def call(
    arguments: str = "{}", index: Any = 0, ident: Any = "a", name: Any = "look", kind: Any = "function"
) -> dict[str, Any]:
    said = {"index": index, "id": ident, "type": kind, "function": {"name": name, "arguments": arguments}}
    return chunk({"tool_calls": [{key: value for key, value in said.items() if value is not None}]})


def test_a_good_chat_stream() -> None:
    more = chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})
    said = chat_stream(data(ROLE, HI, chunk({"reasoning_content": "Hm"}), call(""), more, CALLED, COUNTED, DONE))
    assert (said.text, said.reasoning, said.finish, said.usage) == ("Hi", "Hm", "tool_calls", USAGE)
    assert [(one.ident, one.name, one.arguments) for one in said.calls] == [("a", "look", "{}")]
    assert chat_stream(data(ROLE) + b": ping\n\n" + data(BAD)).error == BAD["error"]


WRONG_CHAT: dict[str, bytes] = {
    "no done": data(ROLE, HI, STOP),
    "done without finish": data(ROLE, HI, DONE),
    "no end": data(ROLE, HI),
    "after done": data(ROLE, HI, STOP, DONE, HI),
    "done after an error": data(ROLE, HI, BAD, DONE),
    "an event with a name": data(ROLE, HI) + b"event: ping\ndata: {}\n\n" + data(STOP, DONE),
    "an empty object": data(ROLE, HI, {}, STOP, DONE),
    "error without param": data(ROLE, {"error": {"message": "x", "type": "y"}}),
    "error beside something else": data(ROLE, HI | BAD),
    "error in anthropic's shape": data(ROLE, {"type": "error", **BAD}),
    "error that is text": data(ROLE, {"error": "x"}),
    "no role": data(HI, STOP, DONE),
    "role twice": data(ROLE, ROLE, STOP, DONE),
    "id changes": data(ROLE, HI | {"id": "d"}, STOP, DONE),
    "no id": data(ROLE | {"id": ""}, HI | {"id": ""}, STOP | {"id": ""}, DONE),
    "no created": data(*(one | {"created": None} for one in (ROLE, HI, STOP)), DONE),
    "content after finish": data(ROLE, STOP, HI, DONE),
    "finish twice": data(ROLE, STOP, STOP, DONE),
    "unknown finish": data(ROLE, HI, chunk({}, "end_turn"), DONE),
    "stop after a call": data(ROLE, call(), STOP, DONE),
    "tool_calls without a call": data(ROLE, HI, CALLED, DONE),
    "usage first": data(ROLE, COUNTED, STOP, DONE),
    "usage twice": data(ROLE, STOP, COUNTED, COUNTED, DONE),
    "usage that does not add up": data(ROLE, STOP, COUNTED | {"usage": USAGE | {"total_tokens": 9}}, DONE),
    "usage missing": data(ROLE, STOP, COUNTED | {"usage": None}, DONE),
    "two choices": data(ROLE, HI | {"choices": HI["choices"] * 2}, STOP, DONE),
    "another choice": data(ROLE, HI | {"choices": [HI["choices"][0] | {"index": 1}]}, STOP, DONE),
    "unknown in a delta": data(ROLE, chunk({"thinking": "x"}), STOP, DONE),
    "content that is no text": data(ROLE, chunk({"content": 7}), STOP, DONE),
    "arguments cut": data(ROLE, call('{"a'), CALLED, DONE),
    "no arguments": data(ROLE, call(""), CALLED, DONE),
    "call without index": data(ROLE, call(index=None), CALLED, DONE),
    "call that leaves an index out": data(ROLE, call(index=1), CALLED, DONE),
    "call without id": data(ROLE, call(ident=None), CALLED, DONE),
    "call with an empty id": data(ROLE, call(ident=""), CALLED, DONE),
    "call without name": data(ROLE, call(name=""), CALLED, DONE),
    "call without type": data(ROLE, call(kind=None), CALLED, DONE),
    "call told twice": data(ROLE, call("{"), call("}"), CALLED, DONE),
    "id of a call twice": data(ROLE, call(), call(index=1), CALLED, DONE),
    "not json": data(ROLE, "{", STOP, DONE),
    "no space": data(ROLE, HI, STOP, DONE, space=b""),
    "crlf": data(ROLE, HI, STOP, DONE, end=b"\r\n\r\n"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", WRONG_CHAT)
def test_a_chat_stream_that_is_wrong(name: str) -> None:
    with pytest.raises((AssertionError, ValueError, KeyError)):
        chat_stream(WRONG_CHAT[name])


def test_the_wrong_streams_are_right_but_for_one_thing() -> None:
    """What they are made of reads well, so that each is refused for its own fault."""
    assert messages_stream(START + TEXT + END).text == "Hi"
    assert messages_stream(START + use('{"a": 1}') + stop("tool_use", **COUNTS)).calls[0].arguments == '{"a": 1}'
    assert messages_stream(START + use('{"a": ') + stop("max_tokens", **COUNTS)).finish == "max_tokens"
    assert messages_stream(START + THOUGHT + END).reasoning == "Hm"
    assert chat_stream(data(ROLE, HI, STOP, COUNTED, DONE)).text == "Hi"
    assert json.loads(chat_stream(data(ROLE, call(), CALLED, DONE)).calls[0].arguments) == {}
