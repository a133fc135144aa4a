"""Conditions: what is true of a resource, since when it cannot be said here, and why. A pure function of the world."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reconciler.core.diagnostics import FaultClass
from reconciler.core.ids import Ref
from reconciler.core.state import Trouble, Unknown, World

if TYPE_CHECKING:
    from reconciler.core.kind import Rules
    from reconciler.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Condition:
    """`status` is True, False or Unknown; `reason` a CamelCase word; `message` for people."""

    type: str
    status: str
    reason: str
    message: str = ""


def yes(type_: str, reason: str, message: str = "") -> Condition:
    return Condition(type_, "True", reason, message)


def no(type_: str, reason: str, message: str = "") -> Condition:
    return Condition(type_, "False", reason, message)


def conditions(world: World, rules: Mapping[str, Rules], plan: Plan) -> dict[Ref, tuple[Condition, ...]]:
    """Every resource that is declared, owned or seen with its conditions, `Ready` first."""
    out: dict[Ref, tuple[Condition, ...]] = {}
    for ref in sorted({*world.desired, *world.owned, *world.observed}):
        seen = world.observed.get(ref)
        if isinstance(seen, Unknown):
            out[ref] = (Condition("Ready", "Unknown", "CannotObserve", seen.reason),)
            continue
        own = rules[ref.kind].conditions(ref, world)
        out[ref] = _explain(ref, own, world, plan)
    return out


def _explain(ref: Ref, own: tuple[Condition, ...], world: World, plan: Plan) -> tuple[Condition, ...]:
    """Add Progressing, and say in Ready what failed or what is being waited for."""
    change = plan.change(ref)
    ready, rest = own[0], own[1:]
    trouble, failed = world.troubles.get(ref), ""
    if trouble is not None:
        hint = f" — {trouble.hint}" if trouble.hint else ""
        times = f" (failed {trouble.count}×)" if trouble.count > 1 else ""
        failed = f"{trouble.message}{times}{hint}"
    if trouble is not None and ready.status != "True":
        ready = no("Ready", _camel(trouble.code), failed)
    elif change is not None and ready.status != "True" and change.actions and change.actions[0].hold:
        ready = no("Ready", ready.reason, ready.message or change.actions[0].hold)
    if change is None:
        progressing = no("Progressing", "Settled")
    elif trouble is not None and trouble.kind is FaultClass.PERMANENT:
        progressing = no("Progressing", "WaitsForChange", "tried again once its spec changes")
    else:
        reason = f"{change.reason}; {failed}" if failed else change.reason
        progressing = yes("Progressing", change.op.value.capitalize(), reason)
    return (ready, progressing, *rest)


def settled(world: World, plan: Plan, tries: int = 3) -> bool:
    """Whether waiting longer is pointless: every change left has failed for good, or `tries` times over."""
    for change in plan.changes:
        trouble = world.troubles.get(change.ref)
        if trouble is not None and (math.isinf(_wait(trouble)) or trouble.count >= tries):
            continue
        if change.actions and change.actions[0].hold and _blocked_by_failed(change.ref, world, tries):
            continue
        return False
    return True


def _blocked_by_failed(ref: Ref, world: World, tries: int) -> bool:
    declared = world.desired.get(ref)
    if declared is None:
        return False
    return any(
        (t := world.troubles.get(need)) is not None and (t.kind is not FaultClass.TRANSIENT or t.count >= tries)
        for need in declared.needs
    )


def _wait(trouble: Trouble) -> float:
    return math.inf if trouble.kind is not FaultClass.TRANSIENT else 0.0


def _camel(code: str) -> str:
    return "".join(part.capitalize() for part in code.split("_"))


def all_ready(found: Mapping[Ref, tuple[Condition, ...]], plan: Plan) -> bool:
    """Everything declared is as declared, and nothing is left to do."""
    return plan.empty and all(group[0].status == "True" for group in found.values())


def to_json(found: Mapping[Ref, tuple[Condition, ...]]) -> list[dict[str, Any]]:
    return [
        {
            "ref": str(ref),
            "conditions": [
                {"type": c.type, "status": c.status, "reason": c.reason, "message": c.message} for c in group
            ],
        }
        for ref, group in found.items()
    ]
