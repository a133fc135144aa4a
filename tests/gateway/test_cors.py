"""Which pages may call, and what they are told: over sockets, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from reconciler.gateway import cors, guards
from reconciler.kinds.gateway.spec import Cors
from tests.gateway.harness import CLIENT_KEY, Gateway, model, raw_exchange, status_of, target
from tests.gateway.test_guards import routes

KEYS = [{"name": "me", "sha256": hashlib.sha256(CLIENT_KEY.encode()).hexdigest()}]
LISTED = ["https://app.example.com", "http://[::1]:5173", "http://Dev.Example:8080"]
HOST = "localhost"


@pytest.fixture
def opened(gateway: Gateway) -> Iterator[Gateway]:
    gateway.use({"chat": model(target(1))}, cors={"origins": LISTED}, trusted_hosts=["localhost", "[::1]", "box.lan:1"])
    yield gateway
    gateway.use()


def ask(gateway: Gateway, line: str, *headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers (lower case) of one request with exactly these header lines."""
    head = "\r\n".join((f"{line} HTTP/1.1", *headers, "Connection: close", "", ""))
    raw = raw_exchange(gateway.port, head.encode("latin-1"), seconds=3)
    lines = raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    pairs = [line.split(": ", 1) for line in lines]
    assert len({name.lower() for name, _ in pairs if name.lower() != "vary"}) == len(
        [1 for name, _ in pairs if name.lower() != "vary"]
    )
    return status_of(raw), {name.lower(): value for name, value in pairs}


@pytest.mark.parametrize(
    ("origin", "status", "allowed"),
    [
        ("https://app.example.com", 200, "https://app.example.com"),
        ("HTTPS://APP.EXAMPLE.COM", 200, "https://app.example.com"),
        ("https://app.example.com:443", 200, "https://app.example.com"),
        ("http://[::1]:5173", 200, "http://[::1]:5173"),
        ("http://[0:0:0:0:0:0:0:1]:5173", 200, "http://[::1]:5173"),
        ("http://dev.example:8080", 200, "http://dev.example:8080"),
        ("http://localhost:3000", 200, None),  # its host is trusted, as ever, but it is not listed
        ("http://app.example.com", 403, None),
        ("https://app.example.com:444", 403, None),
        ("https://app.example.com.", 403, None),
        ("https://app.example.com.:443", 403, None),
        ("https://app.example.com.evil.example", 403, None),
        ("https://evilapp.example.com", 403, None),
        ("https://app.example.com@evil.example", 403, None),
        ("https://app.example.com/", 403, None),
        ("https://app.example.com, https://evil.example", 403, None),
        ("https://app.example.com https://evil.example", 403, None),
        ("https://app%2eexample.com", 403, None),
        ("http://dev.example", 403, None),
        ("http://[::1]:5174", 200, None),
        ("http://[::1%25lo]:5173", 403, None),
        ("chrome-extension://app.example.com", 403, None),
        ("null", 403, None),
        ("NULL", 403, None),
        ("*", 403, None),
        ("", 403, None),
    ],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_origins(opened: Gateway, origin: str, status: int, allowed: str | None, method: str) -> None:
    more = ["Access-Control-Request-Method: GET"] if method == "OPTIONS" else []
    found, headers = ask(opened, f"{method} /v1/models", f"Host: {HOST}", f"Origin: {origin}", *more)
    expected = 405 if method == "OPTIONS" and status == 200 and allowed is None else status
    assert (found, headers.get("access-control-allow-origin")) == (expected, allowed)
    assert headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in headers
    if allowed is None:
        assert not [name for name in headers if name.startswith("access-control-")]
    else:
        exposed = headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-reconciler-target", "x-reconciler-attempts"} <= set(exposed)


def test_two_origins_are_none(opened: Gateway) -> None:
    origins = [f"Origin: {LISTED[0]}", f"Origin: {LISTED[0]}"]
    assert ask(opened, "GET /health", f"Host: {HOST}", *origins)[0] == 403


SENT = (
    "authorization, x-api-key, anthropic-version, anthropic-beta, anthropic-dangerous-direct-browser-access, "
    "openai-organization, openai-project, openai-beta, x-stainless-lang, x-stainless-retry-count, content-type, accept"
)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/chat/completions", "POST"),
        ("/v1/messages", "POST"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/models/chat", "GET, HEAD"),
        ("/v1/responses/resp_1", "GET, HEAD, DELETE"),
        ("/upstream/chat/lora-adapters", "GET, POST"),
    ],
)
def test_a_preflight_needs_no_key(opened: Gateway, path: str, methods: str) -> None:
    opened.use({"chat": model(target(1))}, cors={"origins": LISTED}, api_keys=KEYS)
    asked = [f"Host: {HOST}", f"Origin: {LISTED[0]}", "Access-Control-Request-Method: POST"]
    status, headers = ask(opened, f"OPTIONS {path}", *asked, f"Access-Control-Request-Headers: {SENT}")
    assert (status, headers["access-control-allow-methods"], headers["content-length"]) == (200, methods, "0")
    assert headers["access-control-allow-headers"] == SENT
    assert int(headers["access-control-max-age"]) > 0
    status, headers = ask(opened, f"OPTIONS {path}", *asked[:2])
    assert (status, headers["access-control-allow-origin"]) == (401, LISTED[0])  # no preflight, and so no exemption


def test_the_page_can_read_why_it_was_refused(opened: Gateway) -> None:
    opened.use(cors={"origins": LISTED}, api_keys=KEYS)
    status, headers = ask(opened, "GET /v1/models", f"Host: {HOST}", f"Origin: {LISTED[0]}")
    assert (status, headers["access-control-allow-origin"]) == (401, LISTED[0])


def test_headers_that_no_client_sends_are_not_allowed(opened: Gateway) -> None:
    asked = "X-Forwarded-For, cookie,host, Authorization , a\tb, , x-stainless-os, AUTHORIZATION"
    lines = [f"Origin: {LISTED[0]}", "Access-Control-Request-Method: POST", f"Access-Control-Request-Headers: {asked}"]
    headers = ask(opened, "OPTIONS /v1/messages", f"Host: {HOST}", *lines)[1]
    assert headers["access-control-allow-headers"] == "authorization, x-stainless-os"


def test_nothing_is_said_about_origins_where_none_is_listed(gateway: Gateway) -> None:
    status, headers = ask(gateway, "OPTIONS /v1/models", f"Host: {HOST}", "Access-Control-Request-Method: GET")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert "vary" not in headers
    assert not [name for name in headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "origin",
    ["null", "*", "https://*.example.com", "https://a/b", "https://user@a", "ftp://a", "https://a.", "a", "https://"],
)
def test_what_is_no_origin_cannot_be_listed(origin: str) -> None:
    import dataclasses

    with pytest.raises(ValueError, match=r"cors\.origins"):
        guards.trust(dataclasses.replace(routes([]), origins=(origin,)))


def test_very_many_headers_are_asked_for() -> None:
    asked = ",".join(f"x-stainless-{i}" for i in range(10_000))
    line = cors.preflight(("GET",), [asked]).split(b"\r\n")[1]
    assert line.count(b"x-stainless-") == 64


HOSTS = [
    ("localhost", True), ("LOCALHOST", True), ("localhost.", True), ("localhost:9", True), ("localhost.:9", True),
    ("[::1]", True), ("[::1]:1337", True), ("[0::1]", True), ("127.0.0.1", True), ("127.0.0.1.", True),
    ("box.lan:1", True), ("box.lan", False), ("box.lan:2", False), ("evil.example", False), ("app.example.com", False),
    ("localhost.evil.example", False), ("[::2]", False), ("127.1", False), ("0", False),
    ("::1", None), ("localhost..", None), ("localhost:", None), ("[::1", None), ("[::1%25lo]", None),
    ("loc%61lhost", None), ("localhost@evil.example", None), ("localhost/", None), ("localhost, evil.example", None),
]  # fmt: skip
ORIGINS = [(None, True), (LISTED[0], True), ("http://localhost", True), ("http://evil.example", False), ("null", False)]
TARGETS = [
    ("/health", 200), ("/health?a=/../b", 200), ("/%68ealth", 404), ("/health%2f", 404), ("/health/", 404),
    ("/v1/..%2fhealth", 404), ("/v1/../health", 404), ("//health", 404), ("/./health", 404), ("/health;a", 404),
    ("/health%00", 404), ("http://localhost/health", 400), ("http://evil.example/health", 400), ("*", 400),
    ("localhost:80", 400),
]  # fmt: skip


@pytest.mark.parametrize(("where", "answer"), TARGETS)
def test_host_and_origin_and_target(opened: Gateway, where: str, answer: int) -> None:
    """Each Host with each Origin: the first thing that is wrong decides, in the order target, Host, Origin, path."""
    for host, host_good in HOSTS:
        for origin, origin_good in ORIGINS:
            lines = [f"Host: {host}", *([f"Origin: {origin}"] if origin is not None else [])]
            if answer == 400 or host_good is None:
                expected = 400
            elif not (host_good and origin_good):
                expected = 403
            else:
                expected = answer
            status, headers = ask(opened, f"GET {where}", *lines)
            assert status == expected, (where, host, origin)
            told = headers.get("access-control-allow-origin")
            assert told == (LISTED[0] if origin == LISTED[0] and host_good and answer != 400 else None)


@pytest.mark.parametrize(
    ("origin", "right"),
    [
        ("https://a.example", True), ("http://localhost:3000", True), ("https://[::1]:8443", True),
        ("https://1.2.3.4", True), ("https://a:99999", False), ("https://a:", False), ("https://a..b", False),
        ("https://a.", False), ("https://[::1", False), ("https://[zz]", False), ("https://a:b:c", False),
    ],
)  # fmt: skip
def test_what_the_manifest_takes_for_an_origin_the_gateway_understands(origin: str, right: bool) -> None:
    assert (guards.parse_origin(origin) is not None) == right
    try:
        Cors(origins=(origin,))
    except ValidationError:
        assert not right
    else:
        assert right
