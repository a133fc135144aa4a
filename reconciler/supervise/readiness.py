"""Ready means: *this* process answers 200 on its port. Not that the port answers, for anyone may hold it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from reconciler.core.diagnostics import Fault
from reconciler.host.probes import holder_of, http_get, listens
from reconciler.host.process import Identity, Processes, alive
from reconciler.supervise.exits import meaning
from reconciler.supervise.logs import tail

INTERVAL = 0.05  # seconds between two questions


async def healthy(host: str, port: int, timeout: float = 2.0) -> bool:
    """Whether /health answers 200."""
    try:
        status, _ = await http_get(host, port, "/health", timeout)
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
        return False
    return status == 200


async def wait_ready(
    processes: Processes, identity: Identity, host: str, port: int, budget: float, log: Path, log_start: int
) -> None:
    """Return once the process is ready. Raises Fault when it ends, takes longer than `budget` seconds, or when
    somebody else answers on its port. `log_start` is where this process's part of the log begins."""
    deadline = time.monotonic() + budget
    while True:
        if not alive(identity):
            raise meaning(processes.exit_code(identity), tail(log, 40, log_start))
        if await healthy(host, port):
            if await asyncio.to_thread(listens, identity.pid, port) is not False:
                return
            if alive(identity):
                holder = await asyncio.to_thread(holder_of, port)
                raise Fault("PORT_IN_USE", f"port {port} is answered by {holder}, not by our process")
        if time.monotonic() > deadline:
            said = " | ".join(line.strip() for line in tail(log, 3, log_start))
            raise Fault(
                "MODEL_LOAD_TIMED_OUT",
                f"not ready after {budget:.0f} s" + (f"; its last words: {said}" if said else ""),
                hint="see the log; a slow disk or a very large model may need more time",
            )
        await asyncio.sleep(INTERVAL)
