"""Asks anew, from time to time, for what others say of what is wanted here: the models of providers.

Beside the plan, since nothing that is declared changes by it, and each in a task of its own, so that one that does not
answer holds up nothing. What came of it is noted; the turn that is then due draws the conclusions.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from reconciler.core.diagnostics import Fault
from reconciler.core.ids import Ref
from reconciler.core.state import Declared
from reconciler.kinds.base import Refreshed

if TYPE_CHECKING:
    from reconciler.controller.daemon import Controller

log = logging.getLogger(__name__)

LOOK = 2.0  # seconds between two looks for what is due


async def refresh(controller: Controller) -> None:
    """Run until cancelled."""
    busy: dict[Ref, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:
        while True:
            await asyncio.sleep(LOOK)
            try:
                await _round(controller, group, busy)
            except Exception:
                log.exception("bug in refresh")


async def _round(controller: Controller, group: asyncio.TaskGroup, busy: dict[Ref, asyncio.Task[None]]) -> None:
    """Let go of what has ended or is no longer wanted, and begin with what is due."""
    for ref, task in tuple(busy.items()):
        if task.done():
            del busy[ref]
        elif ref not in controller.desired():
            task.cancel()
    asked = _askable(controller, busy)
    for ref in await asyncio.to_thread(_due, controller, asked) if asked else ():
        busy[ref] = group.create_task(_one(controller, ref, asked[ref]))


def _askable(controller: Controller, busy: dict[Ref, asyncio.Task[None]]) -> dict[Ref, Declared]:
    """What may be asked now. Nothing while a person has suspended the controller, or paused it."""
    ledger = controller.tools.ledger
    if controller.mode != "run" or controller.view is None or controller.source.held is None:
        return {}
    try:
        if ledger.suspension() is not None:
            return {}
        left_out = {*busy, *controller.work, *ledger.paused()}
    except Fault as fault:
        log.warning("refresh: %s", fault)
        return {}
    kinds = {name for name, kind in controller.kinds.items() if isinstance(kind, Refreshed)}
    wanted = controller.desired().items()
    return {ref: declared for ref, declared in wanted if ref.kind in kinds and ref not in left_out}


def _due(controller: Controller, asked: dict[Ref, Declared]) -> list[Ref]:
    """In a thread: it may take a command to find out whether a secret is there."""
    out = []
    for ref, declared in asked.items():
        kind = controller.kinds[ref.kind]
        try:
            if isinstance(kind, Refreshed) and kind.due(ref, declared, controller.tools):
                out.append(ref)
        except Exception:
            log.exception("bug refresh ref=%s", ref)
    return out


async def _one(controller: Controller, ref: Ref, declared: Declared) -> None:
    kind = controller.kinds[ref.kind]
    assert isinstance(kind, Refreshed)
    try:
        if await kind.refresh(ref, declared, controller.tools):
            log.info("refreshed ref=%s", ref)
            controller.wake()
    except Fault as fault:
        log.warning("not refreshed ref=%s %s", ref, fault)
    except Exception:
        log.exception("bug refresh ref=%s", ref)
