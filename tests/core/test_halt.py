"""What a person holds: which actions wait, what is told of them, and what is never held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reconciler.core import planner, status
from reconciler.core.diagnostics import Refused
from reconciler.core.ids import Ref
from reconciler.core.plan import Op, Plan
from reconciler.core.state import Suspension, World
from tests.core.simulation import GATEWAY, RULES, Machine, desired_from

ONE = 'version: 1\nmodels:\n  chat: {source: "file:chat.gguf"}\n'
TWO = ONE + '  more: {source: "file:more.gguf"}\n'
MODEL, SERVER, ENGINE, MORE = (
    Ref("model", "chat"),
    Ref("server", "chat"),
    Ref("engine", "embedded"),
    Ref("model", "more"),
)


def built(text: str = ONE) -> Machine:
    machine = Machine()
    machine.converge(desired_from(text))
    return machine


def world(machine: Machine, text: str = ONE, **changes: Any) -> World:
    return replace(machine.world(desired_from(text)), **changes)


def begun(seen: World) -> list[str]:
    """What is begun now: `fetch model/chat`."""
    return [f"{action.verb} {change.ref}" for change, action in planner.runnable(planner.plan(seen, RULES), seen)]


def ready(seen: World, ref: Ref) -> tuple[str, str, str]:
    found = status.conditions(seen, RULES, planner.plan(seen, RULES))[ref][0]
    return found.status, found.reason, found.message


def progressing(seen: World, ref: Ref) -> str:
    group = status.conditions(seen, RULES, planner.plan(seen, RULES))[ref]
    return next(c.reason for c in group if c.type == "Progressing")


def halts(plan: Plan) -> dict[str, str]:
    return {str(c.ref): c.halt.value for c in plan.changes if c.halt is not None}


# -- paused ---------------------------------------------------------------------------------------------------------


def test_nothing_is_begun_for_what_is_paused_and_what_waits_for_it_says_so() -> None:
    seen = world(Machine(), paused=frozenset({MODEL}))
    assert begun(seen) == ["install engine/embedded", "start gateway/main"]
    assert halts(planner.plan(seen, RULES)) == {"model/chat": "paused", "server/chat": "behind"}
    built_engine = Machine()
    built_engine.installed |= {c.spec.folder for r, c in desired_from(ONE).items() if r == ENGINE}
    seen = world(built_engine, paused=frozenset({MODEL}))
    plan = planner.plan(seen, RULES)
    assert halts(plan) == {"model/chat": "paused", "server/chat": "behind"}
    (server,) = [c for c in plan.changes if c.ref == SERVER]
    assert server.actions[0].hold == "waits for model/chat; model/chat is paused by a person"
    assert ready(seen, MODEL)[:2] == ("False", "Paused")
    assert "`reconcile resume model/chat`" in ready(seen, MODEL)[2]
    assert "model/chat is paused" in ready(seen, SERVER)[2]
    assert (progressing(seen, MODEL), progressing(seen, SERVER)) == ("Paused", "WaitsForResume")


def test_a_server_that_runs_goes_on_and_one_that_died_is_told_as_paused() -> None:
    machine = built()
    seen = world(machine, paused=frozenset({SERVER}))
    assert planner.plan(seen, RULES).empty
    assert ready(seen, SERVER)[0] == "True"
    assert progressing(seen, SERVER) == "Paused"
    machine.kill(SERVER)
    seen = world(machine, paused=frozenset({SERVER}))
    assert not [step for step in begun(seen) if SERVER.name in step]
    assert ready(seen, SERVER)[:2] == ("False", "Paused")
    assert "its process is gone" in ready(seen, SERVER)[2]
    assert "start server/chat" in begun(world(machine)), "and without the pause it is put back"


def test_a_paused_gateway_keeps_its_routes_and_what_they_lead_to_is_not_stopped() -> None:
    machine = built()
    text = ONE.replace("gguf", "gguf, context: 2k").replace('gguf, context: 2k"', 'gguf", context: 2k')
    for _ in range(6):
        seen = world(machine, text, paused=frozenset({GATEWAY}))
        for change, action in planner.runnable(planner.plan(seen, RULES), seen):
            machine.do(change, action, desired_from(text))
    plan = planner.plan(seen, RULES)
    assert halts(plan) == {"gateway/main": "paused", "server/chat": "behind"}
    assert len(machine.servers[SERVER]) == 2, "the earlier version serves on"
    (stop,) = [c.actions[0] for c in plan.changes if c.ref == SERVER]
    assert stop.hold == "the gateway still routes to it; gateway/main is paused by a person"


def test_a_client_hears_that_it_is_paused() -> None:
    machine = built()
    machine.kill(SERVER)
    plan = planner.plan(world(machine, paused=frozenset({SERVER})), RULES)
    (route,) = [a for c in plan.changes if c.ref == GATEWAY for a in c.actions]
    assert route.args["targets"]["chat"].reason == "it is paused"


def test_removal_is_never_held() -> None:
    machine = built(TWO)
    everything = frozenset(machine.owned)
    seen = world(machine, ONE, paused=everything - {GATEWAY})
    plan = planner.plan(seen, RULES)
    assert {str(c.ref): c.halt for c in plan.changes if c.op is Op.DELETE} == {"model/more": None, "server/more": None}
    behind = planner.plan(world(machine, ONE, paused=everything), RULES)
    assert halts(behind)["server/more"] == "behind", "requests still come in over the routes that stay"
    seen = replace(machine.world({}), paused=everything, suspension=Suspension(1.0), down=True)
    plan = planner.plan(seen, RULES)
    assert {c.op for c in plan.changes} == {Op.DELETE}
    assert halts(plan) == {}
    assert not plan.warnings


def test_what_is_halted_is_settled_and_what_else_fails_is_not() -> None:
    machine = built()
    machine.kill(SERVER)
    seen = world(machine, paused=frozenset({SERVER}))
    plan = planner.plan(seen, RULES)
    assert not plan.empty
    routed = replace(plan, changes=tuple(c for c in plan.changes if c.ref == SERVER))
    assert status.settled(seen, routed)
    assert not status.settled(world(machine), planner.plan(world(machine), RULES))


def test_an_apply_of_what_is_paused_is_refused() -> None:
    seen = world(built(), paused=frozenset({MODEL}))
    with pytest.raises(Refused) as refused:
        planner.refuse_halted(frozenset({MODEL, SERVER}), False, seen)
    assert [(d.summary, d.hint) for d in refused.value.diagnostics] == [
        ("model/chat is paused", "`reconcile resume model/chat` first")
    ]
    planner.refuse_halted(frozenset({SERVER}), False, seen)
    planner.refuse_halted(frozenset(), False, seen)


# -- suspended ------------------------------------------------------------------------------------------------------


def test_suspended_nothing_new_is_done_but_what_serves_is_kept_serving() -> None:
    suspended = Suspension(1.0)
    assert begun(world(Machine(), suspension=suspended)) == []
    machine = built()
    machine.kill(SERVER)
    assert begun(world(machine, suspension=suspended)) == ["start server/chat", "route gateway/main"]
    machine.kill(GATEWAY)
    assert "start gateway/main" in begun(world(machine, suspension=suspended))


def test_suspended_a_changed_manifest_and_lost_bytes_wait() -> None:
    machine, suspended = built(), Suspension(1.0)
    plan = planner.plan(world(machine, TWO, suspension=suspended), RULES)
    assert halts(plan) == {"model/more": "suspended", "server/more": "suspended"}, "routes follow what serves"
    assert [w.path for w in plan.warnings] == ["controller"]
    machine.blobs.clear()
    seen = world(machine, suspension=suspended)
    assert begun(seen) == []
    assert ready(seen, MODEL)[:2] == ("False", "Suspended")
    assert progressing(seen, MODEL) == "Suspended"


def test_suspended_what_is_asked_for_by_hand_is_done_and_drift_is_not() -> None:
    machine, asked = built(), Suspension(1.0, asked=True)
    machine.blobs.clear()
    seen = world(machine, TWO, suspension=asked)
    assert "resolve model/more" in begun(seen)
    assert halts(planner.plan(seen, RULES))["model/chat"] == "suspended"


def test_an_apply_of_everything_is_refused_while_suspended() -> None:
    seen = world(Machine(), suspension=Suspension(1.0))
    with pytest.raises(Refused, match="suspended"):
        planner.refuse_halted(frozenset(), False, seen)
    planner.refuse_halted(frozenset({MODEL}), False, seen)
    planner.refuse_halted(frozenset(), True, seen)


# -- order ----------------------------------------------------------------------------------------------------------


def test_of_downloads_that_may_begin_the_one_of_higher_priority_comes_first() -> None:
    machine = Machine()
    machine.looked = {declared.digest for ref, declared in desired_from(TWO).items() if ref.kind == "model"}
    for more, first in ((5, MORE), (-5, MODEL), (0, MODEL)):
        seen = world(machine, TWO)
        seen = replace(seen, desired={**seen.desired, MORE: replace(seen.desired[MORE], priority=more)})
        fetches = [c.ref for c, a in planner.runnable(planner.plan(seen, RULES), seen) if a.verb == "fetch"]
        assert (fetches[0], len(fetches)) == (first, 2)


def test_the_published_plan_says_what_is_halted() -> None:
    seen = world(Machine(), paused=frozenset({MODEL}))
    said = {c["ref"]: c["halt"] for c in planner.plan(seen, RULES).to_json()["changes"]}
    assert said == {"engine/embedded": None, "gateway/main": None, "model/chat": "paused", "server/chat": "behind"}
