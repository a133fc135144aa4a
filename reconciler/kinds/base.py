"""What a kind is: pure rules, and the two coroutines that look and act; and the tools that those are handed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from reconciler.core.ids import Ref
from reconciler.core.kind import Rules
from reconciler.core.plan import Action
from reconciler.core.residency import Asked
from reconciler.core.state import Declared, HostFacts, Observation
from reconciler.host.effects import Effects
from reconciler.host.fetch import Fetch, Slots
from reconciler.host.files import Files
from reconciler.host.layout import Layout
from reconciler.host.process import Processes
from reconciler.store.blobs import Blobs
from reconciler.store.ledger import Ledger, ProcessRow
from reconciler.supervise.actor import Watched


@dataclass(slots=True)
class Tools:
    """Everything of the machine that a kind may use: the only seam that knows which machine it is."""

    layout: Layout
    base: Path  # what relative paths of the manifest are relative to
    effects: Effects
    files: Files
    processes: Processes
    fetch: Fetch
    ledger: Ledger
    blobs: Blobs
    asked: Callable[[], Mapping[Ref, Asked]] = dict  # who wants which server now
    begun: Callable[[], frozenset[Ref]] = frozenset  # of what a process is being started now
    pressed: bool = False  # whether there has been too little memory for what runs so far
    desired: Callable[[], Mapping[Ref, Declared]] = dict  # what is wanted now
    look: Callable[[Ref], Any] = lambda ref: (
        None
    )  # another kind's resource as it is observed now; None when it is not there
    host: Callable[[], HostFacts] = HostFacts
    ahead: dict[str, str] = field(default_factory=dict)  # by pin: what a source holds, for a plan only
    looked: dict[str, Any] = field(default_factory=dict)  # by pin: what a source was just found to hold
    bringing: dict[str, asyncio.Lock] = field(default_factory=dict)  # by sha256 or part: who brings it now
    watched: dict[str, Watched] = field(default_factory=dict)  # by nonce
    hidden: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)  # by nonce: secrets it was given
    downloads: Slots = field(default_factory=lambda: Slots(3))
    progress: Callable[[Ref, str, int, int | None], None] = lambda ref, what, done, total: None


class Kind(Protocol):
    """One kind of resource. `observe` may not change anything; every effect of `apply` is in the action's words."""

    @property
    def name(self) -> str: ...

    @property
    def rules(self) -> Rules: ...

    def observe(self, refs: Iterable[Ref], desired: Mapping[Ref, Declared], tools: Tools) -> dict[Ref, Observation]:
        """How each of the resources is now. Quick: a look, not a proof."""

    async def apply(self, action: Action, ref: Ref, declared: Declared | None, tools: Tools) -> None:
        """Carry out one action. Raises Fault; cancelling it leaves nothing half-done that the ledger does not know."""


@runtime_checkable
class Stored(Kind, Protocol):
    """A kind whose bytes stay on disk after their resource was released."""

    def sweep(self, tools: Tools) -> None:
        """Remove the bytes that nothing owned needs. Raises Fault."""


@runtime_checkable
class Partial(Kind, Protocol):
    """A kind whose bytes come bit by bit, and stay when that is interrupted."""

    async def forget_partial(self, ref: Ref, declared: Declared, tools: Tools) -> bool:
        """Throw away what has come so far of what is not whole → whether there was any. Nothing fetches it now."""


@runtime_checkable
class Refreshed(Kind, Protocol):
    """A kind of which is known what others say, and that is to be asked again from time to time, beside the plan."""

    def due(self, ref: Ref, declared: Declared, tools: Tools) -> bool:
        """Whether it is time. Quick."""

    async def refresh(self, ref: Ref, declared: Declared, tools: Tools) -> bool:
        """Ask, and note what came of it → whether anything is otherwise now. Raises Fault where it cannot be noted."""


@runtime_checkable
class Supervised(Kind, Protocol):
    """A kind that starts processes."""

    async def answers(self, row: ProcessRow, tools: Tools) -> bool:
        """Whether a process of this kind is alive inside, and not only there."""
