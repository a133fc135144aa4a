"""What routes.json says, and what it never says; and how a gateway is told the keys of providers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from reconciler.app import tools_for
from reconciler.core.ids import Ref
from reconciler.core.state import Found, HostFacts, Unknown, World
from reconciler.gateway.routes import load
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from reconciler.kinds.credentials import credentials
from reconciler.kinds.gateway import io as gateway_io
from reconciler.kinds.gateway.rules import Offer, content, offers, targets
from reconciler.kinds.gateway.spec import FORMAT, GatewaySpec
from reconciler.kinds.provider.rules import ProviderState
from reconciler.kinds.registry import KINDS
from reconciler.manifest.resolve import resolve
from reconciler.store.ledger import Ledger
from tests.manifest.helper import read_text

GATEWAY = Ref("gateway", "main")
TEXT = """\
version: 1
models:
  chat: {source: "file:x", aliases: [default], context: 2k, request: {set: {temperature: 0}}}
providers:
  claude:
    preset: anthropic
    api_key: [env:ONE, "file:two"]
    headers: {X-Team: ml, X-Secret: "env:HIDDEN"}
    proxy: env:PROXY
    timeouts: {idle: 20s}
  lab: {base_url: "http://10.0.0.7/v1", models: [llama], proxy: "http://p:3128", quirks: {choices: 1}}
routes:
  split: {targets: [{to: chat, weight: 3}, {to: lab/llama}]}
  claude-*: {targets: [claude/claude-*, chat], on: [overloaded]}
gateway:
  api_keys:
    - {name: me, key: env:ME}
    - {name: ci, key: env:CI, allow: [chat, claude/*], rate: 60/min, tokens: 1M/day}
  cors: {origins: ["https://a.example"]}
  timeouts: {connect: 3s}
  body_limit: 1MiB
"""
KEYS = (("me", "a" * 64), ("ci", "b" * 64))


def gateway(text: str = TEXT) -> GatewaySpec:
    spec: GatewaySpec = resolve(read_text(text), "cp311", HostFacts())[GATEWAY].spec
    return spec


def written(has: dict[str, Offer] | None = None) -> dict[str, Any]:
    spec = gateway()
    known = has or {"claude": Offer(("claude-a",)), "lab": Offer(("llama",))}
    return content(spec, targets(spec, World()), KEYS, known)


def test_what_is_written_is_the_whole_of_format_two() -> None:
    document = written()
    assert document["format"] == FORMAT == 2
    assert document["providers"] == {
        "claude": {
            "speaks": {"anthropic": "https://api.anthropic.com/v1"},
            "auth": "x-api-key",
            "headers": {"X-Team": "ml", "anthropic-version": "2023-06-01"},
            "models": ["claude-a"],
            "open": False,
            "quirks": {"effort": "max", "files": True},
            "private": False,
            "proxy": None,
            "timeouts": {"idle_seconds": 20.0},
            "request": {},
            "reason": "",
        },
        "lab": {
            "speaks": {"openai": "http://10.0.0.7/v1"},
            "auth": "bearer",
            "headers": {},
            "models": ["llama"],
            "open": False,
            "quirks": {"choices": 1},
            "private": True,
            "proxy": "http://p:3128",
            "timeouts": {},
            "request": {},
            "reason": "",
        },
    }
    assert document["routes"] == {
        "claude-*": {
            "targets": [{"to": "claude/claude-*", "weight": None}, {"to": "chat", "weight": None}],
            "on": ["overloaded"],
        },
        "split": {
            "targets": [{"to": "chat", "weight": 3}, {"to": "lab/llama", "weight": 1}],
            "on": ["unavailable", "overloaded", "timeout"],
        },
    }
    assert document["api_keys"] == [
        {"name": "me", "sha256": "a" * 64, "allow": None, "rate": None, "tokens": None, "priority": 0},
        {
            "name": "ci",
            "sha256": "b" * 64,
            "allow": ["chat", "claude/*"],
            "rate": {"count": 60, "seconds": 60.0},
            "tokens": {"count": 1_000_000, "seconds": 86_400.0},
            "priority": 0,
        },
    ]
    assert document["cors"] == {"origins": ["https://a.example"]}
    assert document["limits"] == {
        "body": 1 << 20,
        "connect_seconds": 3.0,
        "first_byte_seconds": 600.0,
        "idle_seconds": 120.0,
    }
    assert document["models"]["chat"]["request"] == {"set": {"temperature": 0}}


def test_neither_a_key_nor_where_it_is_kept_is_written() -> None:
    text = json.dumps(written())
    for reference in ("env:ONE", "file:two", "env:HIDDEN", "env:PROXY", "X-Secret", "env:ME"):
        assert reference not in text


def test_the_gateway_reads_what_is_written() -> None:
    routes = load(json.dumps({**written(), "serial": 1, "digest": "d"}).encode())
    assert set(routes.names) == {"chat", "default"}
    assert routes.limits.body == 1 << 20


def test_what_a_provider_has_is_what_is_observed_of_it() -> None:
    spec = gateway()
    seen = {
        Ref("provider", "claude"): Found(ProviderState(("a", "b"), True, "env:ONE is not set")),
        Ref("provider", "lab"): Unknown("the disk is busy"),
    }
    has = offers(spec, World(observed=seen))
    assert has == {"claude": Offer(("a", "b"), True, "env:ONE is not set"), "lab": Offer(("llama",))}
    document = written(has)["providers"]["claude"]
    assert (document["models"], document["open"], document["reason"]) == (["a", "b"], True, "env:ONE is not set")


def test_a_gateway_of_an_earlier_format_is_started_anew() -> None:
    from reconciler.core.ids import digest_of

    spec = gateway()
    assert spec.listening != digest_of([spec.host, spec.port])


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"ONE": "key-1", "HIDDEN": "hush", "PROXY": "http://u:pw@p:3128"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "two").write_text("key-2\n")
    return tmp_path


def test_secrets_are_told_by_provider_and_compared_by_a_salted_digest(secrets: Path) -> None:
    layout = Layout(secrets / "state")
    layout.root.mkdir()
    with Ledger.write(layout.ledger, Effects()) as ledger:
        tools = tools_for(layout, secrets, Effects(), ledger, KINDS)
        told = gateway_io._secrets(gateway(), tools)
        assert told == {
            "claude": {"keys": ["key-1", "key-2"], "headers": {"X-Secret": "hush"}, "proxy": "http://u:pw@p:3128"},
            "lab": {"keys": [], "headers": {}},
        }
        text = json.dumps(told, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(f"nonce{text}".encode()).hexdigest()
        assert gateway_io.fingerprint(told, "nonce") == digest
        for state, untold in (
            ({"nonce": "nonce", "secrets": digest}, False),
            ({"nonce": "other", "secrets": digest}, True),
            ({"nonce": "nonce", "secrets": ""}, True),
            ({"nonce": "nonce"}, False),
        ):
            assert gateway_io._untold(gateway(), state, tools) is untold, state
        (secrets / "two").write_text("key-3")
        assert gateway_io._untold(gateway(), {"nonce": "nonce", "secrets": digest}, tools)
        nobody = gateway("version: 1\n")
        assert not gateway_io._untold(nobody, {"nonce": "n", "secrets": ""}, tools)
        assert gateway_io._untold(nobody, {"nonce": "n", "secrets": digest}, tools), "what is gone is forgotten there"


def test_one_key_of_several_may_be_missing_and_the_rest_is_told(secrets: Path) -> None:
    shown, fault = credentials(("env:NOT_THERE", "file:two"), (), "", secrets)
    assert (shown.keys, fault) == (("key-2",), None)
    shown, fault = credentials(("env:NOT_THERE",), (("A", "env:HIDDEN"), ("B", "env:GONE")), "", secrets)
    assert fault is not None
    assert (shown.keys, shown.headers, fault.message) == ((), (("A", "hush"),), "env:NOT_THERE is not set in the "
                                                          "controller's environment")  # fmt: skip
    assert "hush" not in repr(shown)
    assert "key" not in repr(credentials(("file:two",), (), "", secrets)[0]).replace("keys", "")
