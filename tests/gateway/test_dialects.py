"""Every dialect of a client meets every dialect of a provider: official clients, a provider that really listens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from anthropic import Anthropic, APIStatusError

from tests.gateway.harness import CLIENT_KEY, Gateway, provider
from tests.support.fake_provider import FakeProvider, Reply, Tool, Way
from tests.support.streams import chat_stream, messages_stream
from tests.support.streams_responses import responses_stream

TOOL = {
    "name": "look",
    "description": "Look somewhere.",
    "schema": {"type": "object", "properties": {"at": {"type": "integer"}}},
}
HI = [{"role": "user", "content": "hi"}]
CALLS = Reply("I will look.", tools=(Tool("look", '{"at": 7}', "call_1"), Tool("look", '{"at": 8}', "call_2")))
SAID = Reply("Hello from afar, ünïcode too.", reasoning="Let me think.")


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(keys=("k1",), models=("small",)) as fake:
        yield fake


@pytest.fixture(params=["openai", "anthropic"])
def spoken(request: pytest.FixtureRequest) -> str:
    """The one dialect that the provider speaks."""
    return str(request.param)


@pytest.fixture
def far(gateway: Gateway, fake: FakeProvider, spoken: str) -> Gateway:
    told = provider("", ["small"], speaks={spoken: fake.url}, auth="bearer" if spoken == "openai" else "x-api-key")
    gateway.use(providers={"far": told}, secrets={"far": {"keys": ["k1"]}})
    return gateway


def openai_at(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.base}/v1", api_key=CLIENT_KEY, max_retries=0)


def anthropic_at(gateway: Gateway) -> Anthropic:
    return Anthropic(base_url=gateway.base, api_key=CLIENT_KEY, max_retries=0)


def raw(gateway: Gateway, path: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{gateway.base}/v1{path}", json={"model": "far/small", **body}, timeout=10)


def last(fake: FakeProvider, spoken: str) -> Any:
    asked = fake.asked[-1]
    assert asked.path.endswith("/chat/completions" if spoken == "openai" else "/messages")
    assert CLIENT_KEY not in str(asked.headers)
    assert asked.body["model"] == "small"
    return asked.body


def test_chat(far: Gateway, fake: FakeProvider, spoken: str) -> None:
    fake.reply = SAID
    done = openai_at(far).chat.completions.create(
        model="far/small",
        messages=[{"role": "system", "content": "Be kind."}, *HI],
        max_tokens=50,
        temperature=0.5,  # type: ignore[list-item]
    )
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (SAID.text, "stop")
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (SAID.prompt_tokens, SAID.completion_tokens)
    body = last(fake, spoken)
    assert body.get("system") == ([{"type": "text", "text": "Be kind."}] if spoken == "anthropic" else None)
    assert body["max_tokens"] == 50


def test_chat_with_tools_and_their_results(far: Gateway, fake: FakeProvider, spoken: str) -> None:
    fake.reply = CALLS
    tools: Any = [{"type": "function", "function": {**TOOL, "parameters": TOOL["schema"]}}]
    tools[0]["function"].pop("schema")
    client = openai_at(far)
    done = client.chat.completions.create(model="far/small", messages=HI, tools=tools, max_tokens=50)  # type: ignore[arg-type]
    message = done.choices[0].message
    assert done.choices[0].finish_reason == "tool_calls"
    assert [json.loads(c.function.arguments) for c in message.tool_calls or []] == [{"at": 7}, {"at": 8}]  # type: ignore[union-attr]
    fake.reply = SAID
    results = [{"role": "tool", "tool_call_id": c.id, "content": "seen"} for c in message.tool_calls or []]
    told: Any = [*HI, message.model_dump(exclude_none=True), *results]
    client.chat.completions.create(model="far/small", messages=told, tools=tools, max_tokens=50)
    sent = json.dumps(last(fake, spoken))
    assert sent.count("call_1") == sent.count("call_2") == 2
    assert sent.count("seen") == 2


@pytest.mark.parametrize("reply", [SAID, CALLS, Reply("", finish="length"), Reply("x" * 50_000)])
def test_chat_streamed(far: Gateway, fake: FakeProvider, reply: Reply) -> None:
    fake.reply = reply
    body = {"messages": HI, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 9}
    said = chat_stream(raw(far, "/chat/completions", body).content)
    assert said.text == reply.text
    assert [(c.name, json.loads(c.arguments)) for c in said.calls] == [
        ("look", json.loads(t.arguments)) for t in reply.tools
    ]
    assert said.finish == reply.end


def test_messages(far: Gateway, fake: FakeProvider, spoken: str) -> None:
    fake.reply = SAID
    done = anthropic_at(far).messages.create(
        model="far/small",
        max_tokens=50,
        system="Be kind.",
        messages=HI,
        stop_sequences=["END"],  # type: ignore[arg-type]
    )
    assert [b.text for b in done.content if b.type == "text"] == [SAID.text]
    assert (done.stop_reason, done.usage.output_tokens) == ("end_turn", SAID.completion_tokens)
    assert done.usage.input_tokens + (done.usage.cache_read_input_tokens or 0) == SAID.prompt_tokens
    body = last(fake, spoken)
    assert (body["stop"] if spoken == "openai" else body["stop_sequences"]) == ["END"]


@pytest.mark.parametrize("reply", [SAID, CALLS, Reply("", finish="length"), Reply("x" * 50_000)])
def test_messages_streamed(far: Gateway, fake: FakeProvider, reply: Reply) -> None:
    fake.reply = reply
    tools = [{"name": "look", "description": "Look.", "input_schema": TOOL["schema"]}]
    body = {"messages": HI, "stream": True, "max_tokens": 9, "tools": tools}
    said = messages_stream(raw(far, "/messages", body).content)
    assert said.text == reply.text
    assert [(c.name, json.loads(c.arguments)) for c in said.calls] == [
        ("look", json.loads(t.arguments)) for t in reply.tools
    ]
    ends = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    assert said.finish == ends[reply.end]


def test_responses_that_go_on(far: Gateway, fake: FakeProvider, spoken: str) -> None:
    client = openai_at(far)
    first = client.responses.create(model="far/small", input="hi", instructions="Be kind.")
    assert (first.status, first.output_text) == ("completed", fake.reply.text)


@pytest.mark.parametrize("reply", [SAID, CALLS, Reply("", finish="length")])
def test_responses_streamed(far: Gateway, fake: FakeProvider, reply: Reply) -> None:
    fake.reply = reply
    tools = [{"type": "function", "name": "look", "parameters": TOOL["schema"], "strict": False}]
    said = responses_stream(raw(far, "/responses", {"input": "hi", "stream": True, "tools": tools}).content)
    assert said.text == reply.text
    assert len(said.calls) == len(reply.tools)


@pytest.mark.parametrize(
    ("way", "openai_status", "anthropic_status"),
    [
        (Way(status=400), 400, 400),
        (Way(status=429, headers={"retry-after": "7"}), 429, 429),
        (Way(status=529), 503, 529),
        (Way(status=503, error="html"), 503, 529),
        (Way(status=500, error="gemini"), 500, 500),
        (Way(status=401), 502, 502),
        (Way(fails=0), None, None),
    ],
)
def test_errors_come_in_the_clients_dialect(
    far: Gateway, fake: FakeProvider, way: Way, openai_status: int | None, anthropic_status: int | None
) -> None:
    fake.ways["small"] = way
    streamed = openai_status is None
    one = raw(far, "/chat/completions", {"messages": HI, "stream": streamed, "max_tokens": 9})
    two = raw(far, "/messages", {"messages": HI, "stream": streamed, "max_tokens": 9})
    assert one.json()["error"].keys() >= {"message", "type", "param", "code"}
    assert (two.json()["type"], two.json()["error"].keys()) == ("error", {"type", "message"})
    assert one.status_code >= 400
    assert two.status_code >= 400
    if openai_status is not None:
        assert (one.status_code, two.status_code) == (openai_status, anthropic_status)
    assert "k1" not in one.text + two.text
    if way.status == 429:
        assert one.headers["retry-after"] == two.headers["retry-after"] == "7"


@pytest.mark.parametrize("way", [Way(cut=3), Way(ends=3), Way(fails=3), Way(garbage=3)])
def test_a_stream_that_breaks_never_ends_well(far: Gateway, fake: FakeProvider, spoken: str, way: Way) -> None:
    fake.reply, fake.ways["small"] = Reply("word " * 50), way
    passes = way.garbage is not None  # what both sides speak is passed on as it is, nonsense too
    if not (passes and spoken == "openai"):
        chat = raw(far, "/chat/completions", {"messages": HI, "stream": True, "max_tokens": 9}).text
        assert '"error"' in chat
        assert "[DONE]" not in chat
    if not (passes and spoken == "anthropic"):
        messages = raw(far, "/messages", {"messages": HI, "stream": True, "max_tokens": 9}).text
        assert "event: error" in messages
        assert "message_stop" not in messages


def test_what_cannot_be_said_is_refused_by_name(far: Gateway, spoken: str) -> None:
    if spoken == "anthropic":
        got = raw(far, "/chat/completions", {"messages": HI, "n": 3})
        assert (got.status_code, got.json()["error"]["param"]) == (400, "n")
    else:
        with pytest.raises(APIStatusError, match=r"tools\.0\.type") as caught:
            anthropic_at(far).messages.create(
                model="far/small",
                max_tokens=5,
                messages=HI,
                tools=[{"type": "web_search_20250305", "name": "web_search"}],  # type: ignore[arg-type]
            )
        assert caught.value.status_code == 400


def test_what_is_left_out_is_told(far: Gateway, spoken: str) -> None:
    path, field = (
        ("/chat/completions", {"seed": 5}) if spoken == "anthropic" else ("/messages", {"metadata": {"user_id": "u"}})
    )
    got = raw(far, path, {"messages": HI, "max_tokens": 5, **field})
    assert got.status_code == 200
    assert got.headers.get("x-reconciler-ignored", "") in ("seed", "metadata", "metadata.user_id", "")


def test_models_in_both_shapes(far: Gateway) -> None:
    assert [m.id for m in openai_at(far).models.list()] == ["far/small"]
    (one,) = anthropic_at(far).models.list()
    assert (one.id, one.display_name, one.type) == ("far/small", "far/small", "model")
    assert anthropic_at(far).models.retrieve("far/small").id == "far/small"
    with pytest.raises(APIStatusError) as caught:
        anthropic_at(far).models.retrieve("far/smal")
    assert caught.value.body == {
        "type": "error",
        "error": {"type": "not_found_error", "message": caught.value.body["error"]["message"]},  # type: ignore[index]
        "request_id": caught.value.body["request_id"],  # type: ignore[index]
    }
