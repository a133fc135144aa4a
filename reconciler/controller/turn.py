"""One turn's thinking: look at everything, plan. Used by the controller, and by commands that only look."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from reconciler.core import planner, status
from reconciler.core.ids import Ref
from reconciler.core.plan import Plan
from reconciler.core.state import Declared, Observation, World
from reconciler.core.status import Condition
from reconciler.host import hardware
from reconciler.kinds.base import Kind, Tools


@dataclass(frozen=True, slots=True)
class View:
    """What one look gave: the world, the plan, and every resource's conditions."""

    world: World
    plan: Plan
    conditions: Mapping[Ref, tuple[Condition, ...]]

    @property
    def ready(self) -> bool:
        return status.all_ready(self.conditions, self.plan)


def look(desired: Mapping[Ref, Declared], tools: Tools, kinds: Mapping[str, Kind], purge: bool = False) -> View:
    """Observe every resource that is declared or owned, and plan. Changes nothing."""
    owned = tools.ledger.owned()
    observed: dict[Ref, Observation] = {}
    refs = sorted({*desired, *owned, *(row.ref for row in tools.ledger.processes())})
    for name, kind in kinds.items():
        observed |= kind.observe([r for r in refs if r.kind == name], desired, tools)
    world = World(desired, observed, owned, tools.ledger.troubles(), hardware.facts(), time.time(), purge)
    rules = {name: kind.rules for name, kind in kinds.items()}
    plan = planner.plan(world, rules)
    return View(world, plan, status.conditions(world, rules, plan))
