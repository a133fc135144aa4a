"""Where what a cache held is kept: under a name that no other way to run it has."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from reconciler.gguf.shape import Layer, Shape
from reconciler.kinds.carried import CACHE
from reconciler.kinds.fit import Demand
from reconciler.kinds.flags import Flag, FlagSet
from reconciler.kinds.server.kept import FLAG, Kept, kept, read, told, unkept
from reconciler.kinds.server.spec import Extra, Paths, ServerSpec, arguments

SPEC = ServerSpec("chat", "e", "ed", "chat", "md", "chat", 4096, 2, -1, "f16", "f16", keep_cache=True)
SHAPE = json.dumps(Shape(layers=(Layer(weights=1, keys=64, values=64),) * 2, context=4096).to_json())
FLAGS = FlagSet((Flag((FLAG,), value="PATH"),))
OTHERS: tuple[dict[str, Any], ...] = (
    {},
    {"context": 8192},
    {"parallel": 1},
    {"cache_k": "q8_0"},
    {"cache_v": "q8_0"},
    {"model_digest": "other"},
    {"engine_digest": "other"},
    {"options": (("rope_scaling", "yarn"),)},
    {"env": (("A", "b"),)},
    {"extras": (Extra("chat+lora1", "lora", "l"),)},
    {"extras": (Extra("chat+lora1", "lora", "l", 0.5),)},
    {"name": "other"},
)


def folder(spec: ServerSpec = SPEC, files: tuple[str, ...] = ("a",), engine: str = "t", layers: int = 0) -> str:
    return kept(spec, files, engine, Demand(), SHAPE, layers).folder


def test_each_way_to_run_it_has_a_folder_of_its_own() -> None:
    names = [folder(replace(SPEC, **other)) for other in OTHERS]
    names += [folder(files=("b",)), folder(files=("a", "b")), folder(engine="u"), folder(layers=5)]
    assert all(one != other for one, other in combinations(names, 2))
    assert folder(replace(SPEC, idle_timeout=3.0, priority=7, start="on_demand")) == folder(), "which is how it is kept"


def test_it_says_how_large_it_may_become() -> None:
    # Two layers of 64 keys and values, 2 bytes each, in 4096 cells.
    assert kept(SPEC, ("a",), "t", Demand(), SHAPE, 0).most == 2 * (64 + 64) * 2 * 4096
    assert kept(SPEC, ("a",), "t", Demand(), "{}", 0).most == 0
    assert kept(SPEC, ("a",), "t", Demand(), SHAPE, 0).slots == 2


@pytest.mark.parametrize(
    ("spec", "shape", "projector", "flags", "why"),
    [
        (SPEC, SHAPE, False, FLAGS, ""),
        (SPEC, "{}", False, None, ""),
        (replace(SPEC, task="embedding"), SHAPE, False, FLAGS, "generate text"),
        (SPEC, json.dumps(Shape(cached=False, context=1).to_json()), False, FLAGS, "generate text"),
        (SPEC, SHAPE, True, FLAGS, "images"),
        (SPEC, SHAPE, False, FlagSet((Flag(("--model",)),)), f"no {FLAG}"),
        (SPEC, SHAPE, False, FlagSet(), "not known"),
    ],
    ids=["can", "not known yet", "embedding", "no cache", "sees", "an old engine", "a silent engine"],
)
def test_why_it_cannot_be_kept(spec: ServerSpec, shape: str, projector: bool, flags: FlagSet | None, why: str) -> None:
    assert bool(unkept(spec, shape, projector, flags)) == bool(why)
    assert why in unkept(spec, shape, projector, flags)


def test_what_a_process_carries_leads_nowhere_else() -> None:
    one = Kept("0123abcd", 2, 77)
    assert read({CACHE: told(one)}, CACHE) == one
    assert read({}, CACHE) is None
    for bad in ("../../etc", "a/b", "", "."):
        assert read({CACHE: told(replace(one, folder=bad))}, CACHE) is None
    for broken in ("", "[]", "{", '{"folder": "a"}', '{"folder": "a", "slots": "x", "most": 1}'):
        assert read({CACHE: broken}, CACHE) is None


def test_the_engine_is_told_only_where_it_is_kept() -> None:
    assert FLAG not in arguments(SPEC, Paths("m"), "h", 1)
    argv = arguments(SPEC, Paths("m", slots="/s"), "h", 1)
    assert argv[argv.index(FLAG) + 1] == "/s"
    assert replace(SPEC, keep_cache=False).digest != SPEC.digest, "which takes another process"
