"""What targets tell of tokens: read from bytes cut anywhere, counted once, and taken from the key's budget."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
from asyncio import StreamWriter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reconciler.gateway.usage import HEAD, TAIL, Meter, Usage, WithoutUsage
from tests.gateway.harness import CLIENT_KEY, EVENTS_HEAD, Asked, Gateway, chunk, model, provider, stub, target
from tests.gateway.test_engine import KEY, run_engine
from tests.support.fake_provider import (
    FakeProvider,
    Reply,
    Tool,
    Way,
    chat_document,
    chat_events,
    message_document,
    message_events,
    response_document,
    response_events,
)
from tests.support.processes import wait_until
from tests.support.tiny_gguf import tiny_gguf

SAID = Reply("word " * 40, prompt_tokens=23, cached_tokens=5, completion_tokens=41)
LONG = Reply("x" * 60_000, prompt_tokens=23, cached_tokens=5, completion_tokens=41)
TOLD = Usage(23, 41)
ANSWERS = {
    "chat": lambda reply: [json.dumps(chat_document(reply, "m")).encode()],
    "chat stream": lambda reply: chat_events(reply, "m", Way(), True),
    "messages": lambda reply: [json.dumps(message_document(reply, "m")).encode()],
    "messages stream": lambda reply: message_events(reply, "m", Way()),
    "responses": lambda reply: [json.dumps(response_document(reply, "m")).encode()],
    "responses stream": lambda reply: response_events(reply, "m", Way()),
}


def heard(data: bytes, size: int) -> Usage | None:
    meter = Meter(lambda: 1.0)
    for at in range(0, len(data), size):
        meter(data[at : at + size])
    return meter.usage()


@pytest.mark.parametrize("reply", [SAID, LONG])
@pytest.mark.parametrize("kind", ANSWERS)
def test_usage_is_read_from_every_dialect_cut_anywhere(kind: str, reply: Reply) -> None:
    data = b"".join(ANSWERS[kind](reply))
    for size in (1, 7, 100, HEAD, TAIL, 10_000, len(data)):
        assert heard(data, size) == TOLD, size


def test_no_number_is_made_up() -> None:
    plain = b"".join(chat_events(SAID, "m", Way(), False))
    assert heard(plain, 50) is None
    assert heard(b"", 1) is None
    assert heard(b'{"input_tokens": 12}', 100) is None, "a count of tokens uses none"
    for odd in ('"many"', "-1", "true", "1.5", "null", str(10**12)):
        assert heard(b'{"usage":{"prompt_tokens":%b}}' % odd.encode(), 100) is None, odd
    assert heard(b'{"usage":{"prompt_tokens":4,"total_tokens":4}}', 100) == Usage(4, None)
    assert heard(b'{"usage":' * 10, 100) is None
    assert heard(b"\xff\xfe" * 9000, 100) is None


def test_what_a_model_writes_is_not_taken_for_usage() -> None:
    fake = '{"usage": {"prompt_tokens": 1, "completion_tokens": 1, "input_tokens": 1, "output_tokens": 1}}'
    reply = Reply(f'"usage": {fake}', tools=(Tool("look", fake),), prompt_tokens=23, completion_tokens=41)
    for kind, make in ANSWERS.items():
        data = b"".join(make(reply))
        for size in (100, len(data)):
            assert heard(data, size) == TOLD, kind
    before = {"usage": {"input_tokens": 23, "output_tokens": 41}, "content": [{"input": json.loads(fake)}]}
    assert heard(json.dumps(before).encode(), 100) == TOLD


def test_what_a_llama_server_has_timed_counts_where_it_tells_no_usage() -> None:
    plain = b"".join(chat_events(SAID, "m", Way(), False))
    timed = plain.replace(b"data: [DONE]", b'data: {"choices":[],"timings":{"cache_n":5,"prompt_n":1,"predicted_n":3}}')
    assert heard(timed, 100) == Usage(6, 3)
    told = b"".join(chat_events(SAID, "m", Way(), True))
    both = told.replace(b"data: [DONE]", b'data: {"timings":{"prompt_n":1,"predicted_n":3}}')
    assert heard(both, 100) == TOLD
    for odd in (b"[]", b"7", b"{", b'{"prompt_n":-1}'):
        assert heard(plain + b'data: {"timings":%b}' % odd, 100) is None


def test_a_stream_that_broke_off_has_told_what_it_read() -> None:
    whole = list(message_events(SAID, "m", Way()))
    assert heard(b"".join(whole[:4]), 100) == Usage(23, 1)


def test_little_is_kept_of_a_long_answer() -> None:
    meter = Meter(lambda: 1.0)
    for _ in range(1000):
        meter(b"x" * 100_000)
    kept = sum(map(len, meter._head)) + sum(map(len, meter._tail))
    assert kept <= HEAD + 2 * TAIL


def test_only_the_event_of_the_usage_is_taken_out() -> None:
    with_it, without = (b"".join(chat_events(SAID, "m", Way(), asked)) for asked in (True, False))
    assert with_it != without
    lines = with_it.splitlines(keepends=True)
    for step in (1, 2, 3, len(lines)):
        filtered = WithoutUsage()
        assert b"".join(filtered.feed(b"".join(lines[i : i + step])) for i in range(0, len(lines), step)) == without
    said = b'data: {"choices":[{"delta":{"content":"the \\"usage\\" of it"}}],"usage":null}\n\n'
    last = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}\n\n'
    first = b'data: {"choices":[],"prompt_filter_results":[]}\n\n'
    for kept in (said, last, first, b'data: "usage"\n\n', b"data: {usage\n\n"):
        assert WithoutUsage().feed(kept) == kept


# -- in the gateway ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(models=("small", "large")) as running:
        yield running


_keys = itertools.count()


def budget(count: int, seconds: float = 3600.0) -> list[dict[str, Any]]:
    """One key under a new name: what another has used is another's."""
    digest = hashlib.sha256(CLIENT_KEY.encode()).hexdigest()
    return [{"name": f"ci-{next(_keys)}", "sha256": digest, "tokens": {"count": count, "seconds": seconds}}]


async def ask(gateway: Gateway, path: str, key: str = CLIENT_KEY, **body: Any) -> httpx2.Response:
    document = {"model": "far/small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9} | body
    if path == "/responses":
        document = {"model": "far/small", "input": "hi"} | body
    async with httpx2.AsyncClient(base_url=gateway.base, timeout=10) as client:
        return await client.post(f"/v1{path}", json=document, headers={"Authorization": f"Bearer {key}"})


@pytest.mark.parametrize("speaks", [("openai",), ("anthropic",), ("openai", "anthropic", "responses")])
@pytest.mark.parametrize("path", ["/chat/completions", "/messages", "/responses"])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_is_taken_from_the_budget(
    gateway: Gateway, fake: FakeProvider, path: str, stream: bool, speaks: tuple[str, ...]
) -> None:
    fake.reply = SAID
    far = provider(fake.url, ["small"], speaks=dict.fromkeys(speaks, fake.url))
    gateway.use(providers={"far": far}, api_keys=budget(100))
    assert (await ask(gateway, path, stream=stream)).status_code == 200  # 64 of 100 tokens
    assert (await ask(gateway, path, stream=stream)).status_code == 200  # overdrawn by 28
    shut = await ask(gateway, path, stream=stream)
    assert shut.status_code == 429
    assert 1000 < int(shut.headers["retry-after"]) <= 29 * 36, "28 overdrawn and one more, at 36 s each"
    assert "100 tokens" in shut.text
    assert len(fake.asked) == 2


async def test_every_answer_of_a_real_engine_is_counted(gateway: Gateway, tmp_path: Path) -> None:
    engine = run_engine(tiny_gguf(tmp_path / "chat.gguf", reply="a b c", ctx=4096), "chat")
    try:
        await asyncio.to_thread(wait_until, lambda: engine.get("/health"), timeout=30, message="the engine is ready")
        gateway.use({"chat": model(target(engine.port, key=KEY))})
        before = await tokens(gateway)
        whole = await ask(gateway, "/chat/completions", model="chat")
        used = whole.json()["usage"]
        once = [used["prompt_tokens"], used["completion_tokens"]]
        assert await tokens(gateway) == [before[0] + once[0], before[1] + once[1]]
        for path, stream in itertools.product(("/chat/completions", "/messages"), (False, True)):
            before = await tokens(gateway)
            assert (await ask(gateway, path, model="chat", stream=stream)).status_code == 200
            assert await tokens(gateway) == [before[0] + once[0], before[1] + once[1]], (path, stream)
        for path, more in (
            ("/responses", {"stream": True}),
            ("/responses", {}),
            ("/completions", {"stream": True, "prompt": "x"}),
        ):
            before = await tokens(gateway)
            assert (await ask(gateway, path, model="chat", **more)).status_code == 200
            after = await tokens(gateway)
            assert after[0] > before[0], path
            assert after[1] > before[1], path
    finally:
        engine.process.kill()
        engine.process.wait()


async def tokens(gateway: Gateway) -> list[int]:
    """What all that is served as "chat" has taken: read, and written."""
    async with httpx2.AsyncClient(base_url=gateway.base) as client:
        text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if re.match(r'reconciler_tokens_total\{.*model="chat"', line)]
    return [
        sum(int(float(line.split()[-1])) for line in lines if f'direction="{way}"' in line) for way in ("in", "out")
    ]


async def test_a_stream_without_usage_is_asked_for_it_and_the_client_does_not_see_it(
    gateway: Gateway, fake: FakeProvider
) -> None:
    fake.reply = SAID
    far = provider(fake.url, ["small"])
    gateway.use(providers={"far": far})
    plain = await ask(gateway, "/chat/completions", stream=True)
    assert "stream_options" not in fake.asked[-1].body, "who has no budget is not changed"
    gateway.use(providers={"far": far}, api_keys=budget(1_000_000))
    hidden = await ask(gateway, "/chat/completions", stream=True)
    assert fake.asked[-1].body["stream_options"] == {"include_usage": True}
    assert hidden.text == plain.text
    options = {"include_usage": False, "include_obfuscation": False}
    hidden = await ask(gateway, "/chat/completions", stream=True, stream_options=options)
    assert fake.asked[-1].body["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert hidden.text == plain.text
    seen = await ask(gateway, "/chat/completions", stream=True, stream_options={"include_usage": True})
    assert '"usage"' in seen.text, "who asks for it gets it"
    unable = provider(fake.url, ["small"], quirks={"stream_options": False})
    gateway.use(providers={"far": unable}, api_keys=budget(1_000_000))
    await ask(gateway, "/chat/completions", stream=True)
    assert "stream_options" not in fake.asked[-1].body, "who does not take it is not asked"
    stripped = provider(fake.url, ["small"], request={"strip": ["stream_options"]})
    gateway.use(providers={"far": stripped}, api_keys=budget(1_000_000))
    await ask(gateway, "/chat/completions", stream=True)
    assert "stream_options" not in fake.asked[-1].body


@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_an_engines_stream_is_counted_in_one_piece_and_in_many(gateway: Gateway, pieces: int) -> None:
    data = b"".join(chat_events(SAID, "chat", Way(), True))

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        assert json.loads(asked.body)["stream_options"] == {"include_usage": True}
        if pieces == 1:
            writer.write(EVENTS_HEAD + chunk(data) + chunk(b""))
            return
        writer.write(EVENTS_HEAD)
        for at in range(0, len(data), pieces):
            writer.write(chunk(data[at : at + pieces]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(chunk(b""))

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))}, api_keys=budget(65))
        got = await ask(gateway, "/chat/completions", model="chat", stream=True)
        assert got.content == b"".join(chat_events(SAID, "chat", Way(), False))
        assert (await ask(gateway, "/chat/completions", model="chat", stream=True)).status_code == 200
        assert (await ask(gateway, "/chat/completions", model="chat", stream=True)).status_code == 429
