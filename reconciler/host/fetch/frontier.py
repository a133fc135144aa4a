"""sha256 and CRC-32 of a file while it comes, in whatever order its pieces do; no byte is read back for it.

Pieces wait in memory until the ones before them are there; whoever asks for bytes keeps to a window ahead of
`frontier`, which bounds them. What an earlier process left on disk is read when its turn comes. The work is done in a
thread, one job at a time, each begun by the end of the one before.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from reconciler.host.digest import Digest
from reconciler.host.fetch.threads import begin

JOB = 4 << 20


class Frontier:
    """The digest of what `read` reads. `stored(at)` says how far bytes from `at` on are there without a gap."""

    def __init__(self, read: Callable[[int, int], bytes], stored: Callable[[int], int]) -> None:
        self.frontier = 0
        self.moved = asyncio.Event()
        self._read, self._stored = read, stored
        self._waiting: dict[int, tuple[int, Sequence[bytes]]] = {}  # start → end, pieces
        self._digest = Digest()
        self._job: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    def add(self, start: int, length: int, pieces: Sequence[bytes]) -> None:
        """Bytes that are in the file now, at `start`."""
        if start >= self.frontier:
            self._waiting[start] = (start + length, pieces)
        self.go_on()

    def go_on(self) -> None:
        """Begin the next job, if there is one and none runs."""
        if self._job is not None or self._error is not None:
            return
        end, pieces = self._next_pieces()
        if pieces:
            self._job = begin(self._update, pieces)
        elif (end := min(self._stored(self.frontier), self.frontier + JOB, *self._waiting)) > self.frontier:
            self._job = begin(self._update_from_file, self.frontier, end)
        else:
            return
        self._job.add_done_callback(lambda job: self._landed(job, end))

    async def at_least(self, end: int) -> None:
        """Wait until everything before `end` is hashed. Raises what reading back raised."""
        while not self.reached(end):
            self.moved.clear()
            await self.moved.wait()

    def reached(self, end: int) -> bool:
        """Whether everything before `end` is hashed; if not, the hash goes on. Raises what reading back raised."""
        if self.frontier >= end:
            return True
        if self._error is not None:
            raise self._error
        self.go_on()
        return False

    async def settled(self) -> None:
        """Wait for the job that runs, if one does; none is begun after it."""
        self._error = self._error or RuntimeError("this digest was given up")
        if self._job is not None:
            await asyncio.wait([self._job])

    def result(self) -> tuple[str, tuple[str, ...]]:
        """sha256 (hex) and the CRC-32 of each block (8 hex digits) of what lies before the frontier."""
        return self._digest.sha256, self._digest.blocks

    def _next_pieces(self) -> tuple[int, list[bytes]]:
        end, pieces = self.frontier, list[bytes]()
        while end - self.frontier < JOB and (found := self._waiting.pop(end, None)):
            end = found[0]
            pieces += found[1]
        return end, pieces

    def _landed(self, job: asyncio.Future[None], end: int) -> None:
        self._job = None
        if job.cancelled() or job.exception():
            self._error = self._error or job.exception() or asyncio.CancelledError()
        else:
            self.frontier = end
            self.go_on()
        self.moved.set()

    def _update_from_file(self, start: int, end: int) -> None:
        while start < end:
            piece = self._read(min(end - start, 1 << 20), start)
            if not piece:
                raise OSError("the part became shorter while it was read")
            self._update([piece])
            start += len(piece)

    def _update(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)


def reader(fd: int) -> Callable[[int, int], bytes]:
    """Reads (length, at) of an open file."""
    return lambda length, at: os.pread(fd, length, at)
