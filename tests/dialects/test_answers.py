"""Whole answers, both ways."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reconciler.dialects.chat_on_messages import ChatOnMessages
from reconciler.dialects.ids import unpack
from reconciler.dialects.kept import Kept
from reconciler.dialects.messages_on_chat import MessagesOnChat, counted
from reconciler.dialects.quirks import PLAIN
from tests.dialects import corpus

CALL = {"id": "call_a", "type": "function", "function": {"name": "look", "arguments": '{"where": "Köln"}'}}
CHAT_ANSWER: dict[str, Any] = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {"role": "assistant", "content": "Hi", "reasoning_content": "Hm", "tool_calls": [CALL]},
        }
    ],
    "usage": corpus.USAGE,
}
MESSAGES_ANSWER: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "Hm", "signature": "s"},
        {"type": "text", "text": "Hi"},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"where": "Köln"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 5, "cache_read_input_tokens": 12, "cache_creation_input_tokens": 3, "output_tokens": 7},
}


def answer(**message: Any) -> dict[str, Any]:
    finish = message.pop("finish_reason", "stop")
    more = message.pop("more", {})
    return {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}, **more}]}


def as_message(document: Any, status: int = 200, **request: Any) -> tuple[int, Any]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    said, whole = MessagesOnChat(corpus.MESSAGES_REQUEST | request, PLAIN, "r1").whole(status, body)
    return said, json.loads(whole)


def as_chat(document: Any, status: int = 200, kept: Kept | None = None) -> tuple[int, Any]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    bridge = ChatOnMessages(corpus.CHAT_REQUEST, PLAIN, "r1", 100, created=9, kept=kept)
    said, whole = bridge.whole(status, body)
    return said, json.loads(whole)


def test_a_chat_answer_as_a_message() -> None:
    assert as_message(CHAT_ANSWER) == (
        200,
        {
            "id": "msg_r1",
            "type": "message",
            "role": "assistant",
            "model": "fast",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "unsigned"},
                {"type": "text", "text": "Hi"},
                {"type": "tool_use", "id": "call_a", "name": "look", "input": {"where": "Köln"}},
            ],
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {
                "input_tokens": 5,
                "output_tokens": 7,
                "cache_creation_input_tokens": 3,
                "cache_read_input_tokens": 12,
                "output_tokens_details": {"thinking_tokens": 2},
            },
        },
    )


def test_a_message_as_a_chat_answer() -> None:
    status, said = as_chat(MESSAGES_ANSWER)
    call = CALL | {"id": "toolu_1", "function": {"name": "look", "arguments": '{"where":"Köln"}'}}
    message = {"role": "assistant", "content": "Hi", "refusal": None, "reasoning_content": "Hm", "tool_calls": [call]}
    assert (status, said) == (
        200,
        {
            "id": "chatcmpl-r1",
            "object": "chat.completion",
            "created": 9,
            "model": "fast",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}],
            "usage": {
                "prompt_tokens": 20,
                "completion_tokens": 7,
                "total_tokens": 27,
                "prompt_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        },
    )


@pytest.mark.parametrize(
    ("finish", "message", "reason"),
    [
        ("stop", {"content": "x"}, "end_turn"),
        (None, {"content": "x"}, "end_turn"),
        ("eos", {"content": "x"}, "end_turn"),
        ("length", {"content": "x"}, "max_tokens"),
        ("model_length", {"content": "x"}, "model_context_window_exceeded"),
        ("content_filter", {"content": "x"}, "refusal"),
        ("stop", {"content": None, "refusal": "No"}, "refusal"),
        ("stop", {"content": None, "tool_calls": [CALL]}, "tool_use"),
        ("length", {"content": None, "tool_calls": [CALL]}, "max_tokens"),
        ("tool_calls", {"content": "x"}, "end_turn"),
    ],
)
def test_why_a_chat_answer_ended(finish: Any, message: dict[str, Any], reason: str) -> None:
    assert as_message(answer(finish_reason=finish, **message))[1]["stop_reason"] == reason


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("tool_use", "stop"),
        (None, "stop"),
    ],
)
def test_why_a_message_ended(stop: Any, reason: str) -> None:
    said = as_chat({"content": [{"type": "text", "text": "x"}], "stop_reason": stop})[1]
    assert said["choices"][0]["finish_reason"] == reason


def test_a_stop_sequence_that_is_named() -> None:
    said = as_message(answer(content="x", more={"stop_reason": "END"}))[1]
    assert (said["stop_reason"], said["stop_sequence"]) == ("stop_sequence", "END")
    assert as_message(answer(content="x", more={"stop_reason": "OTHER"}))[1]["stop_reason"] == "end_turn"


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"content": ""}, []),
        ({"content": None}, []),
        ({"content": "x"}, [("text", "x")]),
        ({"content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}, [("text", "x"), ("text", "y")]),
        ({"content": None, "refusal": "No"}, [("text", "No")]),
        ({"content": "x", "reasoning": "Hm"}, [("thinking", "Hm"), ("text", "x")]),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
                    {"type": "text", "text": "x"},
                ]
            },
            [("thinking", "Hm"), ("text", "x")],
        ),
    ],
)
def test_what_a_chat_answer_says(message: dict[str, Any], content: list[tuple[str, str]]) -> None:
    said = as_message(answer(**message))[1]["content"]
    assert [(block["type"], block[block["type"]]) for block in said] == content


def test_thinking_that_is_not_wanted_is_left_out() -> None:
    said = as_message(answer(content="x", reasoning="Hm"), thinking={"type": "disabled"})[1]
    assert said["content"] == [{"type": "text", "text": "x"}]


@pytest.mark.parametrize(
    ("arguments", "given"), [("", {}), ("{}", {}), ({"a": 1}, {"a": 1}), (' {"a": 1} ', {"a": 1}), (None, {})]
)
def test_arguments_become_an_object(arguments: Any, given: Any) -> None:
    call = {"id": "a", "function": {"name": "look", "arguments": arguments}}
    assert as_message(answer(tool_calls=[call]))[1]["content"][0]["input"] == given


@pytest.mark.parametrize("arguments", ['{"a"', "[]", "null", "7", '{"a": NaN}', '{"a": 1e999}', "[" * 100_000])
def test_arguments_that_are_none_are_an_error(arguments: str) -> None:
    status, said = as_message(answer(tool_calls=[{"id": "a", "function": {"name": "look", "arguments": arguments}}]))
    assert (status, said["error"]["type"]) == (502, "api_error")
    assert "look" in said["error"]["message"]


def test_arguments_that_the_limit_cut_are_left_out() -> None:
    calls = [CALL, {"id": "b", "function": {"name": "see", "arguments": '{"a'}}]
    said = as_message(answer(tool_calls=calls, finish_reason="length"))[1]
    assert (said["stop_reason"], [block["name"] for block in said["content"]]) == ("max_tokens", ["look"])


def test_ids_are_given_and_carry_signatures() -> None:
    calls = [
        {"function": {"name": "a"}},
        {"id": "x y", "function": {"name": "b"}},
        {"id": "x y", "function": {"name": "c"}, "extra_content": {"google": {"thought_signature": "sig"}}},
    ]
    said = as_message(answer(tool_calls=calls))[1]["content"]
    assert [unpack(block["id"]) for block in said] == [("call_r1_0", ""), ("x y", ""), ("x y_2", "sig")]


def test_an_old_call_is_a_call() -> None:
    said = as_message(answer(function_call={"name": "look", "arguments": "{}"}, finish_reason="function_call"))[1]
    assert (said["stop_reason"], said["content"][0]["name"]) == ("tool_use", "look")


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": None}, {"prompt_tokens": True, "completion_tokens": "7"}, 7]
)
def test_usage_that_is_not_said_is_none(usage: Any) -> None:
    said = as_message(answer(content="x") | {"usage": usage})[1]
    assert set(said["usage"].values()) == {0}
    assert as_chat(MESSAGES_ANSWER | {"usage": usage})[1]["usage"]["total_tokens"] == 0


def test_usage_of_deepseek() -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 7, "prompt_cache_hit_tokens": 12, "prompt_cache_miss_tokens": 8}
    said = as_message(answer(content="x") | {"usage": usage})[1]["usage"]
    assert (said["input_tokens"], said["cache_read_input_tokens"]) == (8, 12)


BROKEN: list[Any] = [
    b"",
    b"<html>",
    b"7",
    b"[]",
    b"{}",
    b'{"choices": []}',
    b'{"choices": [{}]}',
    b'{"choices": 7}',
    b"{" * 9999,
]


@pytest.mark.parametrize("body", BROKEN)
def test_an_answer_that_is_none_is_an_error(body: bytes) -> None:
    status, said = as_message(body)
    assert (status, said["type"], said["error"]["type"], said["request_id"]) == (502, "error", "api_error", "r1")
    status, said = as_chat(body)
    assert (status, said["error"]["type"]) == (502, "server_error")


def test_a_call_without_a_name_is_an_error() -> None:
    assert as_message(answer(tool_calls=[{"id": "a", "function": {"arguments": "{}"}}]))[0] == 502
    assert as_chat({"content": [{"type": "tool_use", "id": "a", "input": {}}]})[0] == 502


def test_errors_keep_their_status() -> None:
    assert as_message(corpus.ERROR, 429)[0] == 429
    assert as_message(b"down", 503)[0] == 529
    assert as_message(corpus.ERROR)[0] == 429
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}}
    assert as_chat(error, 529)[0] == 503
    assert as_chat(error)[0] == 503
    assert as_chat([{"error": {"code": 400, "message": "x"}}], 400)[1]["error"]["message"] == "x"


def test_whole_thinking_is_kept() -> None:
    kept = Kept()
    as_chat(MESSAGES_ANSWER, kept=kept)
    assert kept.get("toolu_1") == [{"type": "thinking", "thinking": "Hm", "signature": "s"}]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b'{"input_tokens": 7}', (200, {"input_tokens": 7})),
        (200, b'{"object": "x", "input_tokens": 0}', (200, {"input_tokens": 0})),
        (200, b'{"tokens": [1, 2, 3]}', (200, {"input_tokens": 3})),
    ],
)
def test_counts(status: int, body: bytes, said: Any) -> None:
    found = counted(status, body)
    assert (found[0], json.loads(found[1])) == said


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"input_tokens": true}', b'{"input_tokens": -1}', b'{"tokens": "x"}']
)
def test_counts_that_are_none(body: bytes) -> None:
    assert counted(200, body)[0] == 502
    assert json.loads(counted(400, b'{"error": {"message": "x"}}')[1])["error"]["type"] == "invalid_request_error"
