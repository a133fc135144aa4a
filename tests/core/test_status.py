"""Conditions keep their times while they say the same, and tell drift, a tug-of-war and what waits for a person."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reconciler.core import planner, status
from reconciler.core.diagnostics import FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import Change, Op, Plan
from reconciler.core.state import Declared, Drift, Restored, Trouble, Unknown, World
from reconciler.core.status import Condition, no, stamp, yes
from tests.core.simulation import GATEWAY, RULES, Machine, desired_from

TEXT = 'version: 1\nmodels:\n  chat: {source: "file:chat.gguf"}\n'
MODEL, SERVER, ENGINE = Ref("model", "chat"), Ref("server", "chat"), Ref("engine", "embedded")


@pytest.fixture
def desired() -> dict[Ref, Declared]:
    return dict(desired_from(TEXT))


@pytest.fixture
def running(desired: dict[Ref, Declared]) -> Machine:
    machine = Machine()
    machine.converge(desired)
    return machine


def told(world: World, ref: Ref) -> dict[str, Condition]:
    return {c.type: c for c in status.conditions(world, RULES, planner.plan(world, RULES))[ref]}


def restored(*at: float) -> dict[Ref, tuple[Restored, ...]]:
    return {SERVER: tuple(Restored(t, f"it was ended by signal 9 at {t:g}") for t in at)}


# -- times ------------------------------------------------------------------------------------------------------------


def test_what_says_the_same_keeps_its_time_and_what_changed_has_a_new_one() -> None:
    first = stamp({MODEL: (no("Ready", "NotFetched"), no("Verified", "NotFetched"))}, {}, 10.0, 1)
    assert [(c.since, c.generation) for c in first[MODEL]] == [(10.0, 1), (10.0, 1)]
    now = (no("Ready", "NotFetched", "5 of 9 MB"), no("Verified", "Suspect"), yes("Downloaded", "InStore"))
    second = stamp({MODEL: now}, first, 20.0, 2)
    assert [(c.type, c.since, c.generation) for c in second[MODEL]] == [
        ("Ready", 10.0, 2),
        ("Verified", 20.0, 2),
        ("Downloaded", 20.0, 2),
    ]
    assert second[MODEL][0].message == "5 of 9 MB"
    third = stamp({MODEL: (yes("Ready", "NotFetched"),), SERVER: (no("Ready", "NotFetched"),)}, second, 30.0, 2)
    assert third[MODEL][0].since == 30.0, "the status changed though the reason did not"
    assert third[SERVER][0].since == 30.0, "the times of another one do not count"
    assert stamp({}, third, 40.0, 2) == {}


def test_the_json_of_conditions_has_all_of_it() -> None:
    (resource,) = status.to_json(stamp({MODEL: (yes("Ready", "Verified", "9 MB"),)}, {}, 5.0, 3))
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "Verified",
        "message": "9 MB",
        "since": 5.0,
        "generation": 3,
    }
    assert resource == {"ref": "model/chat", "conditions": [condition]}


# -- the set of conditions --------------------------------------------------------------------------------------------


def test_each_has_its_set_with_ready_first(running: Machine, desired: dict[Ref, Declared]) -> None:
    world = running.world(desired)
    found = status.conditions(world, RULES, planner.plan(world, RULES))
    assert {str(ref): [c.type for c in group] for ref, group in found.items()} == {
        "engine/embedded": ["Ready", "Progressing", "Drifted", "PolicyCompliant"],
        "gateway/main": ["Ready", "Progressing", "Running", "Routed", "Drifted", "PolicyCompliant"],
        "model/chat": ["Ready", "Progressing", "Downloaded", "Verified", "Drifted", "PolicyCompliant"],
        "server/chat": ["Ready", "Progressing", "Running", "Routed", "Drifted", "PolicyCompliant"],
    }
    assert {c.reason for group in found.values() for c in group if c.type == "Drifted"} == {"AsDeclared"}
    assert status.all_ready(found, planner.plan(world, RULES))


def test_what_cannot_be_looked_at_says_only_that(running: Machine, desired: dict[Ref, Declared]) -> None:
    world = running.world(desired)
    world = replace(world, observed={**world.observed, MODEL: Unknown("the disk is away")})
    plan = planner.plan(world, RULES)
    assert status.conditions(world, RULES, plan)[MODEL] == (
        Condition("Ready", "Unknown", "CannotObserve", "the disk is away"),
    )
    assert not status.all_ready(status.conditions(world, RULES, plan), plan)


def test_drift_is_told_whether_it_is_corrected_or_left(running: Machine, desired: dict[Ref, Declared]) -> None:
    running.kill(SERVER)
    drifted = told(running.world(desired), SERVER)["Drifted"]
    assert (drifted.status, drifted.reason, drifted.message) == ("True", "BeingCorrected", "its process is gone")
    for mode in (Drift.WARN, Drift.IGNORE):
        desired[SERVER] = replace(desired[SERVER], drift=mode)
        left = told(running.world(desired), SERVER)
        assert (left["Drifted"].reason, left["Drifted"].message) == ("LeftSo", "its process is gone")
        assert left["Progressing"].reason == "Settled"
        assert (left["Ready"].status, left["Ready"].message) == ("False", "its process is gone; it is left so")


def test_a_changed_spec_is_no_drift(running: Machine) -> None:
    changed = dict(desired_from(TEXT.replace('chat.gguf"', 'chat.gguf", context: 8k')))
    assert told(running.world(changed), SERVER)["Drifted"].reason == "AsDeclared"


def test_a_tug_of_war_is_told_with_what_was_seen(running: Machine, desired: dict[Ref, Declared]) -> None:
    running.kill(SERVER)
    found = told(replace(running.world(desired), restored=restored(500, 700, 900)), SERVER)
    assert found["Drifted"].reason == "Contested"
    assert (found["Progressing"].status, found["Progressing"].reason) == ("False", "Contested")
    assert (found["Ready"].status, found["Ready"].reason) == ("False", "Contested")
    assert found["Ready"].message == (
        "put back 3 times in ten minutes, and again: it was ended by signal 9 at 900"
        " — find what does that, then `reconcile apply`"
    )


def trouble(
    desired: dict[Ref, Declared], ref: Ref, kind: FaultClass, count: int = 1, hint: str = ""
) -> dict[Ref, Trouble]:
    return {ref: Trouble(desired[ref].attempt, count, 999.0, "DISK_FULL", "no room", hint, kind)}


def test_a_failure_is_told_with_its_code_its_count_and_its_remedy(desired: dict[Ref, Declared]) -> None:
    machine = Machine(troubles=trouble(desired, MODEL, FaultClass.TRANSIENT, 3, "free some"))
    found = told(machine.world(desired), MODEL)
    assert (found["Ready"].reason, found["Ready"].message) == ("DiskFull", "no room (failed 3×) — free some")
    assert (found["Progressing"].status, found["Progressing"].reason) == ("True", "Create")
    machine.troubles = trouble(desired, MODEL, FaultClass.PERMANENT)
    found = told(machine.world(desired), MODEL)
    assert (found["Ready"].message, found["Progressing"].reason) == ("no room", "WaitsForChange")


def test_what_cannot_be_started_is_told_while_the_earlier_one_serves(running: Machine) -> None:
    changed = dict(desired_from(TEXT.replace('chat.gguf"', 'chat.gguf", context: 8k')))
    running.troubles = trouble(changed, SERVER, FaultClass.TRANSIENT, 2)
    found = told(running.world(changed), SERVER)
    assert (found["Ready"].status, found["Ready"].reason) == ("True", "Outdated")
    assert found["Ready"].message.endswith("; that failed: no room (failed 2×)")
    assert found["Progressing"].message.endswith("; no room (failed 2×)")


def test_what_is_waited_for_is_told(desired: dict[Ref, Declared]) -> None:
    found = told(Machine().world(desired), SERVER)["Ready"]
    assert (found.reason, found.message) == ("NotStarted", "waits for engine/embedded")


# -- settled ----------------------------------------------------------------------------------------------------------


def settled(world: World, **plan: Any) -> bool:
    return status.settled(world, replace(planner.plan(world, RULES), **plan))


def test_nothing_to_do_is_settled_and_a_start_is_not(running: Machine, desired: dict[Ref, Declared]) -> None:
    assert settled(running.world(desired))
    assert not settled(Machine().world(desired))


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        (FaultClass.TRANSIENT, 1, False),
        (FaultClass.TRANSIENT, 2, False),
        (FaultClass.TRANSIENT, 3, True),
        (FaultClass.PERMANENT, 1, True),
        (FaultClass.NEEDS_HUMAN, 1, True),
    ],
)
def test_what_waits_for_something_that_failed_is_settled_with_it(
    desired: dict[Ref, Declared], kind: FaultClass, count: int, expected: bool
) -> None:
    machine = Machine(troubles=trouble(desired, MODEL, kind, count))
    for _ in range(3):
        for change, action in planner.runnable(machine.plan(desired), machine.world(desired)):
            if change.ref.kind != "model":
                machine.do(change, action, desired)
    assert {c.ref for c in machine.plan(desired).changes} == {MODEL, SERVER}
    assert settled(machine.world(desired)) is expected


def test_a_tug_of_war_is_settled_and_so_is_what_waits_for_it(running: Machine, desired: dict[Ref, Declared]) -> None:
    running.blobs.clear()
    running.kill(SERVER)
    running.converge_routes(desired)
    world = running.world(desired)
    assert not settled(world)
    contested = {MODEL: tuple(Restored(t, "its file is gone") for t in (700.0, 800.0, 900.0))}
    assert settled(replace(world, restored=contested))


def test_drift_that_is_left_settles_what_waits_for_it(running: Machine, desired: dict[Ref, Declared]) -> None:
    running.blobs.clear()
    running.kill(SERVER)
    running.converge_routes(desired)
    desired[MODEL] = replace(desired[MODEL], drift=Drift.IGNORE)
    world = running.world(desired)
    assert [c.ref for c in planner.plan(world, RULES).changes] == [SERVER]
    assert settled(world)


def test_what_is_denied_is_settled(running: Machine, desired: dict[Ref, Declared]) -> None:
    assert settled(running.world(desired), changes=(Change(MODEL, Op.DENIED, "not yet"),))


def test_only_what_is_within_the_targets_must_be_ready(desired: dict[Ref, Declared]) -> None:
    found = {MODEL: (yes("Ready", "Verified"),), SERVER: (no("Ready", "NotStarted"),)}
    assert not status.all_ready(found, Plan())
    assert status.all_ready(found, Plan(), frozenset({MODEL}))
    assert not status.all_ready(found, Plan((Change(GATEWAY, Op.CREATE, "x"),)), frozenset({MODEL}))
