"""A caller of responses before an upstream of messages, by way of chat."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reconciler.dialects.bridge import Bridge
from reconciler.dialects.chat_on_messages import ChatOnMessages
from reconciler.dialects.compose import Composed
from reconciler.dialects.quirks import PLAIN, Quirks
from reconciler.dialects.responses_on_chat import ResponsesOnChat
from tests.dialects.canned import EVENTS, answering
from tests.dialects.corpus import BAD_CHAT, BAD_MESSAGES, CHAT, MESSAGES, OVERLOADED, start
from tests.dialects.responses_corpus import REQUEST, clock
from tests.support.streams_responses import check_response, responses_stream

TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}


def composed(**more: Any) -> Composed:
    first = ResponsesOnChat({**REQUEST, **more}, Quirks(reasoning="reasoning_content"), "r1", clock=clock)
    return Composed(first, ChatOnMessages(first.document, PLAIN, "r1", 4096))


def run(bridge: Bridge, data: bytes, *cuts: int) -> bytes:
    said, last = b"", 0
    for cut in (*cuts, len(data)):
        said += bridge.feed(data[last:cut])
        last = cut
    return said + bridge.end()


def test_the_request_is_what_the_upstream_takes() -> None:
    one = composed(instructions="Be brief.", tools=[TOOL], max_output_tokens=9, prompt_cache_key="k", user="u")
    assert one.path == "/messages"
    assert one.document["max_tokens"] == 9
    assert one.document["stream"] is True
    assert "Be brief." in json.dumps(one.document["system"])
    assert one.document["tools"][0]["name"] == "look"
    assert "prompt_cache_key" in one.ignored
    assert one.ignored == tuple(sorted(one.ignored))
    assert one.failed is None
    assert isinstance(one.first, ResponsesOnChat)
    assert [item["type"] for item in one.first.items] == ["message"]


@pytest.mark.parametrize("name", MESSAGES)
def test_every_stream_of_messages_becomes_a_response(name: str) -> None:
    data = MESSAGES[name]
    one = composed()
    whole = run(one, data)
    assert one.failed is None
    said = responses_stream(whole)
    assert said.finish in ("completed", "incomplete")
    assert said.usage is not None
    for cut in range(1, len(data), 7):
        assert run(composed(), data, cut) == whole
    assert run(composed(), data, *range(1, len(data))) == whole
    if name == "thinking and call":
        assert said.reasoning
        assert said.calls[0][1:] == ("look", '{"where": "Köln"}')
    assert one.end() == one.broke(502, "late") == b""


@pytest.mark.parametrize("name", MESSAGES)
def test_the_official_client_reads_it(name: str) -> None:
    import openai

    with (
        answering(200, EVENTS, run(composed(), MESSAGES[name])) as served,
        openai.OpenAI(base_url=served.base, api_key="k", max_retries=0) as client,
        client.responses.stream(model="fast", input="Hi") as streamed,
    ):
        kinds = [event.type for event in streamed]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_what_fails_later_ends_as_failed(name: str) -> None:
    one = composed()
    said = responses_stream(run(one, BAD_MESSAGES[name][0]))
    assert one.failed is None
    assert said.finish == "failed"
    assert said.error


@pytest.mark.parametrize("data", [OVERLOADED, start() + OVERLOADED, b"event: message_start\ndata: {oops\n\n"])
def test_what_fails_before_any_content_can_still_be_told_by_a_status(data: bytes) -> None:
    for cut in range(len(data)):
        one = composed()
        assert one.feed(data[:cut]) + one.feed(data[cut:]) == b""
        assert one.failed is not None
        assert one.failed[0] in (502, 503)
        assert json.loads(one.failed[1])["error"]["message"]
        assert responses_stream(one.end()).finish == "failed"


@pytest.mark.parametrize("begun", [b"", start(), MESSAGES["text"][:400]])
def test_a_broken_connection_is_never_a_normal_end(begun: bytes) -> None:
    one = composed()
    said = responses_stream(one.feed(begun) + one.broke(504, "silent"))
    assert (said.finish, said.error) == ("failed", "silent")
    assert one.end() == b""


def test_a_whole_answer_and_an_error() -> None:
    one = composed(stream=False)
    content = [{"type": "thinking", "thinking": "Hm", "signature": "s"}, {"type": "text", "text": "Yes"},
               {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"a": 1}}]  # fmt: skip
    answer = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": content,
              "stop_reason": "tool_use", "usage": {"input_tokens": 3, "output_tokens": 4}}  # fmt: skip
    status, body = one.whole(200, json.dumps(answer).encode())
    response = json.loads(body)
    check_response(response)
    assert status == 200
    assert [item["type"] for item in response["output"]] == ["reasoning", "message", "function_call"]
    assert response["usage"]["total_tokens"] == 7
    overloaded = b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}'
    status, body = composed(stream=False).whole(529, overloaded)
    assert (status, json.loads(body)["error"]["message"]) == (503, "Overloaded")


@pytest.mark.parametrize("name", CHAT)
def test_the_chat_streams_of_other_tests_become_responses_too(name: str) -> None:
    data = CHAT[name]
    whole = run(ResponsesOnChat(REQUEST, PLAIN, "r1", clock=clock), data)
    said = responses_stream(whole)
    assert said.finish == ("incomplete" if name in ("length", "filtered", "cut in arguments") else "completed")
    assert said.text or said.calls or said.refusal or name == "nothing"
    assert run(ResponsesOnChat(REQUEST, PLAIN, "r1", clock=clock), data, *range(1, len(data))) == whole


# What a model calls with is text here: whoever called for it reads it, and may send it back.
@pytest.mark.parametrize("name", [name for name in BAD_CHAT if not name.startswith("arguments")])
def test_the_broken_chat_streams_of_other_tests_fail_here_too(name: str) -> None:
    said = responses_stream(run(ResponsesOnChat(REQUEST, PLAIN, "r1", clock=clock), BAD_CHAT[name][0]))
    assert said.finish == "failed"
    assert said.error
