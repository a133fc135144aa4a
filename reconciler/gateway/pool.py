"""Pool: the connections to all engines, and which of them are kept.

It opens, keeps and cuts connections; what is said on them is `upstream.Connection`'s business.
"""

from __future__ import annotations

import asyncio

from reconciler.gateway.upstream import Connection

IDLE_SECONDS = 2.0
IDLE_LIMIT = 64
STARVED_SECONDS = 0.02

Address = tuple[str, int]


class Unreachable(Exception):
    """No connection could be made within the given time."""


class Lane:
    """The connections to one address. `waiting` holds those without a first byte, the longest waiting first.

    llama-server gives every open connection a thread, idle or not, and in a burst of new connections it starts too few
    (seen with 24 at once: some were not read from until idle ones timed out after 5 s). So while someone has waited
    for `STARVED_SECONDS`, idle connections are cut, which sets their threads free.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.open: set[Connection] = set()
        self.waiting: dict[Connection, float] = {}
        self._idle: list[Connection] = []
        self._loop = loop
        self._relief: asyncio.TimerHandle | None = None

    def take(self) -> Connection | None:
        """The idle connection that was used last, if there is any."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    def give(self, connection: Connection) -> None:
        """Keep a connection whose exchange ended cleanly, unless others are starving; cut it otherwise."""
        now = self._loop.time()
        if not connection.finished_cleanly() or len(self._idle) >= IDLE_LIMIT or self._starving(now):
            connection.close()
            return
        connection.idle_since = now
        self._idle.append(connection)
        if self.waiting and self._relief is None:
            self._relief = self._loop.call_later(STARVED_SECONDS, self._relieve)

    def forget(self, connection: Connection) -> None:
        """The connection is closed."""
        self.open.discard(connection)
        self.waiting.pop(connection, None)
        if connection in self._idle:
            self._idle.remove(connection)

    def tick(self, now: float) -> None:
        """Let overdue waits fail and old idle connections go."""
        for connection in list(self.open):
            connection.tick(now)
        while self._idle and now - self._idle[0].idle_since > IDLE_SECONDS:
            self._idle.pop(0).close()

    def close(self) -> None:
        """Cut everything."""
        if self._relief is not None:
            self._relief.cancel()
        for connection in list(self.open):
            connection.close()

    def _starving(self, now: float) -> bool:
        longest = next(iter(self.waiting.values()), now)
        return now - longest > STARVED_SECONDS

    def _relieve(self) -> None:
        self._relief = None
        if not (self._idle and self.waiting):
            return
        if self._starving(self._loop.time()):
            while self._idle:
                self._idle.pop().close()
        else:
            self._relief = self._loop.call_later(STARVED_SECONDS, self._relieve)


class Pool:
    """The connections to all engines, lane by lane. A lane is never removed: there are at most as many as ports."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lanes: dict[Address, Lane] = {}

    async def take(self, address: Address, connect_seconds: float, *, fresh: bool = False) -> Connection:
        """An idle connection, or a new one (always a new one when `fresh`); raises `Unreachable`."""
        lane = self._lanes.get(address)
        if lane is None:
            lane = self._lanes[address] = Lane(self._loop)
        elif not fresh and (kept := lane.take()) is not None:
            return kept
        made = Connection(self._loop, lane)
        try:
            async with asyncio.timeout(connect_seconds):
                await self._loop.create_connection(lambda: made, address[0], address[1])
        except TimeoutError:
            raise Unreachable(f"no connection within {connect_seconds:g} s") from None
        except OSError as error:
            raise Unreachable(error.strerror or type(error).__name__) from None
        return made

    def tick(self, now: float) -> None:
        """Once or more a second, in loop time: let overdue waits fail and old idle connections go."""
        for lane in self._lanes.values():
            lane.tick(now)

    def close(self) -> None:
        """Cut everything."""
        for lane in self._lanes.values():
            lane.close()
