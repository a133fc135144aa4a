"""One task watches one process: it reports the end, and whether it still answers. It decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from reconciler.host.process import Identity, Processes
from reconciler.supervise.machine import SILENCES

PROBE_EVERY = 5.0  # seconds between two liveness probes
PROBE_AGAIN = 1.0  # after one that went unanswered


@dataclass(slots=True)
class Watched:
    """What is known of a process from watching it."""

    silences: int = 0


async def watch(
    processes: Processes,
    identity: Identity,
    seen: Watched,
    answers: Callable[[], Awaitable[bool]],
    wake: Callable[[], None],
) -> int | None:
    """Return the exit code (None where it cannot be known) once the process has ended.

    Meanwhile `seen.silences` counts liveness probes in a row without an answer, and `wake` is called when the
    process turns silent or answers again.
    """
    probing = asyncio.create_task(_probe(seen, answers, wake))
    try:
        await processes.exited(identity)
    finally:
        probing.cancel()
        await asyncio.wait([probing])
    return processes.exit_code(identity)


async def _probe(seen: Watched, answers: Callable[[], Awaitable[bool]], wake: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(PROBE_AGAIN if seen.silences else PROBE_EVERY)
        before = seen.silences
        seen.silences = 0 if await answers() else before + 1
        if seen.silences == SILENCES or (before >= SILENCES and not seen.silences):
            wake()
