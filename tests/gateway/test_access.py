"""The access log: one line a request, private, bounded, and without a word of what was said."""

from __future__ import annotations

import hashlib
import json
import stat
from asyncio import StreamWriter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2

from reconciler.gateway.access import KEPT, AccessLog
from reconciler.gateway.record import Record
from reconciler.supervise.logs import history
from tests.gateway.harness import (
    CLIENT_KEY,
    SESSION_KEY,
    Asked,
    Gateway,
    model,
    provider,
    raw_exchange,
    route,
    stub,
    target,
)
from tests.support.fake_provider import FakeProvider, Reply, Way
from tests.support.processes import wait_until

MakeGateway = Callable[..., Gateway]
PROVIDER_KEY = "sk-provider-canary-0001"
SAID = "what-was-said-canary"


def lines(path: Path, count: int) -> list[dict[str, Any]]:
    """The log once it has so many lines besides those of the tests' own looks at the health."""

    def told() -> list[dict[str, Any]]:
        read = [json.loads(line) for line in path.read_text().splitlines()]
        return [entry for entry in read if entry["operation"] != "health"]

    wait_until(lambda: len(told()) >= count, message=f"{count} lines")
    return told()


async def test_one_line_for_each_request(make_gateway: MakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "gateway" / "access.jsonl"
    gateway = make_gateway("--access", str(path))
    gateway.start()
    keys = [{"name": "ci", "sha256": hashlib.sha256(CLIENT_KEY.encode()).hexdigest()}]
    with FakeProvider(keys=(PROVIDER_KEY,), models=("small", "large")) as fake:
        fake.reply = Reply("hello " * 5, prompt_tokens=20, completion_tokens=10)
        far = provider(fake.url, ["small", "large"])
        routes = {"smart": route("far/small", "far/large")}
        gateway.write(gateway.routes(providers={"far": far}, routes=routes, api_keys=keys))
        gateway.reload({"far": {"keys": [PROVIDER_KEY]}})
        shown = {"Authorization": f"Bearer {CLIENT_KEY}", "x-request-id": "mine-1"}
        body = {"model": "far/small", "messages": [{"role": "user", "content": SAID}]}
        before = datetime.now(UTC)
        # A stream that broke ends its connection, which a client may have begun to use again.
        once = httpx2.Limits(max_keepalive_connections=0)
        async with httpx2.AsyncClient(base_url=gateway.base, timeout=10, limits=once) as client:

            async def post(**changes: Any) -> httpx2.Response:
                return await client.post("/v1/chat/completions", json=body | changes, headers=shown)

            answer = await post()
            streamed = await post(stream=True)
            fake.script(Way(status=503))
            await post(model="smart")
            await post(model=f"{CLIENT_KEY} \n")
            fake.script(Way(cut=2))
            await post(stream=True)
            await client.get(f"/v1/models?key={CLIENT_KEY}", headers={"Authorization": "Bearer wrong-canary"})
            await client.get("/v1/models", headers=shown)
        whole, stream, fell, unknown, cut, refused, listed = lines(path, 7)
    told = (whole, stream, fell, unknown, cut, refused, listed)
    times = [datetime.fromisoformat(entry.pop("time")) for entry in told]
    assert all(before - timedelta(seconds=1) <= at <= datetime.now(UTC) for at in times)
    first, took = whole.pop("first_byte_ms"), whole.pop("ms")
    assert 0 < first <= took < 10_000
    assert whole == {
        "id": "mine-1",
        "client": "127.0.0.1",
        "key": "ci",
        "operation": "chat/completions",
        "path": "/v1/chat/completions",
        "model": "far/small",
        "target": "provider/far",
        "attempts": 1,
        "status": 200,
        "bytes_in": len(answer.request.content),
        "bytes_out": whole["bytes_out"],
        "tokens_in": 20,
        "tokens_out": 10,
    }
    assert whole["bytes_out"] > len(answer.content)
    assert stream["stream"] is True
    assert stream["bytes_out"] > len(streamed.content)
    assert "tokens_in" not in stream, "none were told"
    assert (fell["attempts"], fell["status"], fell["target"]) == (2, 200, "provider/far")
    assert (unknown["model"], unknown["status"], unknown["broke"]) == ("[masked] \n", 404, "model_not_found")
    assert (cut["status"], cut["broke"]) == (200, "upstream_broken")
    assert (refused["status"], refused["key"], refused["path"]) == (401, "none", "/v1/models")
    assert (listed["status"], listed["key"], listed["operation"]) == (200, "ci", "models")
    everything = path.read_text() + gateway.log()
    for secret in ("canary", SESSION_KEY, PROVIDER_KEY, CLIENT_KEY):
        assert secret not in everything
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0


async def test_lines_are_written_at_the_end_and_a_taken_file_is_made_anew(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    path = tmp_path / "access.jsonl"
    path.write_text("")
    path.chmod(0o644)
    gateway = make_gateway("--access", str(path))
    gateway.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "others lose what they could read"
    path.rename(tmp_path / "taken")
    get = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    raw_exchange(gateway.port, get)
    wait_until(path.exists)
    raw_exchange(gateway.port, get)
    assert gateway.terminate() == 0
    assert [json.loads(line)["operation"] for line in path.read_text().splitlines()][-2:] == ["models", "models"]


async def test_a_log_that_cannot_be_written_stops_nobody(make_gateway: MakeGateway, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("keep")
    (tmp_path / "access.jsonl").symlink_to(tmp_path / "elsewhere")
    gateway = make_gateway("--access", str(tmp_path / "access.jsonl"))

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        body = b'{"choices":[]}'
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )

    gateway.start()
    async with stub(answer) as upstream, httpx2.AsyncClient(base_url=gateway.base) as client:
        gateway.use({"chat": model(target(upstream.port))})
        body = {"model": "chat", "messages": [], "x": 1}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert "error no-access-log" in gateway.log()
    assert (tmp_path / "elsewhere").read_text() == "keep", "a link is not followed"


def test_the_log_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(path, limit=10_000)
    record = Record("r", "127.0.0.1")
    for number in range(2000):
        record.status = 200
        record.request_id = f"r{number}"
        log.take(record, 0.001)
        if number % 7 == 0:
            log.flush()
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["access.jsonl", *(f"access.jsonl.{n}" for n in range(1, KEPT + 1))]
    assert all(file.stat().st_size <= 10_000 and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    ids = [json.loads(line)["id"] for line in history(path, 0)]
    assert ids == [f"r{n}" for n in range(2000 - len(ids), 2000)], "in order, none lost between two files"
    assert len(history(path, 5)) == 5
    assert history(path, 0, since=4e9) == []
    assert len(history(path, 0, since=1e9)) == len(ids)


async def test_a_key_is_found_nowhere(make_gateway: MakeGateway, tmp_path: Path) -> None:
    """The client's, the provider's and the engine's, wherever they are sent: in nothing that the gateway tells."""
    path = tmp_path / "access.jsonl"
    gateway = make_gateway("--access", str(path))
    gateway.start()
    keys = [{"name": "ci", "sha256": hashlib.sha256(CLIENT_KEY.encode()).hexdigest()}]
    told: list[str] = []
    with FakeProvider(keys=(PROVIDER_KEY,), models=("small",)) as fake:
        far = provider(fake.url, ["small"])
        models = {"chat": model(target(1, key=SESSION_KEY))}
        gateway.write(gateway.routes(models, providers={"far": far}, api_keys=keys))
        gateway.reload({"far": {"keys": ["sk-wrong-canary-9", PROVIDER_KEY]}})
        async with httpx2.AsyncClient(base_url=gateway.base, timeout=10) as client:
            for header in ("authorization", "x-api-key"):
                for key in (CLIENT_KEY, "sk-client-canary-bad", PROVIDER_KEY):
                    shown = {header: f"Bearer {key}" if header == "authorization" else key, "cookie": f"k={key}"}
                    for name in ("far/small", "chat", "nobody"):
                        body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
                        for way in ("/v1/chat/completions", "/v1/messages", f"/v1/responses/none?key={key}"):
                            told.append((await client.post(way, json=body, headers=shown)).text)
                    for way in ("/v1/models", "/v1/models/chat", "/metrics", "/health", f"/nowhere?k={key}"):
                        told.append((await client.get(way, headers=shown)).text)
    assert gateway.terminate() == 0
    told += [path.read_text(), gateway.log()]
    assert sum("reconciler_requests_total" in text for text in told) == 2
    assert "far/small" in path.read_text()
    for text in told:
        assert "canary" not in text
