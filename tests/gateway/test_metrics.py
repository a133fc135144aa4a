"""What the gateway counts: right after mixed traffic, bounded under attack, and never a key."""

from __future__ import annotations

import asyncio
import hashlib
import json
from asyncio import StreamWriter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reconciler.gateway.metrics import MOST_ROWS, OTHER, Metrics, Now, known_as
from reconciler.gateway.record import Record
from reconciler.gateway.routes import load
from tests.gateway.harness import (
    CLIENT_KEY,
    EVENTS_HEAD,
    SESSION_KEY,
    Asked,
    Gateway,
    chunk,
    model,
    provider,
    route,
    stub,
    target,
)
from tests.support.fake_provider import FakeProvider, Reply, Way
from tests.support.processes import wait_until

MakeGateway = Callable[..., Gateway]
PROVIDER_KEY, SECOND_KEY = "sk-provider-canary-0001", "sk-provider-canary-0002"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(keys=(PROVIDER_KEY, SECOND_KEY), models=("small", "large")) as running:
        running.reply = Reply("word " * 10, prompt_tokens=20, completion_tokens=10)
        yield running


def keys(**more: Any) -> list[dict[str, Any]]:
    return [{"name": "ci", "sha256": hashlib.sha256(CLIENT_KEY.encode()).hexdigest(), **more}]


def lead(gateway: Gateway, fake: FakeProvider, **more: Any) -> None:
    """`far` has two keys; `smart` is one of its models, and the other where that fails."""
    gateway.write(
        gateway.routes(
            providers={"far": provider(fake.url, ["small", "large"], open=True)},
            routes={"smart": route("far/small", "far/large"), "free-*": route("far/*")},
            **({"api_keys": keys()} | more),
        )
    )
    assert gateway.reload({"far": {"keys": [PROVIDER_KEY, SECOND_KEY]}})["error"] is None


async def ask(gateway: Gateway, name: str, path: str = "/chat/completions", **body: Any) -> httpx2.Response:
    document = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9} | body
    async with httpx2.AsyncClient(base_url=gateway.base, timeout=10) as client:
        return await client.post(f"/v1{path}", json=document, headers={"Authorization": f"Bearer {CLIENT_KEY}"})


async def scraped(gateway: Gateway) -> tuple[str, Samples]:
    async with httpx2.AsyncClient(base_url=gateway.base, timeout=10) as client:
        got = await client.get("/metrics", headers={"Authorization": f"Bearer {CLIENT_KEY}"})
    assert got.status_code == 200, got.text
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(got.text)
    return got.text, {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all samples of that name with these labels."""
    wanted = set(labels.items())
    return sum(number for (n, has), number in samples.items() if n == name and wanted <= has)


async def test_the_numbers_are_right_after_mixed_traffic(make_gateway: MakeGateway, fake: FakeProvider) -> None:
    gateway = make_gateway()
    gateway.start()
    lead(gateway, fake)
    for _ in range(3):
        assert (await ask(gateway, "far/small")).status_code == 200
    assert (await ask(gateway, "far/large", stream=True, stream_options={"include_usage": True})).status_code == 200
    assert (await ask(gateway, "far/large", stream=True)).status_code == 200, "whose tokens nobody tells"
    assert (await ask(gateway, "far/large", "/messages", stream=True)).status_code == 200
    fake.script(Way(status=400), Way(status=503), Way())
    assert (await ask(gateway, "far/small")).status_code == 400
    assert (await ask(gateway, "smart")).status_code == 200, "after a fallback"
    fake.refused[PROVIDER_KEY] = 429
    assert (await ask(gateway, "smart")).status_code == 200, "with the next key"
    fake.refused.clear()
    assert (await ask(gateway, "nobody")).status_code == 404
    fake.ways["large"] = Way(cut=3)
    assert (await ask(gateway, "far/large", stream=True)).status_code == 200
    text, got = await scraped(gateway)

    def requests(**labels: str) -> float:
        return value(got, "reconciler_requests_total", **labels)

    assert requests(key="ci") == 11
    assert requests(model="far/small", status="2xx") == 3
    assert requests(model="far/small", status="4xx", target="provider/far") == 1
    assert requests(model="smart", status="2xx", operation="chat/completions") == 2
    assert requests(model="far/large", operation="messages") == 1
    assert requests(model="unknown", status="4xx", target="none") == 1
    tokens = {way: value(got, "reconciler_tokens_total", direction=way) for way in ("in", "out")}
    assert tokens == {"in": 7 * 20, "out": 7 * 10}
    assert value(got, "reconciler_tokens_total", model="far/small", key="ci", direction="in") == 60
    assert value(got, "reconciler_request_seconds_count") == requests()
    assert value(got, "reconciler_request_seconds_count", model="far/large") == 4
    assert value(got, "reconciler_request_seconds_bucket", model="far/large", le="+Inf") == 4
    assert 0 < value(got, "reconciler_request_first_byte_seconds_sum") <= value(got, "reconciler_request_seconds_sum")
    assert value(got, "reconciler_fallbacks_total", model="smart", after="provider/far", kind="overloaded") == 1
    assert value(got, "reconciler_key_rotations_total", provider="far", status="429") == 1
    assert value(got, "reconciler_upstream_errors_total", target="provider/far", kind="overloaded") == 1
    assert value(got, "reconciler_upstream_errors_total", kind="refused") == 1
    assert value(got, "reconciler_upstream_errors_total", kind="broken") == 1
    assert value(got, "reconciler_cooling_seconds", target="key/far") > 0
    assert value(got, "reconciler_reloads_total", result="taken") == 1
    assert value(got, "reconciler_in_flight") == 1, "the one that asks"
    assert value(got, "reconciler_build_info") == 1
    assert 10e6 < value(got, "process_resident_memory_bytes") < 200e6
    assert "canary" not in text
    gateway.write(b"{}")
    assert gateway.reload()["error"]
    assert value((await scraped(gateway))[1], "reconciler_reloads_total", result="kept") == 1


async def test_what_is_under_way_and_who_leaves(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    gateway.start()

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(b'data: {"choices":[]}\n\n'))
        await asyncio.sleep(30)

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))}, api_keys=keys())
        async with (
            httpx2.AsyncClient(base_url=gateway.base, timeout=10) as client,
            client.stream(
                "POST",
                "/v1/chat/completions",
                content=b'{"model":"chat","stream":true}',
                headers={"Authorization": f"Bearer {CLIENT_KEY}"},
            ) as got,
        ):
            pieces = got.aiter_raw()  # which lets go of the connection when it is dropped
            await anext(pieces)
            samples = (await scraped(gateway))[1]
            assert value(samples, "reconciler_in_flight") == 2
            assert value(samples, "reconciler_target_in_flight", target="server/chat") == 1
            assert value(samples, "reconciler_client_disconnects_total") == 0
            await pieces.aclose()
        await upstream.closed.wait()
        await asyncio.to_thread(wait_until, lambda: not gateway.state()["inflight"])
        samples = (await scraped(gateway))[1]
        assert value(samples, "reconciler_in_flight") == 1
        assert value(samples, "reconciler_client_disconnects_total", operation="chat/completions") == 1


async def test_a_stream_tells_how_fast_it_was_written(make_gateway: MakeGateway, fake: FakeProvider) -> None:
    gateway = make_gateway()
    gateway.start()
    lead(gateway, fake)
    fake.ways["large"] = Way(drip=0.02)
    assert (await ask(gateway, "far/large", stream=True, stream_options={"include_usage": True})).status_code == 200
    assert (await ask(gateway, "far/small")).status_code == 200
    got = (await scraped(gateway))[1]
    assert value(got, "reconciler_output_tokens_per_second_count", model="far/large", target="provider/far") == 1
    assert value(got, "reconciler_output_tokens_per_second_count") == 1, "a whole answer tells nothing of it"
    assert 0 < value(got, "reconciler_output_tokens_per_second_sum") < 10 / 0.05


async def test_who_may_see_metrics(gateway: Gateway) -> None:
    gateway.use(api_keys=keys())
    async with httpx2.AsyncClient(base_url=gateway.base, timeout=10) as client:
        shown = {"Authorization": f"Bearer {CLIENT_KEY}"}
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers=shown)).status_code == 200
        assert (await client.post("/metrics", headers=shown)).status_code == 405
        gateway.use(api_keys=keys(allow=["chat"]))
        refused = await client.get("/metrics", headers=shown)
        assert refused.status_code == 403
        assert "some models only" in refused.text
        gateway.use()
        assert (await client.get("/metrics")).status_code == 200


async def test_ten_thousand_invented_names_make_a_few_rows(make_gateway: MakeGateway, fake: FakeProvider) -> None:
    gateway = make_gateway()
    gateway.start()
    lead(gateway, fake)
    shown = {"Authorization": f"Bearer {CLIENT_KEY}", "Content-Type": "application/json"}
    fake.refused = {PROVIDER_KEY: 503, SECOND_KEY: 503}
    kinds = ("invented-{}", "invented/{}", "far/invented-{}", "free-invented-{}")
    async with httpx2.AsyncClient(base_url=gateway.base, timeout=30, limits=httpx2.Limits(max_connections=8)) as client:

        async def some(start: int) -> None:
            for number in range(start, 10_000, 8):
                kind = kinds[2 + number // 8 % 2] if number < 400 else kinds[number // 8 % 2]
                body = json.dumps({"model": kind.format(number), "messages": []})
                await client.post("/v1/chat/completions", content=body, headers=shown)

        await asyncio.gather(*map(some, range(8)))
    text, got = await scraped(gateway)
    assert value(got, "reconciler_requests_total") >= 10_000
    assert value(got, "reconciler_requests_total", model="unknown") == 9_600
    assert value(got, "reconciler_requests_total", model="far/*") == 200
    assert value(got, "reconciler_requests_total", model="free-*") == 200
    assert "invented" not in text
    assert len(text.splitlines()) < 400


def test_a_table_that_is_full_counts_the_rest_together() -> None:
    metrics = Metrics(lambda: Now(0, {}, {}, {}, {}))
    for number in range(5000):
        record = Record("r", "")
        record.known, record.key, record.status, record.read = f"m{number}", f"k{number}", 200, 1
        metrics.take(record, 1.0)
    assert len(metrics._requests.rows) == len(metrics._tokens.rows) == MOST_ROWS + 1
    assert metrics._requests.rows[(OTHER,) * 5] == 5000 - MOST_ROWS
    assert sum(metrics._tokens.rows.values()) == 5000
    assert sum(row[-1] for row in metrics._whole.rows.values()) == 5000.0
    text = asyncio.run(metrics.text()).decode()
    assert len(text.splitlines()) < 3000
    assert SESSION_KEY not in text


def test_names_as_labels() -> None:
    far, near = provider("http://127.0.0.1:1/v1", ["m"], open=True), provider("http://127.0.0.1:1/v1", ["m"])
    gateway_routes = {
        "format": 2, "serial": 1, "digest": "d", "listen": {"host": "127.0.0.1", "port": 1},
        "models": {"chat": model(None)}, "names": {"chat": "chat", "default": "chat"},
        "providers": {"far": far, "near": near},
        "routes": {"smart": route("far/m"), "gpt-*": route("far/*"), "gpt-4*": route("far/*")},
        "trusted_hosts": [], "api_keys": [],
    }  # fmt: skip
    routes = load(json.dumps(gateway_routes).encode())
    names = ["chat", "default", "smart", "gpt-4o", "gpt-x", "far/m", "far/x", "near/m", "near/x", "x", "far/", "gpt-*"]
    assert [known_as(routes, name) for name in names] == [
        "chat", "default", "smart", "gpt-4*", "gpt-*", "far/m", "far/*", "near/m", "unknown", "unknown", "unknown",
        "gpt-*",
    ]  # fmt: skip


async def test_who_waits_for_a_model_is_counted(make_gateway: MakeGateway, tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def never_ready(reader: asyncio.StreamReader, writer: StreamWriter) -> None:
        await reader.readline()
        asked.set()
        await reader.read()
        writer.close()

    controller = await asyncio.start_unix_server(never_ready, tmp_path / "c.sock")
    gateway = make_gateway("--controller", str(tmp_path / "c.sock"))
    gateway.start()
    gateway.use({"chat": {**model(None), "on_demand": True}}, api_keys=keys())
    waiting = [asyncio.create_task(ask(gateway, "chat")) for _ in range(2)]
    try:
        await asked.wait()
        await asyncio.to_thread(wait_until, lambda: gateway.state()["waiting"] == {"chat": 2})
        assert value((await scraped(gateway))[1], "reconciler_waiting", model="chat") == 2
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        controller.close()
    await asyncio.to_thread(wait_until, lambda: not gateway.state()["waiting"])
    got = (await scraped(gateway))[1]
    assert value(got, "reconciler_waiting") == 0
    assert value(got, "reconciler_requests_total", model="chat", status="none") == 2, "they left without an answer"
