"""The loop's own bookkeeping, where no real run would come by often enough."""

from __future__ import annotations

import asyncio
from pathlib import Path

from reconciler.controller.daemon import Controller
from reconciler.core.plan import Action, Change, Op, Phase
from reconciler.kinds.base import Tools
from reconciler.kinds.registry import KINDS
from tests.controller.conftest import CHAT


async def test_work_that_is_cancelled_before_its_first_step_does_not_count_as_under_way_for_ever(
    path: Path, tools: Tools
) -> None:
    """A lock that learns something changes what an action was begun for, and may do so before it has run at all."""
    controller = Controller(path, tools, KINDS, lambda: True)
    fetch = Action(Phase.MATERIALISE, "fetch", "fetch it")
    controller.demands[CHAT] = fetch
    async with asyncio.TaskGroup() as group:
        controller._begin(group, Change(CHAT, Op.CREATE, "not here yet", (fetch,)), fetch, None)
        controller.work[CHAT].task.cancel()
    await asyncio.sleep(0)
    assert controller.work == {}
    assert controller.demands == {}
    assert controller._wake.is_set()
