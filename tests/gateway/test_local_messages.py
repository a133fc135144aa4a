"""Messages to an engine that speaks them itself: what a client of Anthropic's API is told when the engine fails."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.gateway.harness import Gateway, model, target
from tests.support.fake_provider import FakeProvider, Reply, Way
from tests.support.streams import messages_stream

ASKED = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}


@pytest.fixture
def engine(gateway: Gateway) -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        gateway.use({"chat": model(target(fake.port))})
        yield fake


def ask(gateway: Gateway, **more: object) -> httpx2.Response:
    return httpx2.post(f"{gateway.base}/v1/messages", json={**ASKED, **more}, timeout=10)


@pytest.mark.parametrize("way", [Way(cut=8), Way(ends=8), Way(fails=8), Way(ends=8, split=True)])
def test_a_stream_that_breaks_ends_with_one_error(gateway: Gateway, engine: FakeProvider, way: Way) -> None:
    engine.reply, engine.ways["chat"] = Reply("word " * 50), way
    said = messages_stream(ask(gateway, stream=True).content)
    assert said.error is not None
    assert said.finish is None


def test_a_stream_that_ends_well_is_only_mended(gateway: Gateway, engine: FakeProvider) -> None:
    said = messages_stream(ask(gateway, stream=True).content)
    assert (said.error, said.text, said.finish) == (None, engine.reply.text, "end_turn")


@pytest.mark.parametrize("way", [Way(), Way(status=503, error="openai")])
def test_the_request_has_a_name_where_clients_look(gateway: Gateway, engine: FakeProvider, way: Way) -> None:
    engine.ways["chat"] = way
    got = ask(gateway)
    assert got.headers["request-id"] == got.headers["x-request-id"]
    assert got.json().get("request_id", got.headers["request-id"]) == got.headers["request-id"]


def test_a_stream_is_not_to_be_held_back_by_a_proxy(gateway: Gateway, engine: FakeProvider) -> None:
    assert ask(gateway, stream=True).headers["x-accel-buffering"] == "no"
