"""Zip archives that nobody vouches for: what is in one, without having it, and members joined to one file.

A member's path is compared and shown, and never used as a path. Sizes are bounded by what the archive's directory says
and by the disk, and are checked against what comes out; what is encrypted, or packed in a way that wheels are not, is
refused. Reading over ranges uses the standard library's own reader on a file of which only some stretches are known.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.bulk import in_bulk
from reconciler.host.digest import Digest
from reconciler.host.fetch import Progress
from reconciler.host.files import disk_faults, require_room
from reconciler.sources.parts import Entry

TAIL = 64 << 10  # bytes from the end that are read first: most directories and RECORDs lie within
MOST_READ = 16 << 20  # bytes of an archive that are read to see what is in it
MOST_RECORD = 4 << 20
MOST_MEMBERS = 50_000
RATIO_FROM = 64 << 20  # bytes; smaller members may be packed as tightly as they like
MOST_RATIO = 100
CHUNK = 1 << 20
LOCAL = struct.Struct("<4s22xHH")  # signature, length of name, length of extra field

_ODD = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError)

Read = Callable[[int, int], Awaitable[bytes]]


class Unfit(Exception):
    """Not an archive that can be used; the text says why."""


@contextmanager
def _unfit() -> Iterator[None]:
    try:
        yield
    except _ODD as error:
        raise Unfit(str(error) or type(error).__name__) from error


# -- what is in it ----------------------------------------------------------------------------------------------------


class _Gap(Exception):
    def __init__(self, start: int, length: int) -> None:
        self.start, self.length = start, length
        super().__init__()


class _Sparse:
    """A file of `size` bytes of which some stretches are known; reading any other raises _Gap."""

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0
        self._known: list[tuple[int, bytes]] = []

    def learn(self, start: int, data: bytes) -> None:
        self._known.append((start, data))

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("before the beginning")  # what a file says, and the reader expects
        self._at = base + offset
        return self._at

    def read(self, length: int = -1) -> bytes:
        rest = max(self._size - self._at, 0)
        length = rest if length < 0 else min(length, rest)
        for start, data in self._known:
            if start <= self._at and self._at + length <= start + len(data):
                piece = data[self._at - start : self._at - start + length]
                self._at += length
                return piece
        raise _Gap(self._at, length)


async def members_over(read: Read, size: int) -> tuple[Entry, ...]:
    """The members of an archive of `size` bytes, of which `read(start, length)` gives any. Raises Unfit, Fault."""
    known, left = _Sparse(size), MOST_READ
    gap = _Gap(max(size - TAIL, 0), min(size, TAIL))
    while True:
        left -= gap.length
        if left < 0:
            raise Unfit("its directory is too large")
        data = await read(gap.start, gap.length)
        if len(data) != gap.length:
            raise Unfit("it is shorter than it was said to be")
        known.learn(gap.start, data)
        try:
            return await in_bulk(members, cast(IO[bytes], known))
        except _Gap as more:
            gap = _Gap(more.start, min(max(more.length, TAIL), size - more.start))


def members(archive: Path | IO[bytes]) -> tuple[Entry, ...]:
    """The files in an archive, with the sha256 that a wheel's RECORD gives them. Raises Unfit."""
    with _unfit(), zipfile.ZipFile(archive) as opened:
        infos = [info for info in opened.infolist() if not info.is_dir()]
        if len(infos) > MOST_MEMBERS:
            raise Unfit(f"it has {len(infos)} members")
        if any(info.header_offset < 0 for info in opened.infolist()):
            raise Unfit("its directory is not where it says")
        record = _record(opened, infos)
        return tuple(
            Entry(i.filename, i.file_size, i.compress_size, i.header_offset, i.compress_type, record.get(_row(i), ""))
            for i in infos
        )


def _row(info: zipfile.ZipInfo) -> tuple[str, int]:
    return info.filename, info.file_size


def _record(opened: zipfile.ZipFile, infos: Sequence[zipfile.ZipInfo]) -> dict[tuple[str, int], str]:
    """(path, size) → sha256 (hex) of a wheel's RECORD, whose form is that of PEP 376 and PEP 427."""
    lists = [i for i in infos if i.filename.count("/") == 1 and i.filename.endswith(".dist-info/RECORD")]
    if len(lists) != 1 or lists[0].file_size > MOST_RECORD or lists[0].flag_bits & 1:
        return {}
    with opened.open(lists[0]) as data:
        text = data.read(MOST_RECORD).decode(errors="replace")
    found = {}
    for row in csv.reader(text.splitlines()):
        if len(row) == 3 and row[1].startswith("sha256=") and row[2].isdecimal() and len(row[2]) < 16:
            found[row[0], int(row[2])] = _hex(row[1].removeprefix("sha256="))
    return found


def _hex(text: str) -> str:
    """A sha256 in hex from its unpadded base64; empty where it is none."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return ""
    return raw.hex() if len(raw) == 32 else ""


# -- a stretch of a member --------------------------------------------------------------------------------------------


async def stretch(read: Read, offset: int, method: int, packed: int, start: int, length: int) -> bytes:
    """`length` bytes (fewer at the end) from `start` of the member whose header is at `offset`. Raises Unfit, Fault.

    A member that is packed is unpacked from its beginning, so that costs as much as what goes before.
    """
    head = await read(offset, LOCAL.size)
    with _unfit():
        signature, name, extra = LOCAL.unpack(head)
    if signature != b"PK\x03\x04":
        raise Unfit("a member is not where the directory says")
    data = offset + LOCAL.size + name + extra
    if method == zipfile.ZIP_STORED:
        return await read(data + start, min(length, packed - start)) if start < packed else b""
    if method != zipfile.ZIP_DEFLATED:
        raise Unfit(f"a member is packed by method {method}")
    return await _inflated(read, data, packed, start, length)


async def _inflated(read: Read, data: int, packed: int, start: int, length: int) -> bytes:
    unpacker, at, out, skip = zlib.decompressobj(-zlib.MAX_WBITS), 0, bytearray(), start
    while at < packed and len(out) < length and not unpacker.eof:
        piece = await read(data + at, min(CHUNK, packed - at))
        if not piece:
            raise Unfit("it is shorter than it was said to be")
        at += len(piece)
        while piece and len(out) < length:
            with _unfit():
                plain = await in_bulk(unpacker.decompress, piece, 4 * CHUNK)
            piece = unpacker.unconsumed_tail
            out += plain[skip:]
            skip = max(skip - len(plain), 0)
    return bytes(out[:length])


# -- members joined ---------------------------------------------------------------------------------------------------


def join(wanted: Sequence[tuple[Path, str]], target: Path, progress: Progress, stop: threading.Event) -> Digest:
    """Write members (archive, path in it) to `target`, one after the other; their digest together.

    Raises Unfit, or Fault where the disk has no room. `stop` ends it early, as the thread cannot be cancelled.
    """
    digest, size = Digest(), sum(_member(path, name).file_size for path, name in wanted)
    require_room(target, size)
    with disk_faults(target):
        target.unlink(missing_ok=True)  # never through a link that an earlier try left
    with disk_faults(target), target.open("xb") as out:
        for path, name in wanted:
            _append(path, name, out, digest, lambda done: progress(done, size), stop)
        out.flush()
        os.fsync(out.fileno())
    return digest


def _append(
    path: Path, name: str, out: IO[bytes], digest: Digest, told: Callable[[int], None], stop: threading.Event
) -> None:
    before = digest.size
    with _unfit(), zipfile.ZipFile(path) as archive:
        info = _fit(archive, name)
        with archive.open(info) as data:
            while piece := data.read(CHUNK):
                if stop.is_set():
                    raise Unfit("it was stopped")
                out.write(piece)
                digest.update(piece)
                told(digest.size)
    if digest.size - before != info.file_size:
        raise Unfit(f"{name} unpacks to {digest.size - before} bytes where {info.file_size} were said")


def _member(path: Path, name: str) -> zipfile.ZipInfo:
    with _unfit(), zipfile.ZipFile(path) as archive:
        return _fit(archive, name)


def _fit(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    found = [info for info in archive.infolist() if info.filename == name]
    if len(found) != 1:
        raise Unfit(f"it has {len(found)} members called {name!r}")
    info = found[0]
    if info.header_offset < 0:
        raise Unfit("its directory is not where it says")
    if info.flag_bits & 1:
        raise Unfit(f"{name!r} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Unfit(f"{name!r} is packed by method {info.compress_type}")
    if info.file_size > RATIO_FROM and info.file_size > MOST_RATIO * max(info.compress_size, 1):
        raise Unfit(f"{name!r} would unpack to {info.file_size} bytes from {info.compress_size}")
    return info


def damaged(what: str, why: Unfit) -> Fault:
    """The fault for a package that cannot be used."""
    return Fault("BAD_ARCHIVE", f"pypi:{what}: the wheel is damaged: {why}", kind=FaultClass.PERMANENT)
