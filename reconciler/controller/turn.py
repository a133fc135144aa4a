"""One turn's thinking: look at everything, plan. Used by the controller, and by commands that only look."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from reconciler.core import planner, status
from reconciler.core.diagnostics import Refused
from reconciler.core.ids import Ref
from reconciler.core.plan import Plan
from reconciler.core.state import Declared, Denial, Observation, World
from reconciler.core.status import Condition
from reconciler.host import hardware
from reconciler.host.layout import Layout
from reconciler.kinds.base import Kind, Tools
from reconciler.kinds.engine.io import python_tag
from reconciler.kinds.server.room import decided
from reconciler.manifest.reading import Reading
from reconciler.manifest.resolve import denials, resolve
from reconciler.manifest.when import dropped


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a look is about: the resources that are asked for, what of the manifest will not be done, and why.

    With `targets` only these are planned. `down` and `purge` are a person's word to stop and to remove everything,
    `asked` is one to carry this out although the controller is suspended. `memory` bounds all servers (bytes, 0: auto).
    """

    resources: Mapping[Ref, Declared] = field(default_factory=dict)
    denied: Mapping[Ref, Denial] = field(default_factory=dict)
    targets: frozenset[Ref] = frozenset()
    down: bool = False
    purge: bool = False
    asked: bool = False
    memory: int = 0


def wanted_of(reading: Reading, layout: Layout, targets: frozenset[Ref] = frozenset()) -> Wanted:
    """What a manifest with its lock asks of this machine. Raises Refused where that cannot be said."""
    labels, faults = hardware.labels(layout.labels)
    if faults:
        raise Refused(faults)
    manifest, facts = reading.manifest, hardware.facts(labels)
    resources = resolve(manifest, python_tag(), facts, reading.lock)
    no, bound = denials(manifest, dropped(manifest.stack, facts, manifest.document)), manifest.stack.limits.memory
    return Wanted(resources, no, targets, memory=0 if bound == "auto" else bound)


@dataclass(frozen=True, slots=True)
class View:
    """What one look gave: the world, the plan, and every resource's conditions."""

    world: World
    plan: Plan
    conditions: Mapping[Ref, tuple[Condition, ...]]
    targets: frozenset[Ref] = frozenset()

    @property
    def ready(self) -> bool:
        within = planner.closure(self.targets, self.world) if self.targets else None
        return status.all_ready(self.conditions, self.plan, within)


def look(wanted: Wanted, tools: Tools, kinds: Mapping[str, Kind]) -> View:
    """Observe every resource that is declared or owned, and plan. Changes nothing."""
    world, rules = observe(wanted, tools, kinds), {name: kind.rules for name, kind in kinds.items()}
    plan = planner.plan(world, rules, wanted.targets)
    return View(world, plan, status.conditions(world, rules, plan), wanted.targets)


def observe(wanted: Wanted, tools: Tools, kinds: Mapping[str, Kind]) -> World:
    """The world as it is now: all that a plan is made from."""
    desired, owned = wanted.resources, tools.ledger.owned()
    observed: dict[Ref, Observation] = {}
    refs = sorted({*desired, *owned, *(row.ref for row in tools.ledger.processes())})
    for name, kind in kinds.items():
        observed |= kind.observe([r for r in refs if r.kind == name], desired, tools)
    suspension = tools.ledger.suspension()
    if suspension is not None and wanted.asked:
        suspension = replace(suspension, asked=True)
    world = World(
        desired,
        observed,
        owned,
        tools.ledger.troubles(),
        hardware.facts(),
        time.time(),
        wanted.purge,
        wanted.down or wanted.purge,
        wanted.denied,
        tools.ledger.restored(),
        frozenset(tools.ledger.paused()),
        suspension,
    )
    standing, together = decided(world, tools.asked(), wanted.memory, tools.pressed, tools.begun())
    return replace(world, standing=standing, together=together)
