"""The official clients read what the translators say: streams, whole answers, errors, the list of models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import openai
import pytest

from reconciler.dialects.chat_on_messages import ChatOnMessages
from reconciler.dialects.messages_on_chat import MessagesOnChat, counted
from reconciler.dialects.model_list import model_object, models_page
from reconciler.dialects.quirks import PLAIN
from tests.dialects import corpus
from tests.dialects.canned import EVENTS, JSON, Served, answering
from tests.dialects.test_answers import CHAT_ANSWER, MESSAGES_ANSWER
from tests.support.streams import chat_stream, messages_stream

ASK: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": "Hi"}]}


def told(bridge: Any, data: bytes) -> bytes:
    said: bytes = bridge.feed(data) + bridge.end()
    return said


def messages() -> MessagesOnChat:
    return MessagesOnChat(corpus.MESSAGES_REQUEST, PLAIN, "r1")


def chat() -> ChatOnMessages:
    return ChatOnMessages(corpus.CHAT_WITH_USAGE, PLAIN, "r1", 100, created=1)


@contextmanager
def anthropics(status: int, kind: str, body: bytes) -> Iterator[tuple[anthropic.Anthropic, Served]]:
    with (
        answering(status, kind, body) as served,
        anthropic.Anthropic(base_url=served.base, api_key="k", max_retries=0) as client,
    ):
        yield client, served


@contextmanager
def openais(status: int, kind: str, body: bytes) -> Iterator[tuple[openai.OpenAI, Served]]:
    with (
        answering(status, kind, body) as served,
        openai.OpenAI(base_url=f"{served.base}/v1", api_key="k", max_retries=0) as client,
    ):
        yield client, served


@pytest.mark.parametrize("name", corpus.CHAT)
def test_anthropics_client_reads_every_stream(name: str) -> None:
    body = told(messages(), corpus.CHAT[name])
    strict = messages_stream(body)
    with anthropics(200, EVENTS, body) as (client, _), client.messages.stream(**ASK, max_tokens=100) as stream:
        events = [event.type for event in stream]
        said = stream.get_final_message()
    assert events.count("message_stop") == 1
    assert [block.type for block in said.content] == strict.kinds
    assert "".join(block.text for block in said.content if block.type == "text") == strict.text
    assert "".join(block.thinking for block in said.content if block.type == "thinking") == strict.reasoning
    calls = [(block.id, block.name, block.input) for block in said.content if block.type == "tool_use"]
    if strict.finish != "max_tokens":
        assert calls == [(call.ident, call.name, json.loads(call.arguments)) for call in strict.calls]
    assert (said.stop_reason, said.stop_sequence) == (strict.finish, strict.stop_sequence)
    assert strict.usage is not None
    for key in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        assert getattr(said.usage, key) == strict.usage[key]


@pytest.mark.parametrize("name", corpus.BAD_CHAT)
def test_anthropics_client_raises_for_every_bad_stream(name: str) -> None:
    body = told(messages(), corpus.BAD_CHAT[name][0])
    error = messages_stream(body).error
    assert error is not None
    with anthropics(200, EVENTS, body) as (client, _), pytest.raises(anthropic.APIStatusError) as raised:
        list(client.messages.create(**ASK, max_tokens=100, stream=True))
    assert raised.value.body == {"type": "error", "error": error, "request_id": "r1"}


@pytest.mark.parametrize("name", corpus.MESSAGES)
def test_openais_client_reads_every_stream(name: str) -> None:
    body = told(chat(), corpus.MESSAGES[name])
    strict = chat_stream(body)
    with openais(200, EVENTS, body) as (client, _):
        chunks = list(client.chat.completions.create(**ASK, stream=True))
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == strict.text
    finishes = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert finishes == [strict.finish]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.model_dump(exclude_none=True) == strict.usage


@pytest.mark.parametrize(
    "name", [name for name in corpus.MESSAGES if name not in ("max_tokens", "context", "refusal", "cut in arguments")]
)
def test_openais_client_puts_every_stream_together(name: str) -> None:
    body = told(chat(), corpus.MESSAGES[name])
    strict = chat_stream(body)
    with openais(200, EVENTS, body) as (client, _), client.chat.completions.stream(**ASK) as stream:
        said = stream.get_final_completion().choices[0].message
    assert (said.content or "") == strict.text
    calls = [(call.id, call.function.name, call.function.arguments) for call in said.tool_calls or ()]
    assert calls == [(call.ident, call.name, call.arguments) for call in strict.calls]


@pytest.mark.parametrize("name", corpus.BAD_MESSAGES)
def test_openais_client_raises_for_every_bad_stream(name: str) -> None:
    body = told(chat(), corpus.BAD_MESSAGES[name][0])
    error = chat_stream(body).error
    assert error is not None
    with openais(200, EVENTS, body) as (client, _), pytest.raises(openai.APIError) as raised:
        list(client.chat.completions.create(**ASK, stream=True))
    assert raised.value.message == error["message"]


def test_whole_answers_and_errors_are_read() -> None:
    status, body = messages().whole(200, json.dumps(CHAT_ANSWER).encode())
    with anthropics(status, JSON, body) as (client, _):
        message = client.messages.create(**ASK, max_tokens=100)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert (message.stop_reason, message.usage.input_tokens) == ("tool_use", 5)
    status, body = chat().whole(200, json.dumps(MESSAGES_ANSWER).encode())
    with openais(status, JSON, body) as (client, _):
        completion = client.chat.completions.create(**ASK)
    assert completion.choices[0].message.tool_calls is not None
    assert completion.choices[0].finish_reason == "tool_calls"
    status, body = messages().whole(429, json.dumps(corpus.ERROR).encode())
    with anthropics(status, JSON, body) as (client, _), pytest.raises(anthropic.RateLimitError, match="Slow down"):
        client.messages.create(**ASK, max_tokens=100)
    status, body = chat().whole(529, b'{"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}}')
    with openais(status, JSON, body) as (client, _), pytest.raises(openai.InternalServerError, match="Busy") as raised:
        client.chat.completions.create(**ASK)
    assert raised.value.status_code == 503


def test_counts_and_models_are_read() -> None:
    with anthropics(*(200, JSON), counted(200, b'{"input_tokens": 7}')[1]) as (client, _):
        assert client.messages.count_tokens(**ASK).input_tokens == 7
    entries = [{"id": f"claude-{number}", "created": 1_795_393_006, "context_length": 4096} for number in range(3)]
    page = models_page(entries, {"limit": "2"})
    with anthropics(200, JSON, json.dumps(page).encode()) as (client, served):
        listed = client.models.list(limit=2)
        assert [(model.id, model.display_name, model.max_input_tokens) for model in listed.data] == [
            ("claude-0", "claude-0", 4096),
            ("claude-1", "claude-1", 4096),
        ]
        assert listed.data[0].created_at.year == 2026
        following = listed.next_page_info()
    assert listed.has_more
    assert following is not None
    assert following.params == {"after_id": "claude-1"}
    assert served.asked == [("/v1/models?limit=2", None)]
    with anthropics(200, JSON, json.dumps(model_object(entries[0])).encode()) as (client, _):
        assert client.models.retrieve("claude-0").type == "model"
