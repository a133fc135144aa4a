"""Spans reach a collector, carry the trace that the client began on to the target, and hold no content."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.gateway.harness import CLIENT_KEY, Gateway, provider
from tests.support.fake_provider import FakeProvider, Reply, Way
from tests.support.processes import wait_until

MakeGateway = Callable[..., Gateway]
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Collector:
    """Takes spans over HTTP."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.raw.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self) -> list[tuple[Any, dict[str, Any]]]:
        """Each span with its attributes."""
        out = []
        for raw in self.raw:
            request = ExportTraceServiceRequest.FromString(raw)
            for span in (s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans):
                out.append((span, {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}))
        return out

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(models=("small",)) as running:
        running.reply = Reply("said-canary", prompt_tokens=20, completion_tokens=10)
        yield running


async def ask(gateway: Gateway, name: str = "far/small", **headers: str) -> httpx2.Response:
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "asked-canary"}]})
    shown = {"Authorization": f"Bearer {CLIENT_KEY}", "Content-Type": "application/json", **headers}
    async with httpx2.AsyncClient(base_url=gateway.base, timeout=10) as client:
        return await client.post("/v1/chat/completions", content=body, headers=shown)


async def test_one_span_for_each_request(make_gateway: MakeGateway, fake: FakeProvider, collector: Collector) -> None:
    gateway = make_gateway()
    gateway.start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    gateway.use(providers={"far": provider(fake.url, ["small"])})
    assert (await ask(gateway, traceparent=PARENT)).status_code == 200
    assert (await ask(gateway)).status_code == 200
    fake.script(Way(status=400))
    assert (await ask(gateway, traceparent="00-nonsense")).status_code == 400
    assert (await ask(gateway, "nobody-canary")).status_code == 404
    assert await asyncio.to_thread(gateway.terminate) == 0, "which sends what is left"
    spans = collector.spans()
    assert len(spans) == 4
    (first, about), (second, _), (third, failed), (_, unknown) = spans
    assert (first.name, first.trace_id.hex(), first.parent_span_id.hex()) == ("chat far/small", TRACE, PARENT[36:52])
    assert about == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "far/small",
        "gen_ai.provider.name": "far",
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 10,
        "http.response.status_code": 200,
        "reconciler.attempts": 1,
    }
    told = [asked.headers["traceparent"].split("-") for asked in fake.asked]
    assert [parts[:3] for parts in told] == [["00", s.trace_id.hex(), s.span_id.hex()] for s in (first, second, third)]
    assert all(int(parts[3], 16) & 1 for parts in told), "they are sampled"
    assert second.trace_id != first.trace_id
    assert not third.parent_span_id
    assert (failed["error.type"], failed["http.response.status_code"]) == ("upstream_error", 400)
    assert (unknown["gen_ai.request.model"], unknown["error.type"]) == ("unknown", "model_not_found")
    assert b"canary" not in b"".join(collector.raw)
    assert "canary" not in gateway.log()


async def test_a_collector_that_is_not_there_holds_up_nobody(make_gateway: MakeGateway, fake: FakeProvider) -> None:
    gateway = make_gateway()
    gateway.start(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_BSP_SCHEDULE_DELAY="100")
    gateway.use(providers={"far": provider(fake.url, ["small"])})
    for _ in range(3):
        assert (await ask(gateway)).status_code == 200
    await asyncio.to_thread(wait_until, lambda: "error opentelemetry" in gateway.log())
    assert "canary" not in gateway.log()
    assert await asyncio.to_thread(gateway.terminate) == 0


async def test_without_a_collector_a_trace_is_passed_on(gateway: Gateway, fake: FakeProvider) -> None:
    gateway.use(providers={"far": provider(fake.url, ["small"])})
    await ask(gateway, traceparent=PARENT)
    await ask(gateway)
    assert [asked.headers.get("traceparent") for asked in fake.asked] == [PARENT, None]
