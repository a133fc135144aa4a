"""The planner: printed plans as snapshots, and the properties that every plan has."""

from __future__ import annotations

from dataclasses import replace

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from reconciler.cli.render import plan_lines
from reconciler.core import planner
from reconciler.core.diagnostics import Fault, FaultClass, Refused
from reconciler.core.ids import Ref
from reconciler.core.plan import Op
from reconciler.core.state import HostFacts, Trouble, Unknown, World
from tests.core.simulation import GATEWAY, RULES, Keeper, Machine, desired_from, turn_and_finish

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
