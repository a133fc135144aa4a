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

    None means not known before it is tried.
    """

    download: int | None = 0
    memory: int = 0  # resident memory this change adds (negative: frees)
    downtime: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one resource, why, and at what price."""

    ref: Ref
    op: Op
    reason: str
    actions: tuple[Action, ...] = ()
    fields: tuple[FieldChange, ...] = ()
    price: Price = field(default_factory=Price)
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes, in the order of their first phase and then by name."""

    changes: tuple[Change, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.changes

    def change(self, ref: Ref) -> Change | None:
        return next((c for c in self.changes if c.ref == ref), None)

    def to_json(self) -> dict[str, Any]:
        """The published form (`format` 1.0); fields are only ever added within a major version."""
        return {
            "format": FORMAT,
            "changes": [
                {
                    "ref": str(c.ref),
                    "op": c.op.value,
                    "symbol": c.op.symbol,
                    "reason": c.reason,
                    "fields": [{"path": f.path, "before": f.before, "after": f.after} for f in c.fields],
                    "actions": [
                        {"phase": a.phase.name.lower(), "verb": a.verb, "text": a.text, "hold": a.hold}
                        for a in c.actions
                    ],
                    "price": {
                        "download_bytes": c.price.download,
                        "memory_bytes": c.price.memory,
                        "downtime": c.price.downtime,
                    },
                    "where": str(c.where) if c.where else None,
                }
                for c in self.changes
            ],
            "warnings": [w.to_json() for w in self.warnings],
            "summary": summary(self),
        }


def summary(plan: Plan) -> str:
    """The footer: `3 to add, 1 to replace · 98.4 MB to fetch · no downtime`."""
    if plan.empty:
        return "nothing to do"
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
    memory = sum(c.price.memory for c in plan.changes)
    if memory:
        parts.append(f"RAM {'+' if memory > 0 else '−'}{human_bytes(abs(memory))}")
    pauses = [f"{c.ref} {c.price.downtime}" for c in plan.changes if c.price.downtime]
    parts.append("; ".join(pauses) if pauses else "no downtime")
    return " · ".join(parts)


def human_bytes(count: int) -> str:
    """98362432 → `98.4 MB`; decimal units, as download sizes are quoted."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
