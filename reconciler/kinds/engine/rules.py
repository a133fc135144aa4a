"""Engines: installed or not."""

from __future__ import annotations

from dataclasses import dataclass, field

from reconciler.core.ids import Ref
from reconciler.core.plan import Action, Change, Op, Phase, Price
from reconciler.core.state import VOLATILE, Drift, World
from reconciler.core.status import Condition, no, yes
from reconciler.kinds.engine.spec import EngineSpec
from reconciler.kinds.flags import FlagSet


@dataclass(frozen=True, slots=True)
class EngineState:
    """An engine that can be used: the start of its command line."""

    argv: tuple[str, ...]
    title: str
    owned: bool = True  # ours to remove; a program that was there before us is not
    flags: FlagSet = field(default=FlagSet(), metadata=VOLATILE)  # what it says of itself; the title has its version


class EngineRules:
    drift = Drift.CORRECT
    runs = False

    def change(self, ref: Ref, world: World) -> Change | None:
        declared, state = world.desired.get(ref), world.found(ref)
        if declared is None:
            return self._removal(ref, world)
        spec: EngineSpec = declared.spec
        if state is not None:
            if ref in world.owned and world.owned[ref].digest == declared.digest:
                return None
            adopt = Action(Phase.MATERIALISE, "adopt", f"use {state.title}")
            reason = "it is there already" if ref not in world.owned else "its declaration changed"
            return Change(ref, Op.ADOPT, reason, (adopt,), where=declared.where)
        if spec.type == "embedded":
            text = f"install xllamacpp {spec.version} into a virtual environment of its own"
            action, price = Action(Phase.MATERIALISE, "install", text), Price(download=None, disk=None)
        else:
            action, price = Action(Phase.MATERIALISE, "adopt", f"use {spec.path}"), Price()
        owned = world.owned.get(ref)
        if owned is None:
            return Change(ref, Op.CREATE, "not installed", (action,), price=price, where=declared.where)
        drift = owned.digest == declared.digest
        reason = "no longer as it was installed" if drift else "its declaration changed"
        return Change(ref, Op.REPLACE, reason, (action,), price=price, where=declared.where, drift=drift)

    def _removal(self, ref: Ref, world: World) -> Change:
        purge = world.purge and world.found(ref) is not None and world.found(ref).owned
        hold = _in_use(ref, world)
        text = "remove it from disk" if purge else "release it; what is installed stays until `reconcile down --purge`"
        action = Action(Phase.SWEEP, "purge" if purge else "release", text, hold=hold)
        return Change(ref, Op.DELETE, "no longer in the manifest", (action,))

    def conditions(self, ref: Ref, world: World) -> tuple[Condition, ...]:
        state = world.found(ref)
        if state is None:
            return (no("Ready", "NotInstalled"),)
        return (yes("Ready", "Installed", state.title),)


def _in_use(ref: Ref, world: World) -> str:
    """An engine may go only after the servers that run on it."""
    users = (r for r, owned in world.owned.items() if owned.spec.get("engine") == ref.name and r not in world.desired)
    first = min(users, default=None)
    return f"{first} runs on it" if first is not None else ""
