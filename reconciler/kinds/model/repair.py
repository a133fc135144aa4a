"""Mends a damaged file of the store: only the blocks that differ are fetched again, and nothing is used unproved.

A file is known by its sha256, and each 16 MiB of it by a CRC-32 that was taken when it came. The good blocks are copied
beside it (shared with the damaged file where the file system can), the bad ones are fetched, and the whole is hashed
before it takes the damaged file's place. Where that is not possible, the file is set aside, to be fetched as a whole.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from pathlib import Path

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import human_bytes
from reconciler.host.bulk import in_bulk
from reconciler.host.digest import BLOCK
from reconciler.host.files import disk_faults
from reconciler.kinds.base import Tools
from reconciler.store.blobs import Proof, forget_pages, prove, token

Span = tuple[int, int]  # offset and length, in bytes
Patch = Callable[[Path, Sequence[Span], int], Awaitable[None]]
"""Fetches these spans of the file, whose size is the last argument, into the part at that path. Raises Fault."""

MOST = 0.5  # of a file: where more than this is damaged, it is fetched as a whole
PIECE = 1 << 20


class Verdict(StrEnum):
    GOOD = "good"  # it is what it should be, and noted so
    MENDED = "mended"  # it is again, under a new token
    SET_ASIDE = "set aside"  # it is in quarantine, and to be fetched
    GONE = "gone"  # there is nothing to prove


async def restore(ref: Ref, digest: str, tools: Tools, patch: Patch | None = None) -> Verdict:
    """Prove a suspect file, and mend it if it is damaged → what became of it.

    Without `patch` (a source that offers no ranges, or is not known) a damaged file is set aside. Raises Fault where
    the source cannot be reached now, or the disk is full: the file stays suspect, and the next try begins anew.
    """
    path = tools.layout.blob(digest)
    if token(path) is None:
        if path.is_symlink() or path.exists():
            return _set_aside(ref, digest, tools, "something else lies in its place")
        tools.ledger.forget_artifact(digest)
        return Verdict.GONE
    try:
        proof = await in_bulk(prove, path, lambda done: tools.progress(ref, "verifying", done, _size(path)))
    except Fault as fault:
        if fault.code != "DISK_ERROR":
            raise
        proof = None  # what of it can be read is found below
    if proof is not None and proof.sha256 == digest:
        await in_bulk(_protect, path, tools)
        tools.blobs.record(digest, proof.blocks)
        return Verdict.GOOD
    return await _mend(ref, digest, tools, patch, proof)


async def _mend(ref: Ref, digest: str, tools: Tools, patch: Patch | None, proof: Proof | None) -> Verdict:
    path, blocks, known = tools.layout.blob(digest), tools.ledger.blocks(digest), tools.ledger.artifact(digest)
    size = known.size if known is not None else 0
    if patch is None or not blocks or len(blocks) != -(-size // BLOCK):
        return _set_aside(ref, digest, tools, "its bytes are no longer what was verified")
    bad = differing(blocks, proof.blocks) if proof is not None else await in_bulk(damaged, path, blocks, size)
    grown = proof is not None and proof.size > size
    if not (bad or grown) or len(bad) > max(1, MOST * len(blocks)):
        return _set_aside(ref, digest, tools, f"{len(bad)} of {len(blocks)} blocks are damaged")
    spans = joined(bad, size)
    part = tools.layout.partial / f"{digest}.mend"
    tools.files.folder(part.parent)
    try:
        with tools.effects("mend", part), disk_faults(part):
            await in_bulk(_copy, path, part, size, frozenset(bad))
        if spans:
            await patch(part, spans, size)
        proof = await in_bulk(prove, part)
    except Fault as fault:
        tools.files.remove(part)
        if fault.kind is FaultClass.PERMANENT:  # no ranges, or no such file any more
            return _set_aside(
                ref, digest, tools, f"{len(bad)} blocks are damaged, and cannot be mended: {fault.message}"
            )
        raise
    except BaseException:
        tools.files.remove(part)
        raise
    if proof.sha256 != digest:
        tools.files.remove(part)
        what = "its damaged blocks were fetched again, but the whole is not what was verified"
        return _set_aside(ref, digest, tools, what)
    await in_bulk(tools.blobs.take, part, digest, proof.blocks)
    fetched = human_bytes(sum(length for _, length in spans))
    text = f"{len(bad)} of {len(blocks)} blocks were damaged: fetched {fetched} of {human_bytes(size)} again"
    tools.ledger.event(str(ref), "Mended", text)
    return Verdict.MENDED


def _set_aside(ref: Ref, digest: str, tools: Tools, why: str) -> Verdict:
    aside = tools.blobs.set_aside(digest)
    tools.ledger.event(str(ref), "Quarantined", f"{why}; moved to {aside.name}")
    return Verdict.SET_ASIDE


def differing(known: Sequence[str], found: Sequence[str]) -> list[int]:
    """The numbers of the blocks that are not what they were; those of a file that became longer do not count."""
    return [n for n, crc in enumerate(known) if n >= len(found) or found[n] != crc]


def damaged(path: Path, blocks: Sequence[str], size: int) -> list[int]:
    """The numbers of the blocks that are not what they were, or cannot be read. Blocks; call it in a thread."""
    bad = []
    with path.open("rb", buffering=0) as data:
        for number, known in enumerate(blocks):
            if _crc(data.fileno(), number * BLOCK, min(BLOCK, size - number * BLOCK)) != known:
                bad.append(number)
    return bad


def _crc(fd: int, start: int, length: int) -> str:
    """The CRC-32 of a span; empty where it is not all there, or the disk fails."""
    crc, done = 0, 0
    while done < length:
        try:
            piece = os.pread(fd, min(PIECE, length - done), start + done)
        except OSError as error:
            if error.errno == errno.EIO:
                return ""
            raise
        if not piece:
            return ""
        crc, done = zlib.crc32(piece, crc), done + len(piece)
    forget_pages(fd, start, length)
    return f"{crc:08x}"


def joined(numbers: Sequence[int], size: int) -> list[Span]:
    """Blocks as spans, neighbours as one; the last one ends with the file."""
    out: list[Span] = []
    for number in numbers:
        start, end = number * BLOCK, min((number + 1) * BLOCK, size)
        if out and sum(out[-1]) == start:
            out[-1] = (out[-1][0], end - out[-1][0])
        else:
            out.append((start, end - start))
    return out


def _copy(source: Path, part: Path, size: int, bad: frozenset[int]) -> None:
    """The good blocks at their places, and holes for the bad ones."""
    part.unlink(missing_ok=True)
    with source.open("rb", buffering=0) as data, part.open("xb") as out:
        part.chmod(0o600)
        out.truncate(size)
        for number in range(-(-size // BLOCK)):
            if number not in bad:
                start = number * BLOCK
                _copy_span(data.fileno(), out.fileno(), start, min(BLOCK, size - start))


def _copy_span(source: int, out: int, start: int, length: int) -> None:
    """Copy a span to the same place, by the kernel where it can: some file systems then only share it."""
    kernel = getattr(os, "copy_file_range", None)  # not on macOS
    end = start + length
    while start < end:
        done = 0
        if kernel is not None:
            try:
                done = kernel(source, out, end - start, start, start)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                kernel = None
        if not done:
            piece = os.pread(source, min(PIECE, end - start), start)
            if not piece:
                raise OSError(errno.EIO, "the file ended early")
            done = os.pwrite(out, piece, start)
        start += done


def _size(path: Path) -> int | None:
    seen = token(path)
    return int(seen.split(":")[1]) if seen else None


def _protect(path: Path, tools: Tools) -> None:
    info = path.stat()
    if info.st_mode & 0o222 and info.st_nlink == 1:  # what another tool has a name for, too, keeps its mode
        with tools.effects("chmod", path), disk_faults(path):
            path.chmod(0o444)
