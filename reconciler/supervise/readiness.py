"""Ready means: *this* process answers 200 on its port. Not that the port answers, for anyone may hold it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.core.diagnostics import Fault
from reconciler.host.probes import holder_of, http_get, listens
from reconciler.host.process import UNSEEN, Identity, Processes, alive
from reconciler.supervise.exits import WORDS, meaning
from reconciler.supervise.logs import last_words

INTERVAL = 0.05  # seconds between two questions
LEAST = 60.0  # seconds that any model may take to load
ASSUMED = 20e6  # bytes a second of a slow disk
TELLING = 64 << 20  # bytes of a model from which on its loading says something about the disk


def start_budget(size: int, measured: float = 0.0) -> float:
    """Seconds that a model of `size` bytes may take to load.

    `measured` is how fast one was loaded here (bytes a second, 0: not known); that may have been out of memory, so that
    a disk is only trusted with a tenth of it. One that was slower than we assume gets twice the time it would need.
    """
    rate = min(max(ASSUMED, measured / 10), measured / 2) if measured > 0 else ASSUMED
    return LEAST + size / rate


@dataclass(frozen=True, slots=True)
class Health:
    """Where a server says that it is well; the `key` (empty: none) is for one that tells nobody else."""

    path: str = "/health"
    key: str = field(default="", repr=False)


PLAIN = Health()
GUARDED = (401, 403)  # what one answers that wants a key


async def healthy(host: str, port: int, timeout: float = 2.0, health: Health = PLAIN) -> bool:
    """Whether it answers 200 there."""
    return await _status(host, port, timeout, health) == 200


async def _status(host: str, port: int, timeout: float, health: Health) -> int:
    """What it answers; 0 where it does not."""
    try:
        status, _ = await http_get(host, port, health.path, timeout, health.key)
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
        return 0
    return status


async def wait_ready(
    processes: Processes,
    identity: Identity,
    host: str,
    port: int,
    budget: float,
    log: Path,
    log_start: int,
    limit: int = 0,
    health: Health = PLAIN,
) -> None:
    """Return once the process is ready. Raises Fault when it ends, takes longer than `budget` seconds, or when
    somebody else answers on its port. `log_start` is where this process's part of the log begins, `limit`
    what it may allocate (bytes, 0: no limit). Its key is shown to nobody else."""
    deadline = time.monotonic() + budget
    asked = replace(health, key="")
    while True:
        if not alive(identity):
            end = processes.end(identity) or UNSEEN
            raise meaning(end.code, last_words(log, WORDS, log_start), oom=end.oom, peak=end.peak, limit=limit)
        status = await _status(host, port, 2.0, asked)
        if status in GUARDED and health.key and await asyncio.to_thread(listens, identity.pid, port) is not False:
            asked = health
        if status == 200:
            if await asyncio.to_thread(listens, identity.pid, port) is not False:
                return
            if alive(identity):
                holder = await asyncio.to_thread(holder_of, port)
                raise Fault("PORT_IN_USE", f"port {port} is answered by {holder}, not by our process")
        if time.monotonic() > deadline:
            said = " | ".join(line.strip() for line in last_words(log, 3, log_start))
            answered = f": GET {health.path} answers {status}" if status and health is not PLAIN else ""
            other = "check the path (`ready.http` of its engine), or give it longer (`ready.timeout`)"
            raise Fault(
                "MODEL_LOAD_TIMED_OUT",
                f"not ready after {budget:.0f} s{answered}" + (f"; its last words: {said}" if said else ""),
                hint="see the log; a slow disk or a very large model may need more time" if health is PLAIN else other,
            )
        await asyncio.sleep(INTERVAL)
