"""The work of a plan grows as its resources do. Counted in lines that run, not in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from reconciler.core import planner, status
from reconciler.core.diagnostics import FaultClass
from reconciler.core.plan import Plan
from reconciler.core.state import Declared, Drift, Trouble, World
from tests.core.simulation import RULES, Machine, Ref, desired_from

FEW, MANY = 50, 100


def manifest(models: int, context: str = "4k") -> str:
    entries = [
        f'  m{n}: {{source: "file:{n}.gguf", aliases: [a{n}], context: {context}, engine: e{n % 4}}}\n'
        for n in range(models)
    ]
    engines = "".join(f"  e{n}: {{type: llama.cpp, path: /bin/{n}}}\n" for n in range(4))
    return f"version: 1\nengines:\n{engines}models:\n{''.join(entries)}"


def machine(models: int) -> tuple[Machine, dict[Ref, Declared]]:
    """Everything in place, as it is once `apply` has ended."""
    made, desired = Machine(), desired_from(manifest(models))
    made.converge(desired)
    return made, desired


def from_nothing(models: int) -> World:
    return Machine().world(desired_from(manifest(models)))


def in_place(models: int) -> World:
    made, desired = machine(models)
    return made.world(desired)


def all_removed(models: int) -> World:
    return machine(models)[0].world({}, purge=True)


def all_changed(models: int) -> World:
    made, _ = machine(models)
    return made.world(desired_from(manifest(models, "8k")))


def all_drifted_and_left_so(models: int) -> World:
    """Files are gone, and every server waits for its own; nothing is put right."""
    made, desired = machine(models)
    made.blobs.clear()
    made.servers.clear()
    return made.world({r: replace(d, drift=Drift.IGNORE if r.kind == "model" else None) for r, d in desired.items()})


def all_in_trouble(models: int) -> World:
    world = from_nothing(models)
    failed = {
        ref: Trouble(declared.attempt, 5, 0.0, "GONE", "it is gone", "", FaultClass.PERMANENT)
        for ref, declared in world.desired.items()
    }
    return replace(world, troubles=failed)


WORLDS = [from_nothing, in_place, all_removed, all_changed, all_drifted_and_left_so, all_in_trouble]


def think(world: World) -> Plan:
    """Everything that is decided in a turn."""
    plan = planner.plan(world, RULES)
    found = status.conditions(world, RULES, plan)
    status.stamp(found, status.stamp(found, {}, 1.0, 1), 2.0, 1)
    planner.runnable(plan, world)
    planner.closure(frozenset(c.ref for c in plan.changes), world)
    status.settled(world, plan)
    status.all_ready(found, plan)
    plan.to_json()
    return plan


def lines(function: Callable[[], object]) -> int:
    """How many lines run, each round of a loop or comprehension included."""
    count = 0

    def traced(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("world", WORLDS)
def test_twice_the_resources_are_twice_the_work(world: Callable[[int], World]) -> None:
    few, many = world(FEW), world(MANY)
    # A little less than twice, since some of it is there once; a line for each pair of them makes it more.
    assert lines(lambda: think(many)) < 2 * lines(lambda: think(few))


def test_each_world_is_what_it_is_for() -> None:
    """Otherwise the figures above would be those of empty plans."""
    plans = {world.__name__: think(world(FEW)) for world in WORLDS}
    resources = 2 * FEW
    assert plans["in_place"].empty
    assert len(plans["all_drifted_and_left_so"].drift) == FEW
    for name in ("from_nothing", "all_removed", "all_in_trouble"):
        assert len(plans[name].changes) > resources
    assert len(plans["all_changed"].changes) > FEW


def test_the_measure_sees_a_square() -> None:
    def square(size: int) -> int:
        return sum(1 for _ in range(size) for _ in range(size))

    assert lines(lambda: square(MANY)) > 3 * lines(lambda: square(FEW))
