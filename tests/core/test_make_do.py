"""A server that runs with less than its manifest says: what is planned and told of it, as pure functions of a world."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from reconciler.core import planner, status
from reconciler.core.diagnostics import FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import Change, Plan
from reconciler.core.residency import Amount, Asked
from reconciler.core.state import Declared, Drift, Found, HostFacts, Owned, Trouble, World
from reconciler.core.status import Condition
from reconciler.gguf.shape import Layer, Shape
from reconciler.kinds.carried import CACHE, REDUCED
from reconciler.kinds.engine.rules import EngineState
from reconciler.kinds.gateway.rules import GatewayState, content, targets
from reconciler.kinds.model.rules import ModelState
from reconciler.kinds.server.kept import Kept
from reconciler.kinds.server.kept import told as kept_told
from reconciler.kinds.server.reduced import Settings, Shortage, told
from reconciler.kinds.server.room import residents, shares
from reconciler.kinds.server.rules import Instance, ServerState, run_as
from reconciler.supervise.machine import Phase as Life
from tests.core.simulation import RULES, desired_from

MIB, GIB = 1 << 20, 1 << 30
NOBODY, PLAIN = Asked(), {"avoid": 1337}
SERVER, MODEL, ENGINE, GATEWAY = Ref("server", "a"), Ref("model", "a"), Ref("engine", "e"), Ref("gateway", "main")
SHAPE = Shape(
    layers=(Layer(weights=64 * MIB, keys=1024, values=1024),) * 16,
    heads=16,
    queries=2048,
    embedding=2048,
    wide=8192,
    context=65536,
)
LESS = Settings(32768, 1, "q8_0", "q8_0")


def stack(more: str = "") -> Mapping[Ref, Declared]:
    entry = f"source: 'file:a.gguf', engine: e, context: 32k, parallel: 2, memory: {{shrink: true}}{more}"
    return desired_from(f"version: 1\nengines: {{e: {{type: llama.cpp, path: /e}}}}\nmodels: {{a: {{{entry}}}}}\n")


def world(
    desired: Mapping[Ref, Declared], *instances: Instance, short: bool = True, free: int = 3 * GIB, failed: bool = False
) -> World:
    declared = desired[SERVER]
    shape = json.dumps(SHAPE.to_json())
    model = ModelState("s", SHAPE.weights, True, token="t", found=True, shape=shape)
    remembered = Shortage(declared.digest, 3 * GIB) if short else None
    trouble = Trouble(declared.attempt, 1, 999.0, "OUT_OF_MEMORY", "said", "", FaultClass.TRANSIENT)
    return World(
        desired,
        {
            ENGINE: Found(EngineState(("/e",), "e", token="e")),
            MODEL: Found(model),
            SERVER: Found(ServerState(instances, remembered)),
            GATEWAY: Found(GatewayState()),
        },
        {ref: Owned(ref, d.digest, {}) for ref, d in desired.items()},
        {SERVER: trouble} if failed else {},
        HostFacts(memory_total=16 * GIB, memory_available=free),
        1000.0,
    )


def running(desired: Mapping[Ref, Declared], less: Settings | None = LESS, **more: Any) -> Instance:
    declared = desired[SERVER]
    inputs = {"model": "t", "engine": "e"} | ({REDUCED: told(declared.spec, less)} if less is not None else {})
    made = Instance("n", declared.digest, Life.READY, "127.0.0.1", 5, inputs, ready=900.0)
    return replace(made, **more)


def planned(now: World) -> Plan:
    return planner.plan(now, RULES)


def change(now: World) -> Change:
    found = RULES["server"].change(SERVER, now)
    assert found is not None
    return found


def told_of(now: World) -> dict[str, Condition]:
    return {c.type: c for c in status.conditions(now, RULES, planned(now))[SERVER]}


def test_the_start_after_it_ran_out_of_memory_is_with_less_and_says_so() -> None:
    desired = stack()
    (start,) = change(world(desired, failed=True)).actions
    assert start.args["settings"] == LESS
    assert "with parallel 2 → 1, cache_type.k f16 → q8_0, cache_type.v f16 → q8_0" in start.text
    assert change(world(desired, free=15 * GIB)).actions[0].args == PLAIN, "unless its own settings fit what came free"
    assert change(world(desired, short=False)).actions[0].args == PLAIN
    other = stack(", cache_type: {k: q8_0}")
    short = Shortage(desired[SERVER].digest, 3 * GIB)
    changed = replace(world(other), observed={**world(other).observed, SERVER: Found(ServerState((), short))})
    assert change(changed).actions[0].args == PLAIN, "a changed entry begins anew"


@pytest.mark.parametrize("mode", [None, *Drift])
def test_one_with_less_is_drift_that_is_left_so_whatever_the_mode(mode: Drift | None) -> None:
    desired = stack() if mode is None else stack(f", drift: {mode}")
    now = world(desired, running(desired))
    plan = planned(now)
    assert [(c.ref, c.left) for c in plan.drift] == [(SERVER, True)]
    assert plan.change(SERVER) is None
    conditions = told_of(now)
    assert conditions["Ready"].status == "True"
    assert (conditions["Reduced"].status, conditions["Reduced"].reason) == ("True", "OutOfMemory")
    assert "parallel 2 → 1" in conditions["Reduced"].message
    assert "3.2 GB free" in conditions["Reduced"].message
    assert (conditions["Drifted"].status, conditions["Drifted"].reason) == ("True", "LeftSo")
    assert not [w for w in plan.warnings if w.path == str(SERVER)]


def test_it_stays_only_while_it_may_and_while_it_is_known_why() -> None:
    desired = stack()
    asked_again = change(world(desired, running(desired), short=False, free=15 * GIB))
    assert [a.verb for a in asked_again.actions] == ["start", "retire", "stop"]
    assert asked_again.actions[0].args == PLAIN
    strict = {**desired, SERVER: replace(desired[SERVER], spec=replace(desired[SERVER].spec, shrink=False))}
    assert strict[SERVER].digest == desired[SERVER].digest
    back = change(world(strict, running(desired), free=15 * GIB))
    assert [a.verb for a in back.actions] == ["start", "retire", "stop"]
    assert back.actions[0].args == PLAIN


def test_clients_are_told_the_context_that_they_have() -> None:
    desired = stack()
    less = replace(LESS, context=8192)
    spec = desired[GATEWAY].spec
    for instance, context in ((running(desired, less), 8192), (running(desired, None), 32768)):
        aim = targets(spec, world(desired, instance))
        assert content(spec, aim, ())["models"]["a"]["context"] == context


def need(seen: World, asked: Asked = NOBODY) -> Amount:
    wishes = {SERVER: asked}
    return residents(seen, wishes, shares(seen, wishes, 0))[0].need


def test_the_decision_about_memory_counts_what_it_really_takes() -> None:
    desired = stack(", start: on_demand")
    own = need(world(desired, running(desired, None)))
    less = need(world(desired, running(desired)))
    coming = need(world(desired), Asked(1, 990.0))
    assert less == coming < own
    assert run_as(SERVER, desired[SERVER].spec, world(desired, short=False)) == desired[SERVER].spec


def test_a_cache_is_kept_by_who_comes_back_and_by_nobody_else() -> None:
    desired = stack(", keep_cache: true, start: on_demand")
    inputs = {"model": "t", "engine": "e", CACHE: kept_told(Kept("f", 2, 7))}
    idle = running(desired, None, inputs=inputs, retiring=990.0, life=Life.RETIRING)

    def stop(now: World) -> Mapping[str, object]:
        return next(a for a in change(now).actions if a.verb == "stop").args

    assert stop(world(desired, idle, short=False)) == {"nonce": "n", "keep": True}
    assert stop(world(desired, replace(idle, silent=True), short=False)) == {"nonce": "n"}, "hung: it would not answer"
    assert stop(world(desired, replace(idle, ready=None), short=False)) == {"nonce": "n"}, "it never held anything"
    plain = replace(idle, inputs={"model": "t", "engine": "e"})
    assert stop(world(desired, plain, short=False)) == {"nonce": "n"}
    gone = world(desired, idle, short=False)
    nothing = replace(gone, desired={})
    assert stop(nothing) == {"nonce": "n"}, "removed from the manifest"
    assert stop(replace(nothing, down=True)) == {"nonce": "n", "keep": True}
    assert stop(replace(nothing, down=True, purge=True)) == {"nonce": "n"}


def test_that_a_cache_cannot_be_kept_is_told_before_it_starts() -> None:
    desired = stack(", keep_cache: true")
    (start,) = change(world(desired, short=False)).actions
    assert "warning: what its cache holds is not kept: what flags the engine has is not known" in start.text
