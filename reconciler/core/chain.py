"""Why a resource is as it is: the events that led to it, from the last word of the manifest on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TAKEN_OVER = ("Accepted", "RolledBack")


@dataclass(frozen=True, slots=True)
class Link:
    """One thing that happened (Unix seconds), to which resource, and what is known of it."""

    at: float
    ref: str
    text: str


def chain(
    ref: str, needs: Iterable[str], operations: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> list[Link]:
    """What happened to `ref` and to what it needs, oldest first, since the manifest last made something of it.

    `operations` is the journal, `events` the event log, each oldest first.
    """
    group = {ref, *needs}
    mine = [op for op in operations if op["ref"] == ref]
    last = mine[-1]["opened"] if mine else float("inf")
    causes = [e for e in events if e["ref"] == "manifest" and e["type"] in TAKEN_OVER and e["at"] <= last]
    begin = causes[-1]["at"] if causes else 0.0
    links = [_operation(op) for op in operations if op["ref"] in group and op["opened"] >= begin]
    links += [
        Link(e["at"], e["ref"], f"{e['type']}: {e['message']}")
        for e in events
        if e["at"] >= begin and (e["ref"] == "manifest" or (e["ref"] in group and not _told(e, operations)))
    ]
    return sorted(links, key=lambda link: link.at)


def _operation(op: Mapping[str, Any]) -> Link:
    intent, closed = op["intent"], op["closed"]
    fields = "; ".join(f"{path}: {before} → {after}" for path, before, after in intent.get("fields", ()))
    because = " ".join(part for part in (intent.get("reason", ""), f"({fields})" if fields else "") if part)
    outcome = "under way" if closed is None else f"{op['outcome']} after {closed - op['opened']:.1f} s"
    return Link(op["opened"], op["ref"], f"{op['verb']}, because {because}: {outcome}")


def _told(event: Mapping[str, Any], operations: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the journal says the same: an event named after its action, at the end of it."""
    return any(
        op["ref"] == event["ref"]
        and event["type"] in (op["verb"].capitalize(), "Failed")
        and op["opened"] <= event["at"] <= op["closed"]
        for op in operations
        if op["closed"] is not None
    )
