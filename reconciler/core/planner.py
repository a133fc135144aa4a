"""plan(world, rules) → Plan: the whole decision, as a pure function.

Each kind's rules see the whole world and answer for one resource. An action that must wait for something says so
in `hold`, computed from what is observed, not from an order of execution: after each finished action the plan is
made again, so what comes next always follows from how the world really is.
"""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.core.ids import Ref
from reconciler.core.kind import Rules
from reconciler.core.plan import Action, Change, Op, Plan
from reconciler.core.retry import wait_for
from reconciler.core.state import Unknown, World


def plan(world: World, rules: Mapping[str, Rules]) -> Plan:
    """Every change that the world needs to become what is desired; empty when it already is.

    What was observed counts as ours, too: a process of a resource that a crash kept from being noted as owned.
    """
    changes: list[Change] = []
    warnings: list[Diagnostic] = []
    for ref in sorted({*world.desired, *world.owned, *world.observed}):
        seen = world.observed.get(ref)
        if isinstance(seen, Unknown):
            warnings.append(Diagnostic(f"cannot be observed: {seen.reason}; it is left as it is", path=str(ref)))
            continue
        if (change := rules[ref.kind].change(ref, world)) is not None:
            changes.append(change)
    changes.sort(key=lambda c: (_first_phase(c), c.ref))
    return Plan(tuple(changes), tuple(warnings))


def runnable(plan: Plan, world: World) -> list[tuple[Change, Action]]:
    """The first action of each change, where nothing holds it and no backoff is running."""
    ready = []
    for change in plan.changes:
        if change.actions and not change.actions[0].hold and wait_for(change.ref, world) == 0:
            ready.append((change, change.actions[0]))
    return ready


def refuse_emptying(plan: Plan, world: World) -> None:
    """Raise Refused when carrying out the plan would leave nothing of all that is owned (the gateway aside)."""
    mine = {ref for ref in world.owned if ref.kind != "gateway"}
    doomed = {c.ref for c in plan.changes if c.op is Op.DELETE} & mine
    if mine and doomed == mine and not any(ref.kind != "gateway" for ref in world.desired):
        raise Refused(
            [
                Diagnostic(
                    f"this manifest declares nothing, and applying it would remove all {len(mine)} resources "
                    f"that are owned ({_some(mine)})",
                    hint="if that is what you want, apply with --allow-empty, or use `reconcile down`",
                )
            ]
        )


def _first_phase(change: Change) -> int:
    return min((a.phase for a in change.actions), default=99)


def _some(refs: set[Ref]) -> str:
    names = [str(r) for r in sorted(refs)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
