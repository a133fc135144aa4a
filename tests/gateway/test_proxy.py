"""What happens between a client and an engine, with an upstream that can do anything wrong."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from asyncio import StreamWriter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai
import pytest

from tests.gateway.harness import (
    EVENTS_HEAD,
    Asked,
    Gateway,
    chunk,
    error_of,
    model,
    raw_exchange,
    response,
    status_of,
    stub,
    target,
)

CHAT = b'{"model":"chat","messages":[{"role":"user","content":"hi"}],"stream":true}'
Script = Callable[[Asked, StreamWriter], Awaitable[bool | None]]


def event(text: str) -> bytes:
    delta = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    document = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "chat", **delta}
    return f"data: {json.dumps(document)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


async def post(
    gateway: Gateway, path: str = "/v1/chat/completions", body: bytes = CHAT, **headers: str
) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=gateway.base, timeout=10) as client:
        return await client.post(path, content=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def post_raw(gateway: Gateway, version: str = "1.1", seconds: float = 3) -> bytes:
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: localhost\r\nContent-Length: {len(CHAT)}\r\n"
    return await asyncio.to_thread(
        raw_exchange, gateway.port, f"{head}Connection: close\r\n\r\n".encode() + CHAT, seconds
    )


async def idle(gateway: Gateway) -> None:
    for _ in range(100):
        if not (await asyncio.to_thread(gateway.state))["inflight"]:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("something is still in flight")


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings"])
async def test_bytes_pass_unchanged(gateway: Gateway, path: str) -> None:
    body = b' {"model" : "chat",\n "x":[1e2,"\\u00e4\xc3\xa4"]} '
    reply = b'{ "a" : 1 }\n'

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(
            response(reply, "207 Multi", cache_control="no-store", retry_after="7", server="x", x_powered_by="y")
        )

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        got = await post(
            gateway, f"/v1{path}?api-version=1", body, content_type="text/plain", accept="a/b", cookie="c=1"
        )
        assert (got.status_code, got.content) == (207, reply)
        assert {"cache-control", "retry-after", "content-type", "x-request-id", "content-length", "date"} <= set(
            got.headers
        )
        assert not {"server", "x-powered-by"} & set(got.headers)
        assert got.headers["x-reconciler-target"] == "server/chat"
        asked = upstream.asked[0]
        assert (asked.line, asked.body) == (f"POST /v1{path} HTTP/1.1", body)
        assert asked.header("host") == f"127.0.0.1:{upstream.port}"
        assert (asked.header("content-type"), asked.header("accept")) == ("text/plain", "a/b")
        assert asked.header("cookie") is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b'{"error" :{"code":500,"message":"no room","type":"server_error"}}', None),
        (b'{"error":{"code":500}}', "The upstream answered 500 without saying why"),
        (b"out of memory", "out of memory"),
        (b"", "The upstream answered 500 without saying why"),
    ],
)
async def test_errors_of_the_engine_pass_and_have_the_shape_of_errors(
    gateway: Gateway, said: bytes, told: str | None
) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(response(said, "500 Internal Server Error"))

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        got = await post(gateway)
        assert got.status_code == 500
        if told is None:
            assert got.content == said
        else:
            assert got.json()["error"]["message"] == told


async def test_a_refused_session_key_is_not_the_clients_fault(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(response(b"{}", "401 Unauthorized"))

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        got = await post(gateway)
        assert (got.status_code, got.json()["error"]["code"]) == (503, "upstream_restarting")


async def test_connections_are_kept_and_one_that_ended_is_retried_once(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> bool | None:
        if asked.connection == 1 and asked.nth == 3:
            return False  # closed without a byte, as an engine does that has just given up on an idle connection
        writer.write(response(b"{}"))
        return None

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        for _ in range(4):
            assert (await post(gateway)).status_code == 200
        assert [(asked.connection, asked.nth) for asked in upstream.asked] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]


async def test_an_engine_with_one_thread_serves_everybody(gateway: Gateway) -> None:
    """Like llama-server's threads: a connection that is open, idle or not, can keep the next one waiting."""
    thread = asyncio.Semaphore(1)
    holder = 0

    def release(number: int) -> None:
        if number == holder:
            thread.release()

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        nonlocal holder
        if holder != asked.connection:
            await thread.acquire()
            holder = asked.connection
        await asyncio.sleep(0.005)
        writer.write(response(b"{}"))

    async with stub(answer, release) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        async with asyncio.timeout(
            8
        ):  # left to themselves, idle connections would keep the thread for two seconds each
            answers = await asyncio.gather(*(post(gateway) for _ in range(6)))
        assert [got.status_code for got in answers] == [200] * 6


async def test_a_second_response_is_never_taken_for_the_next(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        if len(upstream.asked) == 1:
            writer.write(response(b"{}") + response(b'{"with the first":1}'))
        elif len(upstream.asked) == 2:
            writer.write(response(b"{}"))
            await asyncio.sleep(0.02)
            writer.write(response(b'{"late":1}'))
        else:
            writer.write(response(b"{}"))

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        for _ in range(4):
            assert (await post(gateway)).content == b"{}"
            await asyncio.sleep(0.05)
        assert [asked.connection for asked in upstream.asked] == [1, 2, 3, 3]


async def test_a_new_connection_that_breaks_is_not_retried(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> bool:
        return False

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        got = await post(gateway)
        assert (got.status_code, got.json()["error"]["type"]) == (502, "upstream_error")
        assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 2",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nx: y\r\n",
        b"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
    ],
)
async def test_a_reused_connection_that_began_to_answer_is_not_retried(gateway: Gateway, said: bytes) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> bool | None:
        if asked.nth == 1:
            writer.write(response(b"{}"))
            return None
        writer.write(said)
        return False

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        assert (await post(gateway)).status_code == 200
        got = await post(gateway)
        assert (got.status_code, got.json()["error"]["code"]) == (502, "upstream_broken")
        assert len(upstream.asked) == 2


async def test_nobody_listens(gateway: Gateway) -> None:
    gateway.use({"chat": model(target(1))})
    got = await post(gateway)
    assert (got.status_code, got.headers["retry-after"]) == (503, "1")
    assert got.json()["error"]["code"] == "upstream_restarting"


async def test_no_first_byte_in_time(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        await asyncio.sleep(30)

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))}, limits={"first_byte_seconds": 0.3})
        got = await post(gateway)
        assert (got.status_code, got.json()["error"]["code"]) == (504, "upstream_timeout")
        await asyncio.wait_for(upstream.closed.wait(), 2)


async def test_an_interim_response_is_skipped(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.write(response(b"{}"))

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        for _ in range(2):
            assert (await post(gateway)).content == b"{}"
        assert upstream.connections == 1


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
async def test_a_stream_in_any_pieces_is_the_same_stream(gateway: Gateway, piece: int) -> None:
    sent = event("Grüße") + b": comment\n\n" + event("b") + DONE + b"tail without newline"
    wire = EVENTS_HEAD + b"".join(chunk(sent[i : i + 11]) for i in range(0, len(sent), 11)) + chunk(b"")

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        for i in range(0, len(wire), piece):
            writer.write(wire[i : i + piece])
            await asyncio.sleep(0.0003)

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        for _ in range(2):
            assert (await post(gateway)).content == sent
        assert upstream.connections == 1


async def test_pieces_are_passed_on_as_they_come(gateway: Gateway) -> None:
    go = asyncio.Event()

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(EVENTS_HEAD)
        for _ in range(3):
            await go.wait()
            go.clear()
            writer.write(chunk(event("x")))
        writer.write(chunk(b""))

    async with (
        stub(answer) as upstream,
        httpx2.AsyncClient(base_url=gateway.base, timeout=5) as client,
    ):
        gateway.use({"chat": model(target(upstream.port))})
        async with client.stream("POST", "/v1/chat/completions", content=CHAT) as got:
            assert got.headers["content-type"] == "text/event-stream"
            pieces = got.aiter_raw()
            for _ in range(3):
                go.set()
                assert await asyncio.wait_for(anext(pieces), 2) == event("x")


async def test_a_broken_stream_ends_with_an_error_event(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> bool:
        writer.write(EVENTS_HEAD + chunk(event("a") + event("b")[:20]))
        await writer.drain()
        await asyncio.sleep(0.05)
        return False

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        got = await post(gateway)
        first, _, last = got.content.partition(b"\n\n")
        assert first + b"\n\n" == event("a")
        error = json.loads(last.strip().removeprefix(b"data: "))["error"]
        assert (error["type"], error["code"]) == ("upstream_error", "upstream_broken")
        assert b"[DONE]" not in got.content
        client = openai.AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="x", max_retries=0)
        stream = await client.chat.completions.create(model="chat", messages=[], stream=True)
        assert (await anext(stream)).choices[0].delta.content == "a"
        with pytest.raises(openai.APIError, match="server/chat broke off"):
            await anext(stream)
        await client.close()
    assert "stream-broken" in gateway.log()


async def test_a_silent_stream_ends_with_an_error_event(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(event("a")))
        await asyncio.sleep(30)

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))}, limits={"idle_seconds": 0.3})
        got = await post(gateway)
        assert got.content.startswith(event("a"))
        assert b'"code":"upstream_timeout"' in got.content
        await asyncio.wait_for(upstream.closed.wait(), 2)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n32\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 100\r\n\r\n",
    ],
)
async def test_a_broken_body_never_looks_whole(gateway: Gateway, head: bytes, version: str) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> bool:
        writer.write(head + b'{"half":')
        await writer.drain()
        await asyncio.sleep(0.1)
        return False

    def exchange() -> tuple[bytes, bool]:
        received, reset = b"", False
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as sock:
            request = f"POST /v1/completions HTTP/{version}\r\nHost: localhost\r\nContent-Length: {len(CHAT)}\r\n\r\n"
            sock.sendall(request.encode() + CHAT)
            try:
                while piece := sock.recv(65536):
                    received += piece
            except ConnectionResetError:
                reset = True
        return received, reset

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        raw, reset = await asyncio.to_thread(exchange)
        assert raw.endswith((b'{"half":', b'8\r\n{"half":\r\n'))
        framed = b"ontent-Length: 100" in raw or b"chunked" in raw
        assert framed or reset


async def test_http_1_0_clients_get_plain_streams(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(event("a")))
        await asyncio.sleep(0.05)
        writer.write(chunk(DONE) + chunk(b""))

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        raw = await post_raw(gateway, "1.0")
        head, _, body = raw.partition(b"\r\n\r\n")
        assert body == event("a") + DONE
        assert b"transfer-encoding" not in head.lower()


async def test_a_body_without_length_ends_with_its_connection(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[1,")
        await asyncio.sleep(0.05)
        writer.write(b"2]")
        return False

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        assert (await post(gateway)).json() == [1, 2]


async def test_a_client_that_goes_cuts_the_engine_off(gateway: Gateway) -> None:
    for while_waiting in (True, False):

        async def answer(asked: Asked, writer: StreamWriter, quiet: bool = while_waiting) -> None:
            if not quiet:
                writer.write(EVENTS_HEAD + chunk(event("a")))
            await asyncio.sleep(30)

        async with stub(answer) as upstream:
            gateway.use({"chat": model(target(upstream.port))})
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CHAT)}\r\n\r\n"
            writer.write(head.encode() + CHAT)
            if while_waiting:
                await asyncio.sleep(0.1)
            else:
                await reader.readuntil(DONE[:5])
            assert (await asyncio.to_thread(gateway.state))["inflight"] == {"server/chat#1": 1}
            writer.close()
            await writer.wait_closed()
            await asyncio.wait_for(upstream.closed.wait(), 1)
            await idle(gateway)


async def test_a_slow_client_slows_the_engine(gateway: Gateway) -> None:
    """What the engine can push ahead of a client that does not read is bounded, and all of it arrives in the end."""
    total, piece = 64 * 1024 * 1024, b"x" * 65535 + b"\n"
    pushed = 0

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        nonlocal pushed
        writer.write(EVENTS_HEAD)
        while pushed < total:
            writer.write(chunk(piece))
            await writer.drain()
            pushed += len(piece)
        writer.write(chunk(DONE) + chunk(b""))

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
        head = f"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(CHAT)}\r\n\r\n"
        writer.write(head.encode() + CHAT)
        await asyncio.sleep(0.7)
        stopped_at = pushed
        await asyncio.sleep(0.3)
        assert pushed == stopped_at < total / 2
        received = len((await reader.readuntil(b"\r\n\r\n")) and b"")
        while data := await reader.read(1 << 20):
            received += len(data)
        assert received == total + len(DONE)
        writer.close()


async def test_a_stream_that_just_ends_is_not_taken_for_one_that_came_to_its_end(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(event("a") * 3) + chunk(b""))

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        got = await post(gateway)
        assert got.content.startswith(event("a") * 3)
        assert b'"code":"upstream_broken"' in got.content


async def test_a_client_that_never_reads_is_let_go(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(EVENTS_HEAD)
        while True:
            writer.write(chunk(b"x" * 65535 + b"\n"))
            await writer.drain()

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))}, limits={"idle_seconds": 0.5})
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CHAT)}\r\n\r\n"
        writer.write(head.encode() + CHAT)
        await asyncio.wait_for(upstream.closed.wait(), 5)
        await idle(gateway)
        writer.transport.abort()


async def test_large_bodies_both_ways(gateway: Gateway) -> None:
    body = json.dumps({"model": "chat", "image": random.Random(1).randbytes(3_000_000).hex()}).encode()
    reply = json.dumps({"data": "y" * 5_000_000}).encode()

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(response(reply))

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        assert (await post(gateway, body=body)).content == reply
        assert (await post(gateway, body=body, expect="100-continue")).content == reply
        assert [asked.body == body for asked in upstream.asked] == [True, True]


async def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        await asyncio.sleep(0.05 if b"first" in asked.body else 0)
        writer.write(response(asked.body))

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        raw = b""
        for name in ("first", "second"):
            body = json.dumps({"model": "chat", "x": name}).encode()
            raw += (
                f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
        got = await asyncio.to_thread(raw_exchange, gateway.port, raw, 0.6, one=False)
        assert 0 < got.index(b"first") < got.index(b"second")
        assert got.count(b"HTTP/1.1 200 OK") == 2


async def test_a_reload_does_not_touch_running_streams(gateway: Gateway) -> None:
    go = asyncio.Event()

    async def old(asked: Asked, writer: StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(event("old")))
        await go.wait()
        writer.write(chunk(event("still old") + DONE) + chunk(b""))

    async def new(asked: Asked, writer: StreamWriter) -> None:
        writer.write(response(b'{"new":1}'))

    async with (
        stub(old) as first,
        stub(new) as second,
        httpx2.AsyncClient(base_url=gateway.base, timeout=5) as client,
    ):
        gateway.use({"chat": model(target(first.port, "chat#old"))})
        async with client.stream("POST", "/v1/chat/completions", content=CHAT) as running:
            pieces = running.aiter_raw()
            assert await anext(pieces) == event("old")
            state = await asyncio.to_thread(gateway.use, {"chat": model(target(second.port, "chat#new"))})
            assert state["inflight"] == {"server/chat#old": 1}
            assert (await post(gateway)).json() == {"new": 1}
            assert (await asyncio.to_thread(gateway.use))["inflight"] == {"server/chat#old": 1}
            assert (await post(gateway)).status_code == 404
            go.set()
            assert b"".join([piece async for piece in pieces]) == event("still old") + DONE
        await idle(gateway)
    assert status_of(await post_raw(gateway)) == 404
    assert error_of(await post_raw(gateway))["code"] == "model_not_found"


async def test_the_official_client(gateway: Gateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(event("Hel")) + chunk(event("lo") + DONE) + chunk(b""))

    async with stub(answer) as upstream:
        gateway.use({"chat": model(target(upstream.port)), "soon": model(None, reason="loading")})
        async with openai.AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="any", max_retries=0) as client:
            stream = await client.chat.completions.create(model="chat", messages=[], stream=True)
            assert [part.choices[0].delta.content async for part in stream] == ["Hel", "lo"]
            assert {entry.id for entry in (await client.models.list()).data} == {"chat", "soon"}
            with pytest.raises(openai.NotFoundError, match="Did you mean 'chat'"):
                await client.chat.completions.create(model="chatt", messages=[])
            with pytest.raises(openai.InternalServerError, match="loading"):
                await client.chat.completions.create(model="soon", messages=[])


def test_nothing_is_left_over(gateway: Gateway) -> None:
    state: dict[str, Any] = gateway.state()
    assert state["inflight"] == {}
    assert " bug " not in gateway.log()
