"""Facts about the machine. Bytes."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

from reconciler.core.state import HostFacts


@lru_cache(maxsize=1)
def facts() -> HostFacts:
    """What does not change while we run."""
    system, machine = platform.system().lower(), platform.machine().lower()
    return HostFacts(
        memory_total=memory_total(),
        os={"darwin": "macos"}.get(system, system),
        arch={"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine),
    )


def memory_available() -> int:
    """Memory that new processes can have without swapping."""
    found = _meminfo("MemAvailable")
    if found:
        return found
    import psutil

    return int(psutil.virtual_memory().available)


@lru_cache(maxsize=1)
def memory_total() -> int:
    found = _meminfo("MemTotal")
    if found:
        return found
    import psutil

    return int(psutil.virtual_memory().total)


def _meminfo(name: str) -> int:
    """A line of /proc/meminfo in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)
