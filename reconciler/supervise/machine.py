"""The life of a process, as a pure function of facts.

    spawned ──► STARTING ──ready recorded──► READY ──no answer ×3──► UNRESPONSIVE
                    │                          │  ◄──answers again──┘      │
                    │                          └──marked──► RETIRING       │
                    └──────────── process gone, at any point ──► GONE ◄────┘

Nothing is stored: a phase is recomputed from the ledger's row and from what is seen, so that a controller that has
just been started knows as much as the one that died.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SILENCES = 3  # liveness probes in a row without an answer before a process counts as hung


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    UNRESPONSIVE = "unresponsive"
    RETIRING = "retiring"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Facts:
    alive: bool
    ready: bool  # readiness was proved once
    retiring: bool  # it is being drained or stopped on purpose
    silences: int = 0  # liveness probes in a row without an answer


def phase(facts: Facts) -> Phase:
    if not facts.alive:
        return Phase.GONE
    if facts.retiring:
        return Phase.RETIRING
    if not facts.ready:
        return Phase.STARTING
    return Phase.UNRESPONSIVE if facts.silences >= SILENCES else Phase.READY
