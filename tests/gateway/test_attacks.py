"""What nobody means well with, over raw sockets at a real gateway: each with the status that it has to get.

The engine behind it is a stub that keeps every request it sees: one that was smuggled would be one too many.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import re
import resource
import socket
import time
from asyncio import StreamWriter
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.gateway.harness import (
    CLIENT_KEY,
    Asked,
    Gateway,
    error_of,
    model,
    provider,
    raw_exchange,
    response,
    status_of,
    stub,
    target,
)
from tests.gateway.test_surface import call

BODY = b'{"model":"chat","messages":[]}'
SIZE = str(len(BODY)).encode()
INNER = (
    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 29\r\n\r\n" + b'{"model":"chat","smuggled":1}'
)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


async def fine(asked: Asked, writer: StreamWriter) -> None:
    writer.write(response(b'{"choices":[]}'))


def post(*lines: bytes, body: bytes = BODY, line: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
    return b"\r\n".join((line, b"Host: localhost", *lines)) + b"\r\n\r\n" + body


# name: (what is sent, the status of the first answer, how many answers, how many requests reach the engine)
# Two answers mean that both sides of the cut read it alike: a client may send one request after the other.
FRAMING: dict[str, tuple[bytes, int, int, int]] = {
    "as it should be": (post(b"Content-Length: " + SIZE), 200, 1, 1),
    "one after the other": (post(b"Content-Length: " + SIZE) + post(b"Content-Length: " + SIZE), 200, 2, 2),
    "chunked": (post(b"Transfer-Encoding: chunked", body=CHUNKED), 200, 1, 1),
    "chunked, then another": (post(b"Transfer-Encoding: chunked", body=CHUNKED) + INNER, 200, 2, 2),
    "CL.TE": (post(b"Content-Length: 6", b"Transfer-Encoding: chunked", body=b"0\r\n\r\nG" + INNER), 400, 1, 0),
    "TE.CL": (post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=CHUNKED + INNER), 400, 1, 0),
    "CL.CL alike": (post(b"Content-Length: " + SIZE, b"Content-Length: " + SIZE), 400, 1, 0),
    "CL.CL": (post(b"Content-Length: " + SIZE, b"Content-Length: 0", body=BODY + INNER), 400, 1, 0),
    "CL list": (post(b"Content-Length: " + SIZE + b", " + SIZE), 400, 1, 0),
    "CL plus": (post(b"Content-Length: +" + SIZE), 400, 1, 0),
    "CL minus": (post(b"Content-Length: -" + SIZE), 400, 1, 0),
    "CL hex": (post(b"Content-Length: 0x1e"), 400, 1, 0),
    "CL decimal point": (post(b"Content-Length: " + SIZE + b".0"), 400, 1, 0),
    "CL underscore": (post(b"Content-Length: 3_0"), 400, 1, 0),
    "CL space inside": (post(b"Content-Length: 3 0"), 400, 1, 0),
    "CL empty": (post(b"Content-Length:"), 400, 1, 0),
    "CL huge": (post(b"Content-Length: 99999999999999999999999999"), 400, 1, 0),
    "CL arabic digits": (post("Content-Length: ٣٠".encode()), 400, 1, 0),
    "CL space before colon": (post(b"Content-Length : " + SIZE), 400, 1, 0),
    "CL tab before colon": (post(b"Content-Length\t: " + SIZE), 400, 1, 0),
    "CL spaces around": (post(b"Content-Length:  " + SIZE + b" \t"), 200, 1, 1),
    "CL leading zeros": (post(b"Content-Length: 000" + SIZE), 200, 1, 1),
    "CL after NUL": (post(b"Content-Length: \x00" + SIZE), 400, 1, 0),
    "CL in a folded line": (post(b"X: a\r\n Content-Length: 0", b"Content-Length: " + SIZE), 400, 1, 0),
    "CL folded itself": (post(b"Content-Length:\r\n " + SIZE), 400, 1, 0),
    "TE xchunked": (post(b"Transfer-Encoding: xchunked", body=CHUNKED), 400, 1, 0),
    "TE identity": (post(b"Transfer-Encoding: identity", body=CHUNKED), 400, 1, 0),
    "TE gzip, chunked": (post(b"Transfer-Encoding: gzip, chunked", body=CHUNKED), 400, 1, 0),
    "TE chunked, gzip": (post(b"Transfer-Encoding: chunked, gzip", body=CHUNKED), 400, 1, 0),
    "TE chunked twice": (post(b"Transfer-Encoding: chunked, chunked", body=CHUNKED), 400, 1, 0),
    "TE two headers": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=CHUNKED), 400, 1, 0),
    "TE quoted": (post(b'Transfer-Encoding: "chunked"', body=CHUNKED), 400, 1, 0),
    "TE with a parameter": (post(b"Transfer-Encoding: chunked;q=1", body=CHUNKED), 400, 1, 0),
    "TE vertical tab": (post(b"Transfer-Encoding: \x0bchunked", body=CHUNKED), 400, 1, 0),
    "TE space before colon": (post(b"Transfer-Encoding : chunked", body=CHUNKED), 400, 1, 0),
    "TE bare CR": (post(b"X: a\rTransfer-Encoding: chunked", body=CHUNKED), 400, 1, 0),
    "TE upper case": (post(b"TRANSFER-ENCODING: CHUNKED", body=CHUNKED), 200, 1, 1),
    "TE in HTTP/1.0": (
        post(b"Transfer-Encoding: chunked", body=CHUNKED, line=b"POST /v1/chat/completions HTTP/1.0"), 400, 1, 0,
    ),
    "bare LF": (post(b"Content-Length: " + SIZE).replace(b"\r\n", b"\n"), 400, 1, 0),
    "bare LF in one line": (post(b"X: a\nContent-Length: " + SIZE), 400, 1, 0),
    "bare LF at the end": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + SIZE + b"\n\n" + BODY, 400, 1, 0,
    ),
    "folded header": (post(b"X: a\r\n\tb", b"Content-Length: " + SIZE), 400, 1, 0),
    "folded first header": (b"POST /v1/chat/completions HTTP/1.1\r\n Host: localhost\r\n\r\n", 400, 1, 0),
    "no colon": (post(b"Content-Length", b"Content-Length: " + SIZE), 400, 1, 0),
    "no name": (post(b": a", b"Content-Length: " + SIZE), 400, 1, 0),
    "odd name": (post(b"Content(Length): 1", b"Content-Length: " + SIZE), 400, 1, 0),
    "NUL in a value": (post(b"X: \x00", b"Content-Length: " + SIZE), 400, 1, 0),
    "chunk extension": (post(b"Transfer-Encoding: chunked", body=CHUNKED.replace(b"\r\n", b";a=b\r\n", 1)), 200, 1, 1),
    "chunk extension with LF": (
        post(b"Transfer-Encoding: chunked", body=CHUNKED.replace(b"\r\n", b";a\n\r\n", 1)), 400, 1, 0,
    ),
    "chunk size 0x": (post(b"Transfer-Encoding: chunked", body=b"0x" + CHUNKED), 400, 1, 0),
    "chunk size plus": (post(b"Transfer-Encoding: chunked", body=b"+" + CHUNKED), 400, 1, 0),
    "chunk size minus": (post(b"Transfer-Encoding: chunked", body=b"-" + CHUNKED), 400, 1, 0),
    "chunk size empty": (post(b"Transfer-Encoding: chunked", body=b"\r\n" + CHUNKED), 400, 1, 0),
    "chunk size huge": (post(b"Transfer-Encoding: chunked", body=b"f" * 20 + CHUNKED), 400, 1, 0),
    "chunk size space before": (post(b"Transfer-Encoding: chunked", body=b" " + CHUNKED), 400, 1, 0),
    "chunk longer than said": (
        post(b"Transfer-Encoding: chunked", body=b"%x\r\n%bXX\r\n0\r\n\r\n" % (len(BODY), BODY)), 400, 1, 0,
    ),
    "chunk ends in LF": (post(b"Transfer-Encoding: chunked", body=CHUNKED.replace(b"\r\n", b"\n")), 400, 1, 0),
    "trailers": (
        post(b"Transfer-Encoding: chunked", body=CHUNKED[:-2] + b"Content-Length: 5\r\nHost: evil\r\n\r\n"), 400, 1, 0,
    ),
    "trailer, then another": (
        post(b"Transfer-Encoding: chunked", body=CHUNKED[:-2] + b"X: y\r\n\r\n") + INNER, 200, 2, 2,
    ),
    "bad trailer": (post(b"Transfer-Encoding: chunked", body=CHUNKED[:-2] + b"X y\r\n\r\n"), 400, 1, 0),
    "GET with a body": (
        post(b"Content-Length: %d" % len(INNER), line=b"GET /v1/models HTTP/1.1", body=INNER), 200, 1, 0,
    ),
    "version 2": (post(b"Content-Length: " + SIZE, line=b"POST /v1/chat/completions HTTP/2.0"), 505, 1, 0),
    "version 1.2": (post(b"Content-Length: " + SIZE, line=b"POST /v1/chat/completions HTTP/1.2"), 400, 1, 0),
    "version 0.9": (b"GET /v1/models\r\n\r\n", 505, 1, 0),
    "spaces in the line": (post(b"Content-Length: " + SIZE, line=b"POST  /v1/chat/completions  HTTP/1.1"), 200, 1, 1),
    "a target with a space": (post(line=b"POST /v1/a b HTTP/1.1", body=b""), 400, 1, 0),
    "an odd method": (post(line=b"P(ST /v1/models HTTP/1.1", body=b""), 400, 1, 0),
    "h2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, 1, 0),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500, 400, 1, 0),
    "5000 headers": (post(*(b"X-%d: a" % i for i in range(5000)), b"Content-Length: " + SIZE), 400, 1, 0),
    "a header of 1 MB": (post(b"X: " + b"a" * (1 << 20), b"Content-Length: " + SIZE), 400, 1, 0),
    "a target of 1 MB": (post(line=b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1", body=b""), 400, 1, 0),
    "two Hosts": (post(b"Host: localhost", b"Content-Length: " + SIZE), 400, 1, 0),
    "websocket": (
        post(b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: YQ==", b"Content-Length: 0",
             body=INNER),
        400, 1, 0,
    ),
    "websocket with a body": (
        post(b"Upgrade: websocket", b"Connection: Upgrade", b"Content-Length: " + SIZE, body=BODY + INNER), 400, 1, 0,
    ),
    "h2c": (
        post(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: A",
             b"Content-Length: " + SIZE),
        200, 1, 1,
    ),
    "an unknown upgrade": (post(b"Upgrade: x", b"Connection: Upgrade", b"Content-Length: 0", body=INNER), 400, 1, 0),
    "CONNECT": (b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n" + INNER, 400, 1, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMING)
async def test_framing(gateway: Gateway, name: str) -> None:
    sent, status, answers, reached = FRAMING[name]
    async with stub(fine) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        goes_on = status == 200 and name != "h2c"  # an offer to speak something else ends the connection
        last = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        got = await asyncio.to_thread(raw_exchange, gateway.port, sent + last if status == 200 else sent, 4, one=False)
        assert status_of(got) == status, (name, got[:300])
        assert len(re.findall(rb"HTTP/1\.[01] \d{3} ", got)) == answers + goes_on, (name, got)
        assert len(upstream.asked) == reached, (name, upstream.asked)
        if status != 200:
            error_of(got)
            assert got.startswith(b"HTTP/1.0 ") or b"connection: close" in got.lower()  # 1.0 ends with its answer
        lines = [asked.line for asked in upstream.asked]
        assert all(line.endswith(" HTTP/1.1") for line in lines)
        assert all(asked.header("transfer-encoding") is None for asked in upstream.asked)


async def test_a_request_cut_into_single_bytes(gateway: Gateway) -> None:
    """The corpus again, byte by byte: where it is cut makes no difference."""
    async with stub(fine) as upstream:
        gateway.use({"chat": model(target(upstream.port))})

        async def drip(name: str) -> None:
            sent, status, *_ = FRAMING[name]
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            head = asyncio.ensure_future(reader.readuntil(b"\r\n"))
            for at in range(len(sent)):
                if head.done():
                    break
                writer.write(sent[at : at + 1])
                await asyncio.sleep(0)
            try:
                assert status_of(await asyncio.wait_for(head, 20)) == status, name
            except TimeoutError:
                pytest.fail(f"no answer to {name}")
            except ConnectionError:  # the gateway hung up while bytes were under way, and its answer was lost with them
                assert status != 200, name
            writer.close()

        await asyncio.gather(*(drip(name) for name in FRAMING if len(FRAMING[name][0]) < 2000))


# -- bodies -----------------------------------------------------------------------------------------------------------

DEEP = 100_000
BODIES: dict[str, tuple[bytes, str, int]] = {
    "deep list": (b'{"model":"chat","x":' + b"[" * DEEP + b"]" * DEEP + b"}", "", 400),
    "deep object": (b'{"model":"chat","x":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}", "", 400),
    "deep and unclosed": (b"[" * DEEP, "", 400),
    "NaN": (b'{"model":"chat","temperature":NaN}', "", 400),
    "Infinity": (b'{"model":"chat","temperature":-Infinity}', "", 400),
    "a number of many digits": (b'{"model":"chat","n":' + b"9" * 100_000 + b"}", "", 400),
    "model twice": (b'{"model":"chat","model":"chat"}', "", 400),
    "model twice, one escaped": (b'{"model":"chat","m\\u006fdel":"other"}', "", 400),
    "model a list": (b'{"model":["chat"]}', "", 400),
    "model empty": (b'{"model":""}', "", 400),
    "model long": (b'{"model":"' + b"a" * 100_000 + b'"}', "", 404),
    "model a lone surrogate": (b'{"model":"\\ud800"}', "", 404),
    "model with line breaks": (b'{"model":"chat\\r\\nX: y"}', "", 404),
    "model a path": (b'{"model":"../../etc/passwd"}', "", 404),
    "not UTF-8": (b'{"model":"chat","x":"\xff"}', "", 400),
    "UTF-16": ('{"model":"chat"}'.encode("utf-16"), "", 400),
    "UTF-8 with a mark": (b"\xef\xbb\xbf" + BODY, "", 400),
    "empty": (b"", "", 400),
    "blank": (b"   ", "", 400),
    "a list": (b"[]", "", 400),
    "null": (b"null", "", 400),
    "two objects": (BODY + BODY, "", 400),
    "a comment": (b'{"model":"chat" /* */}', "", 400),
    "single quotes": (b"{'model':'chat'}", "", 400),
    "a form": (b"model=chat", "Content-Type: application/x-www-form-urlencoded", 400),
    "XML": (b"<model>chat</model>", "Content-Type: application/xml", 400),
    "another charset": (BODY, "Content-Type: application/json; charset=utf-16", 415),
    "another charset, quoted": (BODY, 'Content-Type: application/json; charset="UTF-7"', 415),
    "its own charset": (BODY, "Content-Type: application/json; charset=UTF-8", 200),
    "JSON called text": (BODY, "Content-Type: text/plain", 200),
    "gzip": (gzip.compress(BODY), "Content-Encoding: gzip", 415),
    "gzip that is not said": (gzip.compress(BODY), "", 400),
    "a bomb": (gzip.compress(bytes(10 << 20)), "Content-Encoding: gzip", 415),
    "br": (BODY, "Content-Encoding: br", 415),
    "identity": (BODY, "Content-Encoding: identity", 200),
    "whom to ask": (b'{"model":"chat","api_base":"http://evil.example"}', "", 400),
    "whom to ask, deep": (b'{"model":"chat","x":[{"y":{"Base-URL":"http://evil.example"}}]}', "", 400),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_bodies(gateway: Gateway, name: str, path: str) -> None:
    body, header, status = BODIES[name]
    if status == 200 and path != "/v1/chat/completions":
        return
    async with stub(fine) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        lines = [b"Content-Length: %d" % len(body), b"Connection: close", *([header.encode()] if header else [])]
        sent = post(*lines, body=body, line=f"POST {path} HTTP/1.1".encode())
        got = await asyncio.to_thread(raw_exchange, gateway.port, sent, 10)
        assert status_of(got) == status, got[:500]
        assert len(upstream.asked) == (status == 200)
        json.loads(got.partition(b"\r\n\r\n")[2])
        assert b"\r\nX: y" not in got


async def test_how_deep_makes_no_difference_to_us(gateway: Gateway) -> None:
    """Also where the body is read, translated and written again, a depth that is too much is the client's fault."""
    async with stub(fine) as upstream:
        providers = {"far": provider(f"http://127.0.0.1:{upstream.port}/v1", ["m"])}
        gateway.use({"chat": model(target(upstream.port))}, providers=providers)
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/upstream/chat/completion"):
            for depth in (50, 200, 300, 320, 340, 400, 450, 480, 490, 495, 600, 900, 950, 980, 990, 1000, 1200):
                for name in ("chat", "far/m"):
                    for place in ("tools", "x", "metadata"):
                        nested = b'{"a":' * depth + b"1" + b"}" * depth
                        body = b'{"model":"%b","messages":[{"role":"user","content":"a"}],"max_tokens":9,"input":"a",'
                        body = body % name.encode() + b'"%b":[%b]}' % (place.encode(), nested)
                        sent = post(b"Content-Length: %d" % len(body), b"Connection: close", body=body,
                                    line=f"POST {path} HTTP/1.1".encode())  # fmt: skip
                        got = await asyncio.to_thread(raw_exchange, gateway.port, sent, 10)
                        assert status_of(got) in (200, 400, 502), (path, depth, name, place, got[:300])
                        if status_of(got) == 502:  # the stub's answer is no message
                            assert b"internal_error" not in got


def test_a_hundred_megabytes(gateway: Gateway) -> None:
    gateway.use({"chat": model(None)})
    head = post(b"Content-Length: %d" % (100 << 20), body=b'{"model":"')
    got = raw_exchange(gateway.port, head)
    assert (status_of(got), error_of(got)["code"]) == (413, "body_too_large")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as sock:
        sock.sendall(post(b"Transfer-Encoding: chunked", body=b""))
        piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                sock.sendall(piece)
        with contextlib.suppress(ConnectionError):
            assert status_of(sock.recv(4096)) == 413
    assert call(gateway, "GET", "/health")[0] == 200


# -- slowness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [
        b"GET /a",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n{",
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n--X",
        b"POST /upstream/chat/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{",
    ],
)
def test_dripping_is_cut_off(gateway: Gateway, start: bytes) -> None:
    """A byte now and then does not hold a connection, neither in the head nor in the body."""
    gateway.use({"chat": model(target(1))}, limits={"header_seconds": 0.6})
    received = b""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=0.1) as sock:
        sock.sendall(start)
        for _ in range(100):
            try:
                received = sock.recv(4096)
                break
            except TimeoutError:
                with contextlib.suppress(ConnectionError):
                    sock.send(b"a")
    assert (status_of(received), error_of(received)["code"]) == (408, "request_timeout")


def test_many_that_drip_do_not_keep_others_waiting(gateway: Gateway) -> None:
    gateway.use({"chat": model(target(1))}, limits={"header_seconds": 20})
    held = []
    try:
        for _ in range(300):
            sock = socket.create_connection(("127.0.0.1", gateway.port))
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            held.append(sock)
        assert call(gateway, "GET", "/health")[0] == 200
    finally:
        for sock in held:
            sock.close()


@pytest.fixture
def many_files() -> Iterator[Callable[[int], None]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def need(count: int) -> None:
        if hard != resource.RLIM_INFINITY and hard < count:
            pytest.fail(f"this test needs {count} open files, and {hard} are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))

    yield need
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
async def test_ten_thousand_idle_connections(
    make_gateway: Callable[..., Gateway], many_files: Callable[[int], None]
) -> None:
    """They are let in where the routes allow it, others are served beside them, and they cost little each."""
    count = 10_000
    many_files(count + 500)
    gateway = make_gateway()
    gateway.write(gateway.routes({}, limits={"connections": count + 100, "header_seconds": 120}))
    gateway.start()
    assert gateway.process is not None
    process = psutil.Process(gateway.process.pid)
    async with stub(fine) as upstream:
        gateway.use({"chat": model(target(upstream.port))}, limits={"connections": count + 100, "header_seconds": 120})
        before = process.memory_info().rss
        held: list[socket.socket] = []
        try:
            for at in range(count):
                # From several addresses of this machine, for one has not so many ports to spare.
                held.append(socket.create_connection(("127.0.0.1", gateway.port), 10, (f"127.0.0.{2 + at % 8}", 0)))
            sent = post(b"Content-Length: " + SIZE)
            took = []
            for _ in range(50):
                began = time.perf_counter()
                got = await asyncio.to_thread(raw_exchange, gateway.port, sent, 10)
                took.append(time.perf_counter() - began)
                assert status_of(got) == 200
            grown = process.memory_info().rss - before
            took.sort()
            size = f"{grown / count / 1024:.1f} KB each, {process.memory_info().rss >> 20} MB in all"
            wait = f"{took[25] * 1000:.1f} ms (median), {took[-1] * 1000:.1f} ms (longest)"
            print(f"{count} idle connections: {size}; a request beside them {wait}")
            assert grown < count * 24 * 1024
            one_more = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(101)]
            held += one_more
            got = await asyncio.to_thread(one_more[-1].recv, 4096)
            assert (status_of(got), error_of(got)["code"]) == (503, "too_many_connections")
        finally:
            for sock in held:
                sock.close()


# -- keys -------------------------------------------------------------------------------------------------------------

ODD = [
    "sk-ä€😀", "sk with spaces", "sk-\ttab", "sk-'\"\\;--", "sk-%00%0d%0a", "=", "sk:" + "a" * 4000, "Bearer sk", "{}",
]  # fmt: skip


@pytest.mark.parametrize("key", ODD)
def test_odd_keys(gateway: Gateway, key: str) -> None:
    """A key is bytes to be compared: odd ones are right or wrong like any other, and none is repeated."""
    keys = [{"name": "odd", "sha256": hashlib.sha256(key.encode()).hexdigest()}]
    gateway.use({"chat": model(None)}, api_keys=keys)

    def ask(*headers: bytes) -> int:
        sent = b"\r\n".join((b"GET /v1/models HTTP/1.1", b"Host: localhost", *headers, b"Connection: close", b"", b""))
        got = raw_exchange(gateway.port, sent)
        assert key.encode() not in got
        return status_of(got)

    data = key.encode()
    assert ask(b"Authorization: Bearer " + data) == 200
    assert ask(b"x-api-key: " + data) == 200
    assert ask(b"Authorization: Bearer " + data + b"x") == 401
    assert ask(b"Authorization: Bearer " + data[:-1]) == 401
    assert ask(b"Authorization: Basic " + data) == 401
    assert ask(b"Authorization: " + data) == 401
    assert ask(b"X-Api-Key: " + data, b"X-Api-Key: " + data) == 401
    assert ask(b"Authorization: Bearer " + data, b"Authorization: Bearer x") == 401
    assert len(key) < 5 or key not in gateway.log()


@pytest.mark.parametrize(
    "header",
    [b"Authorization: Bearer \x00", b"Authorization: Bearer \xff\xfe", b"Authorization:", b"x-api-key:",
     b"Authorization: bearer", b"Authorization: Bearer " + b"a" * 7000, b"x-api-key: " + b"\xf0\x9f" * 100,
     b"Cookie: key=" + CLIENT_KEY.encode(), b"Proxy-Authorization: Bearer " + CLIENT_KEY.encode()],
)  # fmt: skip
def test_what_is_no_key(gateway: Gateway, header: bytes) -> None:
    gateway.use(api_keys=[{"name": "me", "sha256": hashlib.sha256(CLIENT_KEY.encode()).hexdigest()}])
    sent = b"GET /v1/models?key=%b HTTP/1.1\r\nHost: localhost\r\n%b\r\nConnection: close\r\n\r\n"
    got = raw_exchange(gateway.port, sent % (CLIENT_KEY.encode(), header))
    assert status_of(got) == (400 if b"\x00" in header else 401)
    assert CLIENT_KEY.encode() not in got
