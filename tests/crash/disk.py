"""A disk that fails: the calls below Python's own file and database functions raise, as the real ones would.

It fails inside one effect, or from there on everywhere until the file `broken` is removed. What was written to before
the failure stays written: a short write leaves half of the bytes, a transaction that is cut short its first statements.
"""

from __future__ import annotations

import errno
import io
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

FAULTS = ("ENOSPC", "EIO", "short")
SAID = {"ENOSPC": "database or disk is full", "EIO": "disk I/O error", "short": "database or disk is full"}
WRITING = ("INSERT", "UPDATE", "DELETE", "PRAGMA journal_mode")  # statements that write before a transaction ends

# A variable of the context, since an effect may go on in a thread that it waits for.
inside: ContextVar[str] = ContextVar("inside", default="")
outside: dict[str, Any] = {"fault": "", "broken": Path()}  # the fault that lasts, and the file that says so
folder: Path = Path()


@contextmanager
def failing(fault: str, lasting: bool, where: Path) -> Iterator[None]:
    """Let the disk fail inside of the block, and after it, too, where the fault is a lasting one."""
    global folder
    if fault not in FAULTS:
        yield
        return
    folder = where
    if lasting:
        (where / "broken").touch()
        outside.update(fault=fault, broken=where / "broken")
    token = inside.set(fault)
    try:
        yield
    finally:
        inside.reset(token)


def fault() -> str:
    """The fault that is to be met here and now; empty for none."""
    if outside["fault"]:
        return str(outside["fault"]) if REAL["exists"](outside["broken"]) else ""
    return inside.get()


def broken(what: str) -> OSError:
    """The error of a call that fails; that it did is noted for the test."""
    number = errno.EIO if fault() == "EIO" or what in ("unlink", "chmod") else errno.ENOSPC
    note()
    return OSError(number, os.strerror(number), what)


def note() -> None:
    fd = REAL["open"](folder / "failed", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, b".")
    os.close(fd)


class Halting:
    """A file open for writing. Writes to a failing disk end half-way."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        if not fault():
            return int(self._file.write(data))
        if fault() == "short":
            self._file.write(data[: len(data) // 2])
            self._file.flush()
        raise broken("write")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Halting:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


class Ledger(sqlite3.Connection):
    """A database on a failing disk. Short means that only the commit fails; after EIO SQLite has rolled back."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self._fail(sql)
        return super().execute(sql, *values)

    def executescript(self, sql: str) -> sqlite3.Cursor:
        self._fail("INSERT")
        return super().executescript(sql)

    def _fail(self, sql: str) -> None:
        met = fault()
        if not met or not sql.startswith("COMMIT" if met == "short" else (*WRITING, "COMMIT")):
            return
        note()
        if met == "EIO" and self.in_transaction:
            super().execute("ROLLBACK")
        raise sqlite3.OperationalError(SAID[met])


REAL: dict[str, Callable[..., Any]] = {"open": os.open, "exists": os.path.exists}


def patch() -> None:
    """Put the failing disk under this process."""
    real_file, real_fdopen, real_connect, real_popen = io.open, os.fdopen, sqlite3.connect, subprocess.Popen

    def open_fd(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_CREAT and fault() in ("ENOSPC", "EIO"):
            raise broken(str(path))
        return int(REAL["open"](path, flags, *more, **named))

    def open_file(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        writing = set(mode) & set("wax+")
        if writing and isinstance(path, str | Path) and fault() in ("ENOSPC", "EIO"):
            raise broken(str(path))
        file = real_file(path, mode, *more, **named)
        return Halting(file) if writing and "b" in mode and "a" not in mode else file

    def fdopen(fd: int, mode: str = "r", *more: Any, **named: Any) -> Any:
        file = real_fdopen(fd, mode, *more, **named)
        return Halting(file) if mode == "wb" else file

    def guarded(name: str, faults: tuple[str, ...]) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*given: Any, **named: Any) -> Any:
            if fault() in faults:
                raise broken(name)
            return real(*given, **named)

        return call

    class Popen(real_popen):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any, **named: Any) -> None:
            if fault() == "short":
                note()
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            super().__init__(*given, **named)

    io.open, os.fdopen, os.open, subprocess.Popen = open_file, fdopen, open_fd, Popen  # type: ignore[assignment, misc]
    sqlite3.connect = lambda *given, **named: real_connect(*given, **{"factory": Ledger, **named})  # type: ignore[assignment]
    for name, faults in {
        "mkdir": ("ENOSPC", "EIO", "short"),
        "fsync": ("EIO",),
        "replace": ("ENOSPC", "EIO"),
        "rename": ("ENOSPC", "EIO"),
        "unlink": ("EIO", "short"),  # removing needs no room; "short" is there so that it fails in two runs of three
        "chmod": ("EIO", "short"),
    }.items():
        setattr(os, name, guarded(name, faults))
