"""Streams: every one that a provider sends becomes a strict one of the other dialect, however it is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from reconciler.dialects.bridge import Bridge
from reconciler.dialects.chat_on_messages import ChatOnMessages
from reconciler.dialects.ids import unpack
from reconciler.dialects.kept import Kept
from reconciler.dialects.messages_on_chat import MessagesOnChat
from reconciler.dialects.quirks import PLAIN
from tests.dialects import corpus
from tests.support.streams import Call, chat_stream, messages_stream

TEXT = "Grüße 🙂!"
LOOK = ("look", {"where": "Köln"})


def messages(**more: Any) -> MessagesOnChat:
    return MessagesOnChat(corpus.MESSAGES_REQUEST | more, PLAIN, "r1")


def chat(**more: Any) -> ChatOnMessages:
    return ChatOnMessages(corpus.CHAT_WITH_USAGE | more, PLAIN, "r1", 100, created=1)


def told(bridge: Bridge, *pieces: bytes) -> bytes:
    return b"".join(bridge.feed(piece) for piece in pieces) + bridge.end()


def calls(found: list[Call]) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in found]


ALL: list[tuple[str, Callable[[], Bridge], bytes]] = [
    *((f"chat: {name}", messages, data) for name, data in corpus.CHAT.items()),
    *((f"bad chat: {name}", messages, data) for name, (data, _) in corpus.BAD_CHAT.items()),
    *((f"messages: {name}", chat, data) for name, data in corpus.MESSAGES.items()),
    *((f"bad messages: {name}", chat, data) for name, (data, _) in corpus.BAD_MESSAGES.items()),
]


@pytest.mark.parametrize(("make", "data"), [case[1:] for case in ALL], ids=[case[0] for case in ALL])
def test_cuts_change_nothing(make: Callable[[], Bridge], data: bytes) -> None:
    whole = told(make(), data)
    assert told(make(), *(data[at : at + 1] for at in range(len(data)))) == whole
    for at in range(len(data)):
        assert told(make(), data[:at], data[at:]) == whole


@pytest.mark.parametrize(("make", "data"), [case[1:] for case in ALL], ids=[case[0] for case in ALL])
def test_a_stream_cut_off_never_ends_well(make: Callable[[], Bridge], data: bytes) -> None:
    """Wherever the provider's body ends: what is told ends well only where a reason to end was seen."""
    read = messages_stream if make is messages else chat_stream
    ends = [at for at, byte in enumerate(data) if byte in b"\r\n"]
    for at in {near for end in ends for near in (end - 20, end - 1, end, end + 1, end + 2) if 0 <= near < len(data)}:
        bridge = make()
        said = read(told(bridge, data[:at]))
        if said.error is None:
            assert b"finish_reason" in data[:at] or b"stop_reason" in data[:at]
        broken = make()
        out = broken.feed(data[:at])
        out += broken.broke(504, "The provider sent nothing for 60 seconds")
        assert b"[DONE]" in data[:at] or b"message_stop" in data[:at] or read(out).error is not None


@pytest.mark.parametrize("name", corpus.CHAT)
def test_every_chat_stream_becomes_strict_messages(name: str) -> None:
    bridge = messages()
    said = messages_stream(told(bridge, corpus.CHAT[name]))
    assert bridge.failed is None
    assert said.error is None
    assert (said.ident, said.model) == ("msg_r1", "fast")
    assert said.text in (TEXT, "", "No.", "xy")


@pytest.mark.parametrize("name", corpus.MESSAGES)
def test_every_messages_stream_becomes_a_strict_chat(name: str) -> None:
    bridge = chat()
    said = chat_stream(told(bridge, corpus.MESSAGES[name]))
    assert bridge.failed is None
    assert said.error is None
    assert (said.ident, said.model) == ("chatcmpl-r1", "fast")
    assert said.text in (TEXT, "")
    assert said.usage is not None


@pytest.mark.parametrize("name", corpus.BAD_CHAT)
def test_every_bad_chat_stream_ends_with_an_error(name: str) -> None:
    data, kind = corpus.BAD_CHAT[name]
    said = messages_stream(told(messages(), data))
    assert said.error is not None
    assert (said.error["type"], said.finish) == (kind, None)


@pytest.mark.parametrize("name", corpus.BAD_MESSAGES)
def test_every_bad_messages_stream_ends_with_an_error(name: str) -> None:
    data, kind = corpus.BAD_MESSAGES[name]
    said = chat_stream(told(chat(), data))
    assert said.error is not None
    assert (said.error["type"], said.finish) == (kind, None)


CHAT_ENDS = {
    "text": "end_turn",
    "unknown finish": "end_turn",
    "length": "max_tokens",
    "filtered": "refusal",
    "refusal": "refusal",
    "stop sequence": "stop_sequence",
    "one call": "tool_use",
    "call, finish stop": "tool_use",
    "old call": "tool_use",
    "cut in arguments": "max_tokens",
    "nothing": "end_turn",
}


@pytest.mark.parametrize(("name", "reason"), CHAT_ENDS.items())
def test_why_a_chat_stream_ended(name: str, reason: str) -> None:
    said = messages_stream(told(messages(), corpus.CHAT[name]))
    assert (said.finish, said.stop_sequence) == (reason, "END" if reason == "stop_sequence" else None)


def test_a_stop_that_nobody_asked_for_is_none() -> None:
    said = messages_stream(told(messages(stop_sequences=["OTHER"]), corpus.CHAT["stop sequence"]))
    assert said.finish == "end_turn"


MESSAGES_ENDS = {
    "text": "stop",
    "stop sequence": "stop",
    "pause": "stop",
    "unknown stop": "stop",
    "max_tokens": "length",
    "context": "length",
    "refusal": "content_filter",
    "call": "tool_calls",
    "call, end_turn": "tool_calls",
    "cut in arguments": "length",
}


@pytest.mark.parametrize(("name", "reason"), MESSAGES_ENDS.items())
def test_why_a_messages_stream_ended(name: str, reason: str) -> None:
    assert chat_stream(told(chat(), corpus.MESSAGES[name])).finish == reason


COUNTED = {
    "input_tokens": 5,
    "output_tokens": 7,
    "cache_creation_input_tokens": 3,
    "cache_read_input_tokens": 12,
    "output_tokens_details": {"thinking_tokens": 2},
}


@pytest.mark.parametrize(
    "name", ["text", "usage before finish", "usage with finish", "usage in every chunk", "usage null",
             "usage as groq says it", "no done", "crlf"],
)  # fmt: skip
def test_usage_of_a_chat_stream(name: str) -> None:
    assert messages_stream(told(messages(), corpus.CHAT[name])).usage == COUNTED


def test_usage_that_is_known_early_is_in_the_beginning() -> None:
    out = told(messages(), corpus.CHAT["usage in every chunk"])
    begun = json.loads(out.split(b"\n")[1].removeprefix(b"data: "))
    assert begun["message"]["usage"] == COUNTED | {"output_tokens": 0}


@pytest.mark.parametrize("name", ["text", "usage in full at the end", "pings", "no names"])
def test_usage_of_a_messages_stream(name: str) -> None:
    assert chat_stream(told(chat(), corpus.MESSAGES[name])).usage == {
        "prompt_tokens": 20,
        "completion_tokens": 7,
        "total_tokens": 27,
        "prompt_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_usage_is_told_to_who_asks() -> None:
    asked = chat_stream(told(ChatOnMessages(corpus.CHAT_REQUEST, PLAIN, "r1", 100), corpus.MESSAGES["text"]))
    assert asked.usage is None


CHAT_CALLS: dict[str, list[tuple[str, Any]]] = {
    "one call": [LOOK],
    "whole call": [LOOK],
    "call without index": [LOOK],
    "signed call": [LOOK],
    "arguments as an object": [LOOK],
    "text after a call": [LOOK],
    "text inside a call": [LOOK],
    "reasoning, text, tools": [LOOK],
    "text between calls": [LOOK, ("see", {})],
    "calls in a row": [LOOK, ("see", {"b": 2})],
    "calls that mix": [("look", {"a": 1}), ("see", {"b": 2})],
    "calls at once": [("look", {"a": 1}), ("see", {"b": 2})],
    "one index for all": [("look", {"a": 1}), ("see", {"b": 2})],
    "one id for all": [("look", {"a": 1}), ("see", {"b": 2})],
    "no id": [("look", {"a": 1}), ("see", {"b": 2})],
    "no arguments": [("look", {}), ("see", {})],
    "calls without index": [("look", {}), ("look", {"b": 1})],
    "calls without index or id": [("look", {}), ("look", {"b": 1})],
    "pieces without index": [("look", {"a": 1})],
    "pieces with their id only": [("look", {"a": 1}), ("see", {"b": 1})],
    "id and name again": [("look", {"a": 1})],
    "id after arguments": [("look", {"a": 1})],
    "odd id": [("look", {"a": 1})],
    "old call": [("look", {"a": 1})],
}


@pytest.mark.parametrize("name", CHAT_CALLS)
def test_tool_calls_of_a_chat_stream(name: str) -> None:
    assert calls(messages_stream(told(messages(), corpus.CHAT[name])).calls) == CHAT_CALLS[name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("call", [LOOK]),
        ("calls", [LOOK, ("see", {"b": 2})]),
        ("thinking and call", [LOOK]),
        ("call with its arguments at once", [LOOK]),
        ("call without arguments", [("look", {})]),
        ("call that is not stopped", [("look", {})]),
    ],
)
def test_tool_calls_of_a_messages_stream(name: str, said: list[tuple[str, Any]]) -> None:
    assert calls(chat_stream(told(chat(), corpus.MESSAGES[name])).calls) == said


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("text", ["text"]),
        ("reasoning", ["thinking", "text"]),
        ("reasoning in parts", ["thinking", "text"]),
        ("reasoning, text, tools", ["thinking", "text", "tool_use"]),
        ("reasoning twice", ["thinking", "text", "thinking", "text"]),
        ("text after a call", ["tool_use", "text"]),
        ("text inside a call", ["tool_use", "text"]),
        ("text between calls", ["tool_use", "text", "tool_use"]),
        ("nothing", []),
    ],
)
def test_blocks_in_order(name: str, kinds: list[str]) -> None:
    assert messages_stream(told(messages(), corpus.CHAT[name])).kinds == kinds


def test_ids_of_tool_calls() -> None:
    def idents(name: str) -> list[str]:
        return [call.ident for call in messages_stream(told(messages(), corpus.CHAT[name])).calls]

    assert idents("one call") == ["call_a"]
    assert idents("no id") == ["call_r1_0", "call_r1_1"]
    assert idents("one id for all") == ["x", "x_1"]
    assert [unpack(ident) for ident in idents("odd id")] == [("functions.look:0", "")]
    assert [unpack(ident) for ident in idents("signed call")] == [("call_a", "Cs+/=")]


@pytest.mark.parametrize("name", ["reasoning", "reasoning under its other name", "reasoning in parts"])
def test_reasoning_becomes_thinking(name: str) -> None:
    said = messages_stream(told(messages(), corpus.CHAT[name]))
    assert (said.reasoning, said.text) == ("Hmm.", TEXT)


@pytest.mark.parametrize("thinking", [{"type": "disabled"}, {"type": "adaptive", "display": "omitted"}])
def test_thinking_that_is_not_wanted_is_not_told(thinking: dict[str, Any]) -> None:
    said = messages_stream(told(messages(thinking=thinking), corpus.CHAT["reasoning, text, tools"]))
    assert (said.reasoning, said.kinds) == ("", ["text", "tool_use"])


@pytest.mark.parametrize("name", ["thinking", "thinking whole", "thinking and call"])
def test_thinking_becomes_reasoning(name: str) -> None:
    assert chat_stream(told(chat(), corpus.MESSAGES[name])).reasoning == "Hmm."


def test_nothing_is_told_before_there_is_content() -> None:
    bridge = messages()
    assert bridge.feed(corpus.data(corpus.ROLE, corpus.chunk({"content": ""}))) == b""
    assert bridge.feed(corpus.data(corpus.chunk(corpus.call(0, "", "look", "")))) == b""
    assert bridge.failed is None
    assert bridge.feed(corpus.data(corpus.chunk(corpus.call(0, "call_a", "", "")))).startswith(
        b"event: message_start\n"
    )
    other = chat()
    assert other.feed(corpus.start() + corpus.PING) == b""
    assert other.feed(corpus.event("content_block_start", index=0, content_block={"type": "text", "text": ""})) == b""
    assert other.feed(corpus.event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x"})) != b""
    assert other.feed(corpus.PING) == b": ping\n\n"


def test_what_comes_is_told_at_once() -> None:
    bridge = messages()
    for piece in (*corpus.TEXT, *corpus.ONE_CALL):
        assert bridge.feed(corpus.data(piece)).endswith(b"\n\n")
    assert b"event: content_block_stop" in bridge.feed(corpus.data(corpus.chunk(corpus.call(1, "b", "see", "{"))))


@pytest.mark.parametrize(
    ("make", "data", "status", "said"),
    [
        (
            messages,
            corpus.data(corpus.ROLE, corpus.ERROR),
            429,
            {"type": "error", "error": {"type": "rate_limit_error", "message": "Slow down"}, "request_id": "r1"},
        ),
        (
            messages,
            corpus.data({"error": {"message": "Busy", "code": 503}}),
            529,
            {"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}, "request_id": "r1"},
        ),
        (
            chat,
            corpus.start() + corpus.PING + corpus.OVERLOADED,
            503,
            {"error": {"type": "overloaded_error", "message": "Overloaded", "param": None, "code": None}},
        ),
    ],
)
def test_a_stream_that_fails_at_once_has_a_status(
    make: Callable[[], Bridge], data: bytes, status: int, said: dict[str, Any]
) -> None:
    bridge = make()
    assert bridge.feed(data) == b""
    assert bridge.failed is not None
    assert (bridge.failed[0], json.loads(bridge.failed[1])) == (status, said)
    assert bridge.feed(corpus.data(corpus.STOP, corpus.DONE)) == b""
    assert (messages_stream if make is messages else chat_stream)(bridge.end()).error is not None
    assert bridge.end() == b""


@pytest.mark.parametrize("make", [messages, chat])
def test_a_connection_that_breaks_before_anything(make: Callable[[], Bridge]) -> None:
    bridge = make()
    out = bridge.broke(504, "The provider sent nothing for 60 seconds")
    assert bridge.failed is not None
    assert bridge.failed[0] == 504
    error = (messages_stream if make is messages else chat_stream)(out).error
    assert error is not None
    assert (error["message"], error["type"]) == ("The provider sent nothing for 60 seconds", "timeout_error")
    assert bridge.broke(504, "again") + bridge.end() + bridge.feed(b"data: x\n\n") == b""


@pytest.mark.parametrize(
    ("make", "data"), [(messages, corpus.CHAT["one call"]), (chat, corpus.MESSAGES["call"])], ids=["messages", "chat"]
)
def test_a_stream_that_is_over_stays_over(make: Callable[[], Bridge], data: bytes) -> None:
    bridge = make()
    whole = told(bridge, data)
    assert bridge.feed(data) + bridge.end() + bridge.broke(502, "x") == b""
    assert told(make(), data, data) == whole


@pytest.mark.parametrize(("make", "read"), [(messages, messages_stream), (chat, chat_stream)])
def test_a_line_without_an_end_is_an_error(make: Callable[[], Bridge], read: Callable[[bytes], Any]) -> None:
    bridge = make()
    piece = b"data: " + b"x" * (1 << 20)
    out = b"".join(bridge.feed(piece) for _ in range(20))
    assert "longer than" in read(out + bridge.end()).error["message"]


def test_arguments_without_an_end_are_an_error() -> None:
    bridge = messages()
    out = bridge.feed(corpus.data(corpus.chunk(corpus.call(0, "a", "look", '{"x": "'))))
    for _ in range(20):
        out += bridge.feed(corpus.data(corpus.chunk(corpus.call(0, None, None, "x" * (1 << 20)))))
    error = messages_stream(out + bridge.end()).error
    assert error is not None
    assert "longer than" in error["message"]


def test_signed_thinking_goes_back_with_the_results_of_tools() -> None:
    kept = Kept()
    first = ChatOnMessages(corpus.CHAT_REQUEST, PLAIN, "r1", 100, kept=kept)
    redacted = corpus.block(1, {"type": "redacted_thinking", "data": "xyz"})
    look = corpus.block(2, corpus.use(), {"type": "input_json_delta", "partial_json": "{}"})
    said = chat_stream(told(first, corpus.start() + corpus.THOUGHT + redacted + look + corpus.stop("tool_use")))
    call = {"id": said.calls[0].ident, "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "reasoning_content": said.reasoning, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": said.calls[0].ident, "content": "Dom"},
    ]
    second = ChatOnMessages(corpus.CHAT_REQUEST | {"messages": turns}, PLAIN, "r2", 100, kept=kept)
    assert second.document["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "Hmm.", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
    ]
    assert second.ignored == ()
    forgetful = ChatOnMessages(corpus.CHAT_REQUEST | {"messages": turns}, PLAIN, "r2", 100)
    assert [block["type"] for block in forgetful.document["messages"][1]["content"]] == ["tool_use"]
    assert forgetful.ignored == ("messages.reasoning_content",)


def test_a_ping_follows_the_beginning() -> None:
    out = told(messages(), corpus.CHAT["text"])
    names = [line.removeprefix(b"event: ") for line in out.split(b"\n") if line.startswith(b"event: ")]
    assert names[:3] == [b"message_start", b"ping", b"content_block_start"]
    assert messages_stream(out).pings == 1


def test_long_arguments_that_mix_are_read_to_their_end() -> None:
    """They are not read after each piece; the last time counts."""
    bridge = messages()
    text = "}" * 9_000
    first, second = f'{{"a": "{text}"}}', f'{{"b": "{text}"}}'
    pieces = [corpus.chunk(corpus.call(0, "call_a", "look", "")), corpus.chunk(corpus.call(1, "call_b", "see", ""))]
    for at in range(0, len(first), 500):
        pieces.append(corpus.chunk(corpus.call(0, None, None, first[at : at + 500])))
        pieces.append(corpus.chunk(corpus.call(1, None, None, second[at : at + 500])))
    said = messages_stream(told(bridge, corpus.data(*pieces, corpus.CALLED, corpus.DONE)))
    assert calls(said.calls) == [("look", {"a": text}), ("see", {"b": text})]


def test_a_call_that_another_one_follows_without_a_stop_is_told_whole() -> None:
    first = corpus.event("content_block_start", index=0, content_block=corpus.use("toolu_1", where="Köln"))
    second = corpus.event("content_block_start", index=0, content_block=corpus.use("toolu_2", "see", b=2))
    said = chat_stream(told(chat(), corpus.start() + first + second + corpus.stop("tool_use")))
    assert calls(said.calls) == [LOOK, ("see", {"b": 2})]
