"""Memory of all servers together, on machines with no GPU, one, two, and one whose memory is the machine's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from reconciler.core import planner
from reconciler.core.diagnostics import Exit, Refused, Severity
from reconciler.core.ids import Ref, canonical
from reconciler.core.plan import Op, Plan
from reconciler.core.residency import GIB, Amount, Asked, Together, device_reserve, less, reserve
from reconciler.core.state import Declared, Device, Found, HostFacts, World
from reconciler.core.status import PRESSURE
from reconciler.gguf.memory import estimate
from reconciler.gguf.shape import Layer, Shape
from reconciler.kinds.carried import LAYERS
from reconciler.kinds.engine.rules import EngineState
from reconciler.kinds.fit import use_of
from reconciler.kinds.gateway.rules import GatewayState
from reconciler.kinds.model.rules import ModelState
from reconciler.kinds.server.room import decided, residents, room, shares
from reconciler.kinds.server.rules import Instance, ServerState, demand
from reconciler.supervise.machine import Phase
from tests.core.simulation import RULES, desired_from

NOW = 10_000.0
PLAIN = HostFacts(16 * GIB, 15 * GIB)
ONE_GPU = replace(PLAIN, devices=(Device("GPU", 12 * GIB, 12 * GIB),))
TWO_GPUS = replace(PLAIN, devices=(Device("GPU 1", 12 * GIB, 12 * GIB), Device("GPU 2", 12 * GIB, 12 * GIB)))
UNIFIED = HostFacts(16 * GIB, 15 * GIB, devices=(Device("GPU", 11 * GIB, 11 * GIB, unified=True),))

Asking = Mapping[Ref, Asked]


def ref(name: str) -> Ref:
    return Ref("server", name)


def shape(gib: float) -> Shape:
    """Of a model whose weights are so large; what it takes beside them is a few hundred MiB."""
    layers = (Layer(weights=int(gib * GIB) // 32, keys=1024, values=1024),) * 32
    return Shape(architecture="llama", layers=layers, embedding=4096, heads=32, vocabulary=32_000, context=4096)


def made(models: Mapping[str, tuple[float, str]], host: HostFacts = PLAIN, **state: Any) -> World:
    """A world with these models on disk, `name: (GiB, further keys)`; the servers in `running` run as wanted.

    `grown` are bytes that a server takes more than nothing, `inflight` its requests.
    """
    text = "".join(f'  {name}: {{source: "file:{name}.gguf"{more}}}\n' for name, (_, more) in models.items())
    desired: dict[Ref, Declared] = dict(desired_from(f"version: 1\nmodels:\n{text}"))
    observed: dict[Ref, Any] = {Ref("engine", "embedded"): Found(EngineState(("engine",), "embedded", True))}
    for name, (gib, _) in models.items():
        known = canonical(shape(gib).to_json()) if gib else ""
        seen = ModelState("a" * 64, 7 * GIB, present=True, token=name, found=True, shape=known)
        observed[Ref("model", name)] = Found(seen)
    for name in state.get("running", ()):
        inputs = {"model": name, **state.get("inputs", {})}
        grown = state.get("grown", {}).get(name, ())
        instance = Instance(f"n-{name}", desired[ref(name)].digest, Phase.READY, "127.0.0.1", 1, inputs, NOW - 500)
        if grown:
            instance = replace(instance, memory=grown[0], private=grown[0], devices=grown[1:])
        observed[ref(name)] = Found(ServerState((instance,)))
    inflight = {f"n-{name}": 1 for name in state.get("busy", ())}
    observed[Ref("gateway", "main")] = Found(GatewayState(inflight=inflight, started=NOW - 1000))
    return World(desired, observed, host=host, now=NOW)


def together(world: World, bound: int = 0, asked: Asking | None = None) -> Together:
    return decided(world, asked or {}, bound, False)[1]


def planned(world: World, bound: int = 0, asked: Asking | None = None) -> Plan:
    standing, found = decided(world, asked or {}, bound, False)
    return planner.plan(replace(world, standing=standing, together=found), RULES)


def need_of(world: World, name: str, asked: Asking | None = None, bound: int = 0) -> Amount:
    every = residents(world, asked or {}, shares(world, asked or {}, bound))
    return next(r.need for r in every if r.ref == ref(name))


def whole(world: World, name: str) -> int:
    found = estimate(shape(4), use_of(demand(world.desired[ref(name)].spec, world.found)))
    return found.total


# -- where it goes ----------------------------------------------------------------------------------------------------


def test_without_a_gpu_all_of_it_is_main_memory() -> None:
    world = made({"a": (4, "")})
    assert need_of(world, "a") == (whole(world, "a"),)


def test_with_a_gpu_its_layers_are_there_and_a_little_is_in_main_memory() -> None:
    main, gpu = need_of(made({"a": (4, "")}, ONE_GPU), "a")
    assert main < GIB < 4 * GIB < gpu < 6 * GIB


def test_layers_that_a_person_keeps_off_the_gpu_are_in_main_memory() -> None:
    world = made({"a": (4, ", gpu_layers: 0")}, ONE_GPU)
    assert need_of(world, "a") == (whole(world, "a"), 0)
    half = need_of(made({"a": (4, ", gpu_layers: 16")}, ONE_GPU), "a")
    assert all(size > 1.5 * GIB for size in half)


def test_two_gpus_share_the_layers() -> None:
    main, one, other = need_of(made({"a": (16, "")}, TWO_GPUS), "a")
    assert main < GIB
    assert 7 * GIB < one < 11 * GIB
    assert 7 * GIB < other < 11 * GIB


def test_memory_that_a_gpu_shares_counts_as_both() -> None:
    main, gpu = need_of(made({"a": (4, "")}, UNIFIED), "a")
    assert gpu > 4 * GIB
    assert main > gpu, "what the GPU has is main memory"


def test_layers_of_one_that_runs_are_where_it_was_told_to_put_them() -> None:
    apart = made({"a": (4, "")}, ONE_GPU, running=["a"], inputs={LAYERS: "0"})
    assert need_of(apart, "a")[1] == 0
    assert need_of(made({"a": (4, "")}, ONE_GPU, running=["a"]), "a")[1] > 4 * GIB


def test_what_is_free_now_does_not_move_where_it_counts() -> None:
    crowded = replace(ONE_GPU, devices=(Device("GPU", 12 * GIB, GIB),), memory_available=GIB)
    assert need_of(made({"a": (4, "")}, crowded), "a") == need_of(made({"a": (4, "")}, ONE_GPU), "a")


def test_one_that_chooses_its_layers_counts_with_what_always_runs_leaves_it() -> None:
    world = made({"a": (9, ""), "b": (4, ", start: on_demand")}, ONE_GPU)
    left = less(room(world, 0), need_of(world, "a"))
    main, gpu = need_of(world, "b")
    assert gpu <= left[1] < 4 * GIB
    assert GIB < main <= left[0]
    assert together(world) == Together()


def test_what_was_measured_counts_where_it_is_more() -> None:
    world = made({"a": (4, "")}, ONE_GPU, running=["a"], grown={"a": (3 * GIB, 8 * GIB)})
    assert need_of(world, "a") == (3 * GIB, 8 * GIB)
    less_than_estimated = made({"a": (4, "")}, ONE_GPU, running=["a"], grown={"a": (1, 1)})
    assert need_of(less_than_estimated, "a") == need_of(made({"a": (4, "")}, ONE_GPU), "a")


# -- what there is ----------------------------------------------------------------------------------------------------


def test_the_budget_is_of_main_memory_and_of_each_gpu() -> None:
    world = made({"a": (4, "")}, TWO_GPUS)
    spare = 12 * GIB - device_reserve(12 * GIB)
    assert room(world, 0) == (15 * GIB - reserve(16 * GIB), spare, spare), "1 GiB is taken by other programs"
    assert room(world, 5 * GIB) == (5 * GIB, spare, spare), "limits.memory bounds main memory"
    assert room(replace(world, host=HostFacts()), 0) == ()


def test_a_gpu_that_is_full_has_an_idle_one_leave() -> None:
    models = {"a": (9, ", start: on_demand"), "b": (9, ", start: on_demand")}
    world = made(models, ONE_GPU, running=["a"])
    found, _ = decided(world, {ref("b"): Asked(1, NOW - 1)}, 0, False)
    assert found[ref("a")].why == "it is let go: server/b needs the memory"
    assert found[ref("b")].hold == "waits for the memory of server/a"
    beside, _ = decided(made(models, TWO_GPUS, running=["a"]), {ref("b"): Asked(1, NOW - 1)}, 0, False)
    assert beside[ref("a")].wanted, "on two GPUs there is room for both"
    assert beside[ref("b")].hold == ""


def test_main_memory_is_no_reason_to_leave_a_gpu() -> None:
    models = {"a": (9, ", start: on_demand"), "b": (9, ", start: on_demand, gpu_layers: 0")}
    found, _ = decided(made(models, ONE_GPU, running=["a"]), {ref("b"): Asked(1, NOW - 1)}, 0, False)
    assert (found[ref("a")].wanted, found[ref("b")].hold) == (True, "")


def test_a_successor_that_a_gpu_has_no_room_for_beside_the_earlier_one_comes_after_it() -> None:
    def replaced(host: HostFacts) -> str:
        world = made({"a": (9, ", context: 2k")}, host, running=["a"])
        earlier = made({"a": (9, "")}, host, running=["a"]).observed[ref("a")]
        plan = planner.plan(replace(world, observed={**world.observed, ref("a"): earlier}), RULES)
        change = plan.change(ref("a"))
        assert change is not None
        return change.price.downtime

    full = replace(ONE_GPU, devices=(Device("GPU", 12 * GIB, 2 * GIB),))
    assert replaced(full).endswith(" on GPU 1 for a second one are not free")
    assert replaced(replace(full, devices=(Device("GPU", 24 * GIB, 12 * GIB),))) == ""
    assert replaced(replace(UNIFIED, memory_available=4 * GIB)).endswith(" of memory for a second one are not free")


# -- judged together --------------------------------------------------------------------------------------------------


def test_what_always_runs_and_has_no_room_together_is_denied() -> None:
    world = made({"a": (6, ""), "b": (6, ""), "c": (6, ""), "d": (1, "")})
    plan = planned(world)
    assert [str(c.ref) for c in plan.denied] == ["server/c"], "what is left has room"
    (denied,) = plan.denied
    assert "server/a, server/b and server/d always run, and together they need 2" in denied.reason
    assert "while all servers together may take 16.1 GB of memory; `start: on_demand`" in denied.reason
    with pytest.raises(Refused) as refused:
        planner.refuse_denied(plan)
    assert refused.value.exit_code is Exit.DENIED


def test_who_is_more_important_is_the_last_to_be_denied_and_force_does_it_anyway() -> None:
    important = made({"a": (8, ""), "b": (8, ", priority: 1")})
    assert list(together(important).denied) == [ref("a")]
    assert together(made({"a": (8, ""), "b": (8, ", force: true")})).denied == {}


def test_what_runs_is_not_denied_for_a_newcomer() -> None:
    world = made({"a": (8, ""), "b": (8, "")}, running=["b"])
    assert list(together(world).denied) == [ref("a")]
    assert together(made({"a": (8, ""), "b": (8, "")}, running=["a", "b"])).denied == {}


def test_one_that_does_not_fit_by_itself_is_denied_for_that_and_spoils_nothing() -> None:
    plan = planned(made({"a": (20, ""), "b": (8, "")}))
    assert [(str(c.ref), "it does not fit" in c.reason) for c in plan.denied] == [("server/a", True)]


def test_models_of_which_nothing_is_known_are_not_judged() -> None:
    assert together(made({"a": (0, ""), "b": (0, ""), "c": (0, "")})).denied == {}


def test_gpus_that_have_no_room_for_all_are_named() -> None:
    told = together(made({"a": (9, ", gpu_layers: 99"), "b": (9, ", gpu_layers: 99")}, ONE_GPU)).denied[ref("b")]
    assert "on GPU 1" in told
    assert "of memory" not in told
    assert together(made({"a": (9, ""), "b": (9, "")}, ONE_GPU)).denied == {}, "auto takes what is left"


def test_the_bound_of_a_person_is_what_they_are_held_against() -> None:
    told = together(made({"a": (3, ""), "b": (3, "")}), 6 * GIB).denied[ref("b")]
    assert "may take 6.4 GB of memory (limits.memory);" in told
    assert together(made({"a": (3, ""), "b": (3, "")}), 8 * GIB).denied == {}


def test_one_on_demand_that_has_no_room_beside_what_always_runs_can_never_be_loaded() -> None:
    world = made({"a": (8, ""), "b": (8, ", start: on_demand"), "c": (3, ", start: on_demand")})
    plan = planned(world)
    assert [str(c.ref) for c in plan.denied] == ["server/b"]
    assert plan.denied[0].reason.startswith("it can never be loaded: server/a always runs, and together they need 1")
    found = RULES["server"].conditions(ref("b"), replace(world, together=together(world)))
    assert (found[0].status, found[0].reason) == ("False", "DoesNotFit")


def test_what_a_person_has_loaded_denies_nobody() -> None:
    world = made({"a": (8, ", start: manual"), "b": (8, ", start: on_demand")}, running=["a"])
    assert together(world, asked={ref("a"): Asked(kept=True)}).denied == {}


def test_several_on_demand_need_no_room_beside_each_other() -> None:
    assert together(made(dict.fromkeys("abcd", (8, ", start: on_demand")))) == Together()


def test_more_than_is_free_now_but_not_more_than_there_is_is_a_warning() -> None:
    busy = replace(PLAIN, memory_available=9 * GIB)
    plan = planned(made({"a": (5, ""), "b": (5, ""), "c": (2, ", start: on_demand")}, busy))
    (warning,) = plan.warnings
    assert (warning.path, warning.severity) == ("memory", Severity.WARNING)
    assert "server/a and server/b always run, and server/c is loaded when it is asked for" in warning.summary
    assert "9.7 GB of memory are free now" in warning.summary
    assert plan.denied == ()
    assert planned(made({"a": (5, ""), "b": (5, "")}, busy, running=["a", "b"])).warnings == ()
    assert planned(made({"a": (3, ""), "b": (3, "")}, busy)).warnings == ()


def test_one_alone_keeps_its_own_verdict() -> None:
    (only_one,) = [
        c for c in planned(made({"a": (11, "")}, replace(PLAIN, memory_available=9 * GIB))).changes if c.op is Op.CREATE
        and c.ref == ref("a")
    ]  # fmt: skip
    assert "YELLOW" in only_one.actions[0].text
    assert planned(made({"a": (11, "")}, replace(PLAIN, memory_available=9 * GIB))).warnings == ()


# -- pressure ---------------------------------------------------------------------------------------------------------


def test_what_has_grown_is_let_go_when_it_is_idle_and_said_when_it_is_not() -> None:
    models, grown = {"a": (3, ", start: on_demand")}, {"a": (9 * GIB,)}
    idle, told = decided(made(models, running=["a"], grown=grown), {}, 8 * GIB, False)
    assert not idle[ref("a")].wanted
    assert told.pressed == ""
    busy, told = decided(made(models, running=["a"], grown=grown, busy=["a"]), {}, 8 * GIB, False)
    assert busy[ref("a")].wanted
    assert told.pressed == "server/a takes 9.7 GB of memory, and there is room for 8.6 GB of memory"


def test_another_program_that_takes_the_memory_is_pressure_too() -> None:
    """The kernel has 1 GiB left, and two servers that were promised 3 GiB each have touched little of it so far."""
    models = {"a": (3, ""), "b": (3, ", start: on_demand")}
    world = made(models, replace(PLAIN, memory_available=GIB), running=["a", "b"], grown={"a": (2**20,), "b": (2**20,)})
    found, told = decided(world, {}, 0, False)
    assert not found[ref("b")].wanted
    assert told.pressed.startswith("server/a takes 3.")


def test_pressure_is_a_condition_of_what_runs() -> None:
    world = made({"a": (3, ""), "b": (3, "")}, running=["a"], grown={"a": (9 * GIB,)})
    world = replace(world, together=together(world, 8 * GIB))
    assert PRESSURE in {c.type for c in RULES["server"].conditions(ref("a"), world)}
    assert PRESSURE not in {c.type for c in RULES["server"].conditions(ref("b"), world)}


def test_what_is_only_just_being_started_has_its_memory() -> None:
    world = made({"a": (6, ", start: on_demand"), "b": (6, ", start: on_demand")})
    asked = {ref("b"): Asked(1, NOW - 1)}
    assert decided(world, asked, 8 * GIB, False)[0][ref("b")].hold == ""
    seen, _ = decided(world, asked, 8 * GIB, False, frozenset({ref("a")}))
    assert seen[ref("a")].wanted
    assert seen[ref("b")].hold.startswith("waits for 5.")
