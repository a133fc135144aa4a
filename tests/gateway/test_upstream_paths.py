"""What an engine serves of its own, through the gateway: what passes, as what, and what never does."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
from asyncio import StreamWriter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from reconciler.gateway import operations
from tests.gateway.harness import (
    CLIENT_KEY,
    EVENTS_HEAD,
    SESSION_KEY,
    Asked,
    Gateway,
    chunk,
    error_of,
    model,
    provider,
    raw_exchange,
    response,
    route,
    status_of,
    stub,
    target,
)
from tests.gateway.test_engine import KEY, Engine, run_engine
from tests.gateway.test_surface import call
from tests.support.processes import wait_until
from tests.support.tiny_gguf import tiny_gguf

SHA = hashlib.sha256(CLIENT_KEY.encode()).hexdigest()
NATIVE = [each for each in operations.TABLE if each.does == "native"]


async def fine(asked: Asked, writer: StreamWriter) -> None:
    writer.write(
        response(b'{"ok":true}', server="x", set_cookie="a=b", connection="keep-alive", keep_alive="timeout=5")
    )


def raw(gateway: Gateway, method: str, target: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers, "Connection: close"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return raw_exchange(gateway.port, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)


async def answered(gateway: Gateway, method: str, target: str, body: Any = None, *headers: str) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    return await asyncio.to_thread(raw, gateway, method, target, data, *headers)


def fitting(operation: operations.Operation) -> Any:
    """A body that may pass."""
    if operation.method == "GET" or "{slot}" in operation.path:
        return None
    return [{"id": 0, "scale": 1}] if operation.upstream == "/lora-adapters" else {"content": "x"}


@pytest.mark.parametrize("operation", NATIVE, ids=lambda each: f"{each.method} {each.upstream}")
async def test_it_passes_with_the_session_key(gateway: Gateway, operation: operations.Operation) -> None:
    async with stub(fine) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        path = operation.path.replace("{model}", "chat").replace("{slot}", "3")
        query = "?action=erase" if "{slot}" in operation.path else "?fail_on_no_slot=1&x="
        hop = ["Connection: close, x-hop", "X-Hop: 1", "Cookie: c=1", "TE: trailers", "x-api-key: k", "Proxy-X: 1"]
        got = await answered(gateway, operation.method, path + query, fitting(operation), *hop[1:])
        assert status_of(got) == 200, got
        assert b"x-reconciler-target: server/chat\r\n" in got
        assert b"set-cookie" not in got.lower()
        assert b"keep-alive" not in got.lower()
        (asked,) = upstream.asked
        slot = operation.upstream.replace("{slot}", "3")
        assert asked.line == f"{operation.method} {slot}{query} HTTP/1.1"
        assert asked.header("authorization") == f"Bearer {SESSION_KEY}"
        assert {name for name, _ in asked.headers} <= {"host", "authorization", "content-type", "content-length"}
        assert asked.body == (b"" if fitting(operation) is None else json.dumps(fitting(operation)).encode())


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "QUERY"])
async def test_only_get_and_post(gateway: Gateway, method: str) -> None:
    async with stub(fine) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        for path, allow in (("lora-adapters", b"GET, POST"), ("props", b"GET"), ("tokenize", b"POST")):
            got = await answered(gateway, method, f"/upstream/chat/{path}")
            assert status_of(got) == 405
            assert b"Allow: " + allow + b"\r\n" in got
        assert not upstream.asked


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/upstream/chat/props", 405),
        ("POST", "/upstream/chat/models/load", 404),
        ("POST", "/upstream/chat/models/unload", 404),
        ("POST", "/upstream/chat/models", 405),
        ("GET", "/upstream/chat/cors-proxy", 404),
        ("GET", "/upstream/chat/tools", 404),
        ("POST", "/upstream/chat/tools", 404),
        ("GET", "/upstream/chat/v1/stream", 404),
        ("GET", "/upstream/chat/mcp", 404),
        ("GET", "/upstream/chat/", 404),
        ("GET", "/upstream/chat", 404),
        ("GET", "/upstream/", 404),
        ("GET", "/upstream", 404),
        ("GET", "/upstream//props", 404),
        ("GET", "/upstream/chat//props", 400),
        ("GET", "/upstream/chat/../chat/props", 400),
        ("GET", "/upstream/./chat/props", 400),
        ("GET", "/upstream/chat/%2e%2e/props", 400),
        ("GET", "/upstream/chat/.%2E/props", 400),
        ("GET", "/upstream/chat%2fprops", 404),
        ("GET", "/upstream/org%2fsmall/props", 400),
        ("GET", "/upstream/chat%5c/props", 400),
        ("GET", "/upstream/chat%00/props", 400),
        ("GET", "/upstream/chat%0d%0a/props", 400),
        ("GET", "/upstream/chat%252f/props", 400),
        ("GET", "/upstream/chat%/props", 400),
        ("GET", "/upstream/ch\xe4t/props", 400),
        ("GET", "/upstream/chat\\/props", 400),
        ("GET", "/upstream/chat/props%20", 404),
        ("GET", "/upstream/chat/p%72ops", 404),
        ("GET", "/upstream/chat/props;a=b", 404),
        ("GET", "/upstream/chat/Props", 404),
        ("GET", "/upstream/chat/props/", 404),
        ("GET", "/UPSTREAM/chat/props", 404),
        ("GET", "/v1/upstream/chat/props", 404),
        ("GET", "/upstream/nobody/props", 404),
        ("GET", "/upstream/far/m/props", 404),
        ("GET", "/upstream/smart/props", 404),
        ("POST", "/upstream/chat/slots/a?action=erase", 400),
        ("POST", "/upstream/chat/slots/-1?action=erase", 400),
        ("POST", "/upstream/chat/slots/%30?action=erase", 400),
        ("POST", "/upstream/chat/slots/0", 400),
        ("POST", "/upstream/chat/slots/0?action=save", 400),
        ("POST", "/upstream/chat/slots/0?action=restore", 400),
        ("POST", "/upstream/chat/slots/0?action=s%61ve", 400),
        ("POST", "/upstream/chat/slots/0?action=erase&action=save", 400),
        ("POST", "/upstream/chat/slots/0?action=erase&Action=save", 400),
        ("POST", "/upstream/chat/slots/0?action=erase;action=save", 400),
        ("GET", "/upstream/chat/slots?filename=x", 400),
        ("GET", "/upstream/chat/slots?%66ilename=x", 400),
        ("GET", "/upstream/chat/slots?a=%0d%0ax", 400),
        ("GET", "/upstream/chat/slots?a=%ff", 400),
        ("GET", "/upstream/chat/slots?a", 400),
        ("GET", "/upstream/chat/slots?a=1&a=2", 400),
        ("GET", "/upstream/chat/slots?path=/etc/passwd", 400),
        ("GET", "/upstream/chat/props?model_path=x", 400),
    ],
)
async def test_what_never_reaches_the_engine(gateway: Gateway, method: str, path: str, status: int) -> None:
    async with stub(fine) as upstream:
        own = model(target(upstream.port))
        far = provider(f"http://127.0.0.1:{upstream.port}/v1", ["m"])
        gateway.use({"chat": own, "org/small": own}, providers={"far": far}, routes={"smart": route("chat")})
        got = await answered(gateway, method, path)
        assert status_of(got) == status, got
        error_of(got)
        assert not upstream.asked


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completion", {"prompt": "x", "chat_parser": "…"}),
        ("completion", {"prompt": "x", "Chat-Parser": "…"}),
        ("v1/chat/completions", {"messages": [], "chat_parser": {}}),
        ("v1/chat/completions", {"messages": [], "chat_template_kwargs": {"chat_parser": 1}}),
        ("infill", {"input_prefix": "a", "model_path": "/etc/passwd"}),
        ("completion", {"prompt": "x", "lora": [{"path": "/tmp/x", "scale": 1}]}),
        ("completion", {"prompt": "x", "lora": {"id": 0}}),
        ("lora-adapters", [{"id": 0, "scale": 1, "path": "x"}]),
        ("lora-adapters", {"path": "x"}),
        ("lora-adapters", ["x"]),
        ("slots/0?action=erase", {"filename": "../x"}),
        ("tokenize", {"content": "x", "file": "x"}),
        ("tokenize", "text"),
        ("tokenize", None),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"image_url": {"url": "http://a/b"}}]}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"image_url": {"url": "file:///a"}}]}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"image_url": "HTTPS://a"}]}]}),
        ("v1/messages", {"messages": [{"role": "user", "content": [{"source": {"type": "url", "url": "http://a"}}]}]}),
        ("v1/responses", {"input": [{"content": [{"type": "input_image", "image_url": "http://169.254.169.254/"}]}]}),
    ],
)
async def test_what_a_body_may_not_say(gateway: Gateway, path: str, body: Any) -> None:
    async with stub(fine) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        got = await answered(gateway, "POST", f"/upstream/chat/{path}", body)
        assert status_of(got) == 400, got
        assert not upstream.asked


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("infill", {"input_extra": [{"filename": "a.py", "text": "x"}], "input_prefix": "a"}),
        ("completion", {"prompt": "path: url", "lora": [{"id": 0, "scale": 0.5}], "json_schema": {"path": {}}}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"image_url": {"url": "data:image/png;,"}}]}]}),
        (
            "v1/messages",
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"url": "h"}}]}]},
        ),
        ("v1/chat/completions", {"messages": [], "tools": [{"function": {"parameters": {"path": {}, "url": {}}}}]}),
    ],
)
async def test_what_it_may_say(gateway: Gateway, path: str, body: Any) -> None:
    async with stub(fine) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        assert status_of(await answered(gateway, "POST", f"/upstream/chat/{path}", body)) == 200
        assert json.loads(upstream.asked[0].body) == body


async def test_a_get_has_no_body(gateway: Gateway) -> None:
    async with stub(fine) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        assert status_of(await answered(gateway, "GET", "/upstream/chat/props", {"a": 1})) == 400
        assert not upstream.asked


async def test_keys_and_names(gateway: Gateway) -> None:
    async with stub(fine) as upstream:
        own = model(target(upstream.port))
        keys = [{"name": "me", "sha256": SHA, "allow": ["org/small"], "rate": {"count": 2, "seconds": 600}}]
        names = {"chat": "chat", "org/small": "org/small", "a:b c": "org/small"}
        gateway.use({"chat": own, "org/small": own}, names=names, api_keys=keys)
        assert status_of(await answered(gateway, "GET", "/upstream/org/small/props")) == 401
        shown = f"Authorization: Bearer {CLIENT_KEY}"
        assert status_of(await answered(gateway, "GET", "/upstream/chat/props", None, shown)) == 403
        assert status_of(await answered(gateway, "GET", "/upstream/nobody/props", None, shown)) == 403
        assert not upstream.asked
        assert status_of(await answered(gateway, "GET", "/upstream/org/small/props", None, shown)) == 200
        assert status_of(await answered(gateway, "GET", "/upstream/a:b%20c/props", None, shown)) == 200
        got = await answered(gateway, "GET", "/upstream/org/small/props", None, shown)
        assert (status_of(got), error_of(got)["code"]) == (429, "rate_limit_exceeded")
        assert len(upstream.asked) == 2
        assert CLIENT_KEY not in str(upstream.asked)


async def test_an_engine_that_is_not_there(gateway: Gateway) -> None:
    gateway.use({"chat": model(None, reason="downloading"), "gone": model(target(1))})
    got = await answered(gateway, "GET", "/upstream/chat/props")
    assert (status_of(got), error_of(got)["code"]) == (503, "model_not_ready")
    got = await answered(gateway, "GET", "/upstream/gone/props")
    assert (status_of(got), error_of(got)["code"]) == (503, "upstream_restarting")


async def test_a_model_is_loaded_when_its_engine_is_asked(make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    asked_for: list[str] = []
    async with stub(fine) as upstream:
        path = tmp_path / "controller.sock"
        gateway = make_gateway("--controller", str(path))

        async def controller(reader: asyncio.StreamReader, writer: StreamWriter) -> None:
            asked_for.append(json.loads(await reader.readline())["model"])
            await asyncio.to_thread(gateway.use, {"late": model(target(upstream.port))})
            writer.write(b'{"ready":true}\n')
            await writer.drain()
            writer.close()

        async with await asyncio.start_unix_server(controller, str(path)):
            await asyncio.to_thread(gateway.start)
            await asyncio.to_thread(gateway.use, {"late": {**model(None), "on_demand": True}})
            got = await answered(gateway, "GET", "/upstream/late/props")
        assert (status_of(got), asked_for) == (200, ["late"])
        assert upstream.asked[0].line == "GET /props HTTP/1.1"


async def test_errors_and_their_dialect(gateway: Gateway) -> None:
    async def refuses(asked: Asked, writer: StreamWriter) -> None:
        writer.write(response(b'{"error":{"code":501,"message":"start with --slots"}}', "501 Not Implemented"))

    async with stub(refuses) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        got = await answered(gateway, "GET", "/upstream/chat/slots")
        assert (status_of(got), error_of(got)["message"]) == (501, "start with --slots")
        status, _, body = call(gateway, "POST", "/upstream/nobody/v1/messages", b"{}")
        assert (status, body["type"], body["error"]["type"]) == (404, "error", "not_found_error")


async def test_an_engine_that_minds_names_is_told_its_own(gateway: Gateway) -> None:
    async with stub(fine) as upstream:
        gateway.use({"chat": model({**target(upstream.port), "model": "real/name"})})
        got = await answered(gateway, "POST", "/upstream/chat/v1/completions", {"model": "chat", "prompt": "x"})
        assert status_of(got) == 200
        assert json.loads(upstream.asked[0].body) == {"model": "real/name", "prompt": "x"}


async def test_a_stream_passes_as_it_comes(gateway: Gateway) -> None:
    go = asyncio.Event()

    async def streams(asked: Asked, writer: StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(b'data: {"content":"a","stop":false}\n\n'))
        await go.wait()
        writer.write(chunk(b'data: {"content":"","stop":true}\n\n') + chunk(b""))

    async with stub(streams) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        body = b'{"prompt":"x","stream":true}'
        head = f"POST /upstream/chat/completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        assert b'"content":"a"' in await reader.readuntil(b'"stop":false}\n\n')
        go.set()
        assert b'"stop":true' in await reader.readuntil(b"0\r\n\r\n")
        writer.close()


# -- with an engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("models")
    running = run_engine(tiny_gguf(folder / "chat.gguf", reply="Here it is.", ctx=4096), "chat")
    try:
        wait_until(lambda: running.get("/health"), timeout=30, message="the engine is ready")
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def test_a_real_engine(gateway: Gateway, engine: Engine) -> None:
    gateway.use({"chat": model(target(engine.port, key=KEY))})

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        return call(gateway, method, f"/upstream/chat/{path}", data)[::2]

    status, tokens = ask("POST", "tokenize", {"content": "hello"})
    assert status == 200
    assert tokens["tokens"]
    assert ask("POST", "detokenize", tokens) == (200, {"content": "hello"})
    assert ask("GET", "health") == (200, {"status": "ok"})
    assert ask("GET", "props")[1]["default_generation_settings"]
    assert ask("GET", "slots")[1][0]["id"] == 0
    assert ask("GET", "lora-adapters") == (200, [])
    assert ask("POST", "lora-adapters", [])[0] == 200
    status, prompt = ask("POST", "apply-template", {"messages": [{"role": "user", "content": "hi"}]})
    assert (status, "hi" in prompt["prompt"]) == (200, True)
    status, said = ask("POST", "completion", {"prompt": "x", "n_predict": 2})
    assert (status, said["stop"]) == (200, True)
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=5)
    connection.request("GET", "/upstream/chat/metrics")
    answer = connection.getresponse()
    answer.read()
    assert answer.status in (200, 501)  # it has to be started with metrics
    connection.close()


async def test_a_real_engine_that_hears_nothing_says_so(gateway: Gateway, engine: Engine) -> None:
    gateway.use({"chat": model(target(engine.port, key=KEY))})
    async with openai.AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="k", max_retries=0) as api:
        with pytest.raises(openai.APIStatusError) as caught:
            await api.audio.transcriptions.create(model="chat", file=("a.wav", b"RIFF" + bytes(100)))
    assert caught.value.status_code in (400, 501)
    assert "audio" in str(caught.value).lower()


def test_the_table_is_what_is_tested() -> None:
    assert {each.method for each in NATIVE} == {"GET", "POST"}
    assert len({(each.method, each.path) for each in NATIVE}) == len(NATIVE) > 25
