"""Verified bytes under their sha256, read-only. A file enters by rename after it was hashed, and never changes."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from reconciler.host.effects import Effects
from reconciler.host.files import Files, disk_faults, sync_folder
from reconciler.host.layout import Layout
from reconciler.store.ledger import Ledger


def token(path: Path) -> str | None:
    """How a file looks from outside (inode, size, mtime): a change means that its bytes must be proved again."""
    try:
        info = path.stat()
    except OSError:
        return None
    return f"{info.st_ino}:{info.st_size}:{info.st_mtime_ns}"


class Blobs:
    """The store of one data root."""

    def __init__(self, layout: Layout, files: Files, ledger: Ledger, effects: Effects) -> None:
        self._layout, self._files, self._ledger, self._effects = layout, files, ledger, effects

    def take(self, part: Path, digest: str) -> None:
        """Move a file whose sha256 was just found to be `digest` into the store, and write it down."""
        target = self._layout.blob(digest)
        self._files.folder(target.parent)
        with self._effects("store", target), disk_faults(target):
            with part.open("rb") as data:
                os.fsync(data.fileno())
            if part.stat().st_nlink == 1:  # what was linked from elsewhere is not ours alone, and keeps its mode
                part.chmod(0o444)
            part.replace(target)
            sync_folder(target.parent)
        self.record(digest)

    def digests(self) -> list[str]:
        """What lies in the store, by name; whether it is what it is named after is not looked at."""
        found = self._layout.blob("00").parent.parent.glob("*/*")
        return sorted(p.name for p in found if re.fullmatch(r"[0-9a-f]{64}", p.name) and p.is_file())

    def holds(self, digest: str) -> bool:
        """Whether the file is there as it was when it was verified."""
        record = self._ledger.artifact(digest)
        return record is not None and record.token == token(self._layout.blob(digest))

    def record(self, digest: str) -> None:
        """Note how the verified file looks now."""
        path = self._layout.blob(digest)
        seen = token(path)
        assert seen is not None
        self._ledger.record_artifact(digest, path.stat().st_size, seen)

    def set_aside(self, digest: str) -> Path:
        """Move a damaged file to quarantine; it is kept for a look, never used."""
        aside = self._layout.quarantine / f"{digest}.{int(time.time())}"
        self._files.move(self._layout.blob(digest), aside)
        self._ledger.forget_artifact(digest)
        return aside

    def remove(self, digest: str) -> None:
        self._files.remove(self._layout.blob(digest))
        self._ledger.forget_artifact(digest)


def sha256_of(path: Path, progress: Callable[[int], None] | None = None, most: int | None = None) -> str:
    """The sha256 of a file or of its first `most` bytes, read in 1 MiB pieces; call it in a thread.

    `progress` hears the bytes done.
    """
    hasher, done = hashlib.sha256(), 0
    with path.open("rb") as data:
        while piece := data.read(1 << 20 if most is None else min(1 << 20, most - done)):
            hasher.update(piece)
            done += len(piece)
            if progress:
                progress(done)
    return hasher.hexdigest()
