"""A candidate's bytes brought to a path of ours: proved on the way, at no cost of disk where that is possible.

Three ways, the first that works:

*Reflink* (FICLONE: btrfs, XFS, bcachefs, ZFS). The blocks are shared until one side writes; what we hold is a file of
our own, so nobody's later writes reach it, and nothing of the original changes.

*Hard link*, the usual way elsewhere (ext4). The other tool may delete its name and the bytes stay; a link costs
nothing. But the inode is shared, mode and all, hence three conditions. Its owner must be this user or root, and nobody
else may write to it: whoever can, could change bytes that were proved. It must not be open for writing. And nothing of
ours may ever write to it or change its mode: so the link gets a name of its own (`apart`), which no download opens, and
a store must leave the mode of a file with several names alone (`shared`). The tools whose caches are known replace
files by rename and do not write into them; one that does, changes the time of the inode, which is what the store
compares before each use, and so the file counts as damaged, not as proved.

*Copy*: another file system, another owner. It costs its size.

A symbolic link is never made: it dies with the other tool's next clean-up (`ollama rm`, a hub cache that is pruned), it
leads wherever somebody points it later, and an artefact store that needs other folders is none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.foreign.caches import Candidate
from reconciler.host.bulk import in_bulk
from reconciler.host.digest import Digest
from reconciler.host.effects import Effects
from reconciler.host.files import disk_faults, require_room

PIECE = 1 << 20
FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
SUFFIX = ".adopted"

Progress = Callable[[int, int | None], None]
How = Literal["reflink", "link", "copy"]


@dataclass(frozen=True, slots=True)
class Taken:
    """The bytes are at the path that was asked for: sha256 (hex), size in bytes, the CRC-32 of each 16 MiB (8 hex
    digits), and how they came there."""

    sha256: str
    size: int
    blocks: tuple[str, ...]
    how: How

    @property
    def saved(self) -> int:
        """Bytes of disk that a copy would have taken."""
        return 0 if self.how == "copy" else self.size


def apart(part: Path) -> Path:
    """The name beside a part file that a candidate may be linked at: nothing ever opens it for writing."""
    return part.with_name(part.name + SUFFIX)


def shared(path: Path) -> bool:
    """Whether the file has further names, so that its mode is not ours to change."""
    return path.lstat().st_nlink > 1


async def take(candidate: Candidate, part: Path, effects: Effects, progress: Progress) -> Taken:
    """Bring a candidate's bytes to `part`, a name made by `apart`, and say what they are.

    Whether they are the wanted ones is for the caller to see; `drop` lets go of others. Raises Fault `CANDIDATE_GONE`
    where it is no longer there, is no ordinary file or changes, and the faults of a full or read-only disk.
    """
    if part.suffix != SUFFIX:
        raise ValueError(f"{part} could be opened for writing by a download; use apart()")
    with effects("adopt", part):
        return await in_bulk(_take, candidate, part, progress)


def drop(part: Path, effects: Effects) -> None:
    """Let go of what `take` brought; the original stays."""
    if part.is_symlink() or part.exists():
        with effects("drop", part), disk_faults(part):
            part.unlink(missing_ok=True)


def _take(candidate: Candidate, part: Path, progress: Progress) -> Taken:
    with disk_faults(part):
        part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.unlink(missing_ok=True)
    source = _open(candidate)
    try:
        before = os.fstat(source)
        how = _same_bytes(candidate, source, part)
        try:
            if how is None:
                how, (sha256, size, blocks) = "copy", _copied(source, part, before.st_size, progress)
            else:
                sha256, size, blocks = _hashed(part, before.st_size, progress)
            # A clone is ours and cannot change any more; the others may have been written to while they were read.
            if how != "reflink" and _look(os.fstat(source)) != _look(before):
                raise _gone(candidate, "it is being written to")
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    finally:
        os.close(source)
    return Taken(sha256, size, blocks, how)


def _open(candidate: Candidate) -> int:
    """The file, opened without following a link, or waiting for a writer of a pipe."""
    try:
        source = os.open(candidate.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _gone(candidate, getattr(error, "strerror", None) or str(error)) from error
    try:
        info = os.fstat(source)
        if not stat.S_ISREG(info.st_mode):
            raise _gone(candidate, "it is not an ordinary file")
        if info.st_size != candidate.size:
            raise _gone(candidate, "its size changed")
        if _written_to(source):
            raise _gone(candidate, "it is being written to")
    except BaseException:
        os.close(source)
        raise
    return source


def _written_to(source: int) -> bool:
    """Whether somebody has it open for writing. Only Linux tells, and only of files of one's own.

    The kernel grants a read lease on a file only while nobody has; it is given back at once. Who opens it for writing
    in between waits for that, and we are told by a signal, which must be one that does nothing.
    """
    if sys.platform != "linux":
        return False
    try:
        fcntl.fcntl(source, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(source, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(source, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EWOULDBLOCK)
    return False


def _same_bytes(candidate: Candidate, source: int, part: Path) -> How | None:
    """Reflink, or link it; None where neither is possible or right."""
    if _cloned(source, part):
        return "reflink"
    info = os.fstat(source)
    return "link" if _trusted(info) and _linked(candidate, info, part) else None


def _cloned(source: int, part: Path) -> bool:
    if sys.platform != "linux":
        return False
    with disk_faults(part):
        target = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.ioctl(target, FICLONE, source)
        os.fsync(target)
    except OSError:
        part.unlink()
        return False
    finally:
        os.close(target)
    return True


def _trusted(info: os.stat_result) -> bool:
    """Whether nobody but this user and root may change the bytes. A group of the user's own is the user."""
    own_group = info.st_gid == os.getegid() or not info.st_mode & stat.S_IWGRP
    return info.st_uid in (os.geteuid(), 0) and not info.st_mode & stat.S_IWOTH and own_group


def _linked(candidate: Candidate, info: os.stat_result, part: Path) -> bool:
    try:
        os.link(candidate.path, part, follow_symlinks=False)
    except OSError:  # another file system, too many links, or the system does not want it
        return False
    now = part.lstat()
    if (now.st_dev, now.st_ino) != (info.st_dev, info.st_ino):
        part.unlink()
        raise _gone(candidate, "another file took its place")
    return True


def _copied(source: int, part: Path, size: int, progress: Progress) -> tuple[str, int, tuple[str, ...]]:
    require_room(part, size)
    with disk_faults(part):
        target = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(target, "wb") as out:
            found = _read(source, size, progress, lambda piece: out.write(piece))
            out.flush()
            os.fsync(out.fileno())
    return found


def _hashed(part: Path, size: int, progress: Progress) -> tuple[str, int, tuple[str, ...]]:
    with part.open("rb") as data:
        return _read(data.fileno(), size, progress, lambda piece: None)


def _read(
    source: int, size: int, progress: Progress, out: Callable[[bytes], object]
) -> tuple[str, int, tuple[str, ...]]:
    """sha256, size and the blocks' CRC-32, in one pass."""
    digest = Digest()
    with contextlib.suppress(OSError, AttributeError):
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    with os.fdopen(os.dup(source), "rb", buffering=0) as data:
        data.seek(0)
        while piece := _whole(data.read, PIECE):
            out(piece)
            digest.update(piece)
            progress(digest.size, size)
    return digest.sha256, digest.size, digest.blocks


def _whole(read: Callable[[int], bytes | None], size: int) -> bytes:
    """`size` bytes, fewer only at the end: a raw read may bring fewer before."""
    out = read(size) or b""
    while out and len(out) < size and (more := read(size - len(out))):
        out += more
    return out


def _look(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_ino, info.st_size, info.st_mtime_ns


def _gone(candidate: Candidate, why: str) -> Fault:
    what = f"{candidate.path} of {candidate.tool} cannot be taken over: {why}"
    return Fault("CANDIDATE_GONE", what, hint="it is fetched from its source instead", kind=FaultClass.TRANSIENT)
