"""The gateway as a process: how it starts, takes new routes, and ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
import time
from asyncio import StreamWriter
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.gateway.harness import EVENTS_HEAD, Asked, Gateway, chunk, model, raw_exchange, status_of, stub, target
from tests.support.processes import wait_until

MakeGateway = Callable[..., Gateway]
CHAT = b'{"model":"chat","stream":true}'


def test_state_and_control_socket(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    gateway.write(first := gateway.routes())
    before = time.time()
    gateway.start(RECONCILER_NONCE="nonce-1")
    assert gateway.process is not None
    state = gateway.state()
    assert before - 1 <= state.pop("started") <= time.time()
    assert state == {
        "pid": gateway.process.pid,
        "nonce": "nonce-1",
        "digest": first["digest"],
        "serial": first["serial"],
        "error": None,
        "secrets": "",
        "inflight": {},
        "used": {},
        "waiting": {},
        "listen": {"host": "127.0.0.1", "port": gateway.port},
    }
    mode = gateway.socket_path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    for request in (b"GET /reload", b"POST /state", b"GET /v1/models", b"GET /"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(gateway.socket_path))
            sock.sendall(request + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert status_of(sock.recv(4096)) == 404
    assert gateway.terminate() == 0
    assert not gateway.socket_path.exists()
    assert [line.split()[:2] for line in gateway.log().splitlines()] == [
        ["info", "listening"],
        ["info", "stopping"],
        ["info", "stopped"],
    ]


def test_sigint_ends_it_too(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    gateway.start()
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGINT)
    assert gateway.process.wait(5) == 0


def test_a_killed_gateway_leaves_nothing_in_the_way(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    gateway.start()
    assert gateway.process is not None
    gateway.process.kill()
    gateway.process.wait()
    assert gateway.socket_path.exists()
    gateway.start()
    assert gateway.state()["pid"] == gateway.process.pid


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot read"),
        (b"{", "not JSON"),
        (b'{"format": 1}', "format is 1"),
        (b'{"format": 2}', "listen: expected an object"),
    ],
)
def test_bad_routes_at_start(make_gateway: MakeGateway, data: bytes | None, message: str) -> None:
    gateway = make_gateway()
    if data is not None:
        gateway.write(data)
    assert gateway.spawn().wait(10) == 1
    lines = gateway.log().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_the_port_is_taken(make_gateway: MakeGateway) -> None:
    first, second = make_gateway(), make_gateway()
    first.start()
    second.port, second.socket_path = first.port, first.socket_path
    second.write(second.routes())
    assert second.spawn().wait(10) == 1
    assert f"port {first.port} is already in use" in second.log()
    assert len(second.log().splitlines()) == 1
    assert first.process is not None
    assert first.state()["pid"] == first.process.pid


def test_something_else_lies_where_the_socket_goes(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    gateway.write(gateway.routes())
    gateway.socket_path.write_text("precious")
    assert gateway.spawn().wait(10) == 1
    assert "is not a socket" in gateway.log()
    assert gateway.socket_path.read_text() == "precious"


def test_a_python_parser_is_refused(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    gateway.write(gateway.routes())
    assert gateway.spawn(AIOHTTP_NO_EXTENSIONS="1").wait(10) == 1
    assert "C extensions" in gateway.log()


def test_bad_routes_later_change_nothing(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    gateway.start()
    good = gateway.use({"chat": model(None)})
    for data, message in ((b"{", "not JSON"), (b'{"format": 9}', "format is 9")):
        gateway.write(data)
        state = gateway.reload()
        assert message in state["error"]
        assert state["serial"] == good["serial"]
    gateway.routes_path.unlink()
    assert "cannot read" in gateway.reload()["error"]
    with httpx2.Client(base_url=gateway.base) as client:
        assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["chat"]
    gateway.use({"other": model(None)})
    assert gateway.log().count("error routes-kept") == 3


def test_a_change_is_seen_without_being_told(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    gateway.start()
    gateway.write(new := gateway.routes(listen={"host": "127.0.0.1", "port": 1}))
    wait_until(lambda: gateway.state()["digest"] == new["digest"], timeout=3)
    assert gateway.state()["listen"]["port"] == gateway.port
    assert "listen-change-ignored" in gateway.log()
    gateway.write(b"{")
    wait_until(lambda: gateway.state()["error"] is not None, timeout=3)


async def test_a_running_stream_is_finished_before_the_end(make_gateway: MakeGateway) -> None:
    go = asyncio.Event()

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(b"data: 1\n\n"))
        await go.wait()
        writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))

    async with stub(answer) as upstream:
        gateway = make_gateway()
        gateway.write(gateway.routes({"chat": model(target(upstream.port))}))
        await asyncio.to_thread(gateway.start)
        assert gateway.process is not None
        idle = socket.create_connection(("127.0.0.1", gateway.port))
        async with (
            httpx2.AsyncClient(base_url=gateway.base, timeout=5) as client,
            client.stream("POST", "/v1/chat/completions", content=CHAT) as got,
        ):
            pieces = got.aiter_raw()
            assert await anext(pieces) == b"data: 1\n\n"
            gateway.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(wait_until, lambda: "stopping inflight=1" in gateway.log())
            await asyncio.sleep(0.1)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.to_thread(raw_exchange, gateway.port, b"")
            assert idle.recv(1) == b""
            assert gateway.state()["inflight"] == {"server/chat#1": 1}
            go.set()
            assert [piece async for piece in pieces] == [b"data: [DONE]\n\n"]
        assert await asyncio.to_thread(gateway.process.wait, 3) == 0
        idle.close()


async def test_a_stream_that_never_ends_is_cut(make_gateway: MakeGateway) -> None:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(b"data: 1\n\n"))
        await asyncio.sleep(60)

    async with stub(answer) as upstream:
        gateway = make_gateway("--drain-seconds", "1")
        gateway.write(gateway.routes({"chat": model(target(upstream.port))}))
        await asyncio.to_thread(gateway.start)
        request = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CHAT)}\r\n\r\n".encode() + CHAT
        )
        exchange = asyncio.ensure_future(asyncio.to_thread(raw_exchange, gateway.port, request, 10))
        await asyncio.to_thread(wait_until, lambda: gateway.state()["inflight"])
        began = time.monotonic()
        assert await asyncio.to_thread(gateway.terminate) == 0
        assert 0.9 < time.monotonic() - began < 3
        raw = await exchange
        assert raw.endswith(b"data: 1\n\n\r\n")  # no last chunk: this is not an end


def test_no_descriptor_is_left_open(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    gateway.start()
    assert gateway.process is not None
    folder = Path(f"/proc/{gateway.process.pid}/fd")
    raw_exchange(gateway.port, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    before = len(list(folder.iterdir()))
    for _ in range(50):
        raw_exchange(gateway.port, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        raw_exchange(gateway.port, b"nonsense\r\n\r\n")
    wait_until(lambda: len(list(folder.iterdir())) <= before, message="descriptors are closed")
