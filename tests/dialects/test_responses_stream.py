"""Answers of a chat, whole and streamed, as answers of the responses API."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dialects.quirks import LOCAL, PLAIN
from reconciler.dialects.responses_on_chat import ResponsesOnChat
from tests.dialects.canned import EVENTS, JSON, answering
from tests.dialects.responses_corpus import (
    BAD_AT_ONCE,
    BAD_LATER,
    COUNTED,
    GOOD,
    REQUEST,
    RESPONSE_USAGE,
    STOP,
    USAGE,
    Told,
    chunk,
    clock,
    stream,
)
from tests.support.streams_responses import check_response, responses_stream

NIGHTLY = os.environ.get("RECONCILER_NIGHTLY") == "1"

BEGUN = stream(chunk({"content": "So far"}), done=False)


def bridge(**more: Any) -> ResponsesOnChat:
    return ResponsesOnChat({**REQUEST, **more}, PLAIN, "r1", clock=clock)


def run(told: Told, *cuts: int) -> bytes:
    one = bridge(**told.request)
    said, last = b"", 0
    for cut in (*cuts, len(told.data)):
        said += one.feed(told.data[last:cut])
        last = cut
    said += one.end()
    assert one.failed is None
    assert one.answer is not None
    assert one.end() == one.feed(told.data) == one.broke(502, "late") == b""
    return said


@pytest.mark.parametrize("name", GOOD)
def test_a_stream_says_what_the_upstream_said(name: str) -> None:
    told = GOOD[name]
    said = responses_stream(run(told))
    assert (said.text, said.reasoning, said.summary, said.refusal) == (
        told.text, told.reasoning, told.summary, told.refusal,
    )  # fmt: skip
    assert said.calls == told.calls
    assert (said.finish, said.usage) == (told.finish, told.usage)
    assert said.response["incomplete_details"] == (told.reason and {"reason": told.reason})
    assert [item["type"] for item in said.response["output"]] == told.items
    last = "completed" if name == "cut off before the name of the second call" else told.finish
    assert [item["status"] for item in said.response["output"]][-1:] == [last][: len(told.items)]
    assert said.response["completed_at"] == (1_800_000_000 if told.finish == "completed" else None)


@pytest.mark.parametrize("name", GOOD)
def test_it_is_the_same_wherever_the_bytes_are_cut(name: str) -> None:
    whole = run(GOOD[name])
    for cut in range(1, len(GOOD[name].data)):
        assert run(GOOD[name], cut) == whole
    assert run(GOOD[name], *range(1, len(GOOD[name].data))) == whole


@pytest.mark.parametrize("name", GOOD)
def test_the_official_client_reads_it(name: str) -> None:
    import openai

    told = GOOD[name]
    with (
        answering(200, EVENTS, run(told)) as served,
        openai.OpenAI(base_url=served.base, api_key="k", max_retries=0) as client,
    ):
        plain = list(client.responses.create(model="fast", input="Hi", stream=True))
        with client.responses.stream(model="fast", input="Hi") as streamed:
            kinds = [event.type for event in streamed]
    assert plain[0].type == "response.created"
    last: Any = plain[-1]
    assert last.type == f"response.{told.finish}"
    assert last.response.output_text == told.text
    assert [item.type for item in last.response.output] == told.items
    assert kinds == [event.type for event in plain]


def test_the_official_client_gets_its_final_response() -> None:
    import openai

    with (
        answering(200, EVENTS, run(GOOD["words, then a call"])) as served,
        openai.OpenAI(base_url=served.base, api_key="k", max_retries=0) as client,
        client.responses.stream(model="fast", input="Hi") as streamed,
    ):
        final = streamed.get_final_response()
    assert final.output_text == "Let me see."
    assert final.output[1].type == "function_call"
    assert final.output[1].arguments == '{"x": 1}'


@pytest.mark.parametrize("name", BAD_AT_ONCE)
def test_what_fails_before_any_content_can_still_be_told_by_a_status(name: str) -> None:
    data, status = BAD_AT_ONCE[name]
    for cut in range(len(data) + 1):
        one = bridge()
        assert one.feed(data[:cut]) + one.feed(data[cut:]) == b""
        if one.failed is None:
            end = one.end()
        else:
            assert one.feed(stream(chunk({"content": "more"}), STOP)) == b""
            end = one.end()
        assert one.failed is not None
        assert one.failed[0] == status
        assert json.loads(one.failed[1])["error"]["message"]
        said = responses_stream(end)
        assert said.events == ["response.created", "response.in_progress", "error", "response.failed"]
        assert said.error == json.loads(one.failed[1])["error"]["message"]
        assert one.end() == b""


@pytest.mark.parametrize("name", BAD_LATER)
def test_what_fails_later_ends_with_an_error_and_a_failed_response(name: str) -> None:
    whole = None
    data = BEGUN + BAD_LATER[name]
    for cut in range(len(data) + 1):
        one = bridge()
        bytes_ = one.feed(data[:cut]) + one.feed(data[cut:]) + one.end()
        assert whole in (None, bytes_)
        whole = bytes_
        assert one.failed is None
    said = responses_stream(whole or b"")
    assert (said.finish, said.text) == ("failed", "So far")
    assert said.error
    assert said.response["error"] == {"code": "server_error", "message": said.error}
    assert said.response["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("name", BAD_LATER)
def test_the_official_client_sees_that_it_failed(name: str) -> None:
    import openai

    one = bridge()
    told = one.feed(BEGUN + BAD_LATER[name]) + one.end()
    with (
        answering(200, EVENTS, told) as served,
        openai.OpenAI(base_url=served.base, api_key="k", max_retries=0) as client,
    ):
        kinds = [event.type for event in client.responses.create(model="fast", input="Hi", stream=True)]
        with client.responses.stream(model="fast", input="Hi") as streamed, pytest.raises(RuntimeError):
            streamed.get_final_response()
    assert kinds[-2:] == ["error", "response.failed"]


def test_an_error_in_the_middle_keeps_what_was_called_and_whether_to_try_again() -> None:
    one = bridge()
    piece = {"index": 0, "id": "call_a", "function": {"name": "f", "arguments": '{"x'}}
    said = one.feed(stream(chunk({"tool_calls": [piece]}), {"error": {"code": 429, "message": "slow down"}}))
    read = responses_stream(said)
    assert read.response["error"] == {"code": "rate_limit_exceeded", "message": "slow down"}
    assert read.calls == [("call_a", "f", '{"x')]
    assert one.answer is not None
    assert one.answer["status"] == "failed"


def test_arguments_after_the_end_of_a_call_are_an_error() -> None:
    def piece(index: int, name: str | None, arguments: str) -> dict[str, Any]:
        function = {"arguments": arguments} | ({"name": name} if name else {})
        return chunk({"tool_calls": [{"index": index, "function": function}]})

    told = stream(piece(0, "f", "{}"), piece(1, "g", "{"), piece(0, None, " \n"), piece(0, None, '"x"'))
    said = responses_stream(bridge().feed(told))
    assert "after their end" in said.error
    assert said.finish == "failed"


@pytest.mark.parametrize("begun", [b"", BEGUN])
def test_a_broken_connection_is_never_a_normal_end(begun: bytes) -> None:
    one = bridge()
    said = responses_stream(one.feed(begun) + one.broke(504, "fast sent nothing for 60 seconds"))
    assert said.finish == "failed"
    assert said.error == "fast sent nothing for 60 seconds"
    assert one.broke(502, "again") == one.end() == b""


def test_what_is_nested_too_deeply_is_an_error_and_no_exception() -> None:
    for levels in (500, 900, 960, 980, 985, 990, 995, 100_000):
        deep = '{"a":' * levels + "1" + "}" * levels
        begun = (
            f'{{"choices":[{{"delta":{{"content":"x"}},"logprobs":{{"content":[{{"token":"x","bytes":[{deep}]}}]}}}}]}}'
        )
        call = f'{{"choices":[{{"delta":{{"tool_calls":[{{"function":{{"name":"f","arguments":{deep}}}}}]}}}}]}}'
        one = bridge(top_logprobs=1)
        said = one.feed(BEGUN + stream(begun, done=False)) + one.feed(stream(call, STOP)) + one.end()
        assert responses_stream(said).finish in ("completed", "failed")
        assert bridge(stream=False).whole(200, call.replace("delta", "message").encode())[0] in (200, 502)


def test_an_endless_event_is_an_error() -> None:
    one = bridge()
    said = one.feed(BEGUN)
    for _ in range(40):
        said += one.feed(b"data: " + b"x" * 1_000_000)
    assert responses_stream(said).finish == "failed"


def whole_of(told: Told) -> dict[str, Any]:
    """The stream's pieces as one whole answer, by hand."""
    message: dict[str, Any] = {"role": "assistant", "content": told.text or None}
    if told.reasoning or told.summary:
        message["reasoning_content"] = told.reasoning or told.summary
    if told.refusal:
        message["refusal"] = told.refusal
    if told.calls:
        message["tool_calls"] = [
            {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}
            for ident, name, arguments in told.calls
        ]
    finish = {None: "stop", "max_output_tokens": "length", "content_filter": "content_filter"}[told.reason]
    answer = {"id": "c", "object": "chat.completion", "created": 7, "model": "up"}
    answer["choices"] = [{"index": 0, "message": message, "finish_reason": finish}]  # type: ignore[assignment]
    return answer | ({"usage": USAGE} if told.usage else {})


@pytest.mark.parametrize("name", GOOD)
def test_a_whole_answer_says_the_same(name: str) -> None:
    import openai

    told = GOOD[name]
    one = bridge(stream=False, **told.request)
    status, body = one.whole(200, json.dumps(whole_of(told)).encode())
    response = json.loads(body)
    check_response(response)
    assert (status, response) == (200, one.answer)
    assert response["status"] == told.finish
    kinds = {*told.items} - {"function_call"}  # of which a whole answer has one each
    assert sorted(item["type"] for item in response["output"]) == sorted(
        [*kinds, *("function_call" for _ in told.calls)]
    )
    with (
        answering(200, JSON, body) as served,
        openai.OpenAI(base_url=served.base, api_key="k", max_retries=0) as client,
    ):
        read = client.responses.create(model="fast", input="Hi")
    assert read.output_text == told.text
    assert [(item.call_id, item.name) for item in read.output if item.type == "function_call"] == [
        call[:2] for call in told.calls
    ]
    assert (read.usage.model_dump(exclude_none=True) if read.usage else None) == told.usage


@pytest.mark.parametrize(
    ("status", "body", "expected", "says"),
    [
        (429, b'{"error": {"message": "slow down", "type": "rate_limit_error"}}', 429, "slow down"),
        (400, b'[{"error": {"code": 400, "message": "no field", "status": "INVALID_ARGUMENT"}}]', 400, "no field"),
        (502, b"<html><title>Bad gateway</title></html>", 502, "Bad gateway"),
        (529, b'{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}', 503, "busy"),
        (200, b'{"error": {"message": "no credit", "code": 402}}', 402, "no credit"),
        (200, b"{", 502, "not JSON"),
        (200, b'{"object": "chat.completion", "choices": []}', 502, "no choices"),
        (200, b"[]", 502, "no choices"),
        (200, b'{"choices": [{"message": {"tool_calls": [{"function": {}}]}}]}', 502, "without a name"),
        (200, b'{"choices": [{"message": {"content": "x"}, "finish_reason": "error"}]}', 502, "error"),
    ],
)  # fmt: skip
def test_a_whole_error_is_in_the_callers_words(status: int, body: bytes, expected: int, says: str) -> None:
    got, answer = bridge(stream=False).whole(status, body)
    assert got == expected
    assert says in json.loads(answer)["error"]["message"]


def test_the_answer_repeats_the_request() -> None:
    asked = {
        "instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 9,
        "user": "u", "prompt_cache_key": "k", "safety_identifier": "s", "parallel_tool_calls": False, "store": False,
        "text": {"format": {"type": "json_object"}, "verbosity": "low"}, "truncation": "auto", "max_tool_calls": 3,
        "reasoning": {"effort": "low", "summary": "concise"}, "tool_choice": {"type": "function", "name": "f"},
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
    }  # fmt: skip
    one = bridge(**asked)
    response = responses_stream(one.feed(GOOD["text"].data)).response
    assert {key: response[key] for key in asked} == asked
    assert (response["model"], response["id"], response["created_at"]) == ("fast", "resp_r1", 1_800_000_000)


def test_what_was_not_asked_for_is_as_the_api_says() -> None:
    response = responses_stream(run(GOOD["text"])).response
    assert response["tool_choice"] == "auto"
    assert response["tools"] == []
    assert response["parallel_tool_calls"] is True
    assert response["text"] == {"format": {"type": "text"}}
    assert response["truncation"] == "disabled"
    assert response["usage"] == RESPONSE_USAGE


def test_without_a_clock_times_are_the_upstreams() -> None:
    one = ResponsesOnChat(REQUEST, PLAIN, "r1")
    response = responses_stream(one.feed(GOOD["text"].data)).response
    assert (response["created_at"], response["completed_at"]) == (7, None)


def test_reasoning_comes_back_through_what_the_client_keeps() -> None:
    one = bridge(include=["reasoning.encrypted_content"], store=False, reasoning={"summary": "auto"})
    output = responses_stream(one.feed(GOOD["reasoning"].data)).response["output"]
    assert output[0]["summary"] == [{"type": "summary_text", "text": "Hmm."}]
    output[0]["summary"] = []  # as clients do that show it and do not send it back
    again = ResponsesOnChat({"model": "fast", "input": [{"role": "user", "content": "Hi"}, *output]}, LOCAL, "r2")
    assert again.document["messages"][1:] == [{"role": "assistant", "content": "Yes", "reasoning_content": "Hmm."}]


def test_a_function_of_a_namespace_is_called_by_its_own_name() -> None:
    space = {"type": "namespace", "name": "files", "description": "", "tools": [{"type": "function", "name": "read"}]}
    one = bridge(tools=[space])
    piece = {"index": 0, "id": "call_a", "function": {"name": "files__read", "arguments": "{}"}}
    response = responses_stream(one.feed(stream(chunk({"tool_calls": [piece]}), STOP, COUNTED))).response
    assert (response["output"][0]["namespace"], response["output"][0]["name"]) == ("files", "read")


@settings(max_examples=300 if NIGHTLY else 75, deadline=None)
@given(st.lists(st.binary(max_size=80) | st.sampled_from([BEGUN, stream(STOP, done=False), b"\n\n", b"data: "])))
def test_arbitrary_bytes_never_raise_and_never_end_normally_without_an_end(pieces: list[bytes]) -> None:
    one = bridge()
    said = b"".join(one.feed(piece) for piece in pieces)
    failed = one.failed
    said += one.end()
    read = responses_stream(said)
    assert read.finish == "failed" or (failed is None and b'"stop"' in b"".join(pieces))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_PIECES = (
    "choices", "delta", "message", "content", "tool_calls", "function", "name", "arguments", "index", "id",
    "finish_reason", "logprobs", "usage", "created", "refusal", "reasoning_content", "annotations", "url_citation",
    "url", "token", "top_logprobs", "extra_content", "google", "thought_signature", "type", "text", "error",
)  # fmt: skip
chunks = st.recursive(
    json_values | st.sampled_from([0, "stop", "length", "thinking", "x", "{}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_PIECES), inner, max_size=6),
    max_leaves=25,
)


@settings(max_examples=400 if NIGHTLY else 100, deadline=None)
@given(st.lists(chunks, max_size=4))
def test_arbitrary_chunks_make_a_valid_stream(documents: list[Any]) -> None:
    one = bridge(top_logprobs=1)
    framed = [{"choices": [{"index": 0, "delta": document}]} for document in documents]
    said = one.feed(stream(*documents, *framed, STOP)) + one.end()
    assert responses_stream(said).finish in ("completed", "incomplete", "failed")


@settings(max_examples=300 if NIGHTLY else 75, deadline=None)
@given(chunks, st.sampled_from([200, 400, 500]))
def test_arbitrary_whole_answers_never_raise(document: Any, status: int) -> None:
    for one in (document, {"choices": [{"message": document}]}):
        got, body = bridge(stream=False).whole(status, json.dumps(one).encode())
        answer = json.loads(body)
        if got == 200:
            check_response(answer)
        else:
            assert answer["error"]["message"]
