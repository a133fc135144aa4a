"""What is wanted, what is there, what is ours: the facts that the planner is a function of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.core.diagnostics import FaultClass, Where
from reconciler.core.ids import Ref


@dataclass(frozen=True, slots=True)
class Declared:
    """One resource that the manifest asks for. `needs` names what must be there first.

    `spec` is the kind's own frozen dataclass of plain values, every default filled in; its digest is its identity.
    """

    ref: Ref
    spec: Any
    needs: tuple[Ref, ...] = ()
    where: Where | None = None

    @property
    def digest(self) -> str:
        return str(self.spec.digest)


@dataclass(frozen=True, slots=True)
class Found:
    """It is there; `state` is the kind's own frozen observation."""

    state: Any


@dataclass(frozen=True, slots=True)
class Absent:
    """It is surely not there."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """It could not be looked at. Never counts as absent: nothing is created or deleted on it."""

    reason: str


Observation = Found | Absent | Unknown


@dataclass(frozen=True, slots=True)
class Owned:
    """What the ledger says is ours, and the spec it was last made from (plain JSON values)."""

    ref: Ref
    digest: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Failures of one resource since it last did well. Times are Unix seconds."""

    digest: str  # of the spec that failed: a changed spec starts afresh
    count: int
    at: float
    code: str
    message: str
    hint: str
    kind: FaultClass
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What of the machine enters decisions. Bytes; an empty text is what is not known, or not there."""

    memory_total: int = 0
    memory_available: int = 0
    os: str = ""  # linux | macos | windows
    arch: str = ""  # x86_64 | arm64
    cpu: int = 0  # logical cores
    gpu: str = ""  # nvidia | amd | intel | apple
    labels: tuple[tuple[str, str], ...] = ()  # sorted pairs

    @property
    def memory_gib(self) -> int:
        """To the nearest GiB: a machine sold with 16 has a little less, since firmware and GPU take their share."""
        return (self.memory_total + (1 << 29)) >> 30


@dataclass(frozen=True, slots=True)
class World:
    """Everything that one plan is made from."""

    desired: Mapping[Ref, Declared] = field(default_factory=dict)
    observed: Mapping[Ref, Observation] = field(default_factory=dict)
    owned: Mapping[Ref, Owned] = field(default_factory=dict)
    troubles: Mapping[Ref, Trouble] = field(default_factory=dict)
    host: HostFacts = field(default_factory=HostFacts)
    now: float = 0.0
    purge: bool = False  # what is no longer wanted goes from the disk, too

    def found(self, ref: Ref) -> Any:
        """The kind's observation, or None where it is absent or unknown."""
        seen = self.observed.get(ref)
        return seen.state if isinstance(seen, Found) else None
