"""What the public port answers, apart from what an engine says."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import socket
from typing import Any

import pytest

from reconciler import __version__
from tests.gateway.harness import (
    CLIENT_KEY,
    SESSION_KEY,
    Asked,
    Gateway,
    error_of,
    model,
    raw_exchange,
    response,
    status_of,
    stub,
    target,
)

KEYS = [{"name": "me", "sha256": hashlib.sha256(CLIENT_KEY.encode()).hexdigest()}]
CHAT = b'{"model":"chat","messages":[]}'
LAST = "Host: localhost\r\nConnection: close\r\n\r\n"


def call(
    gateway: Gateway, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers (lower case) and decoded JSON body."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=5)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(data) if data else None
    finally:
        connection.close()


def test_front_and_health(gateway: Gateway) -> None:
    gateway.use({"chat": model(target(1)), "soon": model(None)}, api_keys=KEYS)
    status, headers, body = call(gateway, "GET", "/")
    assert (status, body["version"], body["api"]) == (200, __version__, "/v1/")
    assert headers["content-type"] == "application/json"
    assert call(gateway, "HEAD", "/")[::2] == (200, None)
    expected = {"status": "ok", "version": __version__, "models": {"ready": 1, "total": 2}}
    assert call(gateway, "GET", "/health")[::2] == (200, expected)


def test_models(gateway: Gateway) -> None:
    models = {"chat": model(target(1)), "org/soon": model(None)}
    gateway.use(models, names={"chat": "chat", "default": "chat", "org/soon": "org/soon"})
    status, _, body = call(gateway, "GET", "/v1/models")
    assert (status, body["object"]) == (200, "list")
    assert {entry["id"]: entry["ready"] for entry in body["data"]} == {"chat": True, "default": True, "org/soon": False}
    expected = {
        "id": "org/soon",
        "object": "model",
        "created": 1795393006,
        "owned_by": "llama.cpp",
        "ready": False,
        "context_length": 4096,
    }
    assert call(gateway, "GET", "/v1/models/org/soon")[::2] == (200, expected)
    assert call(gateway, "GET", "/v1/models/org%2Fsoon")[::2] == (200, expected)
    status, _, body = call(gateway, "GET", "/v1/models/org/son")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert "Did you mean 'org/soon'?" in body["error"]["message"]


def test_unknown_model(gateway: Gateway) -> None:
    gateway.use({"chat": model(target(1))}, names={"chat": "chat", "default": "chat"})
    status, _, body = call(gateway, "POST", "/v1/chat/completions", b'{"model":"chta"}')
    assert status == 404
    assert body["error"] == {
        "message": "The model 'chta' does not exist. Did you mean 'chat'? Available: chat, default",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_a_model_without_a_target(gateway: Gateway) -> None:
    gateway.use({"chat": model(None, reason="downloading 40 %")})
    status, headers, body = call(gateway, "POST", "/v1/chat/completions", CHAT)
    assert (status, headers["retry-after"], body["error"]["code"]) == (503, "2", "model_not_ready")
    assert "'chat'" in body["error"]["message"]
    assert "downloading 40 %" in body["error"]["message"]


@pytest.mark.parametrize("task", ["embedding", "rerank"])
def test_text_from_a_model_that_makes_none(gateway: Gateway, task: str) -> None:
    gateway.use({"e": model(target(1), task=task)})
    for path in ("/v1/chat/completions", "/v1/completions"):
        status, _, body = call(gateway, "POST", path, b'{"model":"e"}')
        assert (status, body["error"]["param"], body["error"]["code"]) == (400, "model", "wrong_task")


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("PUT", "/v1/embeddings", 405, "POST"),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("DELETE", "/v1/models/chat", 405, "GET, HEAD"),
        ("POST", "/health", 405, "GET, HEAD"),
        ("POST", "/", 405, "GET, HEAD"),
        ("OPTIONS", "/v1/chat/completions", 405, "POST"),
        ("GET", "/nothing", 404, None),
        ("GET", "/v1", 404, None),
        ("GET", "/v1/", 404, None),
        ("GET", "//v1/models", 404, None),
        ("GET", "/v1/models/", 404, None),
        ("GET", "/V1/models", 404, None),
        ("GET", "/v1/../health", 404, None),
        ("GET", "/v1%2fmodels", 404, None),
        ("GET", "/state", 404, None),
        ("POST", "/v1/chat/completions/", 404, None),
        ("POST", "/upstream/chat/props", 405, "GET"),
    ],
)
def test_other_paths_and_methods(gateway: Gateway, method: str, path: str, status: int, allow: str | None) -> None:
    found, headers, body = call(gateway, method, path)
    assert (found, headers.get("allow")) == (status, allow)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert not [name for name in headers if name.startswith("access-control")]


def test_the_prefix_is_the_one_in_the_routes(gateway: Gateway) -> None:
    gateway.use({"chat": model(None)}, prefix="/api/openai")
    assert call(gateway, "GET", "/api/openai/models")[0] == 200
    assert call(gateway, "GET", "/v1/models")[0] == 404


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/chat", "/nothing", "/v1/chat/completions", "/%68ealth", "//"]
)
def test_a_key_is_needed(gateway: Gateway, path: str) -> None:
    gateway.use({"chat": model(None)}, api_keys=KEYS)
    status, headers, body = call(gateway, "GET", path)
    assert (status, headers["www-authenticate"], body["error"]["code"]) == (401, "Bearer", "invalid_api_key")
    assert call(gateway, "GET", path, Authorization=f"Bearer {CLIENT_KEY}x")[0] == 401
    assert call(gateway, "GET", path, Authorization=f"Bearer {CLIENT_KEY}")[0] in (200, 404, 405)
    assert call(gateway, "GET", path, x_api_key=CLIENT_KEY)[0] in (200, 404, 405)


def test_request_id(gateway: Gateway) -> None:
    own = {call(gateway, "GET", "/v1/models")[1]["x-request-id"] for _ in range(3)}
    assert len(own) == 3
    assert call(gateway, "GET", "/nothing", X_Request_Id="abc-1.2")[1]["x-request-id"] == "abc-1.2"
    assert call(gateway, "GET", "/nothing", X_Request_Id="a b")[1]["x-request-id"] != "a b"
    assert call(gateway, "GET", "/nothing", X_Request_Id="a" * 200)[1]["x-request-id"] != "a" * 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /health HTTP/1.1\r\n" + LAST, 200),
        ("GET /health HTTP/1.1\r\nHost: LOCALHOST.:99\r\nConnection: close\r\n\r\n", 200),
        ("GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
        ("GET /health HTTP/1.1\r\nOrigin: http://localhost:3000\r\n" + LAST, 200),
        ("GET /health HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nHost: localhost\r\n\r\n", 200),
        ("GET /health HTTP/1.0\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\n" + LAST, 400),
        ("GET /health HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nHost: a/?x=\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 403),
        ("GET http://localhost/health HTTP/1.1\r\n" + LAST, 400),
        ("GET http://evil.example/health HTTP/1.1\r\n" + LAST, 400),
        ("GET https:/health HTTP/1.1\r\n" + LAST, 400),
        ("OPTIONS * HTTP/1.1\r\n" + LAST, 400),
        ("CONNECT localhost:80 HTTP/1.1\r\n" + LAST, 400),
        ("GET /health HTTP/1.1\r\nOrigin: https://evil.example\r\n" + LAST, 403),
        ("GET /health HTTP/1.1\r\nOrigin: null\r\n" + LAST, 403),
        ("OPTIONS /v1/chat/completions HTTP/1.1\r\nOrigin: https://evil.example\r\n" + LAST, 403),
        ("GET /health HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nHost: localhost\r\n\r\n", 400),
        ("POST /v1/embeddings HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n" + LAST, 400),
        ("POST /v1/embeddings HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n" + LAST, 400),
        ("POST /v1/embeddings HTTP/1.1\r\nContent-Length: +1\r\n" + LAST, 400),
        ("POST /v1/embeddings HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n" + LAST, 400),
        ("GET /health HTTP/1.1\r\nX: a\r\n b\r\n" + LAST, 400),
        ("GET /health HTTP/1.1\nHost: localhost\n\n", 400),
        ("GET /health HTTP/1.1\r\nX: " + "a" * 9000 + "\r\n" + LAST, 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        ("POST /v1/embeddings HTTP/1.1\r\n" + LAST, 400),
        ("POST /v1/embeddings HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n" + LAST, 415),
        ("POST /v1/embeddings HTTP/1.1\r\nExpect: tea\r\nContent-Length: 5\r\n" + LAST, 417),
        ("POST /v1/embeddings HTTP/1.1\r\nContent-Length: 99999999999\r\n" + LAST, 413),
    ],
)
def test_raw_requests(gateway: Gateway, head: str, status: int) -> None:
    raw = raw_exchange(gateway.port, head.encode("latin-1"), seconds=2)
    assert status_of(raw) == status, raw
    if status != 200:
        error_of(raw)
    assert b"access-control" not in raw.lower()


def test_a_body_past_the_limit(gateway: Gateway) -> None:
    gateway.use({"chat": model(None)}, limits={"body": 1000})
    status, _, body = call(gateway, "POST", "/v1/chat/completions", b"x" * 1001)
    assert (status, body["error"]["code"]) == (413, "body_too_large")
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw = raw_exchange(gateway.port, chunked + (b"1f4\r\n" + b"x" * 500 + b"\r\n") * 3, seconds=2)
    assert (status_of(raw), error_of(raw)["code"]) == (413, "body_too_large")
    fits = b'{"model":"chat","pad":"' + b"x" * (1000 - 25) + b'"}'
    assert len(fits) == 1000
    assert call(gateway, "POST", "/v1/chat/completions", fits)[0] == 503


def test_a_body_that_is_not_what_it_should_be(gateway: Gateway) -> None:
    for body in (b"{", b"[]", b'{"model":1}', b'{"model":"a","model":"b"}', b"[" * 100_000):
        status, _, answer = call(gateway, "POST", "/v1/chat/completions", body)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    cut = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab\r\n"
    raw = raw_exchange(gateway.port, cut + b"zz\r\n", seconds=2)
    assert (status_of(raw), error_of(raw)["code"]) == (400, "bad_http")


def test_slow_clients_are_let_go(gateway: Gateway) -> None:
    gateway.use({"chat": model(None)}, limits={"header_seconds": 0.5})
    slow_head = b"GET /health HTTP/1.1\r\nHost: loc"
    slow_body = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    for data in (slow_head, slow_body):
        raw = raw_exchange(gateway.port, data, seconds=3)
        assert (status_of(raw), error_of(raw)["code"]) == (408, "request_timeout")
    assert raw_exchange(gateway.port, b"", seconds=3) == b""


def test_a_dripping_head_meets_the_same_deadline(gateway: Gateway) -> None:
    gateway.use(limits={"header_seconds": 0.5})
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=0.2) as sock:
        received = b""
        for letter in b"GET /health HTTP/1.1\r\nX-Long-Enough: aaaaaaaaaaaaaaaaaaaaaaa":
            sock.send(bytes([letter]))
            try:
                received = sock.recv(4096)
                break
            except TimeoutError:
                continue
    assert status_of(received) == 408


def test_the_connection_cap(gateway: Gateway) -> None:
    gateway.use(limits={"connections": 3})
    held = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(3)]
    try:
        raw = raw_exchange(gateway.port, b"", seconds=2)
        assert (status_of(raw), error_of(raw)["code"]) == (503, "too_many_connections")
    finally:
        for sock in held:
            sock.close()


async def test_keys_go_nowhere(gateway: Gateway) -> None:
    """No key is in any response or log line, and the client's own never goes upstream."""

    async def answer(asked: Asked, writer: Any) -> None:
        writer.write(response(b'{"ok":true}', x_secret="y", set_cookie="a=b"))

    async with stub(answer) as upstream:
        models = {"chat": model(target(upstream.port)), "gone": model(target(1)), "soon": model(None)}
        gateway.use(models, api_keys=KEYS)
        seen = b""
        for path in (
            "/",
            "/health",
            "/v1/models",
            "/v1/models/chat",
            "/v1/models/nope",
            "/nothing",
            "/v1/chat/completions",
        ):
            for name in ("chat", "gone", "soon", "nope"):
                body = json.dumps({"model": name}).encode()
                for method in ("GET", "POST"):
                    for key in (CLIENT_KEY, CLIENT_KEY + "-wrong"):
                        head = f"{method} {path} HTTP/1.1\r\nAuthorization: Bearer {key}\r\nx-api-key: {key}\r\n"
                        head += f"Cookie: c=1\r\nContent-Length: {len(body)}\r\n{LAST}"
                        seen += await asyncio.to_thread(raw_exchange, gateway.port, head.encode() + body)
        assert len(upstream.asked) == 1
        sent = {name for name, _ in upstream.asked[0].headers}
        assert sent == {"host", "content-type", "content-length", "authorization"}
        assert upstream.asked[0].header("authorization") == f"Bearer {SESSION_KEY}"
    assert b'{"ok":true}' in seen
    assert b"x-secret" not in seen
    assert b"set-cookie" not in seen
    for text in (seen.decode(), gateway.log(), json.dumps(gateway.state())):
        assert SESSION_KEY not in text
        assert CLIENT_KEY not in text
        assert KEYS[0]["sha256"] not in text


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=" + "9" * 5000, "order=up"])
def test_a_page_of_kept_items_is_asked_for_with_sense(gateway: Gateway, query: str) -> None:
    status, _, body = call(gateway, "GET", f"/v1/responses/resp_1/input_items?{query}")
    assert (status, body["error"]["code"]) == (400, "invalid_query")
