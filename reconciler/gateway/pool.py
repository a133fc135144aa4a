"""Pool: the connections to all engines and providers, and which of them are kept.

It keeps and cuts connections; `dial` opens them, and what is said on them is `upstream.Connection`'s business.
"""

from __future__ import annotations

import asyncio

from reconciler.gateway.dial import Unreachable, dial
from reconciler.gateway.routes import Peer
from reconciler.gateway.upstream import Connection

IDLE_SECONDS = 2.0
AWAY_IDLE_SECONDS = 30.0  # elsewhere a connection is dear, and costs nobody a thread
IDLE_LIMIT = 64
STARVED_SECONDS = 0.02
MOST_LANES = 256


class Lane:
    """The connections to one peer. `waiting` holds those without a first byte, the longest waiting first.

    llama-server gives every open connection a thread, idle or not, and in a burst of new connections it starts too few
    (seen with 24 at once: some were not read from until idle ones timed out after 5 s). So while someone has waited
    for `STARVED_SECONDS`, an engine's idle connections are cut, which sets their threads free.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: bool) -> None:
        self._engine = engine
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
        if self._engine and self.waiting and self._relief is None:
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
        longest = IDLE_SECONDS if self._engine else AWAY_IDLE_SECONDS
        while self._idle and now - self._idle[0].idle_since > longest:
            self._idle.pop(0).close()

    def close(self) -> None:
        """Cut everything."""
        if self._relief is not None:
            self._relief.cancel()
        for connection in list(self.open):
            connection.close()

    def _starving(self, now: float) -> bool:
        if not self._engine:
            return False
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
    """The connections to all engines and providers, lane by lane."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lanes: dict[Peer, Lane] = {}

    async def take(self, peer: Peer, connect_seconds: float, *, fresh: bool = False) -> Connection:
        """An idle connection, or a new one (always a new one when `fresh`); raises `Unreachable`."""
        lane = self._lanes.get(peer)
        if lane is None:
            lane = self._lanes[peer] = Lane(self._loop, peer.engine)
        elif not fresh and (kept := lane.take()) is not None:
            return kept
        made = Connection(self._loop, lane)
        try:
            async with asyncio.timeout(connect_seconds):
                await dial(self._loop, peer, made)
        except TimeoutError:
            made.close()
            raise Unreachable(f"no connection within {connect_seconds:g} s") from None
        return made

    def tick(self, now: float) -> None:
        """Once or more a second, in loop time: let overdue waits fail and old idle connections go."""
        for lane in self._lanes.values():
            lane.tick(now)
        if len(self._lanes) > MOST_LANES:
            self._lanes = {peer: lane for peer, lane in self._lanes.items() if lane.open}

    def close(self) -> None:
        """Cut everything."""
        for lane in self._lanes.values():
            lane.close()
