"""The provider that stands in for others does what it says, also as the official client sees it."""

from __future__ import annotations

import json
import ssl
from http.client import HTTPConnection, HTTPSConnection, IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from tests.support.authority import Authority
from tests.support.fake_provider import FakeProvider, Reply, Tool, Way
from tests.support.processes import wait_until

CHAT = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}


def post(
    fake: FakeProvider, path: str, body: Any, headers: dict[str, str] | None = None, timeout: float = 10
) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", fake.port, timeout=timeout)
    try:
        connection.request("POST", f"/v1{path}", json.dumps(body), headers or {})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def data(stream: bytes) -> list[Any]:
    lines = [line[6:] for line in stream.decode().split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_the_official_client_understands_it_whole_and_streamed() -> None:
    from openai import OpenAI

    with FakeProvider(keys=("k",)) as fake, OpenAI(base_url=fake.url, api_key="k", max_retries=0) as client:
        fake.reply = Reply("Grüße aus der Ferne", tools=(Tool("look", '{"at": "ü"}'),))
        whole = client.chat.completions.create(model="small", messages=[{"role": "user", "content": "hi"}])
        assert whole.choices[0].message.content == fake.reply.text
        fake.script(Way(split=True))
        text, arguments = "", ""
        for chunk in client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "hi"}], stream=True
        ):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                for call in choice.delta.tool_calls or ():
                    arguments += (call.function and call.function.arguments) or ""
        assert (text, arguments) == (fake.reply.text, '{"at": "ü"}')
        answer = client.responses.create(model="small", input="hi")
        assert answer.output_text == fake.reply.text
        kinds = [event.type for event in client.responses.create(model="small", input="hi", stream=True)]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        assert [model.id for model in client.models.list()] == ["small", "large"]
        assert len(client.embeddings.create(model="small", input=["a", "b"]).data) == 2
        assert [asked.key for asked in fake.asked] == ["k"] * len(fake.asked)


def test_it_speaks_messages_whole_and_streamed() -> None:
    with FakeProvider() as fake:
        fake.reply = Reply("Hi", reasoning="hm", tools=(Tool("look"),))
        _, _, whole = post(fake, "/messages", CHAT)
        assert [block["type"] for block in json.loads(whole)["content"]] == ["thinking", "text", "tool_use"]
        _, headers, stream = post(fake, "/messages", {**CHAT, "stream": True})
        assert headers["content-type"] == "text/event-stream"
        events = data(stream)
        assert [e["type"] for e in events][:2] == ["message_start", "ping"]
        assert events[-2]["delta"]["stop_reason"] == "tool_use"
        assert json.loads(post(fake, "/messages/count_tokens", CHAT)[2]) == {"input_tokens": 11}


def test_keys_are_checked_and_refused_as_told() -> None:
    with FakeProvider(keys=("good", "tired")) as fake:
        fake.refused["tired"] = 429
        status, _, body = post(fake, "/chat/completions", CHAT, {"Authorization": "Bearer bad-canary"})
        assert status == 401
        assert b"bad-canary" in body
        assert post(fake, "/chat/completions", CHAT, {"x-api-key": "tired"})[0] == 429
        assert post(fake, "/chat/completions", CHAT, {"api-key": "good"})[0] == 200


@pytest.mark.parametrize(
    ("form", "kind", "says"),
    [
        ("openai", "application/json", '{"error": {"message": "no"'),
        ("anthropic", "application/json", '{"type": "error"'),
        ("gemini", "application/json", '[{"error": {"code": 503'),
        ("html", "text/html", "<html>"),
        ("text", "text/plain", "no"),
        ("empty", "application/json", ""),
    ],
)
def test_errors_come_in_every_form_and_in_the_order_of_the_script(form: str, kind: str, says: str) -> None:
    with FakeProvider() as fake:
        fake.script(Way(status=503, error=form, message="no", headers={"retry-after-ms": "5"}))
        status, headers, body = post(fake, "/chat/completions", CHAT)
        assert (status, headers["content-type"], headers["retry-after-ms"]) == (503, kind, "5")
        assert body.decode().startswith(says)
        assert post(fake, "/chat/completions", CHAT)[0] == 200


def test_streams_break_in_the_ways_that_are_asked_for() -> None:
    streamed = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    with FakeProvider() as fake:
        assert data(post(fake, "/chat/completions", streamed)[2])[-1] == "[DONE]"
        fake.script(Way(cut=2))
        with pytest.raises(IncompleteRead) as caught:
            post(fake, "/chat/completions", streamed)
        assert len(data(caught.value.partial)) == 2
        fake.script(Way(ends=2), Way(fails=2), Way(garbage=1), Way(no_usage=True), Way(raw=b"data: {}\n\n"))
        assert len(data(post(fake, "/chat/completions", streamed)[2])) == 2
        assert "error" in data(post(fake, "/chat/completions", streamed)[2])[-1]
        assert b"{this is no JSON" in post(fake, "/chat/completions", streamed)[2]
        assert not any(
            isinstance(e, dict) and e.get("usage") for e in data(post(fake, "/chat/completions", streamed)[2])
        )
        assert post(fake, "/chat/completions", streamed)[2] == b"data: {}\n\n"


def test_calls_of_tools_are_as_odd_as_they_are_asked_to_be() -> None:
    def calls(way: Way) -> list[dict[str, Any]]:
        fake.script(way)
        events = data(post(fake, "/chat/completions", {**CHAT, "stream": True})[2])
        deltas = [c["delta"] for e in events if isinstance(e, dict) for c in e["choices"]]
        return [call for delta in deltas for call in delta.get("tool_calls", ())]

    with FakeProvider() as fake:
        fake.reply = Reply("", tools=(Tool("write", json.dumps({"text": "x" * 5000}), "id-1"),))
        plain = calls(Way())
        assert json.loads("".join(c["function"]["arguments"] for c in plain)) == {"text": "x" * 5000}
        assert [c.get("id") for c in plain] == ["id-1", *[None] * (len(plain) - 1)]
        assert all(c["id"] == "id-1" and c["function"]["name"] == "write" for c in calls(Way(repeats=True)))
        assert not any("index" in c for c in calls(Way(no_index=True)))
        assert len(calls(Way(whole=True))) == 1


@pytest.mark.parametrize("stall", ["head", "body", "stream"])
def test_it_falls_silent_and_sees_who_hangs_up(stall: str) -> None:
    with FakeProvider() as fake:
        fake.ways["small"] = Way(stall=stall)
        with pytest.raises(TimeoutError):
            post(fake, "/chat/completions", {**CHAT, "stream": True}, timeout=0.3)
        wait_until(lambda: fake.left == 1 and not fake.running, 10, "it did not see that the client left")


def test_an_endless_stream_ends_with_its_client() -> None:
    with FakeProvider() as fake:
        fake.ways["small"] = Way(endless=True)
        connection = HTTPConnection("127.0.0.1", fake.port, timeout=10)
        connection.request("POST", "/v1/messages", json.dumps({**CHAT, "stream": True}))
        answer = connection.getresponse()
        assert answer.read(20_000).count(b"and on") > 50
        assert fake.running == 1
        answer.close()
        connection.close()
        wait_until(lambda: fake.running == 0, 10, "the stream goes on")


def test_redirects_and_packed_and_dripping_answers() -> None:
    import gzip

    with FakeProvider() as fake:
        fake.script(Way(redirect="http://elsewhere.invalid/v1"), Way(gzip=True), Way(split=True))
        status, headers, _ = post(fake, "/chat/completions", CHAT)
        assert (status, headers["location"]) == (307, "http://elsewhere.invalid/v1")
        packed = post(fake, "/chat/completions", CHAT)[2]
        assert json.loads(gzip.decompress(packed)) == json.loads(post(fake, "/chat/completions", CHAT)[2])


def test_lists_of_models_come_in_pages_for_who_speaks_anthropic() -> None:
    with FakeProvider(models=("a", "b", "c"), page=2) as fake:
        connection = HTTPConnection("127.0.0.1", fake.port, timeout=10)
        found = []
        for query in ("", "?after_id=b"):
            connection.request("GET", f"/v1/models{query}", headers={"anthropic-version": "2023-06-01"})
            document = json.load(connection.getresponse())
            found.append(([entry["id"] for entry in document["data"]], document["has_more"], document["last_id"]))
        connection.close()
        assert found == [(["a", "b"], True, "b"), (["c"], False, "c")]


def test_it_speaks_tls_and_comes_back_at_its_port(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    fake = FakeProvider(tls=authority.server("provider.test"))
    with fake:
        port = fake.port
        trusting = ssl.create_default_context(cafile=str(authority.ca))
        connection = HTTPSConnection("127.0.0.1", port, timeout=10, context=trusting)
        connection.request("GET", "/v1/models")
        assert json.load(connection.getresponse())["data"][0]["id"] == "small"
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        HTTPConnection("127.0.0.1", port, timeout=2).connect()
    with fake:
        assert fake.port == port
