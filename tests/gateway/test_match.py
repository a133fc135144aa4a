"""Who answers for a name: models before routes before providers, and nobody by accident."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from reconciler.gateway.errors import Refusal
from reconciler.gateway.match import match, offered
from reconciler.gateway.routes import ApiKey, Routes, load
from tests.gateway.harness import Gateway, model, provider, route, target

FIRST = lambda: 0.0  # noqa: E731


def routes(**changes: Any) -> Routes:
    models = {"chat": model(target(1, "chat#1")), "small": model(target(2, "small#2"))}
    document = Gateway(Path("unused")).routes(models) | {
        "names": {"chat": "chat", "small": "small", "default": "chat", "a/b": "small"},
        "providers": {"far": provider("http://h/v1", ["big", "deep/er"]), "any": provider("http://h/v1", open=True)},
        "routes": {
            "smart": route("chat", "far/big", on=("timeout",)),
            "outer": route("smart", "small"),
            "claude-*": route("far/big"),
            "claude-opus-*": route("any/*"),
            "split": route(("chat", 3), ("small", 1)),
            "again": route("chat", "default", "chat"),
            "gone": route("nobody", "far/none"),
            "loop": route("loop2", "chat"),
            "loop2": route("loop"),
        },
    }
    return load(json.dumps(document | changes).encode())


def who(name: str, **changes: Any) -> list[str]:
    found = match(routes(**changes), name, FIRST)
    return [f"{c.provider.name}:{c.name}" if c.provider else c.name for c in found.candidates]


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("chat", ["chat"]),
        ("default", ["default"]),
        ("a/b", ["a/b"]),
        ("far/big", ["far:big"]),
        ("far/deep/er", ["far:deep/er"]),
        ("any/thing/at/all", ["any:thing/at/all"]),
        ("smart", ["chat", "far:big"]),
        ("outer", ["chat", "far:big", "small"]),
        ("claude-haiku", ["far:big"]),
        ("claude-opus-5", ["any:5"]),
        ("again", ["chat"]),
        ("loop", ["chat"]),
    ],
)
def test_a_name_leads_to(name: str, candidates: list[str]) -> None:
    assert who(name) == candidates


@pytest.mark.parametrize(
    "name", ["far/none", "far/", "far", "/big", "any/", "nobody", "gone", "claude", "Chat", " chat"]
)
def test_a_name_that_nobody_has_is_unknown(name: str) -> None:
    with pytest.raises(Refusal, match="does not exist") as caught:
        who(name)
    assert caught.value.status == 404


def test_a_model_comes_before_a_route_and_a_route_before_a_provider() -> None:
    names = {"chat": "chat", "small": "small", "smart": "small", "far/big": "small"}
    assert (who("smart", names=names), who("far/big", names=names)) == (["smart"], ["far/big"])
    assert who("far/big", routes={"far/big": route("chat")}) == ["chat"]


def test_shares_are_drawn_by_weight_and_the_others_follow() -> None:
    table, random = routes(), Random(7)
    first = Counter(match(table, "split", random.random).candidates[0].name for _ in range(4000))
    assert first["chat"] + first["small"] == 4000
    assert 2850 < first["chat"] < 3150
    assert len(match(table, "split", random.random).candidates) == 2


def test_the_troubles_of_a_route_are_its_own() -> None:
    assert match(routes(), "smart", FIRST).on == ("timeout",)
    assert match(routes(), "chat", FIRST).on == ("unavailable", "overloaded", "timeout")


def test_a_key_gets_what_its_list_allows() -> None:
    table = routes()
    key = ApiKey("ci", b"", frozenset(("chat", "smart", "far/*")))
    assert offered(table, key) == ["chat", "default", "far/big", "far/deep/er", "smart"]
    assert offered(table, None) == sorted(
        [
            "chat",
            "small",
            "default",
            "a/b",
            "smart",
            "outer",
            "split",
            "again",
            "gone",
            "loop",
            "loop2",
            "far/big",
            "far/deep/er",
        ]
    )
    assert [c.name for c in match(table, "smart", FIRST, key).candidates] == ["chat", "big"]
    for name in ("small", "any/x", "nobody", "claude-x"):
        with pytest.raises(Refusal) as caught:
            match(table, name, FIRST, key)
        assert (caught.value.status, caught.value.code) == (403, "model_not_allowed"), (
            "it does not even learn what there is"
        )
