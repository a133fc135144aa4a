"""Whatever happens, in whatever order: a state machine of edits, effects, faults and crashes against the real planner.

Hypothesis plays the person, the machine and bad luck. After each step nothing forbidden has happened; at the end,
once everything works again, the world is the one that the last manifest would have made from nothing.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reconciler.controller.asking import starts
from reconciler.core import planner
from reconciler.core.diagnostics import Fault, FaultClass, Refused
from reconciler.core.ids import Ref
from reconciler.core.plan import Phase, Plan
from reconciler.core.state import HostFacts
from reconciler.kinds.server.rules import is_fresh, wanted
from tests.core.simulation import GATEWAY, RULES, Keeper, Machine, desired_from, turn_and_finish

NIGHTLY = os.environ.get("RECONCILER_NIGHTLY") == "1"
SETTINGS = settings(
    max_examples=2500 if NIGHTLY else 70,
    stateful_step_count=80 if NIGHTLY else 50,
    derandomize=not NIGHTLY,
    print_blob=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

NAMES = st.sampled_from(["a", "b", "c"])
GIB = 1 << 30
PLENTY, TIGHT = HostFacts(16 * GIB, 15 * GIB), HostFacts(10_000, 100)
BOUNDS = (0, 1300, 2600, 3500)  # bytes for all servers: as much as there is, room for one, two, three
QUIET = 400.0  # seconds: longer than any idle_timeout here
TURNS = 60  # in which everything that can settle has settled

steps: Counter[str] = Counter()


class Reconciling(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(host=PLENTY)
        self.models: dict[str, dict[str, object]] = {}
        self.engines: dict[str, object] = {"other": {"type": "llama.cpp", "path": "/opt/llama-server"}}
        self.gateway: dict[str, object] = {"port": 1400}
        self.keeper = Keeper(self.machine, {})

    # -- the person ----------------------------------------------------------------------------------------------

    @initialize(
        names=st.sets(NAMES, min_size=1),
        settled=st.booleans(),
        start=st.sampled_from(["always", "on_demand"]),
        bound=st.sampled_from(BOUNDS),
    )
    def begin(self, names: set[str], settled: bool, start: str, bound: int) -> None:
        about = {"start": start, "idle_timeout": "5m"}
        self.models = {name: {"source": f"file:{name}.gguf", **about} for name in sorted(names)}
        self.machine.bound = bound
        self._save()
        for _ in range(8 if settled else 0):
            self.turn_and_finish()

    @rule(
        name=NAMES,
        source=st.sampled_from(["x", "y"]),
        context=st.sampled_from([1024, 2048]),
        engine=st.sampled_from(["embedded", "embedded", "other"]),
        alias=st.sampled_from([[], ["alias"]]),
        own=st.booleans(),
        start=st.sampled_from(["always", "always", "on_demand", "on_demand", "manual"]),
        priority=st.sampled_from([0, 0, 5]),
    )
    def declare(
        self, name: str, source: str, context: int, engine: str, alias: list[str], own: bool, start: str, priority: int
    ) -> None:
        taken = any(m.get("aliases") for n, m in self.models.items() if n != name)
        self.models[name] = {
            "source": f"file:{name if own else source}.gguf",
            "context": context,
            "engine": engine,
            "aliases": [] if taken else alias,
            "start": start,
            "idle_timeout": "5m",
            "priority": priority,
        }
        self._save()

    @precondition(lambda self: self.models)
    @rule(data=st.data(), new=NAMES)
    def rename(self, data: st.DataObject, new: str) -> None:
        old = data.draw(st.sampled_from(sorted(self.models)))
        entry = self.models.pop(old)
        self.models[new] = entry
        self._save()

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        self.models.pop(name, None)
        self._save()

    @rule(
        port=st.sampled_from([1400, 1401]),
        host=st.sampled_from(["127.0.0.1", "localhost"]),
        keys=st.booleans(),
        prefix=st.sampled_from(["/v1", "/api"]),
    )
    def edit_gateway(self, port: int, host: str, keys: bool, prefix: str) -> None:
        api_keys = [{"name": "me", "key": "env:KEY"}] if keys else []
        self.gateway = {"port": port, "host": host, "api_keys": api_keys, "prefix": prefix}
        self._save()

    @rule(version=st.sampled_from(["1.0", "2.0"]))
    def edit_engine(self, version: str) -> None:
        self.engines["embedded"] = {"type": "embedded", "version": version}
        self._save()

    @rule()
    def apply(self) -> None:
        self.keeper.apply()

    @rule(purge=st.booleans())
    def take_down(self, purge: bool) -> None:
        self.keeper.mode = "purge" if purge else "down"

    @precondition(lambda self: self.keeper.mode != "run")
    @rule()
    def take_up(self) -> None:
        """Down is the end of a controller; whether it got all done or not, the next one runs again."""
        self.keeper = self.keeper.crash()
        self._save()

    def _save(self) -> None:
        stack = {"version": 1, "engines": self.engines, "models": self.models, "gateway": self.gateway}
        desired = desired_from(json.dumps(stack))
        try:
            planner.refuse_emptying(self.machine.plan(desired), self.machine.world(desired))
        except Refused:
            return
        self.keeper.save(desired)

    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        if refs := sorted(self.keeper.wanted):
            self.keeper.pause(data.draw(st.sampled_from(refs)))

    @precondition(lambda self: self.machine.paused)
    @rule(data=st.data())
    def resume_one(self, data: st.DataObject) -> None:
        self.machine.paused.discard(data.draw(st.sampled_from(sorted(self.machine.paused))))

    @rule()
    def suspend(self) -> None:
        self.keeper.suspend()

    @precondition(lambda self: self.machine.suspension)
    @rule(by_hand=st.booleans())
    def resume_all(self, by_hand: bool) -> None:
        (self.keeper.apply_by_hand if by_hand else self.keeper.resume)()

    # -- who wants what in memory --------------------------------------------------------------------------------

    @precondition(lambda self: self.idle_servers())
    @rule(data=st.data(), clients=st.integers(1, 3))
    def clients_ask(self, data: st.DataObject, clients: int) -> None:
        """For what loads on demand, or for what a person has loaded."""
        ref = data.draw(st.sampled_from(self.idle_servers()))
        if starts(self.keeper.wanted[ref]) == "on_demand" or ref in self.machine.kept:
            self.machine.waits.setdefault(ref, []).extend([self.machine.now] * clients)

    @precondition(lambda self: self.machine.waits)
    @rule(data=st.data())
    def clients_go_away(self, data: st.DataObject) -> None:
        self.machine.waits.pop(data.draw(st.sampled_from(sorted(self.machine.waits))))

    @precondition(lambda self: self.idle_servers())
    @rule(data=st.data())
    def a_person_loads(self, data: st.DataObject) -> None:
        ref = data.draw(st.sampled_from(self.idle_servers()))
        self.machine.kept.setdefault(ref, self.machine.now)
        self.machine.dropped.discard(ref)
        self.machine.troubles.pop(ref, None)
        self.machine.hopeless.pop(ref, None)

    @precondition(lambda self: self.idle_servers())
    @rule(data=st.data())
    def a_person_unloads(self, data: st.DataObject) -> None:
        ref = data.draw(st.sampled_from(self.idle_servers()))
        self.machine.kept.pop(ref, None)
        self.machine.dropped.add(ref)

    @rule(bound=st.sampled_from(BOUNDS))
    def servers_may_take_more_or_less(self, bound: int) -> None:
        self.machine.bound = bound

    @precondition(lambda self: self.machine.alive)
    @rule(data=st.data(), size=st.sampled_from([1500, 3000]))
    def a_server_grows(self, data: st.DataObject, size: int) -> None:
        self.machine.grown[data.draw(st.sampled_from(sorted(self.machine.alive)))] = size

    def idle_servers(self) -> list[Ref]:
        """Those that need not always run."""
        wanted = self.keeper.wanted
        return sorted(ref for ref, d in wanted.items() if ref.kind == "server" and starts(d) != "always")

    # -- the controller ------------------------------------------------------------------------------------------

    @rule()
    def turn(self) -> None:
        self.keeper.turn()

    @rule()
    def turn_and_finish(self) -> None:
        self.keeper.turn()
        for ref in list(self.keeper.work):
            self.keeper.finish(ref)

    @rule(turns=st.integers(2, 8), requests=st.booleans())
    def a_while_passes(self, turns: int, requests: bool) -> None:
        """Turns with a second between them, in which requests that run end, or do not."""
        for _ in range(turns):
            if requests:
                self.machine.requests_end()
            self.turn_and_finish()
            self.machine.now += 1.0

    @rule(data=st.data())
    def turn_with_an_outdated_look(self, data: st.DataObject) -> None:
        works = sorted(self.keeper.work)
        going = data.draw(st.lists(st.sampled_from(works), max_size=6)) if works else []
        self.keeper.turn(meanwhile=lambda: [self.keeper.step(r) for r in going if r in self.keeper.work] and None)

    @precondition(lambda self: self.keeper.work)
    @rule(data=st.data(), whole=st.booleans())
    def work_goes_on(self, data: st.DataObject, whole: bool) -> None:
        ref = data.draw(st.sampled_from(sorted(self.keeper.work)))
        (self.keeper.finish if whole else self.keeper.step)(ref)

    @precondition(lambda self: self.keeper.work)
    @rule(data=st.data(), kind=st.sampled_from(FaultClass))
    def work_fails(self, data: st.DataObject, kind: FaultClass) -> None:
        ref = data.draw(st.sampled_from(sorted(self.keeper.work)))
        if self.keeper.work[ref].action.phase > Phase.START:
            kind = FaultClass.TRANSIENT  # nobody's spec is at fault when a process cannot be stopped
        self.keeper.throw(ref, Fault("BAD_LUCK", "it failed", kind=kind))

    @rule()
    def crash(self) -> None:
        self.keeper = self.keeper.crash()

    # -- the machine ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.machine.rows)
    @rule(data=st.data(), kind=st.sampled_from(FaultClass))
    def a_process_ends(self, data: st.DataObject, kind: FaultClass) -> None:
        row = self.machine.rows[data.draw(st.sampled_from(sorted(self.machine.rows)))]
        self.machine.end(row.nonce)
        if row.known and row.ready is not None and row.ref not in self.keeper.work:  # somebody watches it
            self.keeper.notice(row, kind)

    @precondition(lambda self: self.machine.alive)
    @rule(data=st.data())
    def a_process_hangs(self, data: st.DataObject) -> None:
        nonce = data.draw(st.sampled_from(sorted(self.machine.alive)))
        self.machine.hung.add(nonce)
        self.machine.ever_hung.add(nonce)

    @precondition(lambda self: self.machine.hung)
    @rule()
    def the_hung_go_on(self) -> None:
        self.machine.hung.clear()

    @precondition(lambda self: self.machine.blobs)
    @rule(data=st.data(), how=st.sampled_from(["damage", "touch", "remove"]))
    def a_file_changes(self, data: st.DataObject, how: str) -> None:
        digest = data.draw(st.sampled_from(sorted(self.machine.blobs)))
        changes: dict[str, Callable[[str], object]] = {
            "damage": self.machine.damage,
            "touch": self.machine.touch,
            "remove": lambda lost: self.machine.blobs.pop(lost, None),
        }
        changes[how](digest)

    @rule(seconds=st.sampled_from([0.6, 5.0, 130.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.machine.now += seconds

    @precondition(lambda self: self.machine.answering and self.machine.loaded[self.machine.answering].nonces)
    @rule(data=st.data())
    def a_request_begins(self, data: st.DataObject) -> None:
        nonces = self.machine.loaded[self.machine.answering].nonces & self.machine.alive
        if nonces:
            nonce = data.draw(st.sampled_from(sorted(nonces)))
            self.machine.inflight[nonce] = self.machine.inflight.get(nonce, 0) + 1

    @precondition(lambda self: self.machine.inflight)
    @rule()
    def the_requests_end(self) -> None:
        self.machine.requests_end()

    @rule(data=st.data())
    def something_cannot_be_seen(self, data: st.DataObject) -> None:
        refs = sorted({*self.keeper.wanted, *self.machine.owned})
        if refs:
            self.machine.blind[data.draw(st.sampled_from(refs))] = "it is busy"

    @precondition(lambda self: self.machine.blind)
    @rule()
    def all_is_seen_again(self) -> None:
        self.machine.blind.clear()

    @rule(quiet=st.booleans())
    def the_gateway_is_too_busy_to_answer(self, quiet: bool) -> None:
        self.machine.quiet = quiet

    @rule(host=st.sampled_from([PLENTY, TIGHT]))
    def memory_changes(self, host: HostFacts) -> None:
        self.machine.host = host

    @rule(port=st.sampled_from([1400, 1401]))
    def a_stranger_takes_or_leaves_a_port(self, port: int) -> None:
        if not any(r.port == port and r.nonce in self.machine.alive for r in self.machine.rows.values()):
            self.machine.held ^= {port}

    @rule()
    def a_secret_comes_or_goes(self) -> None:
        self.machine.secretless = not self.machine.secretless

    @rule()
    def a_foreign_program_comes_or_goes(self) -> None:
        self.machine.missing ^= {"/opt/llama-server"}

    # -- what is always so ---------------------------------------------------------------------------------------

    @invariant()
    def all_is_well(self) -> None:
        steps["steps"] += 1
        assert not self.machine.wrongs, self.machine.wrongs
        assert self.machine.alive <= set(self.machine.rows), "a process runs that the ledger does not know"
        self.one_fresh_instance_is_enough()
        self.a_name_leads_to_a_living_instance_or_to_a_reason_unless_the_plan_mends_it()

    def one_fresh_instance_is_enough(self) -> None:
        world = self.machine.world(self.keeper.desired)
        for ref, group in self.machine.servers.items():
            declared = world.desired.get(ref)
            model = world.found(Ref("model", ref.name))
            if declared is not None and model is not None and model.usable:
                fresh = [i.nonce for i in group if is_fresh(i, declared, world) and i.nonce in self.machine.alive]
                assert len(set(fresh) - self.machine.ever_hung) <= 1, f"{ref} runs {len(fresh)} times"

    def a_name_leads_to_a_living_instance_or_to_a_reason_unless_the_plan_mends_it(self) -> None:
        machine, desired = self.machine, self.keeper.desired
        if machine.blind:
            return
        world = machine.world(desired, self.keeper.mode == "purge")
        plan = planner.plan(world, RULES)
        if plan.change(GATEWAY) is None and machine.answering:
            for model, target in machine.loaded[machine.answering].targets.items():
                assert target.reason or target.nonce in machine.alive, f"{model} leads nowhere: {plan}"
        if plan.empty and GATEWAY in desired:
            spec = desired[GATEWAY].spec
            servers = {name: Ref("server", name) for name in (m.name for m in spec.models)}
            loaded = {name for name, ref in servers.items() if wanted(ref, desired[ref], world)}
            assert machine.serving(spec, machine.alive - machine.hung) == loaded

    # -- the end -------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Let everything work again, and wait."""
        steps["histories"] += 1
        machine = self.machine
        assert not machine.wrongs, machine.wrongs
        machine.blind.clear()
        machine.hung.clear()
        machine.inflight.clear()
        machine.missing.clear()
        machine.held.clear()
        machine.quiet = machine.secretless = False
        machine.grown.clear()
        if self.keeper.mode != "run":
            self._settle()
            assert self.keeper.finished, (
                f"not down: {self.keeper.mode} {list(machine.rows)} {list(machine.owned)} {self.keeper.plan}"
            )
            assert not machine.rows
            assert self.keeper.mode == "down" or not machine.owned
            self.keeper = self.keeper.crash()
        machine.paused.clear()
        self.keeper.resume()
        self._settle()
        assert self.nothing_can_be_done(self.keeper.turn()), "the second plan is not empty"
        machine.kept.clear()
        machine.requests_end()
        machine.now += QUIET
        self._settle()
        assert self.keeper.turn().empty, "what nobody asks for is let go, and then there is nothing to do"
        fresh = Keeper(Machine(host=machine.host, bound=machine.bound), self.keeper.wanted)
        for _ in range(TURNS):
            turn_and_finish(fresh)
        wanted, let_go = self.keeper.wanted, self.idle_servers()
        there, made = machine.shape(wanted, let_go), fresh.machine.shape(wanted, let_go)
        assert there == made, f"{there}\n is not\n{made}"
        self.keeper.mode = "purge"
        self._settle()
        assert self.keeper.finished
        assert not machine.alive
        assert not machine.owned

    def nothing_can_be_done(self, plan: Plan) -> bool:
        """Whether only that is left which a person has loaded and which can have no room: it is told, and stays so."""
        standing = self.machine.world(self.keeper.desired).standing
        return not self.keeper.work and all(c.ref in standing and standing[c.ref].never for c in plan.changes)

    def _settle(self) -> None:
        """Turns until nothing is left to do. What failed for good is tried again only as a person would have it."""
        for count in range(TURNS):
            self.machine.requests_end()
            done = turn_and_finish(self.keeper) or (
                self.keeper.plan.changes and self.nothing_can_be_done(self.keeper.plan)
            )
            if done and (self.keeper.mode != "run" or not self.machine.waits):
                steps["served"] += self.machine.served
                steps["told why not"] += self.machine.told
                self.machine.served = self.machine.told = 0
                return
            declared = self.keeper.desired
            lost = [r for r, t in self.machine.troubles.items() if t.kind is FaultClass.PERMANENT]
            if count > 10 and any(
                r in declared and self.machine.troubles[r].digest == declared[r].attempt for r in lost
            ):
                self.keeper.apply()
        raise AssertionError(f"not settled after {TURNS} turns: {self.keeper.plan}, {self.machine.waits} wait")


@pytest.mark.timeout(0 if NIGHTLY else 120)
def test_whatever_happens(record_property: Callable[[str, object], None]) -> None:
    steps.clear()
    try:
        run_state_machine_as_test(Reconciling, settings=SETTINGS)
    finally:
        record_property("count:reconcile core, model-based", json.dumps(steps))
