"""Files that are either wholly there or not at all: temp, write, fsync, rename, fsync the folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.plan import human_bytes
from reconciler.host.effects import Effects


class Files:
    """Every change to the file system goes through here."""

    def __init__(self, effects: Effects) -> None:
        self.effects = effects

    def folder(self, path: Path, mode: int = 0o700) -> Path:
        """Make a folder and its parents. Private by default."""
        if not path.is_dir():
            with self.effects("mkdir", path), disk_faults(path):
                path.mkdir(parents=True, exist_ok=True, mode=mode)
        return path

    def private_folder(self, path: Path) -> Path:
        """A folder that nobody else may enter; refuses one that another user made there first."""
        self.folder(path)
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
            raise Fault(
                "UNSAFE_FOLDER",
                f"{path} is not a private folder of this user",
                hint=f"remove it, or `chmod 700 {path}`",
                kind=FaultClass.NEEDS_HUMAN,
            )
        return path

    def write(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """Replace `path` atomically and durably."""
        self.folder(path.parent)
        with self.effects("write", path), disk_faults(path):
            temp = path.with_name(f".{path.name}.new")  # always the same name: what a crash leaves is written over
            try:
                fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
                with os.fdopen(fd, "wb") as out:
                    os.fchmod(out.fileno(), mode)
                    out.write(data)
                    out.flush()
                    os.fsync(out.fileno())
                temp.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    temp.unlink()
                raise
            sync_folder(path.parent)

    def move(self, source: Path, target: Path) -> None:
        """Rename within one file system, durably, replacing what is there."""
        self.folder(target.parent)
        with self.effects("move", target), disk_faults(target):
            source.replace(target)
            sync_folder(target.parent)

    def link(self, path: Path, target: Path) -> None:
        """Make `path` a symbolic link to `target`, replacing what is there."""
        with self.effects("link", path), disk_faults(path):
            spare = path.with_name(f".{path.name}.new")
            spare.unlink(missing_ok=True)
            spare.symlink_to(target)
            spare.replace(path)
            sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        """Remove a file; gone already is fine."""
        if path.is_symlink() or path.exists():
            with self.effects("remove", path), disk_faults(path):
                path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all in it; gone already is fine. Never follows a link out of it."""
        if path.is_symlink():
            self.remove(path)
        elif path.exists():
            with self.effects("remove-tree", path), disk_faults(path):
                shutil.rmtree(path)


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn the operating system's words for a full or read-only disk into a fault that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path, 0) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise Fault(
                "NOT_WRITABLE",
                f"{path} cannot be written: {error.strerror}",
                hint="give this user write access, or choose another folder with --data-root",
                kind=FaultClass.NEEDS_HUMAN,
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise Fault(
                "NOT_A_FOLDER",
                f"{path} cannot be made: a file is in the way",
                hint="remove that file, or choose another folder with --data-root",
                kind=FaultClass.NEEDS_HUMAN,
            ) from error
        if error.errno == errno.EIO:
            raise Fault(
                "DISK_ERROR",
                f"the disk failed while writing {path}: {error.strerror}",
                hint="check the disk's health",
                kind=FaultClass.NEEDS_HUMAN,
            ) from error
        raise Fault(
            "WRITE_FAILED",
            f"{path} cannot be written: {error.strerror or error}",
            hint="see what lies there",
            kind=FaultClass.NEEDS_HUMAN,
        ) from error


def require_room(path: Path, needed: int, spare: int = 0) -> None:
    """Raise Fault unless the disk of `path` has room for `needed` bytes and leaves `spare` of them free."""
    if needed > shutil.disk_usage(nearest_folder(path)).free - spare:
        raise disk_full(path, needed)


def disk_full(path: Path, needed: int) -> Fault:
    """The fault for a disk without room; `needed` in bytes, 0 where it is not known."""
    free = shutil.disk_usage(nearest_folder(path)).free
    need = f"{human_bytes(needed)} needed, " if needed else ""
    return Fault(
        "DISK_FULL",
        f"no room on the disk of {path.parent}: {need}{human_bytes(free)} free",
        hint="free some space or move the data root; what was fetched so far is kept",
        kind=FaultClass.NEEDS_HUMAN,
    )


def nearest_folder(path: Path) -> Path:
    """The closest existing folder at or above `path`."""
    while not path.is_dir():
        path = path.parent
    return path
