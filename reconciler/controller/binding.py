"""A plan with what it was made from, so that a saved one is carried out only while that still holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from reconciler.controller.turn import View, Wanted, look
from reconciler.core import planner
from reconciler.core.diagnostics import Diagnostic, Exit, Refused
from reconciler.core.state import fingerprint
from reconciler.kinds.base import Kind, Tools
from reconciler.manifest.reading import Reading
from reconciler.store.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Binding:
    """The ledger's lineage and serial, the digests of manifest and lock, and of what was observed of each resource."""

    lineage: str
    serial: int
    manifest: str
    lock: str
    observed: Mapping[str, str]

    def moved(self, now: Binding) -> list[str]:
        """What is different now, in words; empty while the plan holds."""
        out = []
        if self.lineage != now.lineage and (self.lineage or now.serial):  # a new ledger gets its lineage when opened
            out.append("it was made for another data root, or before anything was applied here")
        elif self.serial != now.serial:
            out.append(f"what is owned has changed since (serial {self.serial} → {now.serial})")
        if self.manifest != now.manifest:
            out.append("the manifest has changed")
        if self.lock != now.lock:
            out.append("the lock has changed")
        names = sorted({*self.observed, *now.observed})
        out += [f"{name} is no longer as it was" for name in names if self.observed.get(name) != now.observed.get(name)]
        return out

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Planned:
    """A manifest, what a look at the machine gave, and what the plan is bound to."""

    reading: Reading
    view: View
    binding: Binding

    def refuse_stale(self, saved: Any) -> None:
        """Raise Refused (exit code 5) when what a saved plan was made from has moved."""
        hint = "look at what it would do now with `reconcile plan`"
        if moved := from_json(saved).moved(self.binding):
            stale = [Diagnostic(f"the saved plan is stale: {what}", hint=hint) for what in moved]
            raise Refused(stale, exit_code=Exit.STALE)

    def refuse_gaps(self) -> None:
        """Raise Refused when the lock does not pin all that is wanted here."""
        if missing := self.reading.gaps(self.view.world.desired):
            raise Refused(missing)

    def to_json(self) -> dict[str, Any]:
        """The published plan, with its manifest, its targets, and its binding."""
        return {
            **self.view.plan.to_json(),
            "manifest": str(self.reading.manifest.path),
            "targets": sorted(str(ref) for ref in self.view.targets),
            "binding": self.binding.to_json(),
        }


def planned(made: Reading, wanted: Wanted, tools: Tools, kinds: Mapping[str, Kind]) -> Planned:
    """Look and plan, without any effect; `wanted` is what the reading asks for. Raises Refused for what cannot be said
    of this machine.
    """
    view = look(replace(wanted, asked=True), tools, kinds)  # what would come of asking for it
    planner.refuse_strangers(wanted.targets, view.world)
    return bound(made, view, tools.ledger)


def from_json(value: Any) -> Binding:
    """Raises Refused for what is not a binding."""
    try:
        observed = {str(k): str(v) for k, v in value["observed"].items()}
        names = (str(value["lineage"]), int(value["serial"]), str(value["manifest"]), str(value["lock"]))
        return Binding(*names, observed)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Refused("this is not a saved plan", hint="make one with `reconcile plan --out FILE`") from error


def bound(reading: Reading, view: View, ledger: Ledger) -> Planned:
    """Bind a plan to what it follows from: everything that it touches, and what that needs."""
    touched = planner.closure(frozenset(c.ref for c in view.plan.changes), view.world)
    observed = {str(ref): fingerprint(view.world.observed.get(ref)) for ref in sorted(touched)}
    lock = reading.lock.digest(reading.lock.pins)
    return Planned(reading, view, Binding(ledger.lineage, ledger.serial, reading.digest, lock, observed))
