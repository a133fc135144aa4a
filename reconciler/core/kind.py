"""What the planner needs of a kind: pure functions of the world."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from reconciler.core.ids import Ref
from reconciler.core.plan import Change
from reconciler.core.state import Drift, World
from reconciler.core.status import Condition


class Rules(Protocol):
    """The decisions of one kind. No method does I/O, and the same world gives the same answer."""

    @property
    def drift(self) -> Drift:
        """What to do about drift where the manifest does not say."""

    @property
    def runs(self) -> bool:
        """Whether resources of this kind are processes."""

    def change(self, ref: Ref, world: World) -> Change | None:
        """What must happen to `ref`, which the manifest names or the ledger owns; None when it is as it should be."""

    def conditions(self, ref: Ref, world: World) -> tuple[Condition, ...]:
        """The state of `ref` as conditions, `Ready` first."""


@runtime_checkable
class Cautious(Protocol):
    """Rules that have something to say of what is declared before it is carried out."""

    def caution(self, ref: Ref, world: World) -> str:
        """A warning for people; empty where there is none."""
