"""One budget of bytes a second for all downloads, in equal shares however many connections each has.

A piece is paid for after it was read, as nobody knows its length before: over any time the bytes that were let through
are at most rate x time + `BURST` seconds' worth + one piece for each download.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

BURST = 0.1  # seconds of the rate that may be saved up while nobody reads


class Pace:
    """The budget. `rate` is bytes per second, None for no limit; it may change at any time, also while one waits."""

    def __init__(self, rate: float | None = None, clock: Callable[[], float] | None = None) -> None:
        self._rate = rate
        self._clock = clock
        self._credit = 0.0  # bytes; below zero they are owed
        self._at: float | None = None
        self._turn = asyncio.Lock()  # first come, first served
        self._changed = asyncio.Event()

    @property
    def rate(self) -> float | None:
        return self._rate

    @rate.setter
    def rate(self, rate: float | None) -> None:
        if rate is not None and rate <= 0:
            raise ValueError(f"a rate is more than 0 bytes a second, not {rate}")
        if self._at is not None:
            self._earn()
        self._rate = rate
        self._changed.set()

    async def take(self, length: int) -> None:
        """Pay for `length` bytes; returns when they are paid off."""
        async with self._turn:
            self._earn()
            self._credit -= length
            while self._rate is not None and self._credit <= -1:
                self._changed.clear()
                try:
                    async with asyncio.timeout(-self._credit / self._rate):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                self._earn()

    def _earn(self) -> None:
        now = (self._clock or asyncio.get_running_loop().time)()
        if self._rate is None:
            self._credit = 0.0
        elif self._at is not None:
            self._credit = min(self._credit + (now - self._at) * self._rate, self._rate * BURST)
        self._at = now


class Lane:
    """One download's place in the queue for the budget: its connections stand in it one behind the other."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._turn = asyncio.Lock()

    async def take(self, length: int) -> None:
        if self._pace.rate is None and not self._turn.locked():
            return
        async with self._turn:
            await self._pace.take(length)
        await asyncio.sleep(0)  # so that the next one in this lane stands in the queue before any other comes again
