"""The plan as data: printed, priced, saved and carried out without deciding again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from reconciler.core.diagnostics import Diagnostic, Where
from reconciler.core.ids import Ref

FORMAT = "1.0"


class Op(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    RESTART = "restart"
    DELETE = "delete"
    ADOPT = "adopt"
    DENIED = "denied"
    NONE = "none"

    @property
    def symbol(self) -> str:
        return SYMBOLS[self]


SYMBOLS = {
    Op.CREATE: "+",
    Op.UPDATE: "~",
    Op.REPLACE: "±",
    Op.RESTART: "↻",
    Op.DELETE: "-",
    Op.ADOPT: "⇄",
    Op.DENIED: "✗",
    Op.NONE: " ",
}


class Halt(StrEnum):
    """What keeps a change from being carried out until a person says otherwise."""

    PAUSED = "paused"  # the resource is
    SUSPENDED = "suspended"  # the controller is
    BEHIND = "behind"  # it waits for one that is halted


class Phase(IntEnum):
    """The order of a plan: bytes first, new before old, sweeping last."""

    MATERIALISE = 1
    START = 2
    ROUTE = 3
    STOP = 4
    SWEEP = 5


@dataclass(frozen=True, slots=True)
class Action:
    """One effect on one resource. `hold` says what it waits for; empty means it may run now."""

    phase: Phase
    verb: str
    text: str
    args: Mapping[str, Any] = field(default_factory=dict)
    hold: str = ""


@dataclass(frozen=True, slots=True)
class FieldChange:
    path: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Price:
    """What a change costs, in bytes; `downtime` is a sentence, empty where nobody notices.

    None means not known before it is tried. `clients` are the names that clients ask for which stop being answered,
    for as long as the downtime lasts or for good.
    """

    download: int | None = 0
    disk: int | None = 0  # room on disk that this change takes (negative: frees)
    memory: int = 0  # resident memory this change adds (negative: frees)
    downtime: str = ""
    clients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one resource, why, and at what price.

    `drift` says that the world moved, not the manifest; `contested` that it was put back too often to try at once;
    `halt` that a person has to resume something first; `wrong` of what is denied, that it cannot be had as asked: a
    mistake, and no matter of policy; `left` of drift, that nothing is done about it, whatever the mode says.
    """

    ref: Ref
    op: Op
    reason: str
    actions: tuple[Action, ...] = ()
    fields: tuple[FieldChange, ...] = ()
    price: Price = field(default_factory=Price)
    where: Where | None = None
    drift: bool = False
    contested: bool = False
    wrong: bool = False
    halt: Halt | None = None
    left: bool = False


@dataclass(frozen=True, slots=True)
class Same:
    """A resource that is as it should be."""

    ref: Ref
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes, in the order of their first phase and then by name.

    `drift` is what moved in the world and is left so, because its mode says to; `same` what needs nothing; `outside`
    counts changes that the targets leave out. `memory` is (used, total) of the machine in bytes, before the plan.
    """

    changes: tuple[Change, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    drift: tuple[Change, ...] = ()
    same: tuple[Same, ...] = ()
    outside: int = 0
    memory: tuple[int, int] = (0, 0)
    index: Mapping[Ref, Change] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", {c.ref: c for c in self.changes})

    @property
    def empty(self) -> bool:
        return not self.changes

    @property
    def denied(self) -> tuple[Change, ...]:
        return tuple(c for c in self.changes if c.op is Op.DENIED)

    def change(self, ref: Ref) -> Change | None:
        return self.index.get(ref)

    def to_json(self) -> dict[str, Any]:
        """The published form (`format` 1.0); fields are only ever added within a major version."""
        used, total = self.memory
        after = used + sum(c.price.memory for c in self.changes)
        return {
            "format": FORMAT,
            "changes": [_change_json(c) for c in self.changes],
            "drift": [_change_json(c) for c in self.drift],
            "same": [{"ref": str(s.ref), "where": str(s.where) if s.where else None} for s in self.same],
            "outside_targets": self.outside,
            "memory": {"before_bytes": used, "after_bytes": after, "total_bytes": total},
            "warnings": [w.to_json() for w in self.warnings],
            "summary": summary(self),
        }


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "ref": str(change.ref),
        "op": change.op.value,
        "symbol": change.op.symbol,
        "reason": change.reason,
        "drift": change.drift,
        "contested": change.contested,
        "halt": change.halt.value if change.halt else None,
        "fields": [{"path": f.path, "before": f.before, "after": f.after} for f in change.fields],
        "actions": [
            {"phase": a.phase.name.lower(), "verb": a.verb, "text": a.text, "hold": a.hold} for a in change.actions
        ],
        "price": {
            "download_bytes": change.price.download,
            "disk_bytes": change.price.disk,
            "memory_bytes": change.price.memory,
            "downtime": change.price.downtime,
            "clients": list(change.price.clients),
        },
        "where": str(change.where) if change.where else None,
    }


def summary(plan: Plan) -> str:
    """The footer: `3 to add, 1 to replace · 98.4 MB to fetch · RAM 3.1 → 5.8 of 15.0 GiB · no downtime`."""
    outside = f" · {plan.outside} outside the targets" if plan.outside else ""
    if plan.empty:
        return "nothing to do" + outside
    words = {
        Op.CREATE: "add",
        Op.UPDATE: "update",
        Op.REPLACE: "replace",
        Op.RESTART: "restart",
        Op.DELETE: "remove",
        Op.ADOPT: "adopt",
        Op.DENIED: "deny",
    }
    counts = {op: sum(c.op is op for c in plan.changes) for op in words}
    parts = [", ".join(f"{n} to {words[op]}" for op, n in counts.items() if n) or "nothing to do"]
    sizes = [c.price.download for c in plan.changes]
    known = sum(size or 0 for size in sizes)
    if known:
        parts.append(f"{human_bytes(known)} to fetch" + (" and more of unknown size" if None in sizes else ""))
    elif None in sizes:
        parts.append("size of the download is not known yet")
    freed = -sum(c.price.disk or 0 for c in plan.changes)
    if freed > 0:
        parts.append(f"frees {human_bytes(freed)} of disk")
    parts += _memory(plan)
    pauses = [f"{c.ref} {c.price.downtime}" for c in plan.changes if c.price.downtime]
    gone = [name for c in plan.changes if not c.price.downtime for name in c.price.clients]
    if gone:
        pauses.append(f"{', '.join(gone[:5])}{' …' if len(gone) > 5 else ''} no longer answered")
    parts.append("; ".join(pauses) if pauses else "no downtime")
    return " · ".join(parts) + outside


def _memory(plan: Plan) -> list[str]:
    added = sum(c.price.memory for c in plan.changes)
    used, total = plan.memory
    if not added:
        return []
    if not total:
        return [f"RAM {'+' if added > 0 else '−'}{human_bytes(abs(added))}"]
    gib = 1 << 30
    return [f"RAM {used / gib:.1f} → {max(0, used + added) / gib:.1f} of {total / gib:.1f} GiB"]


def human_bytes(count: int) -> str:
    """98362432 → `98.4 MB`; decimal units, as download sizes are quoted."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
