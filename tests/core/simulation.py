"""A pure model of the machine and of the controller's loop: what each action does, effect by effect, without a machine.

It is the world that the planner's properties are checked against. `Machine` holds what really exists (processes,
files, routes in force) and what the ledger says of it; `world()` is how the kinds would observe it; `effects()` is
what the kinds' `apply` promises to do, one durable effect at a time, so that a fault, a cancellation or a crash can
come between any two. `Keeper` is the controller: its turns, its work, and what a new one does after a crash.

`wrongs` collects every moment at which an action did what the house forbids.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.controller.asking import hopeless, starts
from reconciler.controller.turn import View
from reconciler.core import planner
from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref, canonical, digest_of
from reconciler.core.plan import Action, Change, Op, Phase, Plan
from reconciler.core.residency import Asked
from reconciler.core.retry import READY_FORGIVES, next_try
from reconciler.core.state import (
    Absent,
    Declared,
    Found,
    HostFacts,
    Observation,
    Owned,
    Suspension,
    Trouble,
    Unknown,
    World,
)
from reconciler.kinds.engine.rules import EngineState, Missing, Offer
from reconciler.kinds.engine.spec import EngineSpec
from reconciler.kinds.gateway.rules import GatewayState, Process, Target, content
from reconciler.kinds.gateway.spec import GatewaySpec
from reconciler.kinds.model.rules import ModelState
from reconciler.kinds.provider.rules import Record, seen
from reconciler.kinds.registry import KINDS
from reconciler.kinds.server.room import decided
from reconciler.kinds.server.rules import DRAIN_MOST, ROOM, Instance, ServerState
from reconciler.manifest.parse import check
from reconciler.manifest.resolve import resolve
from reconciler.supervise.machine import SILENCES, Facts, phase
from reconciler.supervise.machine import Phase as Life

RULES = {name: kind.rules for name, kind in KINDS.items()}
GATEWAY = Ref("gateway", "main")
SIZE = 1000  # bytes of every model's file
WAITING = {"", "fetching", "installing", "loading", "stopping"}  # where an action can be cancelled: as it awaits

Desired = Mapping[Ref, Declared]


class Cancelled(Exception):
    """What an action is cancelled with."""


def _folder(spec: EngineSpec) -> str:
    """Where an engine would lie; one whose release is not pinned is known by what the manifest says of it."""
    return spec.folder or spec.digest


@functools.cache
def desired_from(text: str) -> dict[Ref, Declared]:
    return dict(resolve(check(text.encode(), Path("/etc/stack.yaml")), "cp311"))


@dataclass
class Row:
    """What the ledger knows of one process: `known` once its identity was recorded after the spawn."""

    nonce: str
    ref: Ref
    digest: str
    host: str
    port: int
    inputs: dict[str, str]
    known: bool = False
    ready: float | None = None
    retiring: float | None = None


@dataclass(frozen=True)
class Routes:
    """The content of routes.json: model → nonce and port, or a reason."""

    digest: str = ""
    targets: Mapping[str, Target] = field(default_factory=dict)

    @property
    def nonces(self) -> frozenset[str]:
        return frozenset(t.nonce for t in self.targets.values() if t.nonce)


@dataclass
class Machine:
    # what is really there
    alive: set[str] = field(default_factory=set)  # nonces of processes
    hung: set[str] = field(default_factory=set)
    ever_hung: set[str] = field(default_factory=set)
    installed: set[str] = field(default_factory=set)  # folders of engines
    released: set[str] = field(default_factory=set)  # pins of engines whose release was looked at
    missing: set[str] = field(default_factory=set)  # foreign programs that are not there now
    blobs: dict[str, str] = field(default_factory=dict)  # spec digest of a model → token of its file
    bad: set[str] = field(default_factory=set)  # tokens of files whose bytes are not what they should be
    loaded: dict[str, Routes] = field(default_factory=dict)  # gateway nonce → the routes it serves by
    written: Routes | None = None  # routes.json
    inflight: dict[str, int] = field(default_factory=dict)  # as the answering gateway counts
    quiet: bool = False  # the gateway serves, but does not answer questions for the moment
    held: set[int] = field(default_factory=set)  # ports that strangers have
    secretless: bool = False  # the references of client keys lead nowhere
    keyed: bool = True  # whether the gateway that answers has the keys of providers as they are now
    lists: dict[str, tuple[str, ...] | None] = field(default_factory=dict)  # what providers would answer; None: nothing
    listed: dict[Ref, Record] = field(default_factory=dict)  # what asking them gave
    blind: dict[Ref, str] = field(default_factory=dict)  # what cannot be observed for the moment
    host: HostFacts = field(default_factory=HostFacts)
    now: float = 1000.0
    serial: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    # what the ledger says
    rows: dict[str, Row] = field(default_factory=dict)
    owned: dict[Ref, Owned] = field(default_factory=dict)
    troubles: dict[Ref, Trouble] = field(default_factory=dict)
    looked: set[str] = field(default_factory=set)  # spec digests of models whose source was looked at
    pins: set[str] = field(default_factory=set)  # spec digests of models that were fetched once
    proved: dict[str, str] = field(default_factory=dict)  # spec digest of a model → token when it was verified
    paused: set[Ref] = field(default_factory=set)
    suspension: Suspension | None = None
    kept: dict[Ref, float] = field(default_factory=dict)  # what a person has loaded, and when
    # who wants what in memory, and how much of it there is
    waits: dict[Ref, list[float]] = field(default_factory=dict)  # since when each client waits
    dropped: set[Ref] = field(default_factory=set)  # what a person has unloaded, while it is there
    used: dict[str, float] = field(default_factory=dict)  # nonce → when its last request ended
    grown: dict[str, int] = field(default_factory=dict)  # nonce → bytes that it is seen to take
    bound: int = 0  # limits.memory
    pressed: bool = False
    served: int = 0
    told: int = 0  # clients who heard that waiting is of no use
    # what the checks remember
    announced: set[str] = field(default_factory=set)  # nonces retired by a plan that named the downtime
    hopeless: dict[Ref, str] = field(default_factory=dict)  # the spec that failed for good, until somebody asks anew
    wrongs: list[str] = field(default_factory=list)

    # -- how it looks ------------------------------------------------------------------------------------------

    @property
    def servers(self) -> dict[Ref, list[Instance]]:
        out: dict[Ref, list[Instance]] = {}
        for row in self.rows.values():
            if row.ref != GATEWAY:
                times = (row.ready, row.retiring, row.nonce in self.hung)
                seen = Instance(row.nonce, row.digest, self._life(row), row.host, row.port, row.inputs, *times)
                taken = self.grown.get(row.nonce, 0) if row.nonce in self.alive else 0
                seen = replace(seen, memory=taken, private=taken)
                out.setdefault(row.ref, []).append(seen)
        return out

    @property
    def gateways(self) -> list[Process]:
        return [
            Process(r.nonce, r.digest, self._life(r), r.host, r.port) for r in self.rows.values() if r.ref == GATEWAY
        ]

    @property
    def answering(self) -> str:
        """The nonce of the gateway that has the control socket; empty where none answers."""
        found = [g.nonce for g in self.gateways if g.nonce in self.loaded and g.nonce not in self.hung]
        return found[-1] if found and not self.quiet else ""

    def serving(self, spec: GatewaySpec, well: set[str]) -> set[str]:
        """The models that clients get answers from, where the gateway is wanted to be, if the processes `well` are."""
        out: set[str] = set()
        for process in self.gateways:
            if process.listening == spec.listening and process.nonce in well:
                routes = self.loaded.get(process.nonce, Routes())
                out |= {m for m, t in routes.targets.items() if t.nonce in well}
        return out

    def _life(self, row: Row) -> Life:
        silences = SILENCES if row.nonce in self.hung and row.ready is not None else 0
        living = row.known and row.nonce in self.alive
        return phase(Facts(living, row.ready is not None, row.retiring is not None, silences))

    def world(self, desired: Desired, purge: bool = False, begun: frozenset[Ref] = frozenset()) -> World:
        refs = {*desired, *self.owned, *(row.ref for row in self.rows.values())}
        observed = {ref: self._observe(ref, desired) for ref in sorted(refs)}
        world = World(desired, observed, dict(self.owned), dict(self.troubles), self.host, self.now, purge)
        standing, together = decided(world, self.asked(), self.bound, self.pressed, begun)
        held = replace(world, paused=frozenset(self.paused), suspension=self.suspension)
        return replace(held, standing=standing, together=together)

    def asked(self) -> dict[Ref, Asked]:
        return {
            ref: Asked(
                len(self.waits.get(ref, ())),
                min(self.waits.get(ref, ()), default=self.kept.get(ref, 0.0)),
                ref in self.kept,
                ref in self.dropped,
            )
            for ref in {*self.waits, *self.kept, *self.dropped}
        }

    def _observe(self, ref: Ref, desired: Desired) -> Observation:
        if ref in self.blind:
            return Unknown(self.blind[ref])
        match ref.kind:
            case "engine":
                spec: EngineSpec = desired[ref].spec if ref in desired else EngineSpec.of(self.owned[ref].spec)
                if spec.path:
                    there, ours = spec.path not in self.missing, False
                else:
                    there, ours = _folder(spec) in self.installed, True
                if not there:
                    return Missing(offer=Offer(known=spec.pin in self.released))
                return Found(EngineState((spec.path or _folder(spec),), ref.name, ours))
            case "model":
                return Found(self._model(desired[ref].digest if ref in desired else self.owned[ref].digest))
            case "server":
                group = self.servers.get(ref)
                return Found(ServerState(tuple(group))) if group else Absent()
            case "provider":
                return self._provider(ref, desired)
        return Found(self._gateway(desired.get(ref)))

    def _provider(self, ref: Ref, desired: Desired) -> Observation:
        if ref not in desired:
            return Absent()
        spec, known = desired[ref].spec, self.listed.get(ref)
        mine = known if known is not None and known.asked == spec.asked else None
        return Found(seen(spec, mine, "a secret is missing" if self.secretless and spec.keys else ""))

    def _model(self, digest: str) -> ModelState:
        if digest not in self.pins:
            return ModelState(size=SIZE, found=digest in self.looked)
        seen, proved = self.blobs.get(digest), self.proved.get(digest)
        if seen is None:
            return ModelState(digest, SIZE, lost="its file is gone from the store" if proved else "", found=True)
        if seen != proved:
            return ModelState(digest, SIZE, present=True, suspect="its file changed since it was verified")
        return ModelState(digest, SIZE, present=True, token=seen)

    def _gateway(self, declared: Declared | None) -> GatewayState:
        processes = tuple(self.gateways)
        everything = frozenset(self.rows)
        routes = self.loaded[self.answering] if self.answering else None
        if routes is None:
            routed = everything if any(p.life is not Life.GONE for p in processes) else frozenset()
        else:
            routed = routes.nonces if routes == self.written else everything
        keys, problem = self._keys(declared.spec) if declared else ((), "")
        counts = self.inflight if self.answering else {}
        state = GatewayState(processes, routes.digest if routes else "", routed, dict(counts), keys, problem)
        torn = routes is not None and routes != self.written
        return replace(
            state, used=dict(self.used), started=0.0, torn=torn, untold=not self.keyed and bool(self.answering)
        )

    def _keys(self, spec: GatewaySpec) -> tuple[tuple[tuple[str, str], ...], str]:
        if self.secretless and spec.api_keys:
            return (), "a secret is missing"
        return tuple((name, f"sha256 of {reference}") for name, reference in spec.api_keys), ""

    def plan(self, desired: Desired, purge: bool = False) -> Plan:
        return planner.plan(self.world(desired, purge), RULES)

    # -- what an action does -----------------------------------------------------------------------------------

    def do(self, change: Change, action: Action, desired: Desired) -> None:
        """The whole action at once."""
        for _ in self.effects(change, action, desired):
            pass

    def effects(self, change: Change, action: Action, desired: Desired) -> Generator[str]:
        """One effect, one yield with what was done or is awaited now. A generator that is closed is a crash."""
        ref, declared = change.ref, desired.get(change.ref)
        nonce = str(action.args.get("nonce", ""))
        if nonce and nonce not in self.rows:
            nonce = ""  # it has gone meanwhile
        match (ref.kind, action.verb):
            case ("engine", "resolve"):
                assert declared
                yield "fetching"
                self.released.add(declared.spec.pin)
                return
            case ("engine", "install"):
                assert declared
                yield "installing"
                self.installed.add(_folder(declared.spec))
                yield "installed"
            case ("engine", "adopt"):
                assert declared
                if declared.spec.path in self.missing:
                    raise Fault("ENGINE_NOT_FOUND", "it is not there", kind=FaultClass.NEEDS_HUMAN)
            case ("model", "resolve"):
                assert declared
                yield "fetching"
                self.looked.add(declared.digest)
                yield "looked"
                return
            case ("model", "fetch"):
                assert declared
                yield "fetching"
                self.pins.add(declared.digest)
                yield "pinned"
                self.blobs[declared.digest] = f"token{next(self.serial)}"
                yield "stored"
                if declared.digest not in self.blobs:
                    raise Fault("INTERNAL_ERROR", "the file has gone before it could be noted")
                self.proved[declared.digest] = self.blobs[declared.digest]
                yield "noted"
            case ("model", "verify"):
                assert declared
                yield "fetching"
                seen = self.blobs.get(declared.digest)
                if seen in self.bad:
                    del self.blobs[declared.digest]
                elif seen is not None:
                    self.proved[declared.digest] = seen
                yield "proved"
            case ("server", "start"):
                yield from self._start_server(ref, desired)
            case ("server" | "gateway", "await"):
                yield from self._become_ready(nonce)
            case ("server", "retire"):
                if nonce:
                    self.rows[nonce].retiring = self.rows[nonce].retiring or self.now
            case ("server" | "gateway", "stop"):
                if nonce:
                    yield from self._stop(nonce, change)
            case ("gateway", "start"):
                assert declared
                yield from self._start_gateway(declared.spec, action)
            case ("gateway", "route"):
                assert declared
                yield from self._route(declared.spec, action)
            case ("provider", "discover"):
                assert declared
                yield "fetching"
                known, models = self.listed.get(ref) or Record(declared.spec.asked), self.lists.get(ref.name, ("m",))
                known = known if known.asked == declared.spec.asked else Record(declared.spec.asked)
                if models is None:
                    self.listed[ref] = known.failed("UNREACHABLE", "it cannot be reached", "", 0.0, self.now)
                else:
                    self.listed[ref] = known.listed(models, "GET /models", self.now)
                yield "noted"
            case ("provider", "note" | "release"):
                self.listed.pop(ref, None)
                yield "noted"
            case ("engine", "purge"):
                self.installed.discard(_folder(EngineSpec.of(self.owned[ref].spec)))
                yield "removed"
            case ("model", "purge"):
                self.blobs.pop(self.owned[ref].digest, None)
                yield "removed"
            case ("gateway", "release"):
                self.written = None
                yield "unwritten"
        if declared is None:
            if action.verb in ("release", "purge"):
                self.owned.pop(ref, None)
        elif action.verb not in ("stop", "retire") and not (ref == GATEWAY and action.verb in ("start", "await")):
            self.owned[ref] = Owned(ref, declared.digest, json.loads(canonical(declared.spec)))

    def _start_server(self, ref: Ref, desired: Desired) -> Generator[str]:
        declared = desired[ref]
        model = desired[Ref("model", declared.spec.model)]
        state = self._model(model.digest)
        engine = self._observe(Ref("engine", declared.spec.engine), desired)
        if not state.usable or not isinstance(engine, Found):
            raise Fault("NOT_READY", "its engine or its model has just gone away")
        number = next(self.serial)
        row = Row(f"n{number}", ref, declared.digest, "127.0.0.1", number, {"model": state.token})
        yield from self._spawn(row)

    def _start_gateway(self, spec: GatewaySpec, action: Action) -> Generator[str]:
        if spec.port in self.held or any(g.port == spec.port and g.nonce in self.alive for g in self.gateways):
            raise Fault("PORT_IN_USE", f"port {spec.port} is held", kind=FaultClass.NEEDS_HUMAN)
        self._write_routes(spec, action)
        yield "written"
        row = Row(f"g{next(self.serial)}", GATEWAY, spec.listening, spec.host, spec.port, {})
        yield from self._spawn(row)

    def _spawn(self, row: Row) -> Generator[str]:
        self.rows[row.nonce] = row
        yield "intended"
        self.alive.add(row.nonce)
        yield "spawned"
        row.known = True
        yield from self._become_ready(row.nonce)

    def _become_ready(self, nonce: str) -> Generator[str]:
        try:
            yield "loading"
            if nonce not in self.alive:
                raise Fault("PROCESS_EXITED", "the process is gone")
            if self.rows[nonce].ref == GATEWAY:
                if self.written is None:
                    raise Fault("PROCESS_EXITED", "it has no routes")
                self.loaded.setdefault(nonce, self.written)
        except (Fault, Cancelled):
            self.end(nonce)
            self.rows.pop(nonce, None)
            raise
        self.rows[nonce].ready = self.now
        yield "ready"

    def _stop(self, nonce: str, change: Change) -> Generator[str]:
        row = self.rows[nonce]
        row.retiring = row.retiring or self.now
        late = self.now - row.retiring > DRAIN_MOST and "let go" not in change.reason
        if self.inflight.get(nonce) and not late and nonce not in self.ever_hung and self.answering:
            self.wrongs.append(f"{change.ref} is stopped while {self.inflight[nonce]} requests run on it")
        yield "stopping"
        self.end(nonce)
        yield "stopped"
        self.rows.pop(nonce, None)

    def _write_routes(self, spec: GatewaySpec, action: Action) -> None:
        keys, problem = self._keys(spec)
        if problem:
            raise Fault("SECRET_MISSING", problem, kind=FaultClass.NEEDS_HUMAN)
        aim = action.args["targets"]
        self.written = Routes(digest_of(content(spec, aim, keys, action.args["offers"])), aim)

    def _route(self, spec: GatewaySpec, action: Action) -> Generator[str]:
        self._write_routes(spec, action)
        assert self.written is not None
        yield "written"
        if not self.answering:
            raise Fault("ROUTES_REFUSED", "the gateway does not answer")
        self.loaded[self.answering], self.keyed = self.written, True
        yield "reloaded"

    # -- what the world does by itself -------------------------------------------------------------------------

    def end(self, nonce: str) -> None:
        """The process is gone, whoever did it."""
        if self.answering == nonce:
            self.inflight = {}
        self.alive.discard(nonce)
        self.hung.discard(nonce)
        self.loaded.pop(nonce, None)
        self.inflight.pop(nonce, None)
        self.grown.pop(nonce, None)

    def requests_end(self) -> None:
        self.used |= dict.fromkeys(self.inflight, self.now)
        self.inflight.clear()

    def leads_to(self, ref: Ref) -> str:
        """The nonce of the living process that a client's request for a server reaches now; empty where none does."""
        routes = self.loaded.get(self.answering)
        target = routes.targets.get(ref.name) if routes is not None else None
        return target.nonce if target is not None and target.nonce in self.alive - self.hung else ""

    def kill(self, ref: Ref) -> None:
        for row in list(self.rows.values()):
            if row.ref == ref:
                self.end(row.nonce)

    def hang(self, ref: Ref) -> None:
        self.hung |= {row.nonce for row in self.rows.values() if row.ref == ref and row.nonce in self.alive}
        self.ever_hung |= self.hung

    def damage(self, digest: str) -> None:
        """The bytes change under us, and it shows."""
        self.touch(digest)
        if digest in self.blobs:
            self.bad.add(self.blobs[digest])

    def touch(self, digest: str) -> None:
        """The file changes outside, but not its bytes."""
        if digest in self.blobs and self.blobs[digest] not in self.bad:
            self.blobs[digest] = f"token{next(self.serial)}"

    def bring_anew(self, digest: str) -> None:
        """The file was fetched again: good, but another one."""
        self.touch(digest)
        self.proved[digest] = self.blobs[digest]

    def settle(self, row: Row, digest: str = "", kind: FaultClass = FaultClass.TRANSIENT) -> None:
        """Bring one row and its process together, as the controller does with each process that ended."""
        if row.nonce in self.alive:
            row.known = True
            return
        if row.known and row.retiring is None:
            self.note_trouble(row.ref, digest or row.digest, Fault("PROCESS_EXITED", "it ended", kind=kind), row.ready)
        del self.rows[row.nonce]

    def note_trouble(self, ref: Ref, digest: str, fault: Fault, ready: float | None = None) -> None:
        earlier = self.troubles.get(ref)
        forgiven = ready is not None and self.now - ready >= READY_FORGIVES
        count = earlier.count + 1 if earlier and earlier.digest == digest and not forgiven else 1
        if fault.kind is FaultClass.PERMANENT:
            self.hopeless[ref] = digest
        else:
            self.hopeless.pop(ref, None)
        self.troubles[ref] = Trouble(digest, count, self.now, fault.code, fault.message, fault.hint, fault.kind)

    # -- to the end --------------------------------------------------------------------------------------------

    def converge(self, desired: Desired, limit: int = 60) -> list[Plan]:
        """Plan and act until nothing is left to do; every plan on the way."""
        plans = []
        for _ in range(limit):
            for row in list(self.rows.values()):
                self.settle(row)
            plan = self.plan(desired)
            plans.append(plan)
            if plan.empty:
                return plans
            steps = planner.runnable(plan, self.world(desired))
            assert steps or any(c.ref in self.troubles for c in plan.changes), f"stuck: {plan}"
            if not steps:
                self.now += 130.0
            for change, action in steps:
                self.do(change, action, desired)
        raise AssertionError(f"not converged after {limit} turns: {plans[-1]}")

    def converge_routes(self, desired: dict[Ref, Declared]) -> None:
        """Have the gateway follow what runs, and nothing else happen."""
        for change, action in planner.runnable(self.plan(desired), self.world(desired)):
            if change.ref == GATEWAY:
                self.do(change, action, desired)

    def shape(self, desired: Iterable[Ref], let_go: Collection[Ref] = ()) -> object:
        """What exists and is ours, without the names that a second build would choose differently.

        Of what is `let_go` the one has run before, and the other has not.
        """
        wanted = set(desired)
        servers = {str(r): [(i.digest, i.life) for i in group] for r, group in sorted(self.servers.items())}
        routes = self.loaded.get(self.answering, Routes())
        return {
            "owned": {str(ref): owned.digest for ref, owned in sorted(self.owned.items()) if ref not in let_go},
            "servers": servers,
            "gateways": [(g.listening, g.life) for g in self.gateways],
            "routed": {m: str(self.rows[t.nonce].ref) if t.nonce else "" for m, t in routes.targets.items()},
            "routes on disk are in force": self.written == self.loaded.get(self.answering),
            "tokens": all(i.inputs["model"] in self.blobs.values() for group in self.servers.values() for i in group),
            "files": sorted(
                o.digest for ref, o in self.owned.items() if ref in wanted and self._model(o.digest).usable
            ),
            "alive": len(self.alive),
        }


@dataclass
class Work:
    """An action being carried out; `cancelled` is delivered where it awaits something."""

    change: Change
    action: Action
    attempt: str
    wanted: Desired  # when it began
    running: Generator[str]
    stage: str = ""
    cancelled: bool = False


class Keeper:
    """The controller of a machine: everything in it is lost with it."""

    def __init__(self, machine: Machine, desired: Desired) -> None:
        self.machine, self.wanted = machine, desired
        self.filed = desired  # what the files say: the same, but while suspended
        self.mode = "run"  # run | down | purge
        self.work: dict[Ref, Work] = {}
        self.ended: set[Ref] = set()
        self.plan = Plan()
        for row in list(machine.rows.values()):
            machine.settle(row)

    @property
    def desired(self) -> Desired:
        if self.mode == "purge":
            return {}
        if self.mode == "down":
            return {ref: d for ref, d in self.wanted.items() if ref.kind in ("engine", "model")}
        return self.wanted

    @property
    def finished(self) -> bool:
        """Whether taking down is complete."""
        left = [ref for ref in self.machine.owned if self.mode == "purge" or ref.kind in ("server", "gateway")]
        return self.mode != "run" and not (self.work or left or self.machine.rows)

    def save(self, desired: Desired) -> None:
        """The files change; they are taken over unless that is suspended."""
        self.filed = desired
        if self.machine.suspension is None:
            self.wanted = desired
            self.machine.paused &= desired.keys()

    def pause(self, ref: Ref) -> None:
        self.machine.paused.add(ref)
        self._stop_fetching({ref})

    def suspend(self) -> None:
        self.machine.suspension = Suspension(self.machine.now)
        self._stop_fetching(set(self.work))

    def apply_by_hand(self) -> None:
        """A saved plan, while suspended."""
        assert self.machine.suspension is not None
        self.machine.suspension = replace(self.machine.suspension, asked=True)
        self.wanted = self.filed
        self.machine.paused &= self.filed.keys()

    def resume(self) -> None:
        self.machine.suspension = None
        self.save(self.filed)

    def _stop_fetching(self, refs: set[Ref]) -> None:
        for ref in refs & self.work.keys():
            if self.work[ref].action.phase is Phase.MATERIALISE:
                self.cancel(ref)

    def apply(self) -> None:
        """What a person asks for with `reconcile apply`: what has failed is tried again at once."""
        self.machine.troubles.clear()
        self.machine.hopeless.clear()

    def turn(self, meanwhile: Callable[[], None] = lambda: None) -> Plan:
        """Look, plan, begin. `meanwhile` is what happens during the look, which the plan knows nothing of."""
        machine, desired = self.machine, self.desired
        for ref, work in list(self.work.items()):
            wanted = desired.get(ref)
            if work.action.phase <= Phase.ROUTE and (wanted is None or wanted.attempt != work.attempt):
                self.cancel(ref)
        self.ended.clear()
        begun = frozenset(ref for ref, work in self.work.items() if work.action.verb == "start")
        world = replace(machine.world(desired, self.mode == "purge", begun), down=self.mode != "run")
        plan = planner.plan(world, RULES)
        meanwhile()
        for row in list(machine.rows.values()):
            if row.ref not in self.work and not (row.known and row.nonce in machine.alive):
                machine.settle(row)
        self.plan = plan
        for change, action in planner.runnable(plan, world):
            if change.ref not in self.work and change.ref not in self.ended and self._allowed(change, action):
                self._begin(change, action, world)
        self._forgive(world)
        machine.pressed = bool(world.together.pressed)
        self._settle_wishes()
        self._answer(plan, world)
        return plan

    def _settle_wishes(self) -> None:
        """Forget what is fulfilled, as the controller does after each turn."""
        machine = self.machine
        machine.dropped &= {row.ref for row in machine.rows.values()}
        for ref in [r for r in machine.kept if starts(self.wanted.get(r)) == "always"]:
            del machine.kept[ref]

    def _answer(self, plan: Plan, world: World) -> None:
        """Clients go on with what serves, and away where waiting is of no use."""
        machine = self.machine
        for ref, clients in list(machine.waits.items()):
            if nonce := machine.leads_to(ref):
                machine.inflight[nonce] = machine.inflight.get(nonce, 0) + len(clients)
                machine.served += len(clients)
            elif ref not in self.work and hopeless(ref, View(world, plan, {}), min(clients))[0]:
                machine.told += len(clients)
            elif ref in self.wanted:
                continue
            del machine.waits[ref]

    def _allowed(self, change: Change, action: Action) -> bool:
        if self.mode == "run":
            return True
        return change.op is Op.DELETE and (self.mode == "purge" or change.ref.kind in ("server", "gateway"))

    def _begin(self, change: Change, action: Action, world: World) -> None:
        desired = world.desired
        attempt = desired[change.ref].attempt if change.ref in desired else ""
        machine, nonce = self.machine, action.args.get("nonce")
        if nonce in machine.rows and machine.rows[nonce].ref != change.ref:
            machine.wrongs.append(f"{change.ref} does {action.verb} to what is not its own")
        if attempt and machine.hopeless.get(change.ref) == attempt:
            machine.wrongs.append(f"{change.ref} is tried again, though only a changed spec can mend it")
        beside = change.ref.kind == "server" and action.verb == "start" and world.found(change.ref)
        if beside and beside.living and 0 < world.host.memory_available < SIZE * ROOM:
            machine.wrongs.append(f"{change.ref} is started beside another one, and memory holds only one")
        if change.ref.kind == "server" and action.verb == "start":
            self._judge_memory(change.ref, world)
        if action.verb == "retire" and change.price.downtime:
            machine.announced.add(str(nonce))
        self._judge_holds(change, action, world)
        running = machine.effects(change, action, desired)
        self.work[change.ref] = Work(change, action, attempt, desired, running)
        if action.verb == "retire":  # one write, done before anything else can happen
            self.finish(change.ref)

    def _judge_memory(self, ref: Ref, world: World) -> None:
        """Nothing that need not run is begun beyond the budget."""
        machine, declared = self.machine, world.desired.get(ref)
        if not machine.bound or starts(declared) == "always":
            return
        begun = {r for r, work in self.work.items() if r.kind == "server" and work.action.verb == "start"}
        there = {row.ref for row in machine.rows.values() if row.ref.kind == "server" and row.nonce in machine.alive}
        if ref in there:
            return  # a successor, which is started beside it wherever memory holds both for a moment
        grown = {row.ref: machine.grown.get(row.nonce, 0) for row in machine.rows.values()}
        taken = sum(max(int(SIZE * ROOM), grown.get(r, 0)) for r in {ref, *begun, *there})
        if taken > machine.bound:
            who = sorted(map(str, {ref, *begun, *there}))
            machine.wrongs.append(f"{ref} is begun, and {taken} bytes are taken of {machine.bound} by {who}")

    def _judge_holds(self, change: Change, action: Action, world: World) -> None:
        """Nothing is begun that a person holds."""
        machine, ref = self.machine, change.ref
        if self.mode != "run":
            return
        if ref in machine.paused and ref in world.desired:
            machine.wrongs.append(f"{ref} is paused, and {action.verb} is begun for it")
        if machine.suspension is not None and not machine.suspension.asked:
            declared, owned = world.desired.get(ref), world.owned.get(ref)
            as_made = declared is not None and owned is not None and owned.digest == declared.digest
            if ref.kind in ("engine", "model") or not (as_made or action.phase is Phase.ROUTE):
                machine.wrongs.append(f"all is suspended, and {action.verb} is begun for {ref}")

    def _forgive(self, world: World) -> None:
        for ref, trouble in world.troubles.items():
            row = next((r for r in self.machine.rows.values() if r.ref == ref), None)
            if row is not None:
                well = row.ready is not None and self.plan.change(ref) is None
                if well and self.machine.now - max(row.ready or 0.0, trouble.at) >= READY_FORGIVES:
                    self.machine.troubles.pop(ref, None)
                    self.machine.hopeless.pop(ref, None)
            elif ref not in world.desired and ref not in world.owned:
                self.machine.troubles.pop(ref, None)
                self.machine.hopeless.pop(ref, None)

    def notice(self, row: Row, kind: FaultClass) -> None:
        """The task that watches a process saw it end."""
        declared = self.desired.get(row.ref)
        self.machine.settle(row, declared.attempt if declared else "", kind)

    # -- work ----------------------------------------------------------------------------------------------------

    def step(self, ref: Ref) -> None:
        """The next effect of the work on `ref`."""
        work = self.work[ref]
        if work.cancelled and work.stage in WAITING:
            self.throw(ref, Cancelled())
        else:
            self._advance(ref, lambda: next(work.running))

    def finish(self, ref: Ref) -> None:
        while ref in self.work:
            self.step(ref)

    def cancel(self, ref: Ref) -> None:
        """Ask the work to end; it does where it waits for something."""
        self.work[ref].cancelled = True
        if self.work[ref].stage in WAITING:
            self.step(ref)

    def throw(self, ref: Ref, error: Exception) -> None:
        """What it is doing fails now."""
        self._advance(ref, lambda: self.work[ref].running.throw(error))

    def _advance(self, ref: Ref, go: Callable[[], str]) -> None:
        machine, work = self.machine, self.work[ref]
        # One that hung may be replaced, though it goes on meanwhile; and one may hang before it is routed to.
        before = self._served(machine.alive - machine.ever_hung - machine.announced)
        try:
            work.stage = go()
        except (StopIteration, Cancelled):
            self._end(ref)
            if ref.kind not in ("server", "gateway") and not work.cancelled:
                machine.troubles.pop(ref, None)
                machine.hopeless.pop(ref, None)
        except Fault as fault:
            self._end(ref)
            machine.note_trouble(ref, work.attempt, fault)
        for model in before - self._served(machine.alive):
            told = {c.ref for c in (*self.plan.changes, work.change) if c.price.downtime}
            server = Ref("server", model)
            always = starts(self.desired.get(server)) == starts(work.wanted.get(server)) == "always"
            if server in self.desired and server in work.wanted and always and not told & {server, GATEWAY}:
                machine.wrongs.append(f"{model} stops serving by {work.action.verb} of {ref}, and no plan had said so")

    def _served(self, well: set[str]) -> set[str]:
        gateway = self.desired.get(GATEWAY)
        return self.machine.serving(gateway.spec, well) if gateway else set()

    def _end(self, ref: Ref) -> None:
        del self.work[ref]
        self.ended.add(ref)

    def next_due(self) -> float:
        """The time of the next try of what failed; now where none is waiting."""
        dues = [next_try(r, t) for r, t in self.machine.troubles.items() if t.kind is not FaultClass.PERMANENT]
        return min((d for d in dues if d > self.machine.now), default=self.machine.now)

    def crash(self) -> Keeper:
        """Killed between two effects; its successor recovers."""
        for work in self.work.values():
            work.running.close()
        successor = Keeper(self.machine, self.wanted)
        successor.filed = self.filed
        return successor


def turn_and_finish(keeper: Keeper) -> bool:
    """One turn, its work to the end, and the time until the next try; True once there is nothing to do."""
    idle = not keeper.work
    plan = keeper.turn()
    for ref in list(keeper.work):
        keeper.finish(ref)
    assert not keeper.machine.wrongs, keeper.machine.wrongs
    if idle and (plan.empty or keeper.finished):
        return True
    keeper.machine.now = max(keeper.machine.now + 1.0, keeper.next_due())
    return False
