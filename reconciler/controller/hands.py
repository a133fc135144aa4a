"""A person's hand on the work: pause and resume of resources, and of the controller as a whole (suspend).

What is held is written to the ledger before anything else happens, so that it holds whoever dies then. Everything here
works with or without a controller; what only a running one can do (stop what is being fetched) is in daemon.py.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.core.diagnostics import Diagnostic, Refused, nearest
from reconciler.core.ids import Ref
from reconciler.core.state import Declared, Suspension
from reconciler.kinds.base import Kind, Partial, Tools
from reconciler.store.generations import Generations
from reconciler.store.ledger import Ledger

EVERYTHING = "controller"  # what is named as changed where it was suspended or is so no more


@dataclass(frozen=True, slots=True)
class Hold:
    """What a person asks for: `names` are kind/name or plain names, none of them for the controller as a whole."""

    names: tuple[str, ...] = ()
    resume: bool = False
    discard: bool = False


def chosen(hold: Hold, known: Collection[Ref], paused: Collection[Ref]) -> tuple[Ref, ...]:
    """The resources that are meant. A plain name means the model of that name where there is one.

    To resume, it means all that is paused of that name. Raises Refused for names of nothing, or of several things.
    """
    out: set[Ref] = set()
    faults = []
    everything = {*known, *paused}
    for name in hold.names:
        fits = [ref for ref in everything if str(ref) == name] or [ref for ref in everything if _means(ref, name)]
        if hold.resume and (held := [ref for ref in fits if ref in paused]):
            out |= set(held)
            continue
        fits = [ref for ref in fits if ref.kind == "model"] or fits
        if len(fits) == 1:
            out.add(fits[0])
        elif fits:
            faults.append(Diagnostic(f"{name!r} may be {' or '.join(map(str, sorted(fits)))}", hint="write kind/name"))
        else:
            faults.append(Diagnostic(f"there is no {name}", hint=nearest(name, map(str, everything))))
    if faults:
        raise Refused(faults)
    return tuple(sorted(out))


def _means(ref: Ref, name: str) -> bool:
    return ref.name == name or str(ref) == f"{name}/main"


def refuse_undiscardable(refs: Iterable[Ref], kinds: Mapping[str, Kind]) -> None:
    """Raise Refused where there is nothing that could be thrown away."""
    if not (refs := tuple(refs)):
        raise Refused("--discard needs a resource", hint="name the model whose download is to be thrown away")
    if odd := [ref for ref in refs if not isinstance(kinds[ref.kind], Partial)]:
        raise Refused([Diagnostic(f"{ref} has no download to throw away", hint="only models do") for ref in odd])


def pause(refs: Iterable[Ref], ledger: Ledger) -> list[Ref]:
    """Begin nothing for these any more → those for which that is new."""
    paused = dict(ledger.paused())
    new = [ref for ref in refs if ref not in paused]
    if new:
        ledger.set_paused(paused | {ref: time.time() for ref in new})
    return new


def resume(refs: Iterable[Ref], ledger: Ledger, why: str = "by a person") -> list[Ref]:
    """Go on with these → those that were paused. What has failed is tried again at once."""
    paused = dict(ledger.paused())
    held = [ref for ref in refs if paused.pop(ref, None) is not None]
    if held:
        ledger.set_paused(paused)
    for ref in held:
        ledger.set_trouble(ref, None)
        ledger.event(str(ref), "Resumed", why)
    return held


def suspend(ledger: Ledger, promised: bool) -> bool:
    """Take over nothing and correct nothing → whether that is new. `promised`: a generation waits to be confirmed."""
    now = ledger.suspension()
    if now is not None and not now.asked:
        return False
    if promised:
        hint = "`reconcile confirm` keeps it, `reconcile rollback` goes back"
        raise Refused("a generation waits to be confirmed, and that cannot be suspended", hint=hint)
    ledger.set_suspension(Suspension(now.since if now is not None else time.time()))
    ledger.event(EVERYTHING, "Suspended", "by a person, until `reconcile resume`")
    return True


def lift(ledger: Ledger) -> bool:
    """End the suspension → whether there was one."""
    if ledger.suspension() is None:
        return False
    ledger.set_meta(whole="1")  # what was applied in part meanwhile is to become the whole
    ledger.set_suspension(None)
    ledger.event(EVERYTHING, "Resumed", "by a person: what the files say is taken over again")
    return True


async def discard(ref: Ref, declared: Declared, tools: Tools, kinds: Mapping[str, Kind]) -> bool:
    """Throw away what has come of a download → whether there was any."""
    kind, text = kinds[ref.kind], "throw away what has come of it"
    assert isinstance(kind, Partial)
    seq = tools.ledger.begin(ref, "discard", {"reason": "asked for", "text": text, "fields": [], "where": ""})
    outcome = "failed"
    try:
        there = await kind.forget_partial(ref, declared, tools)
        outcome = "done"
    finally:
        tools.ledger.end(seq, outcome)
    if there:
        tools.ledger.event(str(ref), "Discarded", "what had come of it was thrown away")
    return there


def answer(
    ledger: Ledger, changed: Iterable[object], stopping: Iterable[Ref] = (), gone: Iterable[Ref] = ()
) -> dict[str, Any]:
    """What is told to who asked: what is new by it, and all that is held now."""
    return {
        "changed": sorted(map(str, changed)),
        "stopping": sorted(map(str, stopping)),
        "discarded": sorted(map(str, gone)),
        **held(ledger),
    }


def held(ledger: Ledger) -> dict[str, Any]:
    """What a person holds, as status tells it: since when, in Unix seconds."""
    suspension = ledger.suspension()
    return {
        "paused": {str(ref): at for ref, at in sorted(ledger.paused().items())},
        "suspended": suspension.since if suspension is not None else None,
    }


async def hold_offline(
    hold: Hold, declared: Mapping[Ref, Declared], tools: Tools, kinds: Mapping[str, Kind], generations: Generations
) -> dict[str, Any]:
    """Where no controller runs: write it down for the next one. Raises Refused."""
    ledger, gone = tools.ledger, []
    refs = chosen(hold, {*declared, *ledger.owned()}, ledger.paused().keys())
    if hold.discard:
        refuse_undiscardable(refs, kinds)
    changed: list[object] = []
    if not refs:
        done = lift(ledger) if hold.resume else suspend(ledger, generations.promise is not None)
        changed = [EVERYTHING] if done else []
    elif hold.resume:
        changed = [*resume(refs, ledger)]
    else:
        changed = [*pause(refs, ledger)]
        for ref in changed:
            ledger.event(str(ref), "Paused", "by a person")
    if hold.discard:
        gone = [ref for ref in refs if ref in declared and await discard(ref, declared[ref], tools, kinds)]
    return answer(ledger, changed, (), gone)
