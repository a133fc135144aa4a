from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reconciler.gateway.errors import Refusal
from reconciler.gateway.routes import Limits, load, match
from tests.gateway.harness import Gateway, model, target


def document(**changes: Any) -> dict[str, Any]:
    models = {"chat": model(target(34567, "chat#ab12")), "soon": model(None, reason="downloading 40 %")}
    return Gateway(Path("unused")).routes(models) | changes


def test_a_whole_file_is_read() -> None:
    routes = load(json.dumps(document(names={"chat": "chat", "default": "chat"}, limits={"body": 5})).encode())
    assert routes.limits == Limits(body=5)
    assert match(routes, "default") is routes.models["chat"]
    chat = match(routes, "chat").target
    assert chat is not None
    assert (chat.label, chat.id, chat.port) == ("server/chat", "server/chat#ab12", 34567)
    assert chat.model is None
    soon = routes.models["soon"]
    assert (soon.target, soon.reason) == (None, "downloading 40 %")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "format is 3"),
        ({"listen": {"host": "127.0.0.1", "port": 70000}}, "listen.port"),
        ({"listen": None}, "listen: expected an object"),
        ({"prefix": "/v 1"}, "prefix"),
        ({"api_keys": [{"name": "me", "sha256": "zz"}]}, r"api_keys\[0\].sha256"),
        ({"limits": {"body": -1}}, "limits.body"),
        ({"limits": {"idle_seconds": True}}, "limits.idle_seconds"),
        ({"names": {"x": "nobody"}}, "'x' names a model"),
        ({"trusted_hosts": [1]}, "trusted_hosts"),
        ({"models": {"chat": model(target(1, "a\r\nX: y"))}}, "target.id"),
        ({"models": {"chat": model(target(1, key="a\r\nX: y"))}}, "target.key"),
        ({"models": {"chat": model(target(0))}}, "target.port"),
        ({"models": {"chat": model(target(1) | {"model": 5})}}, "target.model"),
    ],
)
def test_a_bad_file_says_which_part(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(json.dumps(document(**change)).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_not_an_object_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"routes\.json"):
        load(data)


def test_a_bad_key_is_not_quoted() -> None:
    bad = document(models={"chat": model(target(1, key="secret canary"))})
    with pytest.raises(ValueError, match=r"target\.key") as caught:
        load(json.dumps(bad).encode())
    assert "canary" not in str(caught.value)


def test_an_unknown_name_gets_the_nearest_and_at_most_ten() -> None:
    names = {f"model-{i:02}": "chat" for i in range(30)} | {"chat": "chat"}
    routes = load(json.dumps(document(names=names)).encode())
    with pytest.raises(Refusal) as caught:
        match(routes, "chta")
    assert caught.value.status == 404
    assert "Did you mean 'chat'?" in caught.value.message
    assert caught.value.message.count("model-") == 9
    assert "and 21 more" in caught.value.message
