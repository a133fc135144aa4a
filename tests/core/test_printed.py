"""What a plan looks like: every symbol, every reason that the rules can give, and the footer, as snapshots.

`test_every_reason_is_seen` reads the rules themselves, so that a new reason without a snapshot does not pass.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from syrupy.assertion import SnapshotAssertion

from reconciler.cli.render import plan_lines
from reconciler.core import planner
from reconciler.core.diagnostics import Where
from reconciler.core.ids import Ref, canonical
from reconciler.core.plan import SYMBOLS, Plan
from reconciler.core.residency import Standing
from reconciler.core.state import (
    Absent,
    Declared,
    Denial,
    Drift,
    Found,
    HostFacts,
    Restored,
    Suspension,
    Unknown,
    World,
)
from reconciler.gguf.shape import Layer, Shape
from reconciler.kinds.gateway.rules import GatewayState
from reconciler.kinds.model.rules import ModelState
from reconciler.kinds.server.rules import ServerState
from tests.core.simulation import GATEWAY, RULES, Machine, Row, desired_from

ONE = 'version: 1\nmodels:\n  chat: {source: "file:chat.gguf", context: 2k}\n'
TWO = ONE + '  embed: {source: "file:embed.gguf", task: embedding, aliases: [e]}\n'
LLAMA = ONE.replace("2k}", "2k, engine: llama}") + "engines:\n  llama: {type: llama.cpp, path: /opt/llama-server}\n"
ENGINE, MODEL, SERVER = Ref("engine", "embedded"), Ref("model", "chat"), Ref("server", "chat")
GIB = 1 << 30
SMALL = HostFacts(memory_total=16 * GIB, memory_available=12 * GIB)


def built(text: str = ONE) -> Machine:
    machine = Machine()
    machine.converge(desired_from(text))
    return machine


def after(text: str, *happened: Callable[[Machine], object], before: str = ONE) -> Plan:
    machine = built(before)
    for each in happened:
        each(machine)
    return machine.plan(desired_from(text))


def seeing(machine: Machine, text: str, **changes: Any) -> Plan:
    """The plan of a world in which some things are otherwise than the machine would have them."""
    world = machine.world(dict(desired_from(text)))
    if "observed" in changes:
        changes["observed"] = {**world.observed, **changes["observed"]}
    return planner.plan(replace(world, **changes), RULES)


# -- engines --------------------------------------------------------------------------------------------------------


def an_engine_that_was_there_before_us() -> Plan:
    return Machine().plan(desired_from(LLAMA))


def an_engine_that_lies_elsewhere_now() -> Plan:
    return after(LLAMA.replace("/opt", "/usr"), before=LLAMA)


def an_engine_that_is_damaged() -> Plan:
    return after(ONE, lambda m: m.installed.clear())


def another_version_of_an_engine() -> Plan:
    return after(ONE + "engines: {embedded: {type: embedded, version: '1.0'}}\n")


def a_model_that_moves_to_another_engine() -> Plan:
    return after(ONE, before=LLAMA)


# -- models ---------------------------------------------------------------------------------------------------------


def a_model_that_is_in_the_store_already() -> Plan:
    return after(ONE, lambda m: m.owned.pop(MODEL))


def a_model_whose_declaration_changed_and_whose_bytes_did_not() -> Plan:
    text = ONE.replace("context", f"sha256: {'a' * 64}, context")
    before, digest = desired_from(ONE)[MODEL].digest, desired_from(text)[MODEL].digest

    def same_bytes(machine: Machine) -> None:
        machine.pins.add(digest)
        machine.blobs[digest] = machine.proved[digest] = machine.blobs[before]

    return after(text, same_bytes)


def a_model_of_which_the_lock_says_otherwise() -> Plan:
    machine, desired = built(), dict(desired_from(ONE))
    owned = machine.owned[MODEL]
    machine.owned[MODEL] = replace(owned, spec={**owned.spec, "locked": "a" * 64})
    machine.blobs.clear()
    desired[MODEL] = Declared(MODEL, replace(desired[MODEL].spec, locked="b" * 64), where=desired[MODEL].where)
    return planner.plan(machine.world(desired), RULES)


def a_model_whose_file_is_gone() -> Plan:
    return after(ONE, lambda m: m.blobs.clear())


def a_model_whose_file_is_lost() -> Plan:
    lost = ModelState("a" * 64, 2_400_000_000, lost="its file is gone from the store")
    return seeing(built(), ONE, observed={MODEL: Found(lost)})


def a_model_whose_file_changed() -> Plan:
    return after(ONE, lambda m: m.damage(desired_from(ONE)[MODEL].digest))


def a_strange_file_in_the_place_of_a_model() -> Plan:
    strange = "a file of that name is in the store, but not in the ledger"
    seen = ModelState("a" * 64, 1000, present=True, suspect=strange)
    return seeing(Machine(), ONE, observed={MODEL: Found(seen)})


# -- servers --------------------------------------------------------------------------------------------------------


def not_ready_yet(machine: Machine, ref: Ref) -> None:
    for row in machine.rows.values():
        if row.ref == ref:
            row.ready = None
            machine.loaded.pop(row.nonce, None)


def a_server_that_is_loading() -> Plan:
    return after(ONE, lambda m: not_ready_yet(m, SERVER))


def a_server_whose_successor_is_ready() -> Plan:
    machine, desired = built(), desired_from(ONE.replace("2k", "8k"))
    change = machine.plan(desired).change(SERVER)
    assert change is not None
    machine.do(change, change.actions[0], desired)
    return machine.plan(desired)


def a_server_that_is_drained() -> Plan:
    machine, desired = built(), desired_from(ONE.replace("2k", "8k"))
    machine.inflight = {machine.servers[SERVER][0].nonce: 2}
    for _ in range(5):
        for change, action in planner.runnable(machine.plan(desired), machine.world(desired)):
            machine.do(change, action, desired)
    return machine.plan(desired)


def settings_of_a_server() -> Plan:
    text = "8k, gpu_layers: 3, cache_type: {k: q8_0}, options: {threads: 2}, env: {TOKEN: hunter2}}"
    return after(ONE.replace("2k}", text))


def a_server_of_an_old_spec_whose_model_cannot_be_seen() -> Plan:
    machine = built()
    del machine.owned[SERVER]
    for row in machine.rows.values():
        if row.ref == SERVER:
            row.digest = "of another spec"
    return seeing(machine, ONE, observed={MODEL: Unknown("the store cannot be read")})


def a_server_that_was_killed() -> Plan:
    return after(ONE, lambda m: m.kill(SERVER))


def a_server_that_hangs() -> Plan:
    return after(ONE, lambda m: m.hang(SERVER))


def a_server_that_the_ledger_forgot() -> Plan:
    return after(ONE, lambda m: m.owned.pop(SERVER))


def another_source() -> Plan:
    return after(ONE.replace("chat.gguf", "better.gguf"))


def a_file_that_was_brought_anew() -> Plan:
    return after(ONE, lambda m: m.bring_anew(desired_from(ONE)[MODEL].digest))


# -- the gateway ----------------------------------------------------------------------------------------------------


def a_gateway_that_is_starting() -> Plan:
    return after(ONE, lambda m: not_ready_yet(m, GATEWAY))


def a_gateway_that_died() -> Plan:
    return after(TWO, lambda m: m.kill(GATEWAY), before=TWO)


def a_gateway_whose_port_another_one_took() -> Plan:
    return seeing(built(), ONE, observed={GATEWAY: Found(GatewayState(holder="pid 412 (ollama)"))})


def a_gateway_whose_port_was_taken_before_us() -> Plan:
    return seeing(Machine(), ONE, observed={GATEWAY: Found(GatewayState(holder="pid 412 (ollama)"))})


def a_gateway_on_another_port() -> Plan:
    return after(ONE + "gateway: {port: 1500}\n")


def a_gateway_that_has_moved() -> Plan:
    machine = built()
    machine.rows["old"] = Row("old", GATEWAY, "elsewhere", "127.0.0.1", 1500, {}, known=True, ready=1.0)
    machine.alive.add("old")
    return machine.plan(desired_from(ONE))


def a_gateway_on_another_address() -> Plan:
    return after(ONE + "gateway: {host: localhost}\n")


def a_gateway_that_nothing_wants() -> Plan:
    return built().plan({ref: d for ref, d in desired_from(ONE).items() if ref != GATEWAY})


def settings_of_the_gateway() -> Plan:
    return after(TWO.replace("[e]", "[vectors]") + "gateway: {trusted_hosts: [a.lan]}\n", before=TWO)


# -- the whole ------------------------------------------------------------------------------------------------------


def nothing() -> Plan:
    return after(ONE)


def from_nothing() -> Plan:
    return Machine().plan(desired_from(TWO))


def a_model_that_is_removed() -> Plan:
    return after(ONE, before=TWO)


def everything_taken_down() -> Plan:
    return planner.plan(replace(built().world({}), down=True), RULES)


def everything_purged() -> Plan:
    return planner.plan(replace(built().world({}, purge=True), down=True), RULES)


def everything_denied() -> Plan:
    machine = built(TWO)
    for name in ("model", "server"):
        ref = Ref(name, "embed")
        machine.owned[ref] = replace(machine.owned[ref], protect=True)
    denied = {SERVER: Denial("`start: manual` is not yet supported here", Where("stack.yaml", 3, 9)), MODEL: Denial("")}
    return seeing(machine, ONE, denied=denied)


def drift_that_is_left_so() -> Plan:
    machine, desired = built(), dict(desired_from(ONE))
    machine.kill(SERVER)
    machine.blobs.clear()
    machine.converge_routes(desired)
    desired[SERVER] = replace(desired[SERVER], drift=Drift.WARN)
    desired[MODEL] = replace(desired[MODEL], drift=Drift.IGNORE)
    return machine.plan(desired)


def a_server_whose_key_is_lost() -> Plan:
    machine = built()
    (row,) = machine.servers[SERVER]
    return seeing(machine, ONE, observed={SERVER: Found(ServerState((replace(row, keyed=False),)))})


def a_model_that_its_source_tells_of() -> Plan:
    """Seen by a plan that asked the source: nothing of it is written down."""
    told = {"name": "chat-Q4_K_M.gguf", "size": 2_400_000_000, "total": 2_400_000_000, "quant": "Q4_K_M"}
    seen = ModelState(ahead=canonical({**told, "shape": shape(2_400_000_000)}))
    return seeing(Machine(), ONE, observed={MODEL: Found(seen)})


def a_model_that_never_fits() -> Plan:
    seen = ModelState(found=True, shape=canonical(shape(1 << 40)))
    return seeing(Machine(), ONE, observed={MODEL: Found(seen)}, host=SMALL)


def a_server_that_no_longer_fits() -> Plan:
    machine = built()
    machine.kill(SERVER)
    seen = ModelState("a" * 64, 1 << 40, present=True, token="t", found=True, shape=canonical(shape(1 << 40)))
    return seeing(machine, ONE, observed={MODEL: Found(seen)}, host=SMALL)


def shape(size: int) -> dict[str, Any]:
    """Of a model of so many bytes, as a lock has it."""
    layers = (Layer(weights=size // 32, keys=1024, values=1024),) * 32
    return Shape(architecture="llama", layers=layers, embedding=4096, heads=32, vocabulary=32_000).to_json()


def a_server_that_need_not_run() -> Plan:
    return seeing(built(), ONE.replace("context: 2k", "context: 2k, start: manual"), standing={})


def a_server_that_is_let_go() -> Plan:
    why = Standing(False, "it is let go: server/b needs the memory")
    return seeing(built(), ONE.replace("context: 2k", "context: 2k, start: on_demand"), standing={SERVER: why})


def a_server_that_waits_for_memory() -> Plan:
    why = Standing(True, "it is asked for", "waits for the memory of server/b")
    machine = built()
    machine.kill(SERVER)
    return seeing(machine, ONE.replace("context: 2k", "context: 2k, start: on_demand"), standing={SERVER: why})


def a_server_that_is_asked_for_again_while_it_leaves() -> Plan:
    """Its memory is what it waits for: its end must not wait for its start."""
    machine = built()
    machine.rows[machine.servers[SERVER][0].nonce].retiring = 1.0
    why = Standing(True, "it is asked for", "waits for the memory of server/chat")
    plan = seeing(machine, ONE.replace("context: 2k", "context: 2k, start: on_demand"), standing={SERVER: why})
    change = plan.change(SERVER)
    assert change is not None
    assert [action.verb for action in change.actions] == ["stop", "start"]
    return plan


def a_paused_model() -> Plan:
    return seeing(Machine(), ONE, paused=frozenset({MODEL}))


def a_suspended_controller() -> Plan:
    return seeing(built(), TWO, suspension=Suspension(1000.0))


def a_tug_of_war() -> Plan:
    machine = built()
    machine.kill(SERVER)
    seen = tuple(Restored(at, "it was ended by signal 9") for at in (500.0, 600.0, 700.0, 800.0))
    return seeing(machine, ONE, restored={SERVER: seen})


def only_a_target() -> Plan:
    world = Machine().world(desired_from(TWO))
    return planner.plan(world, RULES, frozenset({SERVER}))


def what_it_takes_of_the_memory() -> Plan:
    machine = built()
    machine.host = HostFacts(memory_total=15 * GIB, memory_available=12 * GIB - 100)
    big = ModelState("a" * 64, 2_400_000_000)
    plan = seeing(machine, TWO, observed={Ref("model", "embed"): Found(big)})
    assert plan.memory == (3 * GIB + 100, 15 * GIB)
    return plan


def no_room_for_a_second_one() -> Plan:
    machine = built()
    machine.host = HostFacts(memory_total=2000, memory_available=100)
    return machine.plan(desired_from(ONE.replace("2k", "8k")))


def what_cannot_be_seen() -> Plan:
    return seeing(built(), ONE, observed={SERVER: Unknown("the ledger is busy"), ENGINE: Absent("not there")})


# -- providers and routes -------------------------------------------------------------------------------------------

CLOUD = (
    ONE
    + """providers:
  openai: {preset: openai, api_key: env:KEY}
  lab: {base_url: "http://10.0.0.7/v1", models: [llama]}
  azure: {preset: azure, base_url: "https://me.openai.azure.com", api_key: env:KEY}
routes:
  smart: {targets: [chat, openai/gpt-5.2]}
  claude-*: {targets: [lab/llama]}
"""
)


def providers_from_nothing() -> Plan:
    return Machine().plan(desired_from(CLOUD))


def providers_that_are_as_they_should_be() -> Plan:
    return after(CLOUD, before=CLOUD)


def a_provider_without_a_key() -> Plan:
    return after(CLOUD.replace("openai, api_key: env:KEY}", "openai}"), before=CLOUD)


def a_provider_that_is_declared_otherwise() -> Plan:
    text = CLOUD.replace("models: [llama]", "models: [llama, qwen], request: {set: {top_k: 1}}")
    return after(text.replace("preset: openai,", "preset: openai, allow: ['gpt-*'],"), before=CLOUD)


def a_provider_that_is_removed_with_its_route() -> Plan:
    gone = CLOUD.replace("  openai: {preset: openai, api_key: env:KEY}\n", "").replace(", openai/gpt-5.2]", "]")
    return after(gone, before=CLOUD)


def a_provider_of_which_nothing_is_known_any_more() -> Plan:
    return after(CLOUD, lambda m: m.listed.clear(), before=CLOUD)


def a_provider_that_lists_other_models_now() -> Plan:
    def other(machine: Machine) -> None:
        ref = Ref("provider", "openai")
        machine.listed[ref] = machine.listed[ref].listed(("m", "n"), "GET /models", 2000.0)

    return after(CLOUD, other, before=CLOUD)


def a_provider_whose_secret_is_missing() -> Plan:
    machine = built(CLOUD)
    machine.secretless = True
    return machine.plan(desired_from(CLOUD))


def a_gateway_that_has_other_keys_of_providers() -> Plan:
    machine = built(CLOUD)
    machine.keyed = False
    return machine.plan(desired_from(CLOUD))


def what_keys_and_pages_of_clients_may_do() -> Plan:
    before = "gateway: {api_keys: [{name: ci, key: env:CI}]}\n"
    text = "gateway: {api_keys: [{name: ci, key: env:CI, allow: [chat], rate: 60/min, tokens: 1M/day}], "
    text += "cors: {origins: ['https://a.example']}, timeouts: {idle: 1m}, body_limit: 1MiB}\n"
    return after(ONE + text, before=ONE + before)


PLANS: tuple[Callable[[], Plan], ...] = (
    an_engine_that_was_there_before_us, an_engine_that_lies_elsewhere_now, an_engine_that_is_damaged,
    another_version_of_an_engine, a_model_that_moves_to_another_engine, a_model_that_is_in_the_store_already,
    a_model_whose_declaration_changed_and_whose_bytes_did_not, a_model_of_which_the_lock_says_otherwise,
    a_model_whose_file_is_gone, a_model_whose_file_is_lost, a_model_whose_file_changed,
    a_strange_file_in_the_place_of_a_model, a_server_that_is_loading, a_server_whose_successor_is_ready,
    a_server_that_is_drained, settings_of_a_server, a_server_of_an_old_spec_whose_model_cannot_be_seen,
    a_server_that_was_killed, a_server_that_hangs, a_server_that_the_ledger_forgot, another_source,
    a_file_that_was_brought_anew, a_gateway_that_is_starting, a_gateway_that_died,
    a_gateway_whose_port_another_one_took, a_gateway_whose_port_was_taken_before_us, a_gateway_on_another_port,
    a_gateway_that_has_moved, a_gateway_on_another_address, a_gateway_that_nothing_wants,
    settings_of_the_gateway, nothing, from_nothing, a_model_that_is_removed,
    everything_taken_down, everything_purged, everything_denied, drift_that_is_left_so, a_tug_of_war, only_a_target,
    a_server_that_need_not_run, a_server_that_is_let_go, a_server_that_waits_for_memory,
    a_server_that_is_asked_for_again_while_it_leaves,
    a_paused_model, a_suspended_controller, a_server_whose_key_is_lost, a_model_that_its_source_tells_of,
    a_model_that_never_fits, a_server_that_no_longer_fits,
    what_it_takes_of_the_memory, no_room_for_a_second_one, what_cannot_be_seen,
    providers_from_nothing, providers_that_are_as_they_should_be, a_provider_without_a_key,
    a_provider_that_is_declared_otherwise, a_provider_that_is_removed_with_its_route,
    a_provider_of_which_nothing_is_known_any_more, a_provider_that_lists_other_models_now,
    a_provider_whose_secret_is_missing, a_gateway_that_has_other_keys_of_providers,
    what_keys_and_pages_of_clients_may_do,
)  # fmt: skip


def printed(plan: Plan) -> str:
    return click.unstyle("\n".join(plan_lines(plan, everything=True, drift=True)))


@pytest.mark.parametrize("make", PLANS, ids=lambda make: make.__name__)
def test_a_printed_plan(make: Callable[[], Plan], snapshot: SnapshotAssertion) -> None:
    assert printed(make()) == snapshot


def test_no_secret_is_printed() -> None:
    assert "hunter2" not in printed(settings_of_a_server())
    text = ONE.replace("file:chat.gguf", "https://host/m.gguf?token=hunter2")
    for plan in (Machine().plan(desired_from(text)), after(text), after(ONE, before=text)):
        assert "https://host/m.gguf?…" in printed(plan)
        assert "hunter2" not in printed(plan)


def test_every_symbol_is_seen() -> None:
    text = "\n".join(printed(make()) for make in PLANS)
    seen = {line[2] for line in text.splitlines() if line.startswith("  ") and line[3:4] == " "}
    assert set(SYMBOLS.values()) <= seen


# -- every reason ---------------------------------------------------------------------------------------------------

SOURCES = [*Path(planner.__file__).parents[1].glob("kinds/*/rules.py"), Path(planner.__file__)]


def reasons(path: Path) -> Iterator[str]:
    """Every text that a file can give a change as its reason: passed to Change or replace, or assigned before."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Change":
            yield from _texts(node.args[2])
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "replace":
            yield from (text for given in node.keywords if given.arg == "reason" for text in _texts(given.value))
        elif isinstance(node, ast.Assign):
            for target, value in _pairs(node.targets[0], node.value):
                if getattr(target, "id", "") in ("reason", "gone"):
                    yield from _texts(value)
        elif isinstance(node, ast.FunctionDef) and node.name in ("_inputs_changed", "contested"):
            yield from (text for part in ast.walk(node) if isinstance(part, ast.Return) for text in _texts(part.value))


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=True))
    return [(target, value)]


def _texts(node: ast.expr | None) -> Iterator[str]:
    """The constant parts of an expression, conditions aside."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp():
            yield from (*_texts(node.body), *_texts(node.orelse))
        case ast.BoolOp():
            yield from (text for value in node.values for text in _texts(value))
        case ast.JoinedStr():
            yield from (text for value in node.values for text in _texts(value))


def test_every_reason_is_seen() -> None:
    found = {text for path in SOURCES for text in reasons(path) if " " in text.strip()}  # conditions have words
    assert {"its successor is ready", "it is being taken down", "its file is gone from the store"} <= found
    assert len(found) > 25, "the search finds what is there"
    text = "\n".join(printed(make()) for make in PLANS)
    assert [reason for reason in sorted(found) if reason not in text] == []


def test_a_world_is_planned_without_its_being_changed() -> None:
    world = built(TWO).world(desired_from(ONE))
    before = repr(world)
    assert isinstance(world, World)
    assert planner.plan(world, RULES) == planner.plan(world, RULES)
    assert repr(world) == before
