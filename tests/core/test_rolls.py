"""A changed engine reaches its servers one after the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from reconciler.core import planner
from reconciler.core.diagnostics import FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import Plan
from reconciler.core.state import Declared, Trouble
from reconciler.kinds.server.rules import ONE_AT_A_TIME, turn_of
from tests.core.simulation import RULES, Keeper, Machine, desired_from, turn_and_finish

NAMES = ("a", "b", "c", "d", "e")


def stack(path: str = "/opt/one", context: str = "2k", other: str = "/opt/other") -> dict[Ref, Declared]:
    models = "".join(f"  {n}: {{source: 'file:{n}.gguf', engine: llama, context: {context}}}\n" for n in NAMES)
    engines = f"  llama: {{type: llama.cpp, path: {path}}}\n  other: {{type: llama.cpp, path: {other}}}\n"
    rest = "  z: {source: 'file:z.gguf', engine: other}\n"
    return desired_from(f"version: 1\nengines:\n{engines}models:\n{models}{rest}")


@pytest.fixture
def running() -> Machine:
    machine = Machine()
    machine.converge(stack())
    return machine


def server(name: str) -> Ref:
    return Ref("server", name)


def holds(plan: Plan) -> dict[str, str]:
    """The server's name → what its start waits for."""
    starts = {c.ref.name: a.hold for c in plan.changes for a in c.actions if c.ref.kind == "server" and a.phase == 2}
    return {name: hold for name, hold in starts.items() if "engine/" not in hold}


def after_the_engine(machine: Machine, desired: dict[Ref, Declared]) -> Plan:
    """The plan once the changed engines themselves are in place."""
    for _ in range(10):
        plan = machine.plan(desired)
        engines = [c for c in plan.changes if c.ref.kind == "engine"]
        if not engines:
            return plan
        for change in engines:
            machine.do(change, change.actions[0], desired)
    raise AssertionError(plan)


def test_the_first_by_name_begins_and_the_rest_say_whom_they_wait_for(running: Machine) -> None:
    plan = after_the_engine(running, stack("/opt/two"))
    told = f"waits for server/a: {ONE_AT_A_TIME}"
    assert holds(plan) == {"a": "", "b": told, "c": told, "d": told, "e": told}


def test_at_most_one_is_being_replaced_at_any_time_and_in_the_end_all_are(running: Machine) -> None:
    desired = stack("/opt/two")
    keeper = Keeper(running, desired)
    most: Counter[int] = Counter()
    for _ in range(80):
        done = turn_and_finish(keeper)
        both = [ref for ref, found in running.servers.items() if len({i.digest for i in found}) > 1]
        most[len(both)] += 1
        if done:
            break
    assert max(most) == 1, most
    assert most[1] >= len(NAMES), "each was make-before-break"
    assert running.plan(desired).empty
    assert {i.digest for found in running.servers.values() for i in found} == {
        d.digest for ref, d in desired.items() if ref.kind == "server"
    }


def test_another_change_goes_everywhere_at_once(running: Machine) -> None:
    assert set(holds(running.plan(stack(context="4k"))).values()) == {""}


def test_each_engine_has_a_queue_of_its_own(running: Machine) -> None:
    found = holds(after_the_engine(running, stack("/opt/two", other="/opt/new")))
    assert sorted(name for name, hold in found.items() if not hold) == ["a", "z"]


def test_one_that_does_not_serve_waits_for_nobody(running: Machine) -> None:
    running.kill(server("d"))
    found = holds(after_the_engine(running, stack("/opt/two")))
    assert sorted(name for name, hold in found.items() if not hold) == ["a", "d"]


def test_one_that_cannot_be_started_with_it_lets_the_others_pass(running: Machine) -> None:
    desired = stack("/opt/two")
    after_the_engine(running, desired)
    for name, count in (("a", 2), ("b", 1)):
        trouble = Trouble(desired[server(name)].attempt, count, running.now, "X", "", "", FaultClass.TRANSIENT)
        running.troubles[server(name)] = trouble
    assert turn_of("llama", running.world(desired)) == server("c")
    for name in NAMES:
        trouble = Trouble(desired[server(name)].attempt, 3, running.now, "X", "", "", FaultClass.TRANSIENT)
        running.troubles.setdefault(server(name), trouble)
    assert turn_of("llama", running.world(desired)) == server("b"), "the least tried"


def test_a_paused_one_is_passed_over(running: Machine) -> None:
    desired = stack("/opt/two")
    after_the_engine(running, desired)
    assert turn_of("llama", replace(running.world(desired), paused=frozenset({server("a")}))) == server("b")


def test_who_is_half_replaced_comes_first_whatever_its_name(running: Machine) -> None:
    desired = stack("/opt/two")
    plan = after_the_engine(running, desired)
    change = plan.change(server("c"))
    assert change is not None
    running.do(change, change.actions[0], desired)
    assert turn_of("llama", running.world(desired)) == server("c")


def test_targets_do_not_wait_for_what_they_leave_out(running: Machine) -> None:
    desired = stack("/opt/two")
    after_the_engine(running, desired)
    plan = planner.plan(running.world(desired), RULES, frozenset({server("c")}))
    assert holds(plan) == {"c": ""}


def test_nobody_has_a_turn_where_no_engine_changed(running: Machine) -> None:
    assert turn_of("llama", running.world(stack())) is None
