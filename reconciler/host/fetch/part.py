"""A file that is not whole yet, and the note beside it that says which of its bytes count.

The note (sidecar) binds them to one version of one resource: address, validator, size, and the sha256 that was asked
for. Data is synced to disk before the note claims it, and at most `UNSAFE` bytes are in the file that it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from reconciler.host.effects import Effects
from reconciler.host.fetch import spans
from reconciler.host.fetch.frontier import Frontier, reader
from reconciler.host.fetch.threads import begin, in_thread
from reconciler.host.files import Files, disk_faults, require_room

SYNC_EVERY = 8 << 20  # bytes between two syncs
UNSAFE = 10 << 20  # bytes that may wait for a sync: with what the connections hold, less than a segment
WINDOW = 56 << 20  # bytes past the hash's frontier that may be asked for: the most that waits in memory
MARGIN = 64 << 20  # bytes of disk that a download leaves free


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one state of a resource from another. `validator` is good for If-Range; empty if there is none."""

    size: int | None
    etag: str = ""
    modified: str = ""

    @property
    def validator(self) -> str:
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class Sink(Protocol):
    """Where a transfer puts its bytes."""

    @property
    def size(self) -> int | None: ...
    @property
    def done(self) -> int: ...
    def missing(self) -> spans.Spans:
        """What is still to come, where the size is known."""

    @property
    def moved(self) -> asyncio.Event:
        """Is set whenever `near` may have become true of something."""

    def near(self, end: int) -> bool:
        """Whether bytes up to `end` may be asked for yet."""

    async def room(self, length: int) -> None:
        """Wait until so many bytes more may be put."""

    def put(self, start: int, pieces: Sequence[bytes]) -> asyncio.Future[None]:
        """Begin to write pieces at `start`; the future may raise Fault."""

    async def follow(self) -> None:
        """Keep what was put safe, until cancelled."""

    def bind(self, url: str, version: Version) -> None:
        """From here on the bytes are from this address, of this version. Raises Fault where there is no room."""

    def ended_at(self, size: int) -> None:
        """The file, which may not have said its length, turned out to have this one."""

    async def clear(self) -> None:
        """Nothing of what was put counts."""


class Part:
    """One download's file. Not to be used before `open`, nor after `close`."""

    def __init__(self, path: Path, files: Files, effects: Effects, told: Callable[[int, int | None], None]) -> None:
        self.path, self._files, self._effects, self._told = path, files, effects, told
        self.origins: frozenset[str] = frozenset()  # keys of the addresses that its bytes are from
        self.version: Version | None = None
        self.expected = ""
        self.url = ""
        self.written: spans.Spans = ()
        self._safe: spans.Spans = ()
        self._put = 0  # bytes written, or on their way to be
        self._fd = -1
        self._synced = asyncio.Event()
        self._due = asyncio.Event()
        self._sync_turn = asyncio.Lock()
        self.digest = Frontier(lambda length, at: b"", lambda at: at)

    @property
    def sidecar(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    @property
    def size(self) -> int | None:
        return self.version.size if self.version else None

    @property
    def done(self) -> int:
        return spans.total(self.written)

    @property
    def whole(self) -> bool:
        return self.size is not None and not self.missing()

    def missing(self) -> spans.Spans:
        return spans.missing(self.written, self.size or 0)

    async def open(self, urls: Sequence[str], expected: str, size: int | None) -> None:
        """Open or make the file, with what an earlier try left that counts for one of these addresses."""
        self.expected = expected
        await in_thread(self._open, urls, size)
        self._safe, self._put = self.written, self.done
        self._new_digest()

    def _open(self, urls: Sequence[str], size: int | None) -> None:
        found = _noted(self.path, self.sidecar)
        if found is not None and _counts(found, urls, self.expected, size):
            self.version = Version(found["size"], found["etag"], found["modified"])
            self.written = tuple((start, end) for start, end in found["spans"])
            self.url, self.origins = found["url"], frozenset(found["origins"])
        elif self.sidecar.exists():
            self._files.remove(self.sidecar)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (0 if self.written else os.O_TRUNC)
        with self._effects("fetch-open", self.path), disk_faults(self.path):
            self._fd = os.open(self.path, flags, 0o666)

    def bind(self, url: str, version: Version) -> None:
        self.url, self.version = key(url), version
        if version.size is not None:
            require_room(self.path, version.size - self.done, spare=MARGIN)
        self._told(self.done, self.size)

    def ended_at(self, size: int) -> None:
        assert self.version is not None
        self.version = Version(size, self.version.etag, self.version.modified)

    async def clear(self) -> None:
        await self.digest.settled()
        self.version, self.url, self.origins = None, "", frozenset()
        self.written = self._safe = ()
        self._put = 0
        self._new_digest()
        await in_thread(self._clear)

    def _clear(self) -> None:
        self._files.remove(self.sidecar)
        with self._effects("fetch-open", self.path), disk_faults(self.path):
            os.ftruncate(self._fd, 0)

    def _new_digest(self) -> None:
        self.digest = Frontier(reader(self._fd), lambda at: spans.run_from(self.written, at))

    async def close(self) -> None:
        await self.digest.settled()
        fd, self._fd = self._fd, -1
        os.close(fd)

    @property
    def moved(self) -> asyncio.Event:
        return self.digest.moved

    def near(self, end: int) -> bool:
        return self.digest.reached(end - WINDOW)

    async def room(self, length: int) -> None:
        while self._put + length - spans.total(self._safe) > UNSAFE and self.done > spans.total(self._safe):
            self._due.set()
            self._synced.clear()
            await self._synced.wait()

    def put(self, start: int, pieces: Sequence[bytes]) -> asyncio.Future[None]:
        length = sum(map(len, pieces))
        self._put += length
        self.origins |= {self.url}
        job = begin(write_at, self._fd, self.path, start, pieces)
        job.add_done_callback(lambda job: self._landed(job, start, length, pieces))
        return job

    def _landed(self, job: asyncio.Future[None], start: int, length: int, pieces: Sequence[bytes]) -> None:
        if job.cancelled() or job.exception():
            self._put -= length
            return
        self.written = spans.added(self.written, (start, start + length))
        self.digest.add(start, length, pieces)
        if self.done - spans.total(self._safe) >= SYNC_EVERY:
            self._due.set()
        self._told(self.done, self.size)

    async def follow(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            await self.sync()

    async def sync(self) -> None:
        """Make what is written safe, and say so beside it."""
        async with self._sync_turn:
            if (written := self.written) != self._safe:
                await in_thread(self._sync, written)
                self._safe = written
        self._synced.set()

    def _sync(self, written: spans.Spans) -> None:
        version = self.version or Version(None)
        with self._effects("fetch-sync", self.path), disk_faults(self.path):
            if version.size is not None and os.fstat(self._fd).st_size > version.size:
                os.ftruncate(self._fd, version.size)
            os.fsync(self._fd)
        facts = {
            "url": self.url,
            "origins": sorted(self.origins),
            "etag": version.etag,
            "modified": version.modified,
            "size": version.size,
            "sha256": self.expected,
            "spans": written,
        }
        self._files.write(self.sidecar, json.dumps(facts).encode())

    async def keep(self) -> None:
        """Sync on the way out after a fault or a cancellation, which one of the disk must not hide."""
        with contextlib.suppress(Exception):
            await self.sync()


class Patch:
    """Spans of a file that is there already, to be written over where it lies."""

    def __init__(
        self, path: Path, wanted: Iterable[spans.Span], size: int, told: Callable[[int, int | None], None]
    ) -> None:
        self.path, self.size, self._told = path, size, told
        self._wanted = spans.joined(wanted)
        self._written: spans.Spans = ()
        self._fd = -1
        self.moved = asyncio.Event()

    @property
    def done(self) -> int:
        return spans.total(self._written)

    def missing(self) -> spans.Spans:
        left = spans.missing(self._written, self.size)
        both = ((max(a, start), min(b, end)) for start, end in self._wanted for a, b in left if a < end and start < b)
        return tuple(both)

    def open(self) -> None:
        with disk_faults(self.path):
            self._fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)

    async def close(self) -> None:
        """Sync what was written, and close."""
        fd, self._fd = self._fd, -1
        try:
            await in_thread(_fsync, fd, self.path)
        finally:
            os.close(fd)

    def bind(self, url: str, version: Version) -> None:
        self._told(self.done, spans.total(self._wanted))

    def ended_at(self, size: int) -> None:
        raise AssertionError("spans end where they were said to")

    async def clear(self) -> None:
        self._written = ()

    def near(self, end: int) -> bool:
        return True

    async def room(self, length: int) -> None:
        pass

    def put(self, start: int, pieces: Sequence[bytes]) -> asyncio.Future[None]:
        job = begin(write_at, self._fd, self.path, start, pieces)
        job.add_done_callback(lambda job: self._landed(job, start, sum(map(len, pieces))))
        return job

    def _landed(self, job: asyncio.Future[None], start: int, length: int) -> None:
        if not job.cancelled() and not job.exception():
            self._written = spans.added(self._written, (start, start + length))
            self._told(self.done, spans.total(self._wanted))

    async def follow(self) -> None:
        await asyncio.Event().wait()


def write_at(fd: int, path: Path, start: int, pieces: Sequence[bytes]) -> None:
    """Write pieces one behind the other, from `start` on. Raises Fault."""
    left = list(pieces)
    with disk_faults(path):
        while left:
            count = os.pwritev(fd, left, start)
            start += count
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]


def _fsync(fd: int, path: Path) -> None:
    with disk_faults(path):
        os.fsync(fd)


def key(url: str) -> str:
    """An address as the note knows it: hashed, since addresses carry secrets."""
    return hashlib.sha256(url.encode()).hexdigest()


def _noted(path: Path, sidecar: Path) -> Mapping[str, Any] | None:
    """What the note says, if it makes sense for the file."""
    try:
        found = json.loads(sidecar.read_text())
        held = [(start, end) for start, end in found["spans"]]
        size = found["size"]
        sound = (
            all(type(at) is int for span in held for at in span)
            and list(spans.joined(held)) == held
            and held[0][0] >= 0
            and held[-1][1] <= path.stat().st_size
            and (size is None or (type(size) is int and held[-1][1] <= size))
            and all(isinstance(found[name], str) for name in ("url", "etag", "modified", "sha256"))
            and all(isinstance(origin, str) for origin in found["origins"])
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if sound else None


def _counts(found: Mapping[str, Any], urls: Sequence[str], expected: str, size: int | None) -> bool:
    """Whether what is there is of what is wanted: the same bytes by their sha256, or the same address and version."""
    if size is not None and found["size"] is not None and found["size"] != size:
        return False
    if expected and found["sha256"] == expected and found["size"] is not None:
        return True
    version = Version(found["size"], found["etag"], found["modified"])
    return bool(version.validator) and found["url"] in {key(url) for url in urls}
