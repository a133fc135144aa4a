"""Providers among everything else: the loop comes to rest whatever they do, and takes nothing of others with it."""

from __future__ import annotations

import pytest

from reconciler.core import planner
from reconciler.core.ids import Ref
from reconciler.core.plan import Op
from reconciler.core.state import Unknown
from tests.core.simulation import GATEWAY, RULES, Machine, desired_from

LOCAL = 'version: 1\nmodels:\n  chat: {source: "file:chat.gguf", context: 2k}\n'
CLOUD = (
    LOCAL
    + """providers:
  far: {preset: openai, api_key: env:KEY}
  near: {preset: ollama}
  named: {base_url: "https://h/v1", models: [a]}
routes: {smart: {targets: [chat, far/x]}}
"""
)
FAR, NEAR = Ref("provider", "far"), Ref("provider", "near")


@pytest.mark.parametrize("answers", [("a", "b"), (), None], ids=["well", "with nothing", "not at all"])
@pytest.mark.parametrize("secretless", [False, True])
def test_the_loop_comes_to_rest_whatever_a_provider_answers(answers: tuple[str, ...] | None, secretless: bool) -> None:
    machine = Machine(lists={"far": answers, "near": None})
    machine.converge(desired_from(CLOUD))
    machine.secretless = secretless
    machine.converge(desired_from(CLOUD))
    assert machine.plan(desired_from(CLOUD)).empty
    assert machine.wrongs == []
    assert set(machine.owned) == set(desired_from(CLOUD))


def test_what_is_removed_leaves_nothing_and_touches_nobody_else() -> None:
    machine = Machine()
    machine.converge(desired_from(CLOUD))
    others = {row.nonce for row in machine.rows.values()}
    machine.converge(desired_from(LOCAL))
    assert machine.listed == {}
    assert {ref.kind for ref in machine.owned} == {"engine", "model", "server", "gateway"}
    assert {row.nonce for row in machine.rows.values()} == others
    assert machine.plan(desired_from(LOCAL)).empty


def test_a_gateway_that_has_no_keys_is_told_them_and_nothing_else_happens() -> None:
    machine = Machine()
    machine.converge(desired_from(CLOUD))
    written = machine.written
    machine.keyed = False
    (change,) = machine.plan(desired_from(CLOUD)).changes
    assert (change.ref, change.op, [a.verb for a in change.actions]) == (GATEWAY, Op.UPDATE, ["route"])
    machine.converge(desired_from(CLOUD))
    assert machine.keyed
    assert machine.written == written


def test_routes_stay_as_they_are_while_a_provider_cannot_be_looked_at() -> None:
    machine = Machine(lists={"far": ("a", "b")})
    machine.converge(desired_from(CLOUD))
    machine.blind[FAR] = "the disk is busy"
    plan = machine.plan(desired_from(CLOUD))
    assert [(c.ref, c.actions[0].hold) for c in plan.changes] == [(GATEWAY, "provider/far cannot be observed")]
    assert isinstance(machine.world(dict(desired_from(CLOUD))).observed[FAR], Unknown)


def test_a_provider_as_the_target_brings_the_gateway_along() -> None:
    world = Machine().world(dict(desired_from(CLOUD)))
    plan = planner.plan(world, RULES, frozenset({NEAR}))
    assert [c.ref for c in plan.changes] == [NEAR, GATEWAY]
