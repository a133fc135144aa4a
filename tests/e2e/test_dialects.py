"""Official clients of every dialect, and a real engine behind the gateway: embedded, and a real llama-server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from anthropic import Anthropic, BadRequestError
from openai import NotFoundError, OpenAI

from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.support.streams import messages_stream
from tests.support.streams_responses import responses_stream

pytestmark = pytest.mark.engines
HI = [{"role": "user", "content": "hi"}]
REPLY = "Hello from a tiny model."


@pytest.fixture
def up(stage: Stage) -> Stage:
    stage.write(manifest(stage, entry(more=", start: on_demand, idle_timeout: 1h")))
    stage.run("apply")
    return stage


def raw(stage: Stage, path: str, body: dict[str, object]) -> bytes:
    data = json.dumps({"model": "chat", **body}).encode()
    request = urllib.request.Request(f"{stage.url}/v1{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read()


def test_messages(up: Stage) -> None:
    with Anthropic(base_url=up.url, api_key="none", max_retries=0) as client:
        done = client.messages.create(model="chat", max_tokens=40, messages=HI, extra_body={"temperature": 0})  # type: ignore[arg-type]
        assert [b.text for b in done.content if b.type == "text"] == [REPLY]
        assert (done.stop_reason, done.id[:4]) == ("end_turn", "msg_")
        assert done.usage.input_tokens > 0
        count = client.messages.count_tokens(model="chat", messages=HI)  # type: ignore[arg-type]
        assert count.input_tokens > 0
        with pytest.raises(BadRequestError, match="at least one message") as caught:
            client.messages.create(model="chat", max_tokens=40, messages=[])
        assert caught.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
        assert [m.id for m in client.models.list()] == ["chat"]
    said = messages_stream(raw(up, "/messages", {"messages": HI, "max_tokens": 40, "temperature": 0, "stream": True}))
    assert (said.text, said.finish) == (REPLY, "end_turn")
    cut = messages_stream(raw(up, "/messages", {"messages": HI, "max_tokens": 3, "stream": True}))
    assert cut.finish == "max_tokens"


def test_responses_that_go_on_and_are_kept_by_nobody_else(up: Stage) -> None:
    with OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as client:
        first = client.responses.create(model="chat", input="hi", temperature=0)
        assert (first.status, first.output_text) == ("completed", REPLY)
        short = client.responses.create(model="chat", input="hi", max_output_tokens=3)
        assert short.status == "incomplete"
        assert short.incomplete_details is not None
        assert short.incomplete_details.reason == "max_output_tokens"
        on = client.responses.create(model="chat", input="and?", previous_response_id=first.id)
        assert on.usage is not None
        assert first.usage is not None
        assert on.usage.input_tokens > first.usage.input_tokens + 5, "it has the whole conversation"
        up.run("apply")
        kept = client.responses.retrieve(first.id)
        assert kept.output_text == REPLY
        assert len(list(client.responses.input_items.list(on.id))) == 3
        unkept = client.responses.create(model="chat", input="hi", store=False)
        client.responses.delete(first.id)
        for gone in (first.id, unkept.id, "resp_never"):
            with pytest.raises(NotFoundError):
                client.responses.retrieve(gone)
    said = responses_stream(raw(up, "/responses", {"input": "hi", "max_output_tokens": 3, "stream": True}))
    assert said.finish == "incomplete"
    structured = {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}
    said = responses_stream(
        raw(up, "/responses", {"input": "hi", "max_output_tokens": 30, "text": structured, "stream": True})
    )
    assert said.text.lstrip().startswith("{")


def test_kept_responses_are_switched_off(up: Stage) -> None:
    with OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as client:
        first = client.responses.create(model="chat", input="hi")
        up.write(up.manifest.read_text().replace("gateway: {", "gateway: {keep_responses: false, "))
        up.run("apply")
        with pytest.raises(NotFoundError):
            client.responses.retrieve(client.responses.create(model="chat", input="hi").id)
        with pytest.raises(urllib.error.HTTPError):
            up.get(f"/v1/responses/{first.id}")
