"""Servers: one process a model, replaced make-before-break.

Every decision is made from what runs now. An instance is *fresh* when it was made from the wanted spec and from the
model file as it is now, and answers; any other living one is *stale*. Wanted is one fresh instance and no stale one:

    no fresh instance             → start one (held until engine and model are there)
    fresh, but not ready yet      → wait for it (it was adopted while it was loading)
    stale ones beside a ready one → retire them (held while the gateway still routes to them), then stop them (held
                                    while requests are running on them, up to DRAIN_MOST)

Of a server that is not to be in memory now (core/residency) all are surplus: wanted is none.

Only where memory cannot hold both is the stale one stopped first, and the plan says so.

One that had too little memory may run with less than the manifest says (kinds/server/reduced): it is fresh for as long
as the ledger remembers why, and shown as drift that is left so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from typing import Any

from reconciler.core.ids import Ref, canonical
from reconciler.core.limits import Limits
from reconciler.core.plan import Action, Change, FieldChange, Op, Phase, Price, human_bytes
from reconciler.core.residency import Amount, only, said
from reconciler.core.state import VOLATILE, Declared, Drift, Unknown, World
from reconciler.core.status import PRESSURE, Condition, no, yes
from reconciler.kinds.carried import CACHE, REDUCED
from reconciler.kinds.fit import NONE, Demand, Fit, ceiling, judged, needed, placed
from reconciler.kinds.flags import FlagSet, unfit
from reconciler.kinds.server import reduced
from reconciler.kinds.server.kept import unkept
from reconciler.kinds.server.reduced import Settings, Shortage
from reconciler.kinds.server.spec import ServerSpec
from reconciler.supervise.machine import Phase as Life

DRAIN_MOST = 300.0  # seconds that running requests may take to end
LOAD_RATE = 200e6  # bytes a second that loading is taken to bring, until it was measured
ROOM = 1.15  # resident memory of a server, as a multiple of its model's file; the KV cache is small beside it


@dataclass(frozen=True, slots=True)
class Instance:
    """One process of a server. Times are Unix seconds."""

    nonce: str
    digest: str
    life: Life
    host: str
    port: int
    inputs: Mapping[str, str] = field(default_factory=dict)
    ready: float | None = None
    retiring: float | None = None
    silent: bool = field(default=False, metadata=VOLATILE)  # it has stopped answering
    keyed: bool = True  # its key is known: without it nobody may ask it
    memory: int = field(default=0, metadata=VOLATILE)  # bytes that it was seen to take
    private: int = field(default=0, metadata=VOLATILE)  # of those, bytes that are not those of files
    loading: float = 0.0  # seconds that it took to become ready
    devices: tuple[int, ...] = field(default=(), metadata=VOLATILE)  # bytes that it was seen to take of each GPU

    @property
    def reduced(self) -> Settings | None:
        """What it runs with in place of the manifest's settings; None where it runs as the manifest says."""
        return reduced.read(self.inputs.get(REDUCED, ""))


@dataclass(frozen=True, slots=True)
class ServerState:
    """`short` is what is remembered of an end for want of memory."""

    instances: tuple[Instance, ...] = ()
    short: Shortage | None = None

    @property
    def living(self) -> tuple[Instance, ...]:
        return tuple(i for i in self.instances if i.life is not Life.GONE)


class ServerRules:
    drift = Drift.CORRECT
    runs = True

    def change(self, ref: Ref, world: World) -> Change | None:
        state: ServerState = world.found(ref) or ServerState()
        declared = world.desired.get(ref)
        if declared is None:
            return _removal(ref, state, world)
        if not wanted(ref, declared, world):
            if not state.living:
                return _denied(ref, declared, world)
            stops = _stops(state.living, world, patient=True, keep=True)
            why = world.standing[ref].why if ref in world.standing else ""
            reason = why or "it runs only when it is asked for"
            return Change(
                ref, Op.UPDATE, reason, stops, price=Price(memory=-size_of(declared.spec, world)), where=declared.where
            )
        fresh = [i for i in state.living if is_fresh(i, declared, world)]
        stale = [i for i in state.living if i not in fresh]
        ready = [i for i in fresh if i.life is Life.READY]
        if ready:
            surplus = (*stale, *fresh[: len(fresh) - 1]) if len(fresh) > 1 else tuple(stale)
            if not surplus:
                return _note_down(ref, declared, world) or _left(ref, declared, ready[-1], state)
            return Change(ref, Op.REPLACE, "its successor is ready", _stops(surplus, world), where=declared.where)
        if fresh:
            wait = Action(Phase.START, "await", "wait until it is ready", {"nonce": fresh[-1].nonce})
            return Change(ref, Op.UPDATE, "it is loading its model", (wait,), where=declared.where)
        return _start(ref, declared, stale, world)

    def conditions(self, ref: Ref, world: World) -> tuple[Condition, ...]:
        state: ServerState = world.found(ref) or ServerState()
        declared = world.desired.get(ref)
        ready = [i for i in state.living if i.life in (Life.READY, Life.RETIRING) and i.ready is not None]
        living = state.living
        running = yes("Running", "Alive", f"port {living[-1].port}") if living else no("Running", "NotStarted")
        gateway = world.found(Ref("gateway", "main"))
        led = gateway is not None and any(i.nonce in gateway.routed for i in living)
        routed = yes("Routed", "InRoutes") if led else no("Routed", "NotInRoutes")
        pressed = [yes(PRESSURE, "OverBudget", world.together.pressed)] if living and world.together.pressed else []
        rest = (running, routed, *pressed)
        if declared is None:
            return no("Ready", "NotWanted", "it is being stopped"), *rest
        if not wanted(ref, declared, world):
            return _idle(ref, declared.spec, world), *rest
        current = [i for i in ready if is_fresh(i, declared, world)]
        if current:
            return yes("Ready", "Answers", f"port {current[-1].port}"), *rest, *_reduced(current[-1], state)
        if any(i.life is Life.READY for i in ready):
            return yes("Ready", "Outdated", "the earlier version serves until its successor is ready"), *rest
        if any(i.life is Life.UNRESPONSIVE for i in living):
            return no("Ready", "Unresponsive", "it runs, but does not answer"), *rest
        if not living and (wrong := refused(declared.spec, world)):
            return no("Ready", "OptionsRefused", wrong), *rest
        return no("Ready", "Starting" if living else "NotStarted"), *rest


def _left(ref: Ref, declared: Declared, instance: Instance, state: ServerState) -> Change | None:
    """That it runs with less than the manifest says: drift, but nobody starts it anew only to run out of memory."""
    return next(
        (Change(ref, Op.RESTART, c.message, where=declared.where, drift=True, left=True)
         for c in _reduced(instance, state)),
        None,
    )  # fmt: skip


def _reduced(instance: Instance, state: ServerState) -> tuple[Condition, ...]:
    if not instance.reduced or state.short is None:
        return ()
    words = reduced.told_words(instance.inputs[REDUCED])
    return (yes("Reduced", "OutOfMemory", f"it runs with {words}: {reduced.why(state.short)}"),)


def run_as(ref: Ref, spec: ServerSpec, world: World) -> ServerSpec:
    """The spec with the settings that it runs with, or that its next process will have."""
    state: ServerState = world.found(ref) or ServerState()
    if state.short is None or not spec.shrink:
        return spec
    if living := [i for i in state.living if i.digest == spec.digest]:
        return reduced.applied(spec, living[-1].reduced)
    return reduced.applied(spec, _next(ref, spec, world))


def _next(ref: Ref, spec: ServerSpec, world: World) -> Settings | None:
    """What its next process is started with in place of the manifest's settings; None where it is these."""
    state: ServerState = world.found(ref) or ServerState()
    model = _model(spec, world) if state.short is not None else None
    if model is None:
        return None
    return reduced.next_settings(spec, demand(spec, world.found), model.shape, world.host, state.short)


def wanted(ref: Ref, declared: Declared, world: World) -> bool:
    """Whether it is to be in memory now."""
    standing = world.standing.get(ref)
    return standing.wanted if standing is not None else declared.spec.start == "always"


def _denied(ref: Ref, declared: Declared, world: World) -> Change | None:
    """That it can never be loaded, said when it is declared and not only when it is asked for."""
    standing = world.standing.get(ref)
    if wrong := unloadable(declared.spec, world):
        return Change(ref, Op.DENIED, wrong, where=declared.where, wrong=True)
    why = standing.why if standing is not None and standing.never else world.together.denied.get(ref, "")
    return Change(ref, Op.DENIED, why, where=declared.where) if why else None


def _idle(ref: Ref, spec: ServerSpec, world: World) -> Condition:
    """What is true of one that need not run now: it is as it should be."""
    if blocked := _waits_for(spec, world):
        return no("Ready", "NotStarted", blocked)
    if (held := world.standing.get(ref)) is not None and held.never:
        return no("Ready", "DoesNotFit", held.why)
    if ref in world.together.denied:
        return no("Ready", "DoesNotFit", world.together.denied[ref])
    if ref in world.troubles:
        return no("Ready", "LoadFailed")
    if spec.start == "manual":
        return yes("Ready", "Unloaded", f"`reconcile load {spec.name}` loads it")
    return yes("Ready", "OnDemand", "it loads when it is asked for")


def is_fresh(instance: Instance, declared: Declared, world: World) -> bool:
    """Made from the wanted spec, the model file and the engine as they are; not hung, leaving or without its key."""
    engine = world.found(Ref("engine", declared.spec.engine))
    if engine is not None and not engine.fallback and instance.inputs.get("engine", engine.token) != engine.token:
        return False
    if instance.digest != declared.digest or instance.life not in (Life.STARTING, Life.READY) or not instance.keyed:
        return False
    if REDUCED in instance.inputs and not _still_short(declared, world):
        return False
    # While a file is being proved or fetched again nothing is known against the running one.
    return all(
        made is None or not made.usable or instance.inputs.get(role) == made.token
        for role, made in artifacts(declared.spec, world.found)
    )


def _still_short(declared: Declared, world: World) -> bool:
    """Whether what had it run with less is still so: it may, and nobody has asked for its own settings since."""
    state: ServerState = world.found(declared.ref) or ServerState()
    return bool(declared.spec.shrink and state.short is not None and state.short.digest == declared.digest)


def artifacts(spec: ServerSpec, found: Callable[[Ref], Any]) -> list[tuple[str, Any]]:
    """The model and what goes with it, as they are observed, under the keys of a process's `inputs`."""
    extras = [(extra.name.removeprefix(spec.model), found(Ref("model", extra.name))) for extra in spec.extras]
    return [("model", found(Ref("model", spec.model))), *extras]


def _start(ref: Ref, declared: Declared, stale: list[Instance], world: World) -> Change:
    spec: ServerSpec = declared.spec
    owned = world.owned.get(ref)
    fields = _fields(ref, owned.spec, spec) if owned else ()
    model = _model(spec, world)
    fit = fitting(spec, world)
    if fit is not None and fit.refused and not spec.force and (model is None or model.usable):
        return Change(ref, Op.DENIED, fit.refusal, where=declared.where)
    if ref in world.together.denied:
        return Change(ref, Op.DENIED, world.together.denied[ref], where=declared.where)
    less = _next(ref, spec, world)
    size = size_of(reduced.applied(spec, less), world)
    standing = world.standing.get(ref)
    waits = _waits_for(spec, world) or (standing.hold if standing is not None else "")
    if wrong := refused(spec, world) or unloadable(spec, world):
        return Change(ref, Op.DENIED, wrong, where=declared.where, wrong=True)
    if not waits and world.found(Ref("engine", spec.engine)).fallback and any(serves(i) for i in stale):
        waits = f"the earlier engine serves until engine/{spec.engine} is installed"
    turn = _rolls(ref, spec, world) if not waits and any(serves(i) for i in stale) else None
    waits = f"waits for {turn}: {ONE_AT_A_TIME}" if turn is not None else waits
    templated = _templated(spec, world)
    told = f" · with {reduced.words(spec, less)}: its own settings ran out of memory" if less is not None else ""
    told = (told or _told(fit, 0 if templated else spec.context)) + _unchecked(spec, world) + _unkept(spec, world)
    told += _guessed(spec, fit, world) if templated else ""
    gateway = world.desired.get(Ref("gateway", "main"))  # its port may be free still
    args = {"turn": turn, "settings": less, "avoid": gateway.spec.port if gateway is not None else None}
    args = {key: value for key, value in args.items() if value is not None}
    begin = Action(Phase.START, "start", f"start a process and wait until it is ready{told}", args, waits)
    hung = any(i.life is Life.UNRESPONSIVE for i in stale)
    leaving = [i for i in stale if i.life is not Life.RETIRING]
    short = _short_for_two(reduced.applied(spec, less), size, world) if stale else ()
    tight = any(short)
    stops = _stops(stale, world)
    if tight:
        # Routes do not wait for a successor here: they leave a retired one, which then ends its requests as always.
        until = waits if leaving else ""  # its own memory may be what is waited for: what leaves already goes on
        holds = (until or ("" if a.verb == "retire" else a.hold) for a in stops)
        actions: tuple[Action, ...] = (*(replace(a, hold=h) for a, h in zip(stops, holds, strict=True)), begin)
        downtime = f"is down while it loads: {said(short)} for a second one are not free"
    elif begin.hold and not leaving:  # what it waits for may be its own predecessor's memory
        actions, downtime = (*_stops(stale, world, patient=spec.start != "always"), begin), ""
    else:
        actions, downtime = (begin, *stops), ""
    if spec.start != "always" and not leaving:
        why = standing.why if standing is not None else ""
        return Change(ref, Op.UPDATE, why or "it is asked for", actions, fields, Price(memory=size), declared.where)
    if owned is None and not stale:
        return Change(ref, Op.CREATE, "not running", actions, (), Price(memory=size), declared.where)
    if fields or (owned is not None and owned.digest != declared.digest):
        reason = "its settings changed" if fields else _inputs_changed(owned.spec if owned else {}, spec)
        clients = names(ref, world) if downtime else ()
        price = Price(downtime=downtime, clients=clients)
        return Change(ref, Op.REPLACE, reason, actions, fields, price, declared.where)
    if hung:
        reason, downtime = "it runs, but does not answer", "is down until it has restarted"
    elif leaving:
        reason = "its model file was brought anew" if model is not None else "it was made from another spec"
        reason = reason if leaving[0].keyed else "its key is lost, so that nobody can ask it"
    else:
        reason, downtime = "its process is gone", "is down until it has restarted"
    price = Price(downtime=downtime, clients=names(ref, world) if downtime else ())
    return Change(ref, Op.RESTART, reason, actions, (), price, declared.where, drift=hung or not leaving)


def _removal(ref: Ref, state: ServerState, world: World) -> Change:
    stops = _stops(state.living, world, keep=world.down and not world.purge)
    forget = Action(Phase.SWEEP, "release", "forget it")
    price = Price(memory=-released(ref, world) if stops else 0, clients=names(ref, world))
    return Change(ref, Op.DELETE, "no longer in the manifest", (*stops, forget), price=price)


def names(ref: Ref, world: World) -> tuple[str, ...]:
    """What clients ask for to reach this server, as the gateway was last set up."""
    gateway = world.owned.get(Ref("gateway", "main"))
    models = gateway.spec.get("models", ()) if gateway is not None else ()
    found = bisect_left(models, ref.name, key=itemgetter("name"))  # they are sorted by name
    if found == len(models) or models[found]["name"] != ref.name:
        return ()
    return (ref.name, *models[found]["aliases"])


def _note_down(ref: Ref, declared: Declared, world: World) -> Change | None:
    """It runs as wanted; a ledger that does not know it as ours (it was lost, or we died) learns it."""
    owned = world.owned.get(ref)
    if owned is not None and owned.digest == declared.digest:
        return None
    adopt = Action(Phase.START, "adopt", "take over the process that already runs as wanted")
    return Change(ref, Op.ADOPT, "it runs already", (adopt,), where=declared.where)


def _stops(
    instances: Iterable[Instance], world: World, patient: bool = False, keep: bool = False
) -> tuple[Action, ...]:
    """Retire all of them, then stop one after the other; `patient`: however long their requests take.

    `keep`: those that can are to keep what their cache holds, since they are to come back.
    """
    gateway = world.found(Ref("gateway", "main"))
    routed = gateway.routed if gateway is not None else frozenset()
    running = gateway.inflight if gateway is not None else {}
    unseen = isinstance(world.observed.get(Ref("gateway", "main")), Unknown)
    retires, stops = [], []
    for i in instances:
        where, args = f"the process on port {i.port}", {"nonce": i.nonce}
        hung = i.silent or i.life is Life.UNRESPONSIVE
        follows = "the gateway still routes to it" if i.nonce in routed and not hung else ""
        if unseen and not hung:
            follows = "the gateway cannot be observed"
        if i.retiring is None:
            retires.append(Action(Phase.STOP, "retire", f"give {where} no more requests", args, follows))
        count = 0 if hung else running.get(i.nonce, 0)
        late = not patient and i.retiring is not None and world.now - i.retiring > DRAIN_MOST
        hold = f"{count} requests are running on it" if count and not late else ""
        if i.retiring is not None:
            hold = follows or hold
        kept = {"keep": True} if keep and not hung and i.ready is not None and CACHE in i.inputs else {}
        text = f"stop {where} once its requests have ended" + (", keeping what its cache holds" if kept else "")
        stops.append(Action(Phase.STOP, "stop", text, args | kept, hold))
    return (*retires, *stops)


ONE_AT_A_TIME = "one server of an engine is replaced at a time"


def _rolls(ref: Ref, spec: ServerSpec, world: World) -> Ref | None:
    """Whom a server that serves waits for when its engine has changed: the one whose turn it is."""
    turn = turn_of(spec.engine, world) if _engine_changed(ref, spec, world) else None
    return turn if turn != ref else None


def turn_of(engine: str, world: World) -> Ref | None:
    """Which of the servers on a changed engine is replaced now; None where none is.

    One that is half replaced comes first, then those that have not failed yet, by name, then the others, the least
    tried first: so a server that cannot be started with the new engine keeps nobody waiting for ever.
    """
    global _turns
    if _turns[0] is not world:  # asked for every server of one look: found out once
        _turns = (world, _find_turns(world))
    return _turns[1].get(engine)


_turns: tuple[World | None, Mapping[str, Ref]] = (None, {})


def _find_turns(world: World) -> dict[str, Ref]:
    queue: dict[str, list[tuple[int, int, Ref]]] = {}
    for ref, declared in world.desired.items():
        if ref.kind != "server" or ref in world.paused:
            continue
        state: ServerState = world.found(ref) or ServerState()
        fresh = any(i.digest == declared.digest and i.life in (Life.STARTING, Life.READY) for i in state.living)
        old = any(i.digest != declared.digest for i in state.living)
        trouble = world.troubles.get(ref)
        if old and fresh:
            queue.setdefault(declared.spec.engine, []).append((0, 0, ref))
        elif old and _engine_changed(ref, declared.spec, world):
            tried = trouble.count if trouble is not None and trouble.digest == declared.attempt else 0
            queue.setdefault(declared.spec.engine, []).append((1, tried, ref))
    out = {}
    for engine, waiting in queue.items():
        able = (ref for stage, _, ref in sorted(waiting) if not stage or _may_start(world.desired[ref].spec, world))
        if (first := next(able, None)) is not None:
            out[engine] = first
    return out


def _may_start(spec: ServerSpec, world: World) -> bool:
    fit = fitting(spec, world)
    return not _waits_for(spec, world) and (fit is None or not fit.refused or spec.force)


def _engine_changed(ref: Ref, spec: ServerSpec, world: World) -> bool:
    owned = world.owned.get(ref)
    return owned is not None and owned.spec.get("engine_digest", spec.engine_digest) != spec.engine_digest


def serves(instance: Instance) -> bool:
    return instance.life is Life.READY and not instance.silent and instance.keyed


def _waits_for(spec: ServerSpec, world: World) -> str:
    if world.found(Ref("engine", spec.engine)) is None:
        return f"waits for engine/{spec.engine}"
    for key, made in artifacts(spec, world.found):
        if made is None or not made.usable:
            return f"waits for model/{spec.model}{key if key != 'model' else ''}"
    return ""


def _model(spec: ServerSpec, world: World) -> Any:
    return world.found(Ref("model", spec.model))


def fitting(spec: ServerSpec, world: World) -> Fit | None:
    """How it fits the memory of this machine; None while that is not known."""
    shape = shape_known(spec, world)
    return judged(shape, demand(spec, world.found), world.host) if shape != NONE else None


def shape_known(spec: ServerSpec, world: World) -> str:
    """What its need of memory follows from (JSON); that of nothing where it is not known."""
    model = _model(spec, world)
    if model is None:
        return NONE
    return model.shape or (canonical(model.foreseen["shape"]) if "shape" in model.foreseen else NONE)


def demand(spec: ServerSpec, found: Callable[[Ref], Any]) -> Demand:
    """What of its settings and files its need of memory follows from."""
    model = found(Ref("model", spec.model))
    beside = {extra.role: made for extra in spec.extras if (made := found(Ref("model", extra.name))) is not None}
    inside = sum(piece.size for piece in model.pieces if piece.role == "mmproj") if model is not None else 0
    loras = (found(Ref("model", extra.name)) for extra in spec.extras if extra.role == "lora")
    return Demand(
        context=spec.context,
        parallel=spec.parallel,
        cache_k=spec.cache_k,
        cache_v=spec.cache_v,
        gpu_layers=spec.gpu_layers,
        at_most=spec.at_most,
        projector=beside["mmproj"].size if "mmproj" in beside else inside,
        lora=sum(lora.size for lora in loras if lora is not None),
        draft=beside["draft"].shape if "draft" in beside else NONE,
        embeds=spec.task != "chat",
        options=spec.options,
    )


def refused(spec: ServerSpec, world: World) -> str:
    """What of its options the engine does not take; empty where all is well, or where nothing is known of its flags."""
    flags = _flags(spec, world) if spec.options else None
    return "; ".join(unfit(spec.options, flags, f"engine/{spec.engine}")) if flags is not None else ""


def unloadable(spec: ServerSpec, world: World) -> str:
    """That its engine does not load a model of this form; empty where it does, or where the form is not known yet."""
    model, declared = _model(spec, world), world.desired.get(Ref("engine", spec.engine))
    if model is None or declared is None:
        return ""
    roles = [piece.role for piece in model.pieces] or [str(f.get("role")) for f in model.foreseen.get("also", ())]
    known = bool(model.pieces or model.foreseen.get("name"))
    if "file" in roles:
        told = f"model/{spec.model} is a folder of weights, and {spec.engine} loads GGUF files"
        return "" if getattr(declared.spec, "templated", False) else told
    told = (
        f"model/{spec.model} is a GGUF file, and mlx-lm loads folders of weights (name the repository of its MLX form)"
    )
    return told if known and getattr(declared.spec, "type", "") == "mlx" else ""


def _flags(spec: ServerSpec, world: World) -> FlagSet | None:
    """The flags of its engine, also of one that is not here yet but known; None where they will show."""
    ref = Ref("engine", spec.engine)
    if (state := world.found(ref)) is not None:
        return state.flags  # type: ignore[no-any-return]
    declared = world.desired.get(ref)
    return getattr(declared.spec, "foreknown", None) if declared is not None else None


def _unchecked(spec: ServerSpec, world: World) -> str:
    if not spec.options:
        return ""
    flags = _flags(spec, world)
    if flags is None:
        return "; its options are checked once the engine is there"
    why = flags.why or "the flags of this engine are not known"
    return "" if flags.known else f"; warning: its options are passed unchecked: {why}"


def _templated(spec: ServerSpec, world: World) -> bool:
    """Whether its engine is none of llama.cpp, with flags of its own."""
    ref = Ref("engine", spec.engine)
    if (state := world.found(ref)) is not None:
        return state.template is not None
    return (declared := world.desired.get(ref)) is not None and declared.spec.templated


def _guessed(spec: ServerSpec, fit: Fit | None, world: World) -> str:
    """What the estimate of memory rests on, where the engine is none that it was made for."""
    if fit is not None:
        return "; its memory is estimated as llama.cpp would take it"
    size = size_of(spec, world)
    return f"; about {human_bytes(size)} of memory, by the size of its files alone" if size else ""


def _unkept(spec: ServerSpec, world: World) -> str:
    """Why what its cache holds will not be kept, although that is asked for."""
    model = _model(spec, world)
    if not spec.keep_cache or model is None:
        return ""
    why = unkept(spec, model.shape, demand(spec, world.found).projector > 0, _flags(spec, world))
    return f"; warning: what its cache holds is not kept: {why}" if why else ""


def _told(fit: Fit | None, context: int) -> str:
    if fit is None:
        return ""
    longer = f"; its context is longer than the {fit.trained} tokens that it was trained for"
    return f" · {fit.reason}" + (longer if 0 < fit.trained < context else "")


def _short_for_two(spec: ServerSpec, size: int, world: World) -> Amount:
    """What it takes of each memory that has less of it free: there it cannot be started beside an earlier one."""
    host, whole = world.host, ceiling(world.host)
    need: Amount | None = None
    if host.devices and whole:
        need = placed(shape_known(spec, world), demand(spec, world.found), host.devices, whole)
    need = need or (size,)
    main = need[0] if need[0] > host.memory_available > 0 else 0
    full = (n > d.free and not d.unified for n, d in zip(need[1:], host.devices, strict=False))
    return (main, *only(need[1:], tuple(full)))


def size_of(spec: ServerSpec, world: World) -> int:
    """Bytes of memory that it takes in all: from the model's shape, else from the size of its file."""
    model = _model(spec, world)
    if model is None:
        return 0
    shape = shape_known(spec, world)
    need = needed(shape, demand(spec, world.found)) if shape != NONE else 0
    return need or int((model.size or int(model.foreseen.get("total", 0))) * ROOM)


def released(ref: Ref, world: World) -> int:
    """What ending it gives back, by its model alone: its settings are no longer wanted."""
    model = world.found(Ref("model", ref.name))
    return int(model.size * ROOM) if model is not None else 0


SHOWN = (
    "engine", "task", "context", "parallel", "gpu_layers", "cache_k", "cache_v", "options", "env", "limits",
    "keep_cache",
)  # fmt: skip
PATHS = {"cache_k": "cache_type.k", "cache_v": "cache_type.v"}


def _fields(ref: Ref, before: Mapping[str, Any], spec: ServerSpec) -> tuple[FieldChange, ...]:
    """What differs, by the manifest's paths. Environment values may be private and are not shown."""
    out = []
    for key in SHOWN:
        old, new = _plain(before.get(key)), _plain(getattr(spec, key))
        if key in before and old != new:
            hidden = key == "env"
            path = f"models.{ref.name}.{PATHS.get(key, key)}"
            out.append(FieldChange(path, "…" if hidden else old, "(changed)" if hidden else new))
    return tuple(out)


def _plain(value: Any) -> Any:
    if isinstance(value, Limits):
        return {**asdict(value), "cpus": list(value.cpus)}
    return [list(pair) for pair in value] if isinstance(value, tuple | list) else value


def _inputs_changed(before: Mapping[str, Any], spec: ServerSpec) -> str:
    if before.get("model_digest") != spec.model_digest:
        return "its model's declaration changed"
    if before.get("engine_digest") != spec.engine_digest:
        return "its engine's declaration changed"
    return "its settings changed"
