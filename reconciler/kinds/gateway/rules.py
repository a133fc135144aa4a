"""The gateway: one process, and the routes it reads.

Routes are a pure function of what is declared and of which instances are ready *now*. A name whose server is not
ready yet is routed to nothing with a reason, so that clients hear "loading" and not "unknown".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.core.ids import Ref, canonical, digest_of
from reconciler.core.plan import Action, Change, FieldChange, Op, Phase, Price
from reconciler.core.state import VOLATILE, Declared, Drift, Unknown, World
from reconciler.core.status import Condition, no, yes
from reconciler.kinds.carried import CALLS
from reconciler.kinds.gateway.spec import FORMAT, ForkSpec, GatewaySpec, GrantSpec, UpstreamSpec
from reconciler.supervise.machine import Phase as Life


@dataclass(frozen=True, slots=True)
class Process:
    """A gateway process; `listening` is the digest of its host and port."""

    nonce: str
    listening: str
    life: Life
    host: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class GatewayState:
    """`digest` is of the routes it serves now, `routed` the nonces they lead to, `inflight` how many
    requests run on each nonce, `used` when each last ended one (Unix seconds, since it `started`); `keys` are (name,
    sha256) pairs.

    `problem` says which secret cannot be resolved; `holder` who else has the port; `torn` that routes.json is not what
    it serves by: something came between the writing and the reading. `untold` says that the keys of providers which it
    has are not those of now; a gateway that tells nothing of them is not told any.
    """

    processes: tuple[Process, ...] = ()
    digest: str = ""
    routed: frozenset[str] = frozenset()
    inflight: Mapping[str, int] = field(default_factory=dict, metadata=VOLATILE)
    keys: tuple[tuple[str, str], ...] = ()
    problem: str = ""
    holder: str = ""
    used: Mapping[str, float] = field(default_factory=dict, metadata=VOLATILE)
    started: float = field(default=0.0, metadata=VOLATILE)
    torn: bool = False
    untold: bool = False

    @property
    def living(self) -> tuple[Process, ...]:
        return tuple(p for p in self.processes if p.life is not Life.GONE)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model's requests go; nothing of it is set while nothing is ready. `on_demand` models load when asked,
    `by_hand` ones when a person says so.

    `calls` is what it calls its model, where that is to be said in each request; `context` what one request may use
    there, where that is not what the manifest says (else 0).
    """

    nonce: str = ""
    host: str = ""
    port: int = 0
    reason: str = field(default="", compare=False)
    on_demand: bool = False
    by_hand: bool = False
    calls: str = ""
    context: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """What a provider has: models, whether any other may be asked for too, and what keeps it from being asked."""

    models: tuple[str, ...] = ()
    open: bool = False
    reason: str = ""


class GatewayRules:
    drift = Drift.CORRECT
    runs = True

    def change(self, ref: Ref, world: World) -> Change | None:
        state: GatewayState = world.found(ref) or GatewayState()
        declared = world.desired.get(ref)
        if declared is None:
            stops = tuple(_stop(p) for p in state.living)
            forget = Action(Phase.SWEEP, "release", "forget it")
            return Change(ref, Op.DELETE, "no longer wanted", (*stops, forget))
        spec: GatewaySpec = declared.spec
        current = [p for p in state.living if p.listening == spec.listening and p.life in (Life.STARTING, Life.READY)]
        others = tuple(_stop(p) for p in state.living if p not in current)
        owned = world.owned.get(ref)
        fields = _fields(owned.spec, spec) if owned else ()
        if not current:
            return _start(ref, declared, state, others, fields, world)
        if current[-1].life is Life.STARTING:
            wait = Action(Phase.START, "await", "wait until it answers", {"nonce": current[-1].nonce})
            return Change(ref, Op.UPDATE, "it is starting", (wait, *others), fields, where=declared.where)
        aim, has = targets(spec, world), offers(spec, world)
        current_routes = state.digest == digest_of(content(spec, aim, state.keys, has)) and not state.torn
        same = owned is not None and owned.digest == declared.digest
        if not current_routes or state.untold or state.problem or not same:
            text, hold = "rewrite its routes; running requests are not touched", _unseen(spec, world)
            if current_routes and same and state.untold and not state.problem:
                text, fields = "tell it the keys of its providers", ()
            route = Action(Phase.ROUTE, "route", text, {"targets": aim, "offers": has}, hold)
            follow = "its routes are to follow the servers" + (" and providers" if spec.providers else "")
            reason = "its settings changed" if fields else follow
            if current_routes and same and state.untold:
                reason = "it does not have the keys of its providers that are there now"
            return Change(ref, Op.UPDATE, reason, (route, *others), fields, where=declared.where)
        if others:
            return Change(ref, Op.REPLACE, "it listens elsewhere now", others, where=declared.where)
        return None

    def conditions(self, ref: Ref, world: World) -> tuple[Condition, ...]:
        state: GatewayState = world.found(ref) or GatewayState()
        declared = world.desired.get(ref)
        ready = [p for p in state.living if p.life is Life.READY]
        running = yes("Running", "Alive") if state.living else no("Running", "NotStarted")
        if declared is None:
            return no("Ready", "NotWanted", "it is being stopped"), running
        spec: GatewaySpec = declared.spec
        if not any(p.listening == spec.listening for p in ready):
            return no("Ready", "NotListening", state.holder and f"port {spec.port} is held by {state.holder}"), running
        aim = targets(spec, world)
        current = state.digest == digest_of(content(spec, aim, state.keys, offers(spec, world))) and not state.untold
        idle = {ref.name for ref, s in world.standing.items() if not s.wanted}
        waiting = sorted(name for name, target in aim.items() if not target.nonce and name not in idle)
        if not current:
            return no("Ready", "RoutesPending"), running, no("Routed", "Pending")
        routed = no("Routed", "NotAllReady", ", ".join(waiting)) if waiting else yes("Routed", "AllModels")
        return yes("Ready", "Listening", spec.url), running, routed


def targets(spec: GatewaySpec, world: World) -> dict[str, Target]:
    """Model → the instance that serves it now: the wanted one once it is ready, an earlier one until then."""
    out = {}
    for model in spec.models:
        ref = Ref("server", model.name)
        state, declared = world.found(ref), world.desired.get(ref)
        let_go = ref in world.standing and not world.standing[ref].wanted
        ready = [i for i in state.living if i.life is Life.READY] if state is not None and not let_go else []
        # The ones made from the wanted spec last, and among those the youngest.
        ready.sort(key=lambda i: (declared is not None and i.digest == declared.digest, i.ready or 0.0))
        if ready:
            calls, settings = ready[-1].inputs.get(CALLS, ""), ready[-1].reduced
            context = settings.context if settings is not None else 0
            out[model.name] = Target(ready[-1].nonce, ready[-1].host, ready[-1].port, calls=calls, context=context)
        else:
            trouble = world.troubles.get(ref) or world.troubles.get(Ref("model", model.name))
            # The code only: a message may carry lines of a log, which are not for clients.
            why = f"it failed with {trouble.code}" if trouble else "it is not ready yet"
            halted = {ref, Ref("model", model.name)} & world.paused
            out[model.name] = _unloaded(
                model.name, declared, "it is paused" if halted else why, bool(trouble or halted)
            )
    return out


def _unloaded(name: str, declared: Declared | None, why: str, in_trouble: bool) -> Target:
    """A model that nothing serves now, for the reason `why`; one that loads when it is asked for says so."""
    start = declared.spec.start if declared is not None else "always"
    if start == "manual" and not in_trouble:
        why = f"it is not loaded; `reconcile load {name}` loads it"
    return Target(reason=why, on_demand=start == "on_demand", by_hand=start == "manual")


def offers(spec: GatewaySpec, world: World) -> dict[str, Offer]:
    """Provider → what it has now. Of one that cannot be looked at, what the manifest itself names."""
    out = {}
    for provider in spec.providers:
        state = world.found(Ref("provider", provider.name))
        out[provider.name] = (
            Offer(provider.named) if state is None else Offer(tuple(state.models), state.open, state.problem)
        )
    return out


def content(
    spec: GatewaySpec,
    aim: Mapping[str, Target],
    keys: tuple[tuple[str, str], ...],
    has: Mapping[str, Offer] | None = None,
) -> dict[str, Any]:
    """All that routes.json says, except for session keys; its digest names the routes. Never a key of a provider."""
    has, grants = has or {}, {grant.name: grant for grant in spec.grants}
    return {
        "format": FORMAT,
        "listen": {"host": spec.host, "port": spec.port},
        "prefix": spec.prefix,
        "trusted_hosts": list(spec.trusted_hosts),
        "cors": {"origins": list(spec.origins)},
        "limits": dict(spec.bounds),
        "keep_responses": spec.keep_responses,
        "api_keys": [{"name": name, "sha256": sha256} | _grant(grants.get(name)) for name, sha256 in keys],
        "providers": {p.name: _provider(p, has.get(p.name, Offer(p.named))) for p in spec.providers},
        "routes": {fork.name: _fork(fork) for fork in spec.routes},
        "models": {
            m.name: {
                "owned_by": "reconciler",
                "context": t.context or m.context or None,
                "task": m.task,
                "aliases": list(m.aliases),
                "target": _target(m.name, t) if t.nonce else None,
                "reason": t.reason,
                **({"on_demand": True} if t.on_demand else {}),
                **({"by_hand": True} if t.by_hand else {}),
                **({"request": json.loads(m.request)} if m.request else {}),
            }
            for m in spec.models
            for t in (aim[m.name],)
        },
        "names": {name: m.name for m in spec.models for name in (m.name, *m.aliases)},
    }


def _grant(grant: GrantSpec | None) -> dict[str, Any]:
    if grant is None:
        return {"allow": None, "rate": None, "tokens": None, "priority": 0}
    allow = None if grant.allow is None else list(grant.allow)
    bounds = {"rate": _amount(grant.rate), "tokens": _amount(grant.tokens)}
    return {"allow": allow, **bounds, "priority": grant.priority}


def _amount(bound: tuple[int, float] | None) -> dict[str, Any] | None:
    return None if bound is None else {"count": bound[0], "seconds": bound[1]}


def _provider(provider: UpstreamSpec, has: Offer) -> dict[str, Any]:
    return {
        "speaks": dict(provider.speaks),
        "auth": provider.auth,
        "headers": dict(provider.headers),
        "models": list(has.models),
        "open": has.open,
        "quirks": json.loads(provider.quirks or "{}"),
        "private": provider.private,
        "proxy": provider.proxy or None,
        "timeouts": dict(provider.timeouts),
        "request": json.loads(provider.request or "{}"),
        "reason": has.reason,
    }


def _fork(fork: ForkSpec) -> dict[str, Any]:
    return {"targets": [{"to": to, "weight": weight} for to, weight in fork.targets], "on": list(fork.on)}


def _target(name: str, target: Target) -> dict[str, Any]:
    told = {"id": f"server/{name}#{target.nonce}", "host": target.host, "port": target.port}
    return told | ({"model": target.calls} if target.calls else {})


def _start(
    ref: Ref, declared: Declared, state: GatewayState, others: tuple[Action, ...],
    fields: tuple[FieldChange, ...], world: World,
) -> Change:  # fmt: skip
    spec: GatewaySpec = declared.spec
    args = {"targets": targets(spec, world), "offers": offers(spec, world)}
    begin = Action(Phase.START, "start", f"listen on {spec.host}:{spec.port}", args)
    names = (*(m.name for m in spec.models), *(fork.name for fork in spec.routes))
    led = ", ".join((*names, *(f"{p.name}/…" for p in spec.providers))) or "no model yet"
    route = Action(Phase.ROUTE, "route", f"route {led}", args)
    # A process of ours that has the port must go first: it listens on another address, or it is hung.
    before = tuple(_stop(p) for p in state.living if p.port == spec.port)
    blocked = f"; port {spec.port} is held by {state.holder}" if state.holder and not before else ""
    asked = tuple(sorted((*(n for m in spec.models for n in (m.name, *m.aliases)), *(f.name for f in spec.routes))))
    price = Price(downtime="refuses requests until it has restarted", clients=asked)
    if before:
        after = tuple(stop for stop in others if stop not in before)
        reason = "its process is to leave the port first"
        return Change(ref, Op.RESTART, reason, (*before, begin, route, *after), fields, price, declared.where)
    if ref not in world.owned:
        return Change(ref, Op.CREATE, f"not running{blocked}", (begin, route), where=declared.where)
    if others:
        reason = f"it is to listen elsewhere{blocked}"
        return Change(ref, Op.REPLACE, reason, (begin, route, *others), fields, where=declared.where)
    reason = f"its process is gone{blocked}"
    return Change(ref, Op.RESTART, reason, (begin, route), fields, price, declared.where, drift=not fields)


def _unseen(spec: GatewaySpec, world: World) -> str:
    """Routes are not rewritten on what nobody could look at: they lead where they led."""
    refs = (*(Ref("server", m.name) for m in spec.models), *(Ref("provider", p.name) for p in spec.providers))
    blind = next((ref for ref in refs if isinstance(world.observed.get(ref), Unknown)), None)
    return f"{blind} cannot be observed" if blind is not None else ""


def _stop(process: Process) -> Action:
    return Action(Phase.STOP, "stop", "finish running requests and stop", {"nonce": process.nonce})


_LIMITS = {"body": "body_limit"} | {f"{name}_seconds": f"timeouts.{name}" for name in ("connect", "first_byte", "idle")}


def _fields(before: Mapping[str, Any], spec: GatewaySpec) -> tuple[FieldChange, ...]:
    """What changed of its settings; of providers, their own changes tell."""
    out, plain = [], json.loads(canonical(spec))
    for key in ("host", "port", "prefix", "trusted_hosts", "api_keys", "origins", "keep_responses"):
        if key in before and before[key] != plain[key]:
            out.append(FieldChange(f"gateway.{'cors.origins' if key == 'origins' else key}", before[key], plain[key]))
    for key, name in _LIMITS.items():
        was, now = (dict(side.get("bounds", ())).get(key) for side in (before, plain))
        if "bounds" in before and was != now:
            out.append(FieldChange(f"gateway.{name}", was, now))
    for name, (old, new) in _named(before, plain, "grants"):
        was, now = ({"priority": 0, **(grant or {})} for grant in (old, new))
        changed = (k for k in ("allow", "rate", "tokens", "priority") if was.get(k) != now.get(k))
        out += [FieldChange(f"gateway.api_keys.{name}.{key}", was.get(key), now.get(key)) for key in changed]
    for name, (old, new) in _named(before, plain, "routes"):
        out.append(FieldChange(f"routes.{name}", _brief(old), _brief(new)))
    old_aliases = {m["name"]: list(m["aliases"]) for m in before.get("models", [])}
    for model in spec.models:
        old, new = old_aliases.get(model.name), list(model.aliases)
        if old is not None and old != new:
            out.append(FieldChange(f"models.{model.name}.aliases", old, new))
    return tuple(out)


def _named(before: Mapping[str, Any], plain: Mapping[str, Any], key: str) -> list[tuple[str, tuple[Any, Any]]]:
    """(name, (as it was, as it is to be)) of the entries of a list that changed, None where there is none."""
    if key not in before:
        return []
    was, now = ({each["name"]: each for each in side[key]} for side in (before, plain))
    return [(name, (was.get(name), now.get(name))) for name in sorted({*was, *now}) if was.get(name) != now.get(name)]


def _brief(route: Mapping[str, Any] | None) -> Any:
    """The targets of a route, with their weights where they have some."""
    if route is None:
        return None
    return [to if weight is None else f"{to} x{weight}" for to, weight in route["targets"]]
