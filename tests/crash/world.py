"""A world that misleads a controller: clocks that jump, ports that are taken, notices that never come or come twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import watchfiles

from reconciler.controller import daemon, recovery
from reconciler.core import retry
from reconciler.core.retry import Backoff
from reconciler.host import process
from reconciler.kinds.server import io as server_io

if TYPE_CHECKING:
    from tests.crash.victim import Orders

THIEF = """
import socket, sys, time
with socket.socket() as taken:
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", int(sys.argv[1])))
    taken.listen()
    print("mine", flush=True)
    time.sleep(float(sys.argv[2]))
"""
ROBBED = 6.0  # seconds that a thief keeps the port


def disturb(orders: Orders, folder: Path) -> None:
    """Change what this process sees of the world, as ordered."""
    warp(folder / "clock")
    if orders.hasty:
        retry.ACTIONS = retry.PROCESSES = retry.GATEWAY = retry.PATIENT = Backoff(first=0.2, cap=1.0)
        recovery.READY_FORGIVES = 1.0
    if orders.ports:
        offer(list(orders.ports))
    if orders.robbed:
        rob(orders.robbed)
    if "edits" in orders.lose:
        watchfiles.awatch = silent_watch
    if "exits" in orders.lose:
        process._readable = never
    if orders.double:
        twice()
    if orders.stale:
        lag(orders.stale)


def warp(file: Path) -> None:
    """Add the seconds in `file` to the wall clock, while it is there."""
    real, real_ns = time.time, time.time_ns

    def wrong() -> float:
        try:
            return float(file.read_text() or 0)
        except OSError:
            return 0.0

    time.time = lambda: real() + wrong()
    time.time_ns = lambda: real_ns() + int(wrong() * 1e9)


def offer(ports: list[int]) -> None:
    """Find these ports to be free before any other."""
    real = server_io.free_port
    server_io.free_port = lambda host="127.0.0.1", avoid=0: ports.pop(0) if ports else real(host, avoid)


def rob(port: int) -> None:
    """Have another process take the port after it was found to be free and before the gateway can."""
    real = process.Processes.spawn
    left = [port]

    def spawn(self: Any, argv: list[str], *more: Any) -> Any:
        if "reconciler.gateway" in argv and left:
            thief = subprocess.Popen(
                [sys.executable, "-c", THIEF, str(left.pop()), str(ROBBED)], stdout=subprocess.PIPE
            )
            assert thief.stdout is not None
            thief.stdout.readline()
        return real(self, argv, *more)

    process.Processes.spawn = spawn  # type: ignore[method-assign]


async def silent_watch(*_: Any, stop_event: Any, **__: Any) -> AsyncIterator[set[Any]]:
    await stop_event.wait()
    if False:
        yield set()


async def never(fd: int) -> None:
    await asyncio.Event().wait()


def twice() -> None:
    real: Callable[[daemon.Controller], None] = daemon.Controller.wake

    def wake(self: daemon.Controller) -> None:
        real(self)
        asyncio.get_running_loop().call_later(0.01, real, self)

    daemon.Controller.wake = wake  # type: ignore[method-assign]


def lag(every: int) -> None:
    """Let every so manieth look show what the one before it saw."""
    real, seen = daemon.look, []

    def look(*given: Any) -> Any:
        seen.append(real(*given))
        return seen[-2] if len(seen) > 1 and len(seen) % every == 0 else seen[-1]

    daemon.look = look
