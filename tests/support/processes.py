"""Looks at and ends real processes, for tests that must prove what runs and what is gone.

Promises: only reads, except `kill9`, which ends the one process named by its pid.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psutil

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as it was at one moment; it may have ended since. `leads`: it is the first of its group."""

    pid: int
    parent: int
    leads: bool
    argv: Sequence[str]
    environ: Mapping[str, str]


def children_with_env(name: str, value: str) -> list[Seen]:
    """Live processes other than this one that were started with NAME=VALUE, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            environ = process.environ()
            if environ.get(name) == value and process.pid != os.getpid():
                leads = os.getpgid(process.pid) == process.pid
                seen = Seen(process.pid, process.ppid(), leads, process.cmdline(), environ)
                found += [seen] if alive(process.pid) else []
    return found


def alive(pid: int) -> bool:
    """False once it has exited, also while its parent has not yet waited for it."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listened on a moment ago, and that no kernel gives to who asks for any."""
    while True:
        port = random.SystemRandom().randrange(10240, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(fn: Callable[[], T], timeout: float = 10.0, message: str = "the condition") -> T:
    """The first true result of `fn`, asked every few milliseconds; AssertionError with `message` after `timeout` s.

    Blocks: in an async test, call it through `asyncio.to_thread`.
    """
    deadline = time.monotonic() + timeout
    pause = 0.005
    while not (result := fn()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {message}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return result


def kill9(pid: int) -> None:
    """SIGKILL one process and return when it runs no more; nothing if it is gone already."""
    if pid <= 1:
        raise ValueError(f"not the id of one process: {pid}")
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_until(lambda: not alive(pid), 10, f"process {pid} dies of SIGKILL")


def listeners(port: int) -> list[int]:
    """The ids of the processes that listen on a TCP port, as far as this user may see them."""
    connections = psutil.net_connections(kind="tcp")
    pids = {c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port}
    return sorted(pid for pid in pids if pid is not None)
