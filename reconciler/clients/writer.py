"""Files of a person: read as they are, and replaced whole or not at all.

Links are followed, so that what they lead to is replaced and not the link; mode, owner and extended attributes stay.
What is not an ordinary file, is read-only, has a second name, or changes between reading and writing, is refused.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.diagnostics import Refused
from reconciler.host.effects import Effects

MAX_BYTES = 1 << 20  # settings and profiles are small; what is not, is something else

_PASTE = "see to that, or paste what `reconcile env` prints yourself"


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it was read: `path` is where it really is, `data` None where there is none."""

    path: Path
    data: bytes | None
    stamp: tuple[int, ...] = ()
    mode: int = 0o600


def look(path: Path) -> Seen:
    """Read a file, wherever links lead. Raises Refused."""
    with _faults(path, "read"):
        real = _followed(path)
        try:
            fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return Seen(real, None)
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(fd)
            what = "a folder" if stat.S_ISDIR(info.st_mode) else "not an ordinary file"
            raise Refused(f"{path} is {what}", hint=_PASTE)
        with os.fdopen(fd, "rb") as data:
            content = data.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise Refused(f"{path} has more than {MAX_BYTES >> 20} MiB, which no settings file has", hint=_PASTE)
    return Seen(real, content, _stamp(info), stat.S_IMODE(info.st_mode))


def write(seen: Seen, data: bytes | None, effects: Effects, private: bool = False) -> None:
    """Replace a file, or remove it for None; `private` keeps a new one from everybody else. Raises Refused."""
    with _faults(seen.path, "written"):
        _refuse_unfit(seen, private)
        if data is None:
            with effects("remove", seen.path):
                seen.path.unlink(missing_ok=True)
            return
        for folder in reversed([folder for folder in seen.path.parents if not folder.is_dir()]):
            with effects("mkdir", folder):
                folder.mkdir(mode=0o700)
                _given(folder)
        with effects("write", seen.path):
            _replace(seen, data, seen.mode if seen.data is not None else 0o600 if private else 0o644)


def diff(name: str, old: bytes | None, new: bytes | None) -> list[str]:
    """What differs, as a unified diff without lines around it: those are a person's, and may hold secrets."""
    before, after = (_lines(data) for data in (old, new))
    source = name if old is not None else "/dev/null"
    return list(difflib.unified_diff(before, after, source, name if new is not None else "/dev/null", n=0, lineterm=""))


def _lines(data: bytes | None) -> list[str]:
    return (data or b"").decode("utf-8", "replace").splitlines()


def _followed(path: Path) -> Path:
    """Where a file really is, be it there or not. Raises OSError for links that lead in a circle."""
    try:
        return path.resolve()
    except RuntimeError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def _stamp(info: os.stat_result) -> tuple[int, ...]:
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


def _refuse_unfit(seen: Seen, private: bool) -> None:
    try:
        info = seen.path.lstat()
    except FileNotFoundError:
        if seen.data is not None:
            raise Refused(f"{seen.path} was removed meanwhile", hint="say the same again") from None
        return
    if _stamp(info) != seen.stamp:
        raise Refused(f"{seen.path} was changed meanwhile", hint="say the same again")
    if not info.st_mode & 0o222:
        raise Refused(f"{seen.path} is read-only", hint=_PASTE)
    if info.st_nlink > 1:
        hint = f"{_PASTE}: replacing it would part it from its other name"
        raise Refused(f"{seen.path} is the same file as another (a hard link)", hint=hint)
    if private and info.st_mode & 0o077:
        hint = f"`chmod 600 {shlex.quote(str(seen.path))}` first, or leave out --show-key"
        raise Refused(f"others may read {seen.path}, so that no key is written there", hint=hint)


def _replace(seen: Seen, data: bytes, mode: int) -> None:
    temp = seen.path.with_name(f".{seen.path.name}.reconcile-new")  # always so: what a crash leaves is taken away
    temp.unlink(missing_ok=True)
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(data)
            if seen.data is not None:
                _alike(seen.path, out.fileno())
            else:
                _given(temp)
            os.fchmod(out.fileno(), mode)
            out.flush()
            os.fsync(out.fileno())
        temp.replace(seen.path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise
    folder = os.open(seen.path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _given(path: Path) -> None:
    """What root makes in somebody's folder is theirs: `sudo` may keep HOME."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _alike(path: Path, fd: int) -> None:
    """The owner and the extended attributes of the file that is replaced. Raises Refused where that may not be."""
    info, mine = path.stat(), os.fstat(fd)
    if (info.st_uid, info.st_gid) != (mine.st_uid, mine.st_gid):
        try:
            os.fchown(fd, info.st_uid, info.st_gid)
        except PermissionError as error:
            raise Refused(f"{path} belongs to another user, and would no longer", hint=_PASTE) from error
    if hasattr(os, "listxattr"):
        with contextlib.suppress(OSError):
            for name in os.listxattr(path):
                os.setxattr(fd, name, os.getxattr(path, name))


@contextlib.contextmanager
def _faults(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Refused(f"{path} cannot be {done}: {why}", hint=_PASTE) from error
