from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from reconciler.gateway import guards
from reconciler.gateway.errors import Refusal
from reconciler.gateway.routes import ApiKey, Routes, load
from tests.gateway.harness import Gateway

TRUSTED = ["localhost", "127.0.0.1", "box.lan:8080", "::1", "[fd00::2]:99", "Upper.Example."]


def routes(trusted: list[str], host: str = "127.0.0.1") -> Routes:
    document = Gateway(Path("unused")).routes(trusted_hosts=trusted, listen={"host": host, "port": 1337})
    return load(json.dumps(document).encode())


TRUST = guards.trust(routes(TRUSTED))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", None),
        ("LOCALHOST:1337", None),
        ("localhost.", None),
        ("localhost.:1", None),
        ("127.0.0.1:1337", None),
        ("127.0.0.1:9", None),
        ("upper.example", None),
        ("[::1]", None),
        ("[::1]:1337", None),
        ("[0:0:0:0:0:0:0:1]", None),
        ("box.lan:8080", None),
        ("box.lan", 403),
        ("box.lan:8081", 403),
        ("[fd00::2]:99", None),
        ("[fd00::2]", 403),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.1", 403),
        ("2130706433", 403),
        ("0x7f.0.0.1", 403),
        ("127.0.0.1.", None),
        ("", 400),
        (" ", 400),
        ("localhost ", 400),
        ("local host", 400),
        ("localhost:", 400),
        ("localhost:port", 400),
        ("localhost:99999", 400),
        ("localhost:1:2", 400),
        ("localhost..", 400),
        (".localhost", 400),
        ("localhost@evil.example", 400),
        ("user:pass@localhost", 400),
        ("localhost/", 400),
        ("a/?x=", 400),
        ("localhost?x", 400),
        ("localhost#x", 400),
        ("localhost,evil.example", 400),
        ("http://localhost", 400),
        ("::1", 400),
        ("[::1", 400),
        ("[::1%25lo]", 400),
        ("[::zz]", 400),
        ("[localhost]", 400),
        ("localhost\x00", 400),
        ("löcalhost", 400),
        ("localhost\uff11", 400),
        ("%6cocalhost", 400),
    ],
)
def test_host(host: str, status: int | None) -> None:
    if status is None:
        guards.check_host([host], TRUST)
        return
    with pytest.raises(Refusal) as caught:
        guards.check_host([host], TRUST)
    assert caught.value.status == status


@pytest.mark.parametrize("values", [[], ["localhost", "localhost"], ["localhost", "evil.example"]])
def test_exactly_one_host(values: list[str]) -> None:
    with pytest.raises(Refusal) as caught:
        guards.check_host(values, TRUST)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("host", "trusted"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False)],
)
def test_the_listen_host_is_trusted_only_on_loopback(host: str, trusted: bool) -> None:
    trust = guards.trust(routes([], host))
    assert bool(trust.entries) is trusted


@pytest.mark.parametrize("entry", ["a b", "http://x", "user@x", "x:999999"])
def test_a_bad_trusted_host_is_a_value_error(entry: str) -> None:
    with pytest.raises(ValueError, match="trusted_hosts"):
        guards.trust(routes([entry]))


@pytest.mark.parametrize(
    ("origin", "good"),
    [
        ("http://localhost", True),
        ("http://LOCALHOST:3000", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:5173", True),
        ("http://box.lan:8080", True),
        ("http://box.lan", False),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://localhost@evil.example", False),
        ("http://localhost/", False),
        ("null", False),
        ("", False),
        ("localhost", False),
        ("file://", False),
    ],
)
def test_origin(origin: str, good: bool) -> None:
    if good:
        guards.check_origin([origin], TRUST)
        return
    with pytest.raises(Refusal) as caught:
        guards.check_origin([origin], TRUST)
    assert caught.value.status == 403


@pytest.mark.parametrize("raw", ["http://localhost/v1/models", "//", "*", "localhost:80", "", "v1/models", "HTTP://x/"])
def test_only_paths_are_targets(raw: str) -> None:
    if raw.startswith("/"):
        assert guards.check_target(raw) == raw
        return
    with pytest.raises(Refusal) as caught:
        guards.check_target(raw)
    assert caught.value.status == 400


def test_a_path_stays_encoded() -> None:
    assert guards.check_target("/v1/%2e%2e/health?x=1?2") == "/v1/%2e%2e/health"


KEYS = [ApiKey(name, hashlib.sha256(secret.encode()).digest()) for name, secret in (("a", "sk-a"), ("b", "sk-b"))]


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "good"),
    [
        (["Bearer sk-a"], [], True),
        (["bearer  sk-b "], [], True),
        ([], ["sk-b"], True),
        (["Bearer wrong"], ["sk-a"], True),
        (["Bearer sk-a"], ["wrong"], True),
        ([], [], False),
        (["Bearer "], [], False),
        (["Bearer wrong"], [], False),
        (["Basic sk-a"], [], False),
        (["sk-a"], [], False),
        (["Bearer sk-a", "Bearer sk-a"], [], False),
        ([], ["sk-a", "x"], False),
        (["Bearer sk-ä"], [], False),
        (["Bearer \udcff"], [], False),
    ],
)
def test_key(authorization: list[str], x_api_key: list[str], good: bool) -> None:
    guards.check_key([], authorization, x_api_key)  # no keys: open
    if good:
        guards.check_key(KEYS, authorization, x_api_key)
        return
    with pytest.raises(Refusal) as caught:
        guards.check_key(KEYS, authorization, x_api_key)
    assert caught.value.status == 401
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}
