"""Conditions: what is true of a resource, since when, and why. A pure function of the world and the last answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from reconciler.core.diagnostics import FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import Change, Halt, Op, Phase, Plan
from reconciler.core.state import Trouble, Unknown, World

if TYPE_CHECKING:
    from reconciler.core.kind import Rules


@dataclass(frozen=True, slots=True)
class Condition:
    """`status` is True, False or Unknown; `reason` a CamelCase word; `message` for people.

    `since` is the Unix time at which status or reason last changed, `generation` the one that this was observed of.
    """

    type: str
    status: str
    reason: str
    message: str = ""
    since: float = 0.0
    generation: int = 0


def yes(type_: str, reason: str, message: str = "") -> Condition:
    return Condition(type_, "True", reason, message)


def no(type_: str, reason: str, message: str = "") -> Condition:
    return Condition(type_, "False", reason, message)


def conditions(world: World, rules: Mapping[str, Rules], plan: Plan) -> dict[Ref, tuple[Condition, ...]]:
    """Every resource that is declared, owned or seen with its conditions, `Ready` first."""
    out: dict[Ref, tuple[Condition, ...]] = {}
    drifted = {c.ref: c for c in plan.drift}
    for ref in sorted({*world.desired, *world.owned, *world.observed}):
        seen = world.observed.get(ref)
        if isinstance(seen, Unknown):
            out[ref] = (Condition("Ready", "Unknown", "CannotObserve", seen.reason),)
            continue
        own = rules[ref.kind].conditions(ref, world)
        ready, *rest = _explain(ref, own, world, plan)
        if ref in drifted and ready.status != "True":
            ready = replace(ready, message=f"{ready.message or drifted[ref].reason}; it is left so")
        out[ref] = (ready, *rest, _drifted(ref, plan, drifted), NO_POLICY)
    return out


PRESSURE = "MemoryPressure"  # the condition of servers that run while all of them together take more than there is
NO_POLICY = yes("PolicyCompliant", "NoPolicy")


def stamp(
    found: Mapping[Ref, tuple[Condition, ...]],
    earlier: Mapping[Ref, tuple[Condition, ...]],
    now: float,
    generation: int,
) -> dict[Ref, tuple[Condition, ...]]:
    """The conditions with their times: what says the same as before keeps its time.

    A group in which nothing at all is new is the earlier group itself.
    """
    out = {}
    for ref, group in found.items():
        before = earlier.get(ref, ())
        known = {c.type: c for c in before}
        stamped = tuple(_stamped(c, known.get(c.type), now, generation) for c in group)
        out[ref] = before if stamped == before else stamped
    return out


def _stamped(found: Condition, old: Condition | None, now: float, generation: int) -> Condition:
    same = old is not None and (old.status, old.reason) == (found.status, found.reason)
    since = old.since if old is not None and same else now
    return Condition(found.type, found.status, found.reason, found.message, since, generation)


def _drifted(ref: Ref, plan: Plan, left: Mapping[Ref, Change]) -> Condition:
    change = plan.change(ref)
    if ref in left:
        return yes("Drifted", "LeftSo", left[ref].reason)
    if change is not None and change.drift:
        return yes("Drifted", "Contested" if change.contested else "BeingCorrected", change.reason)
    return no("Drifted", "AsDeclared")


def _explain(ref: Ref, own: tuple[Condition, ...], world: World, plan: Plan) -> tuple[Condition, ...]:
    """Add Progressing, and say in Ready what failed or what is being waited for."""
    change = plan.change(ref)
    ready, rest = own[0], own[1:]
    trouble, failed = world.troubles.get(ref), ""
    if trouble is not None:
        hint = f" — {trouble.hint}" if trouble.hint else ""
        times = f" (failed {trouble.count}×)" if trouble.count > 1 else ""
        failed = f"{trouble.message}{times}{hint}"
    if change is not None and change.halt in (Halt.PAUSED, Halt.SUSPENDED) and ready.status != "True":
        ready = no("Ready", change.halt.value.capitalize(), _halted(change, change.halt, failed))
    elif change is not None and change.contested and ready.status != "True":
        ready = no("Ready", "Contested", f"{change.reason} — find what does that, then `reconcile apply`")
    elif trouble is not None and ready.status != "True":
        ready = no("Ready", _camel(trouble.code), failed)
    elif failed and change is not None and change.actions and change.actions[0].phase <= Phase.START:
        ready = replace(ready, message=f"{ready.message}; that failed: {failed}")
    elif change is not None and ready.status != "True" and change.actions and change.actions[0].hold:
        ready = no("Ready", ready.reason, ready.message or change.actions[0].hold)
    if ref in world.paused and (change is None or change.halt is Halt.PAUSED):
        progressing = no("Progressing", "Paused", f"nothing is begun for it until `reconcile resume {ref}`")
    elif change is None:
        progressing = no("Progressing", "Settled")
    elif change.halt is Halt.SUSPENDED:
        progressing = no("Progressing", "Suspended", "the controller is suspended until `reconcile resume`")
    elif change.halt is Halt.BEHIND:
        progressing = no("Progressing", "WaitsForResume", change.actions[0].hold)
    elif change.contested:
        progressing = no("Progressing", "Contested", change.actions[0].hold)
    elif trouble is not None and trouble.kind is FaultClass.PERMANENT:
        progressing = no("Progressing", "WaitsForChange", f"tried again once its spec changes; {failed}")
    else:
        reason = f"{change.reason}; {failed}" if failed else change.reason
        progressing = yes("Progressing", change.op.value.capitalize(), reason)
    return (ready, progressing, *rest)


def _halted(change: Change, halt: Halt, failed: str) -> str:
    resume = f"`reconcile resume {change.ref}`" if halt is Halt.PAUSED else "`reconcile resume`"
    return f"{change.reason}; {f'{failed}; ' if failed else ''}{halt.value} by a person until {resume}"


def settled(world: World, plan: Plan, tries: int = 3) -> bool:
    """Whether waiting is pointless: every change left is halted, or has failed for good, or `tries` times over."""
    left = {c.ref for c in plan.drift if not c.left}  # what is left by design works
    for change in plan.changes:
        if change.contested or change.halt is not None or change.op is Op.DENIED:
            continue
        trouble = world.troubles.get(change.ref)
        if trouble is not None and (math.isinf(_wait(trouble)) or trouble.count >= tries):
            continue
        if change.actions and change.actions[0].hold and _blocked(change.ref, world, plan, left, tries):
            continue
        return False
    return True


def _blocked(ref: Ref, world: World, plan: Plan, left: set[Ref], tries: int) -> bool:
    """Whether something that it needs has failed, is denied or contested, or was left drifted."""
    declared = world.desired.get(ref)
    for need in declared.needs if declared is not None else ():
        trouble, change = world.troubles.get(need), plan.change(need)
        if trouble is not None and (trouble.kind is not FaultClass.TRANSIENT or trouble.count >= tries):
            return True
        if (change is not None and (change.contested or change.op is Op.DENIED)) or need in left:
            return True
    return False


def _wait(trouble: Trouble) -> float:
    return math.inf if trouble.kind is not FaultClass.TRANSIENT else 0.0


def _camel(code: str) -> str:
    return "".join(part.capitalize() for part in code.split("_"))


def all_ready(found: Mapping[Ref, tuple[Condition, ...]], plan: Plan, within: frozenset[Ref] | None = None) -> bool:
    """Everything declared (or only what is `within`) is as declared, and nothing is left to do."""
    groups = [group for ref, group in found.items() if within is None or ref in within]
    return plan.empty and all(group[0].status == "True" for group in groups)


def to_json(found: Mapping[Ref, tuple[Condition, ...]]) -> list[dict[str, Any]]:
    return [
        {
            "ref": str(ref),
            "conditions": [
                {
                    "type": c.type,
                    "status": c.status,
                    "reason": c.reason,
                    "message": c.message,
                    "since": c.since,
                    "generation": c.generation,
                }
                for c in group
            ],
        }
        for ref, group in found.items()
    ]
