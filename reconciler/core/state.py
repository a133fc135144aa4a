"""What is wanted, what is there, what is ours: the facts that the planner is a function of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any

from reconciler.core.diagnostics import FaultClass, Where
from reconciler.core.ids import Ref, digest_of
from reconciler.core.residency import Standing, Together


class Drift(StrEnum):
    """What to do when the world moved though the manifest did not."""

    CORRECT = "correct"
    WARN = "warn"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Declared:
    """One resource that the manifest asks for. `needs` names what must be there first.

    `spec` is the kind's own frozen dataclass of plain values, every default filled in. `digest` is the identity of
    what is made from it; `attempt` changes with anything that makes a failed try worth another one. `drift` is the
    kind's own mode where it is None.
    """

    ref: Ref
    spec: Any
    needs: tuple[Ref, ...] = ()
    where: Where | None = None
    protect: bool = False
    drift: Drift | None = None
    priority: int = 0  # where several could begin: the higher, the sooner
    digest: str = field(init=False)
    attempt: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", str(self.spec.digest))
        object.__setattr__(self, "attempt", str(getattr(self.spec, "attempt", self.digest)))


@dataclass(frozen=True, slots=True)
class Denial:
    """Why something that the manifest asks for will not be done; without a reason where another one tells it."""

    reason: str
    where: Where | None = None


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

VOLATILE = {"volatile": True}  # metadata of a field that moves all the time and decides nothing that a plan promises


def fingerprint(seen: Observation | None) -> str:
    """The digest of an observation, to tell whether the world has moved. Volatile fields do not count."""
    return digest_of(_lasting(seen))


def _lasting(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        kept = {f.name: _lasting(getattr(value, f.name)) for f in fields(value) if not f.metadata.get("volatile")}
        return {"": type(value).__name__, **kept}
    if isinstance(value, frozenset | set):
        return sorted(_lasting(item) for item in value)
    if isinstance(value, tuple | list):
        return [_lasting(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _lasting(item) for key, item in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class Owned:
    """What the ledger says is ours, and the spec it was last made from (plain JSON values)."""

    ref: Ref
    digest: str
    spec: Mapping[str, Any]
    protect: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """That a resource was put back once, when (Unix seconds), and what was seen of it."""

    at: float
    saw: str


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
class Suspension:
    """That a person has suspended the controller, since when (Unix seconds).

    `asked` says that one has applied something by hand since then: that is carried out, and nothing else.
    """

    since: float
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU. Bytes. `unified` says that its memory is the machine's own, so that it must not be counted twice."""

    name: str
    total: int
    free: int
    unified: bool = False


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
    devices: tuple[Device, ...] = ()
    features: tuple[str, ...] = ()  # of the processor, sorted: avx2, avx512f …
    drivers: tuple[tuple[str, str], ...] = ()  # sorted pairs, `nvidia` → 550.54.14; empty where there is no version

    @property
    def free(self) -> int:
        """Bytes that are free now, of main memory and of GPUs with memory of their own."""
        return self.memory_available + sum(device.free for device in self.devices if not device.unified)

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
    down: bool = False  # a person is taking everything down: protected processes may stop, too
    denied: Mapping[Ref, Denial] = field(default_factory=dict)
    restored: Mapping[Ref, tuple[Restored, ...]] = field(default_factory=dict)
    paused: frozenset[Ref] = frozenset()  # by a person, until one resumes them
    suspension: Suspension | None = None
    standing: Mapping[Ref, Standing] = field(default_factory=dict)  # of servers: whether they are to be in memory
    together: Together = field(default_factory=Together)  # what is true of the memory of all servers

    def found(self, ref: Ref) -> Any:
        """The kind's observation, or None where it is absent or unknown."""
        seen = self.observed.get(ref)
        return seen.state if isinstance(seen, Found) else None
