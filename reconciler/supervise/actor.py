"""One task watches one process: it reports the end, and whether it still answers. It decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from reconciler.host.process import Identity, Processes
from reconciler.supervise.machine import SILENCES

PROBE_EVERY = 5.0  # seconds between two liveness probes
PROBE_MOST = 15.0  # the same of a process that has long answered each
PROBE_CALM = 20.0  # so much longer it has to have answered than the pause between two
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
    now = asyncio.get_running_loop().time
    since = now()
    while True:
        calm = min(max(PROBE_EVERY, (now() - since) / PROBE_CALM), max(PROBE_EVERY, PROBE_MOST))
        await asyncio.sleep(PROBE_AGAIN if seen.silences else calm)
        before = seen.silences
        seen.silences = 0 if await answers() else before + 1
        since = now() if seen.silences else since
        if seen.silences == SILENCES or (before >= SILENCES and not seen.silences):
            wake()
