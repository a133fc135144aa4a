"""One SQLite file that several processes keep things in which they can do without.

It is private to its owner, and survives `kill -9` (WAL; a power cut may lose the last transactions, never the file).
What is damaged or from another version is left aside and begun anew; a full disk or a lock is only a log line.

The file is `vVERSION-N.sqlite` in a folder of its own. A damaged one stays where it is and the next number is begun,
since SQLite removes the journal of a file by its name when it closes it: a process that still had the old file open
would take the new one's away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from reconciler.gateway.log import log

Result = TypeVar("Result")

WAIT = 1.0  # seconds that a call waits for another process
_NAME = re.compile(r"v([0-9]+)-([1-9][0-9]{0,8})\.sqlite")
# A write that fills the journal pays for moving it into the file; with 16 MiB instead of 4 that is one in several.
_JOURNAL = ("wal_autocheckpoint = 4096", "journal_size_limit = 16777216")
_PRAGMAS = ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON", *_JOURNAL)
_PASSING = frozenset(
    (
        sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    )
)  # fmt: skip


class KeptFile:
    """`folder` None keeps nothing; `schema` is SQL that makes the tables of that `version`. For any thread."""

    def __init__(self, folder: Path | None, schema: str, version: int) -> None:
        self._folder = folder
        self._schema = schema
        self._version = version
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._number = 0  # of the file
        self._inode = 0

    def close(self) -> None:
        """Let go of the file; it may be used again."""
        with self._lock:
            self._close()

    def run(self, work: Callable[[sqlite3.Connection], Result], otherwise: Result) -> Result:
        """The result of the work, on a new file where this one turns out to be none; `otherwise` where it failed."""
        if self._folder is None:
            return otherwise
        with self._lock:
            for last in (False, True):
                try:
                    return work(self._open(self._folder))
                except RecursionError:  # what was nested just deep enough to be written: the file is sound
                    return otherwise
                except (sqlite3.DatabaseError, ValueError) as error:
                    damaged = not (isinstance(error, sqlite3.DatabaseError) and _passing(error))
                    reason = str(error) if isinstance(error, sqlite3.Error) else type(error).__name__
                    log("warning", "responses-store-" + ("damaged" if damaged else "failed"), reason=reason)
                    self._close()
                    if last or not damaged or not self._begin_another(self._folder):
                        return otherwise
                except OSError as error:
                    log("warning", "responses-store-failed", reason=error.strerror)
                    self._close()
                    return otherwise
        return otherwise

    def _open(self, folder: Path) -> sqlite3.Connection:
        """The database; opened anew where there is a newer one by now, or somebody removed it."""
        if self._database is not None:
            if (
                _inode(self._path(folder, self._number)) == self._inode
                and not self._path(folder, self._number + 1).exists()
            ):
                return self._database
            self._close()
        with _alone(folder):
            newest = self._newest(folder)
            # The name of a file that was removed is not used again either.
            self._number = newest or self._number + 1
            path = self._path(folder, self._number)
            if not newest:
                _create(path)
            self._inode = _inode(path)
            self._database = database = _connect(path)
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                database.executescript(f"BEGIN;{self._schema}PRAGMA user_version = {self._version};COMMIT;")
            elif version != self._version:
                raise sqlite3.DatabaseError(f"version {version}")
        return database

    def _begin_another(self, folder: Path) -> bool:
        """Begin the next file, unless another worker has; of those left aside one is kept. Whether there is one."""
        try:
            with _alone(folder):
                newest = self._newest(folder)
                if newest > self._number:
                    return True
                _create(self._path(folder, max(newest, self._number) + 1))
                for number in self._numbers(folder):
                    if number < newest:
                        for suffix in ("", "-wal", "-shm"):
                            Path(f"{self._path(folder, number)}{suffix}").unlink(missing_ok=True)
        except OSError as error:
            log("warning", "responses-store-failed", reason=error.strerror)
            return False
        return True

    def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()

    def _path(self, folder: Path, number: int) -> Path:
        return folder / f"v{self._version}-{number}.sqlite"

    def _numbers(self, folder: Path) -> list[int]:
        found = [_NAME.fullmatch(path.name) for path in folder.iterdir()]
        return [int(one[2]) for one in found if one is not None and int(one[1]) == self._version]

    def _newest(self, folder: Path) -> int:
        """The number of the file in use; 0 for none."""
        return max(self._numbers(folder), default=0)


@contextlib.contextmanager
def writing(database: sqlite3.Connection) -> Iterator[None]:
    """A transaction; other processes wait."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:  # a full disk has rolled back already
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _passing(error: sqlite3.DatabaseError) -> bool:
    """Whether it says nothing about the file: somebody else writes, no room, no right, no memory."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
    try:
        for pragma in _PRAGMAS:
            database.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.Error:
        database.close()
        raise
    return database


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process opens or begins a file meanwhile. Raises OSError, also after `WAIT` seconds."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + WAIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        yield
    finally:
        os.close(file)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0
