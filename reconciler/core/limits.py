"""What a process may take of its machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """0 and () mean: no limit. `nice` is the lowered priority, 0 to 19, `memory` bytes that it may allocate (what it
    maps of files does not count), `cpus` the numbers of the cores that it may run on.
    """

    nice: int = 0
    memory: int = 0
    open_files: int = 0
    cpus: tuple[int, ...] = ()


NO_LIMITS = Limits()
