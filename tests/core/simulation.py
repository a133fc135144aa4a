"""A pure model of the machine: what each action does to it, without any machine.

It is the world that the planner's properties are checked against. `Machine` holds what exists; `world()` is how the
kinds would observe it; `do()` carries an action out the way the kinds' `apply` promises to.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.core import planner
from reconciler.core.ids import Ref, canonical, digest_of
from reconciler.core.plan import Action, Change, Plan
from reconciler.core.state import Declared, Found, HostFacts, Observation, Owned, Trouble, World
from reconciler.kinds.engine.rules import EngineState
from reconciler.kinds.gateway.rules import GatewayState, Process, content
from reconciler.kinds.model.rules import ModelState
from reconciler.kinds.registry import KINDS
from reconciler.kinds.server.rules import Instance, ServerState
from reconciler.manifest.parse import check
from reconciler.manifest.resolve import resolve
from reconciler.supervise.machine import Phase as Life

RULES = {name: kind.rules for name, kind in KINDS.items()}
GATEWAY = Ref("gateway", "main")


@functools.cache
def desired_from(text: str) -> dict[Ref, Declared]:
    return dict(resolve(check(text.encode(), Path("/etc/stack.yaml")), "cp311"))


@dataclass
class Machine:
    engines: set[str] = field(default_factory=set)  # names that are installed
    blobs: dict[str, str] = field(default_factory=dict)  # spec digest of a model → token of its file
    damaged: set[str] = field(default_factory=set)
    servers: dict[Ref, list[Instance]] = field(default_factory=dict)
    gateways: list[Process] = field(default_factory=list)
    routes: str = ""
    routed: frozenset[str] = frozenset()
    inflight: dict[str, int] = field(default_factory=dict)
    owned: dict[Ref, Owned] = field(default_factory=dict)
    troubles: dict[Ref, Trouble] = field(default_factory=dict)
    host: HostFacts = field(default_factory=HostFacts)
    serial: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    overlaps: list[str] = field(default_factory=list)  # moments at which a routed instance was stopped

    def world(self, desired: dict[Ref, Declared], purge: bool = False) -> World:
        observed: dict[Ref, Observation] = {}
        for ref in {*desired, *self.owned, *(r for r, group in self.servers.items() if group)}:
            if (seen := self._observe(ref, desired)) is not None:
                observed[ref] = Found(seen)
        return World(desired, observed, dict(self.owned), dict(self.troubles), self.host, 1000.0, purge)

    def _observe(self, ref: Ref, desired: dict[Ref, Declared]) -> object | None:
        match ref.kind:
            case "engine":
                return EngineState((ref.name,), ref.name) if ref.name in self.engines else None
            case "model":
                digest = desired[ref].digest if ref in desired else self.owned[ref].digest
                token = self.blobs.get(digest)
                suspect = "its file changed since it was verified" if digest in self.damaged else ""
                return ModelState(digest, 1000, present=token is not None, suspect=suspect, token=token or "")
            case "server":
                return ServerState(tuple(self.servers.get(ref, ())))
        return GatewayState(tuple(self.gateways), self.routes if self.gateways else "", self.routed, self.inflight)

    def plan(self, desired: dict[Ref, Declared], purge: bool = False) -> Plan:
        return planner.plan(self.world(desired, purge), RULES)

    def do(self, change: Change, action: Action, desired: dict[Ref, Declared]) -> None:
        ref, declared = change.ref, desired.get(change.ref)
        match (ref.kind, action.verb):
            case ("engine", "install" | "adopt"):
                self.engines.add(ref.name)
            case ("model", "fetch"):
                assert declared
                self.blobs[declared.digest] = f"token{next(self.serial)}"
            case ("model", "verify"):
                assert declared
                if declared.digest in self.damaged:
                    self.damaged.discard(declared.digest)
                    del self.blobs[declared.digest]
            case ("server", "start"):
                assert declared
                token = self.blobs[self._model_digest(declared, desired)]
                number = next(self.serial)
                started = Instance(
                    f"n{number}", declared.digest, Life.READY, "127.0.0.1", number, {"model": token}, float(number)
                )
                self.servers.setdefault(ref, []).append(started)
            case ("server", "await"):
                self.servers[ref] = [replace(i, life=Life.READY, ready=1.0) for i in self.servers[ref]]
            case ("server", "retire"):
                nonce = str(action.args["nonce"])
                group = self.servers[ref]
                self.servers[ref] = [
                    replace(i, retiring=1000.0, life=Life.RETIRING) if i.nonce == nonce else i for i in group
                ]
            case ("server", "stop"):
                nonce = str(action.args["nonce"])
                if nonce in self.routed and self.gateways and self._healthy(nonce):
                    self.overlaps.append(nonce)
                self.servers[ref] = [i for i in self.servers[ref] if i.nonce != nonce]
            case ("gateway", "start"):
                assert declared
                number = next(self.serial)
                self.gateways.append(Process(f"g{number}", declared.spec.listening, Life.READY))
                self._route(declared, action)
            case ("gateway", "route"):
                assert declared
                self._route(declared, action)
            case ("gateway", "stop"):
                self.gateways = [g for g in self.gateways if g.nonce != action.args["nonce"]]
            case (_, "purge"):
                self.engines.discard(ref.name)
                self.blobs.pop(self.owned[ref].digest, None)
        if declared is None:
            if action.verb in ("release", "purge"):
                self.owned.pop(ref, None)
        elif action.verb not in ("stop", "retire") and not (ref == GATEWAY and action.verb == "start"):
            self.owned[ref] = Owned(ref, declared.digest, json.loads(canonical(declared.spec)))

    def _healthy(self, nonce: str) -> bool:
        return any(i.nonce == nonce and not i.silent for group in self.servers.values() for i in group)

    def _model_digest(self, declared: Declared, desired: dict[Ref, Declared]) -> str:
        return desired[Ref("model", declared.spec.model)].digest

    def _route(self, declared: Declared, action: Action) -> None:
        aim = action.args["targets"]
        self.routes = digest_of(content(declared.spec, aim, ()))
        self.routed = frozenset(t.nonce for t in aim.values() if t.nonce)

    # -- what the world does by itself -------------------------------------------------------------------------

    def kill(self, ref: Ref) -> None:
        self.servers.pop(ref, None)

    def hang(self, ref: Ref) -> None:
        self.servers[ref] = [replace(i, life=Life.UNRESPONSIVE, silent=True) for i in self.servers.get(ref, [])]

    def damage(self, digest: str) -> None:
        if digest in self.blobs:
            self.damaged.add(digest)

    def converge(self, desired: dict[Ref, Declared], limit: int = 60) -> list[Plan]:
        """Plan and act until nothing is left to do; every plan on the way."""
        plans = []
        for _ in range(limit):
            plan = self.plan(desired)
            plans.append(plan)
            if plan.empty:
                return plans
            steps = planner.runnable(plan, self.world(desired))
            assert steps, f"stuck: {plan}"
            for change, action in steps:
                self.do(change, action, desired)
        raise AssertionError(f"not converged after {limit} turns: {plans[-1]}")

    def converge_routes(self, desired: dict[Ref, Declared]) -> None:
        """Have the gateway follow what runs, and nothing else happen."""
        for change, action in planner.runnable(self.plan(desired), self.world(desired)):
            if change.ref == GATEWAY:
                self.do(change, action, desired)

    def shape(self, desired: Iterable[Ref]) -> object:
        """What exists and is ours, without the names that a second build would choose differently."""
        return {
            "owned": {str(ref): owned.digest for ref, owned in sorted(self.owned.items())},
            "servers": {
                str(r): [(i.digest, i.life) for i in group] for r, group in sorted(self.servers.items()) if group
            },
            "gateways": [(g.listening, g.life) for g in self.gateways],
            "routed": sorted(str(ref) for ref, group in self.servers.items() for i in group if i.nonce in self.routed),
            "tokens": all(i.inputs["model"] in self.blobs.values() for group in self.servers.values() for i in group),
        }
