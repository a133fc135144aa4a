"""Verified bytes under their sha256, read-only. A file enters by rename after it was hashed, and never changes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.digest import BLOCK, Digest
from reconciler.host.effects import Effects
from reconciler.host.files import Files, disk_faults, sync_folder
from reconciler.host.layout import Layout
from reconciler.store.ledger import Ledger

PIECE = 1 << 20


def token(path: Path) -> str | None:
    """How a file looks from outside (inode, size, mtime): a change means that its bytes must be proved again.

    None where no plain file is: a link or a folder in its place is not the file that was verified.
    """
    try:
        info = path.lstat()
    except OSError:
        return None
    return f"{info.st_ino}:{info.st_size}:{info.st_mtime_ns}" if stat.S_ISREG(info.st_mode) else None


class Blobs:
    """The store of one data root."""

    def __init__(self, layout: Layout, files: Files, ledger: Ledger, effects: Effects) -> None:
        self._layout, self._files, self._ledger, self._effects = layout, files, ledger, effects

    def take(self, part: Path, digest: str, blocks: Sequence[str] = ()) -> None:
        """Move a file whose sha256 was just found to be `digest` into the store, and write it down.

        `blocks` are the CRC-32 (hex) of each 16 MiB of it, where they are known.
        """
        target = self._layout.blob(digest)
        self._files.folder(target.parent)
        if target.is_dir() and not target.is_symlink():  # a rename cannot replace it
            self._files.move(target, self._place_aside(digest))
        with self._effects("store", target), disk_faults(target):
            with part.open("rb") as data:
                os.fsync(data.fileno())
            if part.stat().st_nlink == 1:  # what was linked from elsewhere is not ours alone, and keeps its mode
                part.chmod(0o444)
            part.replace(target)
            sync_folder(target.parent)
        self.record(digest, blocks)

    def digests(self) -> list[str]:
        """What lies in the store, by name; whether it is what it is named after is not looked at."""
        found = self._layout.blob("00").parent.parent.glob("*/*")
        return sorted(p.name for p in found if re.fullmatch(r"[0-9a-f]{64}", p.name) and token(p) is not None)

    def holds(self, digest: str) -> bool:
        """Whether the file is there as it was when it was verified."""
        record = self._ledger.artifact(digest)
        return record is not None and record.token == token(self._layout.blob(digest))

    def record(self, digest: str, blocks: Sequence[str] = ()) -> None:
        """Note how the file looks now, all of which was just hashed. Blocks that are known already stay known."""
        path = self._layout.blob(digest)
        seen = token(path)
        if seen is None:
            raise Fault("BLOB_GONE", f"{path} was taken away while it was being noted", hint="it is fetched again")
        self._ledger.record_artifact(digest, int(seen.split(":")[1]), seen, blocks)

    def doubt(self, digest: str, seen: str) -> bool:
        """Note that the file which looks like `seen` is damaged: it is not used before it was proved or mended.

        False where it looks otherwise by now, so that nothing is known of it.
        """
        return self._ledger.doubt_artifact(digest, seen)

    def set_aside(self, digest: str) -> Path:
        """Move a damaged file, or what lies in its place, to quarantine; it is kept for a look, never used."""
        aside = self._place_aside(digest)
        self._files.move(self._layout.blob(digest), aside)
        self._ledger.forget_artifact(digest)
        return aside

    def remove(self, digest: str) -> None:
        self._files.remove(self._layout.blob(digest))
        self._ledger.forget_artifact(digest)

    def _place_aside(self, digest: str) -> Path:
        """A name in quarantine that nothing has: what was set aside within the same second stays, too."""
        first = self._layout.quarantine / f"{digest}.{int(time.time())}"
        aside, count = first, 1
        while aside.is_symlink() or aside.exists():
            aside, count = first.with_name(f"{first.name}.{count}"), count + 1
        return aside


# -- reading all of a file ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proof:
    """What a file is: sha256 (hex), bytes, and the CRC-32 (hex) of each 16 MiB of it."""

    sha256: str
    size: int
    blocks: tuple[str, ...]


class Proving:
    """Hashes a file piece by piece, and takes what it read out of the page cache again. A context manager.

    All of it blocks: call it in a thread. Raises Fault where the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._digest = path, Digest()

    @property
    def done(self) -> int:
        """Bytes so far."""
        return self._digest.size

    def __enter__(self) -> Proving:
        with read_faults(self._path):
            self._fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, most: int = PIECE) -> int:
        """Take the next bytes in → how many; 0 at the end."""
        room = BLOCK - self.done % BLOCK  # so that a block is forgotten as soon as it was read
        with read_faults(self._path):
            piece = os.read(self._fd, min(most, room))
        self._digest.update(piece)
        if piece and self.done % BLOCK == 0:
            forget_pages(self._fd, self.done - BLOCK, BLOCK)
        return len(piece)

    def proof(self) -> Proof:
        """What the file is, once `read` has said 0."""
        if self.done % BLOCK:
            forget_pages(self._fd, self.done - self.done % BLOCK, BLOCK)
        return Proof(self._digest.sha256, self.done, self._digest.blocks)


def prove(path: Path, progress: Callable[[int], None] | None = None) -> Proof:
    """Read all of a file; call it in a thread. `progress` hears the bytes done. Raises Fault if it cannot be read."""
    with Proving(path) as proving:
        while proving.read():
            if progress:
                progress(proving.done)
        return proving.proof()


def sha256_of(path: Path, progress: Callable[[int], None] | None = None, most: int | None = None) -> str:
    """The sha256 of a file or of its first `most` bytes, read in 1 MiB pieces; call it in a thread.

    `progress` hears the bytes done. Raises Fault where it cannot be read.
    """
    hasher, done = hashlib.sha256(), 0
    with read_faults(path), path.open("rb") as data:
        while piece := data.read(PIECE if most is None else min(PIECE, most - done)):
            hasher.update(piece)
            done += len(piece)
            if progress:
                progress(done)
    return hasher.hexdigest()


def forget_pages(fd: int, start: int, length: int) -> None:
    """Let the kernel drop what was read from its page cache; pages that a process has mapped stay."""
    advise = getattr(os, "posix_fadvise", None)  # not on macOS
    if advise is not None:
        with contextlib.suppress(OSError):
            advise(fd, start, length, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def read_faults(path: Path) -> Iterator[None]:
    """Turn the operating system's words for a file that cannot be read into a fault that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise Fault("FILE_GONE", f"{path} is gone", kind=FaultClass.TRANSIENT) from error
    except OSError as error:
        if error.errno == errno.EIO:
            raise Fault(
                "DISK_ERROR",
                f"the disk failed while reading {path}: {error.strerror}",
                hint="check the disk's health; what cannot be read is fetched again where its source is known",
                kind=FaultClass.NEEDS_HUMAN,
            ) from error
        why = "a link lies in its place" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise Fault(
            "NOT_READABLE",
            f"{path} cannot be read: {why}",
            hint="give this user read access, or see what lies there",
            kind=FaultClass.NEEDS_HUMAN,
        ) from error
