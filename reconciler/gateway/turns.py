"""Turns: who goes on to a target that takes only so many requests at once.

Those who wait are served by the priority of their key, the highest first; among equals key after key has one turn, so
that a client with a hundred requests waiting delays another's one request by one turn only. Waiting is bounded: what
comes when a line is full is refused at once. A client that goes away leaves its place.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from reconciler.gateway import errors
from reconciler.gateway.routes import Bound


class Line:
    """Those who are served by one target, and those who wait for it, by priority and key."""

    def __init__(self) -> None:
        self.busy = 0
        self.waiting = 0
        self._keys: dict[int, dict[str, deque[asyncio.Future[None]]]] = {}

    async def wait(self, key: str, priority: int) -> None:
        """Return when it is one's turn, which is counted as busy by then."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keys.setdefault(priority, {}).setdefault(key, deque()).append(turn)
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had just been given the turn
                self.busy -= 1
            else:
                self._forget(turn, key, priority)
            raise

    def admit(self, at_once: int) -> None:
        """Give turns to those who wait, as far as there is room."""
        while self.waiting and self.busy < at_once:
            turn = self._next()
            if not turn.done():  # else its client has gone, and does not know yet that it left the line
                self.busy += 1
                turn.set_result(None)

    def _next(self) -> asyncio.Future[None]:
        priority = max(self._keys)
        keys = self._keys[priority]
        key = next(iter(keys))
        line = keys.pop(key)
        turn = line.popleft()
        if line:
            keys[key] = line  # behind the others
        if not keys:
            del self._keys[priority]
        self.waiting -= 1
        return turn

    def _forget(self, turn: asyncio.Future[None], key: str, priority: int) -> None:
        keys = self._keys.get(priority, {})
        if turn not in keys.get(key, ()):
            return
        keys[key].remove(turn)
        if not keys[key]:
            del keys[key]
        if not keys:
            del self._keys[priority]
        self.waiting -= 1


class Turns:
    """The lines of all targets, by name; one is there only while somebody is in it."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    def waiting(self) -> dict[str, int]:
        """How many wait for each target."""
        return {name: line.waiting for name, line in self._lines.items() if line.waiting}

    @asynccontextmanager
    async def turn(self, name: str, bound: Bound | None, key: str, priority: int) -> AsyncIterator[None]:
        """One's turn at a target, as long as it takes; raises `Refusal` where too many wait already."""
        if bound is None:
            yield
            return
        line = self._lines.setdefault(name, Line())
        if line.busy < bound.at_once and not line.waiting:
            line.busy += 1
        else:
            if line.waiting >= bound.queue:
                raise errors.line_full(name, bound.queue)
            try:
                await line.wait(key, priority)
            except asyncio.CancelledError:
                self._go_on(name, line, bound)
                raise
        try:
            yield
        finally:
            line.busy -= 1
            self._go_on(name, line, bound)

    def _go_on(self, name: str, line: Line, bound: Bound) -> None:
        line.admit(bound.at_once)
        if not line.busy and not line.waiting and self._lines.get(name) is line:
            del self._lines[name]
