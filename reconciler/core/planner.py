"""plan(world, rules) → Plan: the whole decision, as a pure function.

Each kind's rules see the whole world and answer for one resource. An action that must wait for something says so
in `hold`, computed from what is observed, not from an order of execution: after each finished action the plan is
made again, so what comes next always follows from how the world really is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reconciler.core.diagnostics import Diagnostic, Exit, Refused, Severity, nearest
from reconciler.core.ids import Ref
from reconciler.core.kind import Cautious, Rules
from reconciler.core.plan import Action, Change, Halt, Op, Phase, Plan, Same
from reconciler.core.retry import wait_for
from reconciler.core.state import Drift, Unknown, World

CONTESTED_TIMES = 3
CONTESTED_WINDOW = 600.0  # seconds


def plan(world: World, rules: Mapping[str, Rules], targets: frozenset[Ref] = frozenset()) -> Plan:
    """Every change that the world needs to become what is desired; empty when it already is.

    What was observed counts as ours, too: a process of a resource that a crash kept from being noted as owned.
    With `targets` only these, what they need, and the gateway in front of them.
    """
    changes: list[Change] = []
    drift: list[Change] = []
    same: list[Same] = []
    warnings: list[Diagnostic] = []
    for ref in sorted({*world.desired, *world.owned, *world.observed} - set(world.denied)):
        seen, declared = world.observed.get(ref), world.desired.get(ref)
        if isinstance(seen, Unknown):
            warnings.append(Diagnostic(f"cannot be observed: {seen.reason}; it is left as it is", path=str(ref)))
            continue
        change = rules[ref.kind].change(ref, world)
        if change is not None and change.op is Op.DELETE and world.down:
            change = replace(change, reason="it is being taken down")
        if change is None:
            same.append(Same(ref, declared.where if declared is not None else None))
        elif change.drift and change.left:
            drift.append(change)
        elif change.drift and (mode := _mode(ref, world, rules)) is not Drift.CORRECT:
            drift.append(change)
            if mode is Drift.WARN:
                warnings.append(Diagnostic(f"has drifted and is left so: {change.reason}", path=str(ref)))
        else:
            changes.append(_damped(_guarded(change, world, rules), world))
    changes = _halted(changes, world, rules)
    warnings += _cautions(world, rules)
    if world.suspension is not None and not world.down:
        told = "it is suspended: files are not taken over, and nothing is corrected"
        warnings.append(Diagnostic(told, path="controller", hint="`reconcile resume` ends that"))
    if world.together.tight and not world.down:
        warnings.append(Diagnostic(world.together.tight, path="memory", severity=Severity.WARNING))
    changes += [Change(ref, Op.DENIED, d.reason, where=d.where) for ref, d in world.denied.items() if d.reason]
    kept = changes
    if targets:
        wanted = closure(targets, world)
        kept = [_unqueued(c, wanted) for c in changes if c.ref in wanted]
    kept.sort(key=lambda c: (_first_phase(c), c.ref))
    memory = (world.host.memory_total - world.host.memory_available, world.host.memory_total)
    return Plan(tuple(kept), tuple(warnings), tuple(drift), tuple(same), len(changes) - len(kept), memory)


def _cautions(world: World, rules: Mapping[str, Rules]) -> list[Diagnostic]:
    """What a person should hear of what is declared, whether anything is to be done about it or not."""
    cautious = {kind: rule for kind, rule in rules.items() if isinstance(rule, Cautious)}
    refs = sorted(ref for ref in world.desired if ref.kind in cautious and ref not in world.denied)
    told = [(ref, said) for ref in refs if (said := cautious[ref.kind].caution(ref, world))]
    return [Diagnostic(s, world.desired[r].where, path=str(r), severity=Severity.WARNING) for r, s in told]


def _unqueued(change: Change, wanted: frozenset[Ref]) -> Change:
    """Nothing waits for its turn behind what the targets leave out."""
    if not any(a.args.get("turn", change.ref) not in wanted for a in change.actions):
        return change
    hold = next(a.hold for a in change.actions if "turn" in a.args)
    return replace(change, actions=tuple(replace(a, hold="") if a.hold == hold else a for a in change.actions))


def closure(targets: frozenset[Ref], world: World) -> frozenset[Ref]:
    """The targets, what they need, and the gateway where a server or provider is among them: it leads to them."""
    out: set[Ref] = set()
    todo = list(targets)
    while todo:
        ref = todo.pop()
        if ref not in out:
            out.add(ref)
            todo += world.desired[ref].needs if ref in world.desired and ref.kind != "gateway" else ()
    if any(ref.kind in ("server", "provider") for ref in out):
        out |= {ref for ref in (*world.desired, *world.owned) if ref.kind == "gateway"}
    return frozenset(out)


def contested(ref: Ref, world: World) -> str:
    """What was seen of a resource that is put back again and again; empty while it is not too often."""
    recent = [r for r in world.restored.get(ref, ()) if 0 <= world.now - r.at < CONTESTED_WINDOW]
    if len(recent) < CONTESTED_TIMES:
        return ""
    return f"put back {len(recent)} times in ten minutes, and again: {recent[-1].saw}"


def _mode(ref: Ref, world: World, rules: Mapping[str, Rules]) -> Drift:
    declared = world.desired.get(ref)
    return (declared.drift if declared is not None else None) or rules[ref.kind].drift


def _guarded(change: Change, world: World, rules: Mapping[str, Rules]) -> Change:
    """Deny the removal of what is protected; a person who takes everything down may still stop its process."""
    owned = world.owned.get(change.ref)
    if change.op is not Op.DELETE or owned is None or not owned.protect:
        return change
    if world.down and rules[change.ref.kind].runs:
        return change
    reason = "it is protected: it stays until its `protect: true` is taken away and that is applied"
    return Change(change.ref, Op.DENIED, reason, where=change.where)


def _damped(change: Change, world: World) -> Change:
    """Keep a tug-of-war from going on: something else wants it otherwise."""
    if not (change.drift and change.actions and (saw := contested(change.ref, world))):
        return change
    hold = "contested: waits until its last ten minutes are calmer, or for `reconcile apply`"
    actions = (replace(change.actions[0], hold=hold), *change.actions[1:])
    return replace(change, reason=saw, actions=actions, contested=True)


def _halted(changes: list[Change], world: World, rules: Mapping[str, Rules]) -> list[Change]:
    """Hold what a person has paused or suspended, and have what waits for it say so."""
    if not world.paused and world.suspension is None:
        return changes
    held = [_held(change, _halt(change, world, rules)) for change in changes]
    stopped = {change.ref: change.halt for change in held if change.halt is not None}
    return [_behind(change, stopped, world) for change in held]


def _halt(change: Change, world: World, rules: Mapping[str, Rules]) -> Halt | None:
    """Removal is never paused. What serves is kept serving while suspended; all else waits, unless it was asked for."""
    declared, owned = world.desired.get(change.ref), world.owned.get(change.ref)
    if world.down or not change.actions:
        return None
    if change.ref in world.paused and declared is not None:
        return Halt.PAUSED
    if world.suspension is None:
        return None
    as_made = declared is not None and owned is not None and owned.digest == declared.digest
    if rules[change.ref.kind].runs and (as_made or change.actions[0].phase is Phase.ROUTE):
        return None
    return Halt.SUSPENDED if change.drift or not world.suspension.asked else None


def _held(change: Change, halt: Halt | None) -> Change:
    if halt is None:
        return change
    first = replace(change.actions[0], hold=f"{halt.value} by a person")
    return replace(change, actions=(first, *change.actions[1:]), halt=halt)


def _behind(change: Change, stopped: Mapping[Ref, Halt], world: World) -> Change:
    if change.halt is not None or not (change.actions and change.actions[0].hold):
        return change
    first, declared = change.actions[0], world.desired.get(change.ref)
    needs = declared.needs if declared is not None else ()
    if first.phase is Phase.STOP:  # nothing is stopped before the gateway leads elsewhere
        needs = (*needs, *(ref for ref in stopped if ref.kind == "gateway"))
    halted = next((ref for ref in needs if ref in stopped), None)
    if halted is None:
        return change
    first = replace(first, hold=f"{first.hold}; {halted} is {stopped[halted].value} by a person")
    return replace(change, actions=(first, *change.actions[1:]), halt=Halt.BEHIND)


def runnable(plan: Plan, world: World) -> list[tuple[Change, Action]]:
    """The first action of each change, where nothing holds it and no backoff is running; by phase, then priority."""
    ready = []
    for change in plan.changes:
        if change.actions and not change.actions[0].hold and wait_for(change.ref, world) == 0:
            ready.append((change, change.actions[0]))
    return sorted(ready, key=lambda step: (step[1].phase, -_priority(step[0].ref, world)))


def _priority(ref: Ref, world: World) -> int:
    declared = world.desired.get(ref)
    return declared.priority if declared is not None else 0


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


def refuse_strangers(targets: frozenset[Ref], world: World) -> None:
    """Raise Refused for targets that are neither declared nor owned."""
    known = {*world.desired, *world.owned, *world.denied}
    if strangers := sorted(targets - known):
        names = [str(ref) for ref in known]
        raise Refused(
            [Diagnostic(f"there is no {ref} to limit it to", hint=nearest(str(ref), names)) for ref in strangers]
        )


def refuse_halted(targets: frozenset[Ref], saved: bool, world: World) -> None:
    """Raise Refused for an apply of what is paused, and for one of everything while suspended."""
    refuse_paused(targets & world.paused)
    if world.suspension is not None and not (targets or saved):
        raise Refused(
            "the controller is suspended: it takes over no file as a whole",
            hint="`reconcile resume` takes over what the files say; --target REF and saved plans are applied before",
        )


def refuse_paused(paused: frozenset[Ref]) -> None:
    """Raise Refused where there are any."""
    if paused:
        raise Refused(
            [Diagnostic(f"{ref} is paused", hint=f"`reconcile resume {ref}` first") for ref in sorted(paused)]
        )


def refuse_denied(plan: Plan) -> None:
    """Raise Refused when the plan holds something that will not be done: exit code 3, or 1 for mere mistakes."""
    if plan.denied:
        raise Refused(
            [Diagnostic(c.reason, c.where, path=str(c.ref)) for c in plan.denied],
            exit_code=Exit.ERROR if all(c.wrong for c in plan.denied) else Exit.DENIED,
        )


def _first_phase(change: Change) -> int:
    return min((a.phase for a in change.actions), default=99)


def _some(refs: set[Ref]) -> str:
    names = [str(r) for r in sorted(refs)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
