"""Memory of all servers together: what each takes of it, what there is, who is in it now, and who has no room. Pure.

What a server takes follows from its model's shape and from where its layers go; where it was measured to take more,
that counts. Layers are placed on a machine that is otherwise empty, what always runs first, each beside those before
it: so the answer is the same tomorrow, and one whose `gpu_layers` is auto counts with what really is left to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from reconciler.core.ids import Ref
from reconciler.core.residency import (
    Amount,
    Asked,
    Resident,
    Standing,
    Together,
    decide,
    excess,
    larger,
    less,
    only,
    pressure,
    said,
    some,
    too_large,
    total,
)
from reconciler.core.state import Found, World
from reconciler.kinds.carried import LAYERS
from reconciler.kinds.fit import NONE, ceiling, placed
from reconciler.kinds.server.rules import (
    LOAD_RATE,
    Instance,
    ServerState,
    demand,
    is_fresh,
    released,
    run_as,
    shape_known,
    size_of,
)
from reconciler.kinds.server.spec import ServerSpec
from reconciler.supervise.machine import Phase as Life


def decided(
    world: World, asked: Mapping[Ref, Asked], bound: int, before: bool, begun: frozenset[Ref] = frozenset()
) -> tuple[dict[Ref, Standing], Together]:
    """Which servers are to be in memory now, and what is true of all of them together.

    Nothing is said of single ones where all always run. `bound` is `limits.memory` in bytes (0: auto), `before` whether
    there has been too little memory so far. Of `begun` a process is being started, whether one is seen yet or not.
    """
    shared, budget = shares(world, asked, bound), room(world, bound)
    every = residents(world, asked, shared, begun)
    found: dict[Ref, Standing] = {}
    if bound or any(r.start != "always" for r in every if r.ref in world.desired):
        found = decide(every, budget, world.now) | _beyond(every, world, bound)
    denied = refusals(world, shared, bound)
    tight = _tight([r for r in every if r.ref in shared and r.ref not in denied], world)
    return found, Together(denied, tight, pressure(every, budget, found, before))


def _beyond(every: Iterable[Resident], world: World, bound: int) -> dict[Ref, Standing]:
    """What is by itself larger than a person lets all servers be."""
    out = {}
    for one in every:
        declared = world.desired.get(one.ref)
        over = bound and not one.living and any(excess(one.need[:1], (bound,)))
        if over and declared is not None and not declared.spec.force:
            out[one.ref] = Standing(False, f"{too_large(one, (bound,))} (limits.memory)", never=True)
    return out


# --- what there is --------------------------------------------------------------------------------------------------


def room(world: World, bound: int) -> Amount:
    """What all servers together may take now: `bound`, or what the machine has beside all that is not ours; of each
    GPU all but a reserve.
    """
    host, whole = world.host, ceiling(world.host, bound)
    if bound or not whole:
        return whole
    ours = sum(
        int(i.private)
        for ref, seen in world.observed.items()
        if ref.kind == "server" and isinstance(seen, Found)
        for i in seen.state.living
    )
    others = max(0, host.memory_total - host.memory_available - ours)
    return (max(1, whole[0] - others), *whole[1:])


# --- what each takes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """What one server is estimated to take. `beside` is what always runs and comes before it; `fits` says that there is
    room for both, or that nothing is known against it, or that it does not fit by itself either.
    """

    need: Amount
    beside: Amount = ()
    fits: bool = True


def shares(world: World, asked: Mapping[Ref, Asked], bound: int) -> dict[Ref, Share]:
    """The share of each declared server: what runs already comes first, then the more important, then by name."""
    whole = ceiling(world.host, bound)
    servers = sorted(ref for ref in world.desired if ref.kind == "server")
    always = [ref for ref in servers if world.desired[ref].spec.start == "always"]
    kept = [ref for ref, wish in sorted(asked.items()) if wish.kept and _may_leave(ref, world)]
    out: dict[Ref, Share] = {}
    taken: Amount = ()
    for ref in sorted(always, key=lambda ref: (not _runs(ref, world), -world.desired[ref].spec.priority, ref)):
        out[ref] = share = _share(ref, world, whole, taken, taken)
        taken = total((taken, share.need)) if _counts(ref, share, whole, world) else taken
    stays = taken
    for ref in kept:
        out[ref] = share = _share(ref, world, whole, taken, stays)
        stays = total((stays, share.need))
    return out | {ref: _share(ref, world, whole, taken, stays) for ref in servers if ref not in out}


def _share(ref: Ref, world: World, whole: Amount, always: Amount, stays: Amount) -> Share:
    """Where it goes beside all that `stays`; else beside what `always` runs; else on a machine of its own."""
    spec = run_as(ref, world.desired[ref].spec, world)
    if (shape := shape_known(spec, world)) == NONE:
        return Share((size_of(spec, world),), always)
    want = demand(spec, world.found)
    layers = [int(i.inputs[LAYERS]) for i in _living(ref, world) if i.inputs.get(LAYERS, "").isdigit()]
    want = replace(want, gpu_layers=max(layers)) if layers else want
    for taken in (stays, always) if whole else ():
        if (need := placed(shape, want, world.host.devices, less(whole, taken))) is not None:
            return Share(need, always)
    alone = placed(shape, want, world.host.devices, whole) if whole else None
    return Share(alone or (size_of(spec, world),), always, fits=alone is None)


def _counts(ref: Ref, share: Share, whole: Amount, world: World) -> bool:
    """Whether it will be there: not one that is denied, because it does not fit beside others or by itself."""
    well = share.fits and not any(excess(share.need, whole))
    return well or bool(world.desired[ref].spec.force) or bool(_living(ref, world))


def _living(ref: Ref, world: World) -> tuple[Instance, ...]:
    state: ServerState | None = world.found(ref)
    return state.living if state is not None else ()


def _may_leave(ref: Ref, world: World) -> bool:
    return ref in world.desired and bool(world.desired[ref].spec.start != "always")


def _runs(ref: Ref, world: World) -> bool:
    return any(is_fresh(i, world.desired[ref], world) for i in _living(ref, world))


def residents(
    world: World, asked: Mapping[Ref, Asked], shared: Mapping[Ref, Share], begun: frozenset[Ref] = frozenset()
) -> list[Resident]:
    """What the decision about memory needs to know of every declared server, and of those that are leaving."""
    gateway = world.found(Ref("gateway", "main"))
    out = []
    for ref in sorted({*world.desired, *world.observed}):
        if ref.kind != "server":
            continue
        state: ServerState = world.found(ref) or ServerState()
        declared, living, wish = world.desired.get(ref), state.living, asked.get(ref, Asked())
        if declared is None and not living:
            continue
        spec: ServerSpec | None = declared.spec if declared is not None else None
        need = shared[ref].need if spec is not None else (released(ref, world),)
        out.append(
            Resident(
                ref,
                spec.start if spec is not None else "manual",
                _measured(need, living),
                living=bool(living) or ref in begun,
                ready=any(i.life is Life.READY for i in living),
                leaving=ref not in begun and _leaves(spec, living),
                waiting=wish.waiting,
                since=wish.since,
                loaded=max((i.ready or 0.0 for i in living), default=0.0),
                idle_timeout=(spec.idle_timeout if spec is not None else 0.0) or math.inf,
                priority=spec.priority if spec is not None else 0,
                reload=max((i.loading for i in living), default=0.0) or sum(need) / LOAD_RATE,
                kept=wish.kept,
                dropped=wish.dropped,
                **_work(living, gateway, world.now),
            )
        )
    return out


def _leaves(spec: ServerSpec | None, living: tuple[Instance, ...]) -> bool:
    return bool(living) and (spec is None or all(i.life is Life.RETIRING for i in living))


def _measured(need: Amount, living: Iterable[Instance]) -> Amount:
    """The estimate, or what it was seen to take where that is more."""
    for i in living:
        need = larger(need, (i.memory, *i.devices))
    return need


def _work(living: Iterable[Instance], gateway: Any, now: float) -> dict[str, Any]:
    """How many requests it answers, and when it last did anything."""
    busy = sum(gateway.inflight.get(i.nonce, 0) for i in living) if gateway is not None else 0
    at = [gateway.used.get(i.nonce, gateway.started) for i in living] if gateway is not None else []
    return {"busy": busy, "used": now if busy else max((*at, *(i.ready or 0.0 for i in living)), default=0.0)}


# --- all of them together -------------------------------------------------------------------------------------------


def refusals(world: World, shared: Mapping[Ref, Share], bound: int) -> dict[Ref, str]:
    """Why a server has no room beside those that always run; nothing of one that runs as wanted, or is to be forced."""
    whole, out = ceiling(world.host, bound), {}
    for ref, share in shared.items():
        spec: ServerSpec = world.desired[ref].spec
        if share.fits or spec.force or _runs(ref, world):
            continue
        both = total((share.need, share.beside))
        lack = excess(both, whole)
        lack = lack if any(lack) else whole  # each part fits somewhere, but there is no way to split it
        others = [r for r, s in shared.items() if s.fits and r != ref and any(only(s.need, lack))]
        who = some((r for r in others if world.desired[r].spec.start == "always"), "always runs", "always run")
        never = "" if spec.start == "always" else "it can never be loaded: "
        limit = " (limits.memory)" if bound and lack[0] else ""
        out[ref] = (
            f"{never}{who}, and together they need {said(only(both, lack))}, while all servers together may take "
            f"{said(only(whole, lack))}{limit}; {REMEDY}"
        )
    return out


REMEDY = (
    "`start: on_demand` for what always runs, a smaller quant or context would help, and `force: true` does it anyway"
)


def _tight(every: Iterable[Resident], world: World) -> str:
    """That what is to start needs more than is free now, though not more than there is.

    Of what is loaded only when it is asked for the largest counts, which may take the place of the others of its sort.
    """
    host, every = world.host, list(every)
    starting = [r for r in every if r.start == "always" and not r.living]
    if not starting or not host.memory_total:
        return ""
    largest = max((r for r in every if not r.fixed), key=lambda r: (sum(r.need), r.ref), default=None)
    later = [largest] if largest is not None and not largest.living else []
    lent = (r.need for r in every if r.living and not r.fixed)
    need = total(r.need for r in (*starting, *later))
    free = total([(host.memory_available, *(d.free for d in host.devices)), *lent])
    if len(starting) + len(later) < 2 or not any(lack := less(need, free)):
        return ""
    who = some((r.ref for r in starting), "always runs", "always run")
    more = "".join(f", and {r.ref} is loaded when it is asked for" for r in later)
    return (
        f"{who}{more}: together they need {said(only(need, lack))}, and {said(only(free, lack))} are free now, "
        "so that other programs must end first"
    )
