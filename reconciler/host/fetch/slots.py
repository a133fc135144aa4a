"""How many may be at it at once: a semaphore with priorities whose size may change while it is in use."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from types import TracebackType


class Slots:
    """`async with slots(priority):` waits for a slot; the higher priority goes first, among equals who came first.

    `async with slots:` is priority 0. A smaller size takes nothing from those inside: it holds as they leave.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.busy = 0
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = count()

    @property
    def waiting(self) -> int:
        return sum(not future.done() for _, _, future in self._queue)

    def resize(self, size: int) -> None:
        self.size = size
        self._admit()

    def __call__(self, priority: int = 0) -> AbstractAsyncContextManager[None]:
        return self._held(priority)

    async def __aenter__(self) -> None:
        await self._enter(0)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    @asynccontextmanager
    async def _held(self, priority: int) -> AsyncIterator[None]:
        await self._enter(priority)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, priority: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (-priority, next(self._order), turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the slot was given in the same moment: it goes to the next
                self._leave()
            turn.cancel()
            raise

    def _leave(self) -> None:
        self.busy -= 1
        self._admit()

    def _admit(self) -> None:
        while self._queue and self.busy < self.size:
            _, _, turn = heapq.heappop(self._queue)
            if not turn.done():
                self.busy += 1
                turn.set_result(None)
