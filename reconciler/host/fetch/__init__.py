"""Downloads over HTTP that survive anything: in parallel, resumed after kill -9, hashed as they stream, never spliced.

`Fetch` is all that others use. A download's bytes lie in a part file, with a note beside it that binds them to one
version of one resource (`part`). What is missing is asked for in segments over several connections (`transfer`), hashed
while it comes (`digest`), within one budget of bytes a second (`pace`). Tokens stay with their host (`wire`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.digest import BLOCK
from reconciler.host.effects import Effects
from reconciler.host.fetch.ask import About, about, no_ranges, read
from reconciler.host.fetch.pace import Lane, Pace
from reconciler.host.fetch.part import MARGIN, SYNC_EVERY, WINDOW, Part, Patch, key
from reconciler.host.fetch.patience import Patience
from reconciler.host.fetch.slots import Slots
from reconciler.host.fetch.transfer import SEGMENT, Changed, Transfer
from reconciler.host.fetch.wire import OPEN, PIECE, Access, Wire, retry_after, shown
from reconciler.host.files import Files

__all__ = [
    "BLOCK", "MARGIN", "OPEN", "PIECE", "SEGMENT", "SYNC_EVERY", "WINDOW",
    "About", "Access", "Fetch", "Fetched", "Patience", "Progress", "Slots", "retry_after",
]  # fmt: skip

CONNECTIONS = 4  # for one file
PATIENT = Patience()
RESTARTS = 4  # that a resource may bring about by changing while it is fetched

Progress = Callable[[int, int | None], None]
T = TypeVar("T")

# Faults of this machine, which no other address mends.
_NOT_THE_SOURCES = frozenset(
    ("DISK_FULL", "NOT_WRITABLE", "NOT_A_FOLDER", "DISK_ERROR", "WRITE_FAILED", "BAD_CERTIFICATES", "BAD_PROXY")
)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came: sha256 (hex) and size (bytes) of the file at the part's path, CRC-32 of each 16 MiB of it (hex)."""

    sha256: str
    size: int
    blocks: tuple[str, ...] = ()


class Fetch:
    """The downloader of one controller."""

    def __init__(
        self,
        files: Files,
        effects: Effects,
        *,
        patience: Patience = PATIENT,
        connections: int = CONNECTIONS,
        bandwidth: float | None = None,
    ) -> None:
        self._files, self._effects, self._patience, self._connections = files, effects, patience, connections
        self._wire = Wire(patience.stall)
        self._pace = Pace(bandwidth)

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second for all downloads together, None for no limit; may be set while they run."""
        return self._pace.rate

    @bandwidth.setter
    def bandwidth(self, rate: float | None) -> None:
        self._pace.rate = rate

    async def close(self) -> None:
        await self._wire.close()

    async def head(self, urls: str | Sequence[str], access: Access = OPEN) -> About:
        """What the first address that answers says of its file, without bringing it. Raises Fault."""
        return await self._first(urls, lambda url: about(self._wire, url, access, self._patience))

    async def read(self, urls: str | Sequence[str], start: int, length: int, access: Access = OPEN) -> bytes:
        """`length` bytes (fewer at the end) from `start`; Fault NO_RANGES where only the whole is to be had."""
        return await self._first(urls, lambda url: read(self._wire, url, start, length, access, self._patience))

    async def get(
        self,
        urls: str | Sequence[str],
        path: Path,
        progress: Progress,
        expected: str = "",
        *,
        size: int | None = None,
        access: Access = OPEN,
        priority: int = 0,
    ) -> Fetched:
        """Bring a file to `path`, going on from what an earlier try left. Raises Fault.

        The addresses are tried in order until one works: mirrors first, the origin last. `expected` is a sha256 (hex)
        that the whole file must have, `size` its length in bytes; a part that does not fit them is thrown away. Where
        the sha256 is known, one address goes on with what another began. `priority` is for `Slots` and means nothing
        here. A cancelled call leaves a part that the next one goes on with.
        """
        addresses = _listed(urls)
        self._files.folder(path.parent)
        part = Part(path, self._files, self._effects, progress)
        await part.open(addresses, expected, size)
        try:
            return await self._brought(part, addresses, expected, size, access)
        finally:
            await part.close()
            if not part.done and not part.whole:
                with suppress(Fault):  # what went wrong before tells more
                    self.discard(path)

    async def patch(
        self,
        urls: str | Sequence[str],
        path: Path,
        spans: Sequence[tuple[int, int]],
        size: int,
        progress: Progress,
        access: Access = OPEN,
    ) -> None:
        """Bring (start, length) spans of a file of `size` bytes into the one at `path`, in place, and sync it.

        `progress` is told the bytes of the spans alone. What came is for the caller to prove. Raises Fault, among them
        `NO_RANGES` where only the whole is to be had.
        """
        wanted = [(start, start + length) for start, length in spans]
        if any(start < 0 or end > size for start, end in wanted):
            raise ValueError(f"a span lies outside of a file of {size} bytes")
        sink = Patch(path, wanted, size, progress)
        if not sink.missing():
            return
        with self._effects("fetch-patch", path):
            sink.open()
            try:
                await self._first(urls, lambda url: self._patched(url, sink, size, access))
            finally:
                await sink.close()

    def discard(self, path: Path) -> None:
        """Throw a part away, with its sidecar."""
        self._files.remove(path.with_name(path.name + ".json"))
        self._files.remove(path)

    async def _brought(
        self, part: Part, urls: Sequence[str], expected: str, size: int | None, access: Access
    ) -> Fetched:
        if part.whole:
            try:
                return await _proven(part, urls[-1], expected)
            except Fault:
                await part.clear()
                raise
        if not expected and part.done:  # only the address that a part is from can go on with it
            urls = sorted(urls, key=lambda url: key(url) != part.url)
        faults: list[tuple[str, Fault]] = []
        for url in urls:
            if faults and not expected and part.done:
                await part.clear()
            patience = self._patience if url == urls[-1] else self._patience.short()
            try:
                return await self._from(url, part, expected, size, access, patience)
            except Fault as fault:
                if fault.code in _NOT_THE_SOURCES:
                    raise
                faults.append((url, fault))
        raise _most_telling(faults)

    async def _from(
        self, url: str, part: Part, expected: str, size: int | None, access: Access, patience: Patience
    ) -> Fetched:
        """Bring what is missing from one address, beginning again where it must be, and prove the whole."""
        plain, lane = False, Lane(self._pace)
        fault: Fault
        for _ in range(RESTARTS):
            own = part.version is not None and part.url == key(url) and bool(part.version.validator)
            transfer = Transfer(
                self._wire, url, access, part, lane, patience,
                held=part.version if own else None, sure=bool(expected), size=size, plain=plain,
                connections=self._connections,
            )  # fmt: skip
            try:
                await transfer.run()
            except Changed as changed:
                fault, plain = changed.fault, plain or changed.plain
                await part.clear()
                continue
            except BaseException:
                await part.keep()
                raise
            try:
                return await _proven(part, url, expected)
            except Fault as mismatch:
                fault, mixed = mismatch, len(part.origins) > 1
                await part.clear()
                if not mixed:
                    raise  # else the other address may be to blame
        raise fault

    async def _patched(self, url: str, sink: Patch, size: int, access: Access) -> None:
        fault: Fault
        for _ in range(RESTARTS):
            transfer = Transfer(
                self._wire, url, access, sink, Lane(self._pace), self._patience,
                sure=True, size=size, whole=False, connections=self._connections,
            )  # fmt: skip
            try:
                return await transfer.run()
            except Changed as changed:
                fault = changed.fault
                await sink.clear()
                if changed.plain:
                    raise no_ranges(url) from changed
        raise fault

    async def _first(self, urls: str | Sequence[str], attempt: Callable[[str], Awaitable[T]]) -> T:
        """What the first address gives with which the attempt succeeds."""
        faults: list[tuple[str, Fault]] = []
        for url in _listed(urls):
            try:
                return await attempt(url)
            except Fault as fault:
                if fault.code in _NOT_THE_SOURCES:
                    raise
                faults.append((url, fault))
        raise _most_telling(faults)


async def _proven(part: Part, url: str, expected: str) -> Fetched:
    """Make the whole part safe and say what it is. Raises Fault CHECKSUM_MISMATCH."""
    await part.sync()
    assert part.size is not None
    await part.digest.at_least(part.size)
    found, blocks = part.digest.result()
    if expected and found != expected:
        raise Fault(
            "CHECKSUM_MISMATCH",
            f"{shown(url)} has sha256 {found}, but {expected} was asked for",
            hint="check the sha256 in the manifest; if it is right, the file at the source is not the one you mean",
            kind=FaultClass.PERMANENT,
        )
    return Fetched(found, part.size, blocks)


def _listed(urls: str | Sequence[str]) -> Sequence[str]:
    return [urls] if isinstance(urls, str) else list(dict.fromkeys(urls))


def _most_telling(faults: Sequence[tuple[str, Fault]]) -> Fault:
    """The last fault, which is the origin's, with what the mirrors said; not final while one of them may recover."""
    _, fault = faults[-1]
    if len(faults) == 1:
        return fault
    others = ", ".join(f"{shown(url)} ({other.code})" for url, other in faults[:-1])
    passing = any(other.kind is FaultClass.TRANSIENT for _, other in faults)
    return Fault(
        fault.code,
        f"{fault.message}; before it failed: {others}",
        hint=fault.hint,
        kind=FaultClass.TRANSIENT if passing and fault.kind is FaultClass.PERMANENT else fault.kind,
        after=min(other.after for _, other in faults),
    )
