"""What releases have, asked for a plan alone: nothing is written down, and what does not answer is told as such."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import canonical
from reconciler.kinds.base import Tools
from reconciler.kinds.engine.io import known
from reconciler.kinds.engine.spec import EngineSpec

WITHIN = 8.0  # seconds for all of them together
MOST = 16


def look_ahead(specs: Sequence[EngineSpec], tools: Tools) -> None:
    """Fill `tools.ahead` for releases that neither lock nor ledger know, as far as they answer in time."""
    asked = {spec.pin: spec for spec in specs if spec.origin.startswith("github:") and not known(spec, tools).files}
    if asked:
        asyncio.run(_ask(list(asked.values())[:MOST], tools))


async def _ask(specs: Sequence[EngineSpec], tools: Tools) -> None:
    from reconciler.kinds.engine.install import facts_of, find

    host = tools.host()

    async def one(spec: EngineSpec) -> None:
        try:
            tools.ahead[spec.pin] = canonical(facts_of(await find(spec, host), spec, host))
        except Fault as fault:
            told = {"message": fault.message, "hint": fault.hint, "final": fault.kind is FaultClass.PERMANENT}
            tools.ahead[spec.pin] = canonical({"fault": told})

    try:
        async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as group:
            for spec in specs:
                group.create_task(one(spec))
    except TimeoutError:
        for spec in specs:
            late = {"message": f"it did not answer within {WITHIN:.0f} s", "hint": "", "final": False}
            tools.ahead.setdefault(spec.pin, canonical({"fault": late}))
