"""The planner: printed plans as snapshots, and the properties that every plan has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from reconciler.cli.render import plan_lines
from reconciler.core import planner
from reconciler.core.diagnostics import Exit, Fault, FaultClass, Refused, Where
from reconciler.core.ids import Ref
from reconciler.core.plan import Change, Op, Plan, summary
from reconciler.core.state import Declared, Denial, Drift, HostFacts, Restored, Trouble, Unknown, World
from tests.core.simulation import GATEWAY, RULES, Keeper, Machine, Routes, desired_from, turn_and_finish

ONE = """\
version: 1
models:
  chat: {source: "file:chat.gguf", context: 2k}
"""
TWO = """\
version: 1
models:
  chat: {source: "file:chat.gguf", context: 2k}
  embed: {source: "file:embed.gguf", task: embedding, aliases: [e]}
gateway: {port: 1400}
"""
CHAT = Ref("server", "chat")


def printed(machine: Machine, text: str) -> str:
    return click.unstyle("\n".join(plan_lines(machine.plan(desired_from(text)))))


@pytest.fixture
def running() -> Machine:
    machine = Machine()
    machine.converge(desired_from(ONE))
    return machine


def test_from_nothing(snapshot: SnapshotAssertion) -> None:
    assert printed(Machine(), TWO) == snapshot


def test_nothing_to_do(running: Machine, snapshot: SnapshotAssertion) -> None:
    assert printed(running, ONE) == snapshot


def test_a_changed_context_replaces_make_before_break(running: Machine, snapshot: SnapshotAssertion) -> None:
    assert printed(running, ONE.replace("2k", "8k")) == snapshot


def test_without_room_for_two_the_old_one_goes_first(running: Machine, snapshot: SnapshotAssertion) -> None:
    running.host = HostFacts(memory_total=2000, memory_available=100)
    assert printed(running, ONE.replace("2k", "8k")) == snapshot


def test_a_removed_model_is_drained_and_released(snapshot: SnapshotAssertion) -> None:
    machine = Machine()
    machine.converge(desired_from(TWO))
    assert printed(machine, ONE + "gateway: {port: 1400}\n") == snapshot


def test_a_renamed_alias_only_rewrites_routes(snapshot: SnapshotAssertion) -> None:
    machine = Machine()
    machine.converge(desired_from(TWO))
    assert printed(machine, TWO.replace("[e]", "[vectors]")) == snapshot


def test_another_port_starts_a_second_gateway_first(running: Machine, snapshot: SnapshotAssertion) -> None:
    assert printed(running, ONE + "gateway: {port: 1500}\n") == snapshot


def test_another_source_replaces_model_and_server(running: Machine, snapshot: SnapshotAssertion) -> None:
    assert printed(running, ONE.replace("chat.gguf", "better.gguf")) == snapshot


def test_a_dead_server_is_restarted(running: Machine, snapshot: SnapshotAssertion) -> None:
    running.kill(CHAT)
    assert printed(running, ONE) == snapshot


def test_a_hung_server_is_restarted(running: Machine, snapshot: SnapshotAssertion) -> None:
    running.hang(CHAT)
    assert printed(running, ONE) == snapshot


def test_a_damaged_file_is_proved_again_first(running: Machine, snapshot: SnapshotAssertion) -> None:
    running.damage(desired_from(ONE)[Ref("model", "chat")].digest)
    assert printed(running, ONE) == snapshot


def test_a_file_brought_anew_restarts_its_server(running: Machine, snapshot: SnapshotAssertion) -> None:
    desired = desired_from(ONE)
    running.bring_anew(desired[Ref("model", "chat")].digest)
    assert printed(running, ONE) == snapshot


def test_a_server_that_the_ledger_forgot_is_adopted(running: Machine, snapshot: SnapshotAssertion) -> None:
    del running.owned[CHAT]
    assert printed(running, ONE) == snapshot


def test_environment_values_are_not_shown(running: Machine) -> None:
    text = printed(running, ONE.replace("context: 2k", "context: 2k, env: {TOKEN: hunter2}"))
    assert "models.chat.env" in text
    assert "hunter2" not in text


def test_what_cannot_be_observed_is_left_alone(running: Machine) -> None:
    world = running.world(desired_from(ONE))
    blind = replace(world, observed={**world.observed, CHAT: Unknown("the ledger is busy")})
    plan = planner.plan(blind, RULES)
    assert plan.change(CHAT) is None
    assert "the ledger is busy" in plan.warnings[0].summary


def test_a_stale_server_is_not_stopped_while_routes_lead_to_it(running: Machine) -> None:
    desired = desired_from(ONE.replace("2k", "8k"))
    change = running.plan(desired).change(CHAT)
    assert change is not None
    running.do(change, change.actions[0], desired)  # the successor is ready, the routes are still the old ones
    after = running.plan(desired).change(CHAT)
    assert after is not None
    assert [(a.verb, a.hold) for a in after.actions] == [("retire", "the gateway still routes to it"), ("stop", "")]


def test_a_retired_server_is_not_stopped_while_requests_run_on_it_unless_they_take_too_long(running: Machine) -> None:
    desired = desired_from(ONE.replace("2k", "8k"))
    (old,) = running.servers[CHAT]
    running.inflight = {old.nonce: 2}
    for _ in range(6):
        for change, action in planner.runnable(running.plan(desired), running.world(desired)):
            running.do(change, action, desired)
    waiting = running.plan(desired).change(CHAT)
    assert waiting is not None
    assert [(a.verb, a.hold) for a in waiting.actions] == [("stop", "2 requests are running on it")]
    late = running.world(desired)
    assert planner.runnable(running.plan(desired), late) == []
    patient = planner.plan(replace(late, now=1301.0), RULES).change(CHAT)
    assert patient is not None
    assert patient.actions[0].hold == ""
    running.inflight = {}
    running.converge(desired)
    assert len(running.servers[CHAT]) == 1


def test_removing_everything_is_refused(running: Machine) -> None:
    desired = desired_from("version: 1\nmodels: {}\n")
    with pytest.raises(Refused, match="--allow-empty"):
        planner.refuse_emptying(running.plan(desired), running.world(desired))


def test_removing_one_of_two_is_not_refused() -> None:
    machine = Machine()
    machine.converge(desired_from(TWO))
    desired = desired_from(ONE)
    planner.refuse_emptying(machine.plan(desired), machine.world(desired))


@pytest.mark.parametrize(
    ("kind", "count", "runs"),
    [(FaultClass.TRANSIENT, 1, True), (FaultClass.TRANSIENT, 30, False), (FaultClass.PERMANENT, 1, False)],
)
def test_backoff_decides_what_may_run(kind: FaultClass, count: int, runs: bool) -> None:
    machine, desired = Machine(), desired_from(ONE)
    ref = Ref("model", "chat")
    machine.troubles[ref] = Trouble(desired[ref].attempt, count, 990.0, "X", "no", "", kind)
    world = machine.world(desired)
    assert (ref in [c.ref for c, _ in planner.runnable(machine.plan(desired), world)]) is runs


def test_a_changed_spec_is_tried_at_once() -> None:
    machine, desired = Machine(), desired_from(ONE)
    ref = Ref("model", "chat")
    machine.troubles[ref] = Trouble("another digest", 9, 999.9, "X", "no", "", FaultClass.PERMANENT)
    assert ref in [c.ref for c, _ in planner.runnable(machine.plan(desired), machine.world(desired))]


# -- properties ---------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c", "d"])
model = st.builds(
    lambda source, context, aliased: {"source": source, "context": context, "aliased": aliased},
    st.sampled_from(["x.gguf", "y.gguf"]),
    st.sampled_from([1024, 2048]),
    st.booleans(),
)
manifests = st.builds(
    lambda models, port: (
        "version: 1\nmodels: {"
        + ", ".join(
            f'{n}: {{source: "file:{m["source"]}", context: {m["context"]}, aliases: [{m["aliased"] * (n + "x")}]}}'
            for n, m in sorted(models.items())
        )
        + f"}}\ngateway: {{port: {port}}}\n"
    ),
    st.dictionaries(names, model, min_size=1, max_size=4),
    st.sampled_from([1400, 1401]),
)
disturbances = st.lists(st.tuples(st.sampled_from(["kill", "hang", "damage", "gateway", "forget"]), names), max_size=4)


def disturb(machine: Machine, what: str, name: str) -> None:
    match what:
        case "kill":
            machine.kill(Ref("server", name))
        case "hang":
            machine.hang(Ref("server", name))
        case "damage":
            for digest in list(machine.blobs):
                machine.damage(digest)
        case "gateway":
            machine.kill(GATEWAY)
        case "forget":
            machine.owned.pop(Ref("server", name), None)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(manifests, disturbances), min_size=1, max_size=4))
def test_whatever_happened_before_the_world_ends_as_one_built_from_nothing(history: list[tuple[str, list]]) -> None:
    machine = Machine()
    for text, events in history:
        machine.converge(desired_from(text))
        for what, name in events:
            disturb(machine, what, name)
    last = desired_from(history[-1][0])
    machine.converge(last)
    fresh = Machine()
    fresh.converge(last)
    assert machine.shape(last) == fresh.shape(last)
    assert machine.plan(last).empty
    assert not machine.wrongs


@settings(max_examples=100, deadline=None, derandomize=True)
@given(manifests, manifests, st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_of_its_inputs(before: str, after: str, random) -> None:
    machine, desired = Machine(), desired_from(after)
    machine.converge(desired_from(before))
    world = machine.world(desired)

    def shuffled(mapping):
        items = list(mapping.items())
        random.shuffle(items)
        return dict(items)

    other = World(
        shuffled(world.desired), shuffled(world.observed), shuffled(world.owned), {}, world.host, world.now, world.purge
    )
    assert planner.plan(other, RULES) == planner.plan(world, RULES)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(manifests, manifests)
def test_what_did_not_change_is_not_touched(before: str, after: str) -> None:
    machine, old, new = Machine(), desired_from(before), desired_from(after)
    machine.converge(old)
    kept = {r for r in old if r in new and old[r].digest == new[r].digest and r != GATEWAY}
    running = {r: [i.nonce for i in group] for r, group in machine.servers.items()}
    touched = {c.ref for c in machine.plan(new).changes}
    assert not kept & touched
    machine.converge(new)
    for ref in kept:
        if ref.kind == "server":
            assert [i.nonce for i in machine.servers[ref]] == running[ref]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(manifests)
def test_taking_down_leaves_nothing_owned(text: str) -> None:
    machine = Machine()
    machine.converge(desired_from(text))
    for _ in range(40):
        plan = machine.plan({}, purge=True)
        for change, action in planner.runnable(plan, machine.world({}, purge=True)):
            assert change.op is Op.DELETE
            machine.do(change, action, {})
    assert not machine.owned
    assert not machine.gateways
    assert not any(machine.servers.values())
    assert not machine.blobs


def test_an_unready_server_keeps_its_name_with_a_reason(running: Machine) -> None:
    (row,) = [row for row in running.rows.values() if row.ref == CHAT]
    row.ready = None
    change = running.plan(desired_from(ONE)).change(GATEWAY)
    assert change is not None
    target = change.actions[0].args["targets"]["chat"]
    assert (target.nonce, target.reason) == ("", "it is not ready yet")


# -- drift ----------------------------------------------------------------------------------------------------------


def with_(text: str, ref: Ref, **changes: Any) -> dict[Ref, Declared]:
    desired = dict(desired_from(text))
    desired[ref] = replace(desired[ref], **changes)
    return desired


@pytest.mark.parametrize("mode", [None, Drift.CORRECT])
def test_drift_is_corrected_unless_the_manifest_says_otherwise(running: Machine, mode: Drift | None) -> None:
    running.kill(CHAT)
    plan = running.plan(with_(ONE, CHAT, drift=mode))
    change = plan.change(CHAT)
    assert change is not None
    assert (change.op, change.drift) == (Op.RESTART, True)
    assert (plan.drift, plan.warnings) == ((), ())


@pytest.mark.parametrize(("mode", "warned"), [(Drift.WARN, True), (Drift.IGNORE, False)])
def test_drift_may_be_left_so(running: Machine, mode: Drift, warned: bool) -> None:
    desired = with_(ONE, CHAT, drift=mode)
    running.kill(CHAT)
    running.converge_routes(desired)
    plan = running.plan(desired)
    assert plan.empty
    assert [(c.ref, c.reason) for c in plan.drift] == [(CHAT, "its process is gone")]
    assert CHAT not in [same.ref for same in plan.same]
    said = ["has drifted and is left so: its process is gone"] if warned else []
    assert [w.summary for w in plan.warnings] == said
    assert plan.to_json()["drift"][0]["ref"] == "server/chat"


@pytest.mark.parametrize("ref", [Ref("engine", "embedded"), Ref("model", "chat"), GATEWAY])
def test_drift_of_every_kind_may_be_left_so(running: Machine, ref: Ref) -> None:
    match ref.kind:
        case "engine":
            running.installed.clear()
        case "model":
            running.blobs.clear()
        case "gateway":
            running.kill(GATEWAY)
    change = running.plan(desired_from(ONE)).change(ref)
    assert change is not None
    assert change.drift
    left = running.plan(with_(ONE, ref, drift=Drift.IGNORE))
    assert left.change(ref) is None
    assert ref in [c.ref for c in left.drift]


def test_what_the_manifest_changed_is_no_drift(running: Machine) -> None:
    desired = with_(ONE.replace("2k", "8k"), CHAT, drift=Drift.IGNORE)
    running.kill(CHAT)
    change = running.plan(desired).change(CHAT)
    assert change is not None
    assert (change.reason, change.drift) == ("its settings changed", False)


def test_a_first_start_is_no_drift() -> None:
    plan = Machine().plan(with_(ONE, CHAT, drift=Drift.IGNORE))
    assert not any(change.drift for change in plan.changes)
    assert plan.change(CHAT) is not None


# -- protection -----------------------------------------------------------------------------------------------------

EMBED_MODEL, EMBED_SERVER = Ref("model", "embed"), Ref("server", "embed")


@pytest.fixture
def guarded() -> Machine:
    """Both models run, and `embed` is protected."""
    machine = Machine()
    machine.converge(desired_from(TWO))
    for ref in (EMBED_MODEL, EMBED_SERVER):
        machine.owned[ref] = replace(machine.owned[ref], protect=True)
    return machine


def test_the_removal_of_what_is_protected_is_denied(guarded: Machine) -> None:
    desired = desired_from(ONE)
    plan = guarded.plan(desired)
    assert [str(c.ref) for c in plan.denied] == ["model/embed", "server/embed"]
    assert {c.reason for c in plan.denied} == {
        "it is protected: it stays until its `protect: true` is taken away and that is applied"
    }
    assert all(not c.actions for c in plan.denied)
    with pytest.raises(Refused) as caught:
        planner.refuse_denied(plan)
    assert caught.value.exit_code is Exit.DENIED


def test_what_is_protected_may_be_changed_and_mended(guarded: Machine) -> None:
    guarded.kill(EMBED_SERVER)
    assert guarded.plan(desired_from(TWO)).denied == ()
    change = guarded.plan(desired_from(TWO.replace("embed.gguf", "other.gguf"))).change(EMBED_MODEL)
    assert change is not None
    assert change.op is Op.REPLACE


def down(machine: Machine, purge: bool) -> Plan:
    kept = {} if purge else {r: d for r, d in desired_from(TWO).items() if not RULES[r.kind].runs}
    return planner.plan(replace(machine.world(kept, purge), down=True), RULES)


def test_a_person_may_stop_what_is_protected_and_its_bytes_stay(guarded: Machine) -> None:
    stopping, purging = down(guarded, purge=False), down(guarded, purge=True)
    for plan in (stopping, purging):
        change = plan.change(EMBED_SERVER)
        assert change is not None
        assert (change.op, change.actions[0].verb) == (Op.DELETE, "retire")
    assert stopping.denied == ()
    assert [c.ref for c in purging.denied] == [EMBED_MODEL]
    assert Ref("model", "chat") in [c.ref for c in purging.changes if c.op is Op.DELETE]


def test_what_was_protected_once_is_removed_when_it_no_longer_is(guarded: Machine) -> None:
    for ref in (EMBED_MODEL, EMBED_SERVER):
        guarded.owned[ref] = replace(guarded.owned[ref], protect=False)
    desired = desired_from(ONE)
    guarded.converge(desired)
    assert EMBED_MODEL not in guarded.owned


# -- a tug-of-war ---------------------------------------------------------------------------------------------------


def contest(running: Machine, *at: float, now: float = 1000.0) -> tuple[Plan, World]:
    running.kill(CHAT)
    seen = {CHAT: tuple(Restored(t, f"ended by signal 9 at {t:g}") for t in at)}
    world = replace(running.world(desired_from(ONE)), restored=seen, now=now)
    return planner.plan(world, RULES), world


def starts(plan: Plan, world: World) -> bool:
    return CHAT in [change.ref for change, _ in planner.runnable(plan, world)]


@pytest.mark.parametrize(
    ("at", "now", "contested"),
    [
        ((), 1000.0, False),
        ((900.0, 950.0), 1000.0, False),
        ((800.0, 900.0, 950.0), 1000.0, True),
        ((400.5, 900.0, 950.0), 1000.0, True),
        ((400.0, 900.0, 950.0), 1000.0, False),  # the first is ten minutes old
        ((800.0, 900.0, 950.0), 1399.9, True),
        ((800.0, 900.0, 950.0), 1400.0, False),
        ((800.0, 900.0, 1500.0), 1000.0, False),  # the clock was set back
    ],
)
def test_what_is_put_back_three_times_in_ten_minutes_waits(
    running: Machine, at: tuple[float, ...], now: float, contested: bool
) -> None:
    plan, world = contest(running, *at, now=now)
    change = plan.change(CHAT)
    assert change is not None
    assert (change.contested, starts(plan, world)) == (contested, not contested)
    if contested:
        assert change.reason == f"put back 3 times in ten minutes, and again: ended by signal 9 at {at[-1]:g}"
        assert "reconcile apply" in change.actions[0].hold


def test_a_tug_of_war_ends_with_a_changed_spec(running: Machine) -> None:
    _, world = contest(running, 800.0, 900.0, 950.0)
    plan = planner.plan(replace(world, desired=desired_from(ONE.replace("2k", "8k"))), RULES)
    change = plan.change(CHAT)
    assert change is not None
    assert not change.contested


def test_a_tug_of_war_over_one_leaves_the_others_alone(running: Machine) -> None:
    running.kill(GATEWAY)
    plan, world = contest(running, 800.0, 900.0, 950.0)
    assert GATEWAY in [change.ref for change, _ in planner.runnable(plan, world)]


# -- targets --------------------------------------------------------------------------------------------------------


def refs(found: Iterable[Ref]) -> set[str]:
    return {str(ref) for ref in found}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("server/chat", {"server/chat", "model/chat", "engine/embedded", "gateway/main"}),
        ("model/chat", {"model/chat"}),
        ("engine/embedded", {"engine/embedded"}),
        ("gateway/main", {"gateway/main"}),
        ("server/unknown", {"server/unknown", "gateway/main"}),
    ],
)
def test_a_target_brings_what_it_needs_and_a_server_the_gateway(target: str, expected: set[str]) -> None:
    world = Machine().world(desired_from(TWO))
    assert refs(planner.closure(frozenset({Ref.parse(target)}), world)) == expected


def test_targets_limit_the_plan_and_what_is_outside_is_counted() -> None:
    world = Machine().world(desired_from(TWO))
    plan = planner.plan(world, RULES, frozenset({CHAT}))
    assert refs(c.ref for c in plan.changes) == {"server/chat", "model/chat", "engine/embedded", "gateway/main"}
    assert plan.outside == 2
    assert summary(plan).endswith(" · 2 outside the targets")
    assert plan.to_json()["outside_targets"] == 2
    whole = planner.plan(world, RULES)
    assert [c for c in whole.changes if c.ref in {c.ref for c in plan.changes}] == list(plan.changes)


def test_targets_that_are_as_they_should_be_leave_the_rest_outside(running: Machine) -> None:
    world = running.world(desired_from(TWO.replace("port: 1400", "port: 1337")))
    plan = planner.plan(world, RULES, frozenset({Ref("model", "chat")}))
    assert (plan.empty, plan.outside) == (True, 3)
    assert summary(plan) == "nothing to do · 3 outside the targets"


def test_a_removal_may_be_a_target() -> None:
    machine = Machine()
    machine.converge(desired_from(TWO))
    plan = planner.plan(machine.world(desired_from(ONE + "gateway: {port: 1400}\n")), RULES, frozenset({EMBED_SERVER}))
    assert [(str(c.ref), c.op) for c in plan.changes] == [("gateway/main", Op.UPDATE), ("server/embed", Op.DELETE)]
    assert plan.outside == 1


# -- denied ---------------------------------------------------------------------------------------------------------


def test_what_is_denied_is_told_and_left_alone_however_it_is(running: Machine) -> None:
    running.kill(CHAT)
    running.blobs.clear()
    where = Where("stack.yaml", 3, 9)
    denied = {CHAT: Denial("`start` is not yet supported here", where), Ref("model", "chat"): Denial("")}
    world = replace(running.world(desired_from(ONE)), denied=denied)
    plan = planner.plan(world, RULES)
    assert plan.denied == (Change(CHAT, Op.DENIED, "`start` is not yet supported here", where=where),)
    assert plan.change(Ref("model", "chat")) is None
    assert Ref("model", "chat") not in [same.ref for same in plan.same]
    assert plan.denied[0] == plan.changes[-1], "what has no action comes last"
    assert "1 to deny" in summary(plan)


def test_what_is_denied_outside_the_targets_does_not_refuse_them() -> None:
    denied = {CHAT: Denial("not yet"), Ref("model", "chat"): Denial("")}
    world = replace(Machine().world(desired_from(TWO)), denied=denied)
    plan = planner.plan(world, RULES, frozenset({EMBED_SERVER}))
    planner.refuse_denied(plan)
    assert plan.outside == 1
    with pytest.raises(Refused):
        planner.refuse_denied(planner.plan(world, RULES))


# -- what generated histories have found -----------------------------------------------------------------------------


def test_where_memory_is_short_the_next_one_is_not_started_beside_a_retired_one(running: Machine) -> None:
    running.host = HostFacts(memory_total=2000, memory_available=100)
    desired = desired_from(ONE.replace("2k", "8k"))
    (old,) = running.servers[CHAT]
    running.inflight = {old.nonce: 1}
    retire = running.plan(desired).change(CHAT)
    assert retire is not None
    running.do(retire, retire.actions[0], desired)
    routed = running.plan(desired).change(CHAT)
    assert routed is not None
    assert [(a.verb, a.hold) for a in routed.actions] == [("stop", "the gateway still routes to it"), ("start", "")]
    assert routed.price.downtime
    follow = running.plan(desired).change(GATEWAY)
    assert follow is not None
    running.do(follow, follow.actions[0], desired)
    drained = running.plan(desired).change(CHAT)
    assert drained is not None
    assert [(a.verb, a.hold) for a in drained.actions] == [("stop", "1 requests are running on it"), ("start", "")]


@pytest.mark.parametrize("owned", [True, False])
def test_a_gateway_on_the_same_port_leaves_it_first(running: Machine, owned: bool) -> None:
    if not owned:
        del running.owned[GATEWAY]
    desired = desired_from(ONE + "gateway: {host: localhost}\n")
    change = running.plan(desired).change(GATEWAY)
    assert change is not None
    assert [a.verb for a in change.actions] == ["stop", "start", "route"]
    assert change.price.downtime
    running.converge(desired)
    assert [g.host for g in running.gateways] == ["localhost"]


def test_a_hung_gateway_leaves_its_port_first(running: Machine) -> None:
    running.hang(GATEWAY)
    change = running.plan(desired_from(ONE)).change(GATEWAY)
    assert change is not None
    assert [a.verb for a in change.actions] == ["stop", "start", "route"]


def test_routes_are_not_rewritten_on_a_server_that_cannot_be_observed(running: Machine) -> None:
    running.blind[CHAT] = "the ledger is busy"
    change = running.plan(desired_from(ONE)).change(GATEWAY)
    assert change is not None
    assert change.actions[0].hold == "server/chat cannot be observed"


def test_what_has_failed_for_good_can_still_be_removed(running: Machine) -> None:
    running.troubles[CHAT] = Trouble("its digest", 3, 999.0, "X", "no", "", FaultClass.PERMANENT)
    desired = desired_from("version: 1\nmodels: {}\n")
    running.converge(desired)
    assert not running.alive - {g.nonce for g in running.gateways}


def test_what_serves_on_does_not_forgive_what_cannot_be_started() -> None:
    keeper = Keeper(Machine(), desired_from(ONE))
    for _ in range(8):
        turn_and_finish(keeper)
    keeper.machine.now += 300.0
    keeper.wanted = desired_from(ONE.replace("2k", "8k"))
    keeper.turn()
    keeper.throw(CHAT, Fault("INVALID_ARGUMENT", "no", kind=FaultClass.PERMANENT))
    for _ in range(3):
        turn_and_finish(keeper)
    assert keeper.machine.troubles[CHAT].count == 1


def test_no_server_is_stopped_while_the_gateway_cannot_be_observed(running: Machine) -> None:
    running.blind[GATEWAY] = "it is busy"
    change = running.plan(desired_from("version: 1\nmodels: {}\n")).change(CHAT)
    assert change is not None
    assert change.actions[0].hold == "the gateway cannot be observed"


def test_routes_that_were_written_and_never_read_are_written_again_though_what_is_in_force_is_right(
    running: Machine,
) -> None:
    """Else nothing could be stopped any more: what is on disk is no proof of where requests are led."""
    assert running.plan(desired_from(ONE)).empty
    running.written = Routes("something else", {})
    change = running.plan(desired_from(ONE)).change(GATEWAY)
    assert change is not None
    assert [action.verb for action in change.actions] == ["route"]
    running.converge(desired_from(ONE))
    assert running.written == running.loaded[running.answering]


def test_what_was_retired_for_its_successors_memory_does_not_wait_for_that_memory(running: Machine) -> None:
    changed = desired_from(ONE.replace("2k", "8k"))
    running.host = HostFacts(memory_total=2000, memory_available=100)
    running.bound = 1300
    (row,) = (row for row in running.rows.values() if row.ref == CHAT)
    row.retiring = running.now
    running.converge_routes(changed)
    change = running.plan(changed).change(CHAT)
    assert change is not None
    assert [(action.verb, action.hold) for action in change.actions] == [
        ("stop", ""),
        ("start", "waits for the memory of server/chat"),
    ]
