"""How long to put up with a bad server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from reconciler.core.diagnostics import Fault, FaultClass

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a download puts up with a bad server. Times in seconds.

    `stall`: without a byte. `tries`: in a row that bring nothing. `pause`: before the second one, doubled for each
    after it, with jitter. `longest`: a server that asks for a longer pause is left to whoever called.
    """

    stall: float = 30.0
    tries: int = 4
    pause: float = 0.5
    longest: float = 15.0

    def short(self) -> Patience:
        """For an address that another one can stand in for."""
        return replace(self, tries=min(self.tries, 2))

    def before(self, tries: int, fault: Fault) -> float:
        """The pause after so many tries that brought nothing, the last of them with this fault."""
        wanted = self.pause * 2.0 ** max(0, tries - 1)
        return float(max(fault.after, min(wanted, self.longest))) * random.uniform(1.0, 1.3)  # noqa: S311

    async def with_retries(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What an attempt returns that needs all or nothing."""
        tries = 0
        while True:
            try:
                return await attempt()
            except Fault as fault:
                tries += 1
                if fault.kind is not FaultClass.TRANSIENT or tries >= self.tries or fault.after > self.longest:
                    raise
                await asyncio.sleep(self.before(tries, fault))
