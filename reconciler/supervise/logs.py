"""Log files of workloads: their last lines, what is added to them, and how they are kept short.

The writers outlive us and know nothing of rotation: a long log is copied to PATH.1 and cut (host/keeper.py, which does
the same every half second for what it started). So there are never more than `KEPT + 1` files of about `LIMIT` bytes,
and what a writer adds between two looks. Lines that are written in the instant between copy and cut are lost.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from reconciler.host import keeper
from reconciler.host.files import Files, disk_faults

LIMIT = keeper.LOG_LIMIT  # bytes in a log file before it is set aside
KEPT = keeper.LOGS_KEPT  # older files kept beside it
LOOKED = 256 << 10  # bytes of the end of a log that `tail` reads
MARK = "──"


def tail(path: Path, lines: int, start: int = 0) -> list[str]:
    """The last lines of a file, reading at most 256 KiB of its end, none of it before `start` (bytes)."""
    try:
        with path.open("rb") as data:
            end = data.seek(0, os.SEEK_END)
            data.seek(max(start if start <= end else 0, end - LOOKED))
            text = data.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-lines:] if lines else text.splitlines()


def last_words(path: Path, lines: int, start: int = 0) -> list[str]:
    """The last lines of the process that began last, also where its log was cut meanwhile; none before `start` (bytes)
    where it was not."""
    cut = start > (path.stat().st_size if path.exists() else 0)
    said = tail(path, lines, 0 if cut else start)
    if len(said) < lines and (cut or not start):
        said = [*tail(path.with_name(f"{path.name}.1"), lines - len(said)), *said]
    begun = [i for i, line in enumerate(said) if line.startswith(MARK) and line.endswith(MARK)]
    return said[begun[-1] + 1 :] if begun else said


def rotate(path: Path, files: Files) -> None:
    """Set a log aside once it is long."""
    try:
        if path.stat().st_size < LIMIT:
            return
    except OSError:
        return
    with files.effects("rotate", path), disk_faults(path):
        keeper.set_aside(str(path), LIMIT, KEPT)


def begin(path: Path, ref: str, files: Files) -> int:
    """Write the line that says where a new process's part of a log begins → where that is (bytes). Raises Fault."""
    rotate(path, files)
    with files.effects("log", path), disk_faults(path), path.open("ab") as log:
        log.write(f"{MARK} {time.strftime('%Y-%m-%d %H:%M:%S')} {ref} starts {MARK}\n".encode())
        return log.tell()


def older(path: Path) -> list[Path]:
    """A log with those that were set aside, the oldest first."""
    return [*(p for n in range(KEPT, 0, -1) if (p := path.with_name(f"{path.name}.{n}")).exists()), path]


def history(path: Path, lines: int, since: float = 0.0) -> list[str]:
    """The last lines of a log and of those set aside before it (0: all), none older than `since` (Unix seconds)."""
    out: list[str] = []
    for part in reversed(older(path)):
        try:
            text = part.read_bytes() if since or not lines else _end(part, lines - len(out))
        except OSError:
            continue
        out = [*text.decode(errors="replace").splitlines(), *out]
        if lines and not since and len(out) >= lines:
            break
    if since:
        out = list(_after(out, since))
    return out[-lines:] if lines else out


def _end(path: Path, lines: int) -> bytes:
    """As much of the end of a file as so many lines take."""
    with path.open("rb") as data:
        at = data.seek(0, os.SEEK_END)
        text = b""
        while at > 0 and text.count(b"\n") <= lines:
            step = min(at, LOOKED)
            at -= step
            data.seek(at)
            text = data.read(step) + text
    return text


STAMP = re.compile(rf"(?:{MARK} )?(\d{{4}}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)")
OF_REQUEST = re.compile(r'\{"time":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d+Z"')  # the gateway's, in UTC
SINCE_START = re.compile(r"(\d+)\.(\d\d)\.(\d{3})\.(\d{3}) ")  # llama.cpp: minutes, seconds, ms and µs


def _after(lines: Iterable[str], since: float) -> Iterator[str]:
    """The lines from a time on. A line that does not tell its own is as old as the one before it."""
    begun = now = 0.0
    for line in lines:
        if match := STAMP.match(line):
            try:
                now = time.mktime(time.strptime(f"{match[1]} {match[2]}", "%Y-%m-%d %H:%M:%S"))
            except (ValueError, OverflowError):
                pass  # it looks like a time and is none
            else:
                begun = now if line.startswith(MARK) else begun
        elif match := OF_REQUEST.match(line):
            now = datetime.fromisoformat(f"{match[1]}+00:00").timestamp()
        elif begun and (match := SINCE_START.match(line)):
            now = begun + int(match[1]) * 60 + int(match[2]) + int(match[3]) / 1000
        if now >= since:
            yield line


class Follower:
    """What is added to a log from now on, also when it is set aside, cut, or replaced meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = path.stat().st_size if path.exists() else 0
        self.aside = self._aside()

    def more(self) -> bytes:
        """What was added since the last time."""
        rest = b""
        try:
            aside = self._aside()
            if aside != self.aside:
                rest, self.at, self.aside = self._left(), 0, aside
            with self.path.open("rb") as data:
                if self.at > data.seek(0, os.SEEK_END):
                    self.at = 0  # it was cut by somebody else
                data.seek(self.at)
                piece = data.read(1 << 20)
                self.at += len(piece)
        except OSError:
            return rest
        return rest + piece

    def _left(self) -> bytes:
        """What of the log that was set aside had not been read."""
        with self.path.with_name(f"{self.path.name}.1").open("rb") as data:
            if data.seek(0, os.SEEK_END) < self.at:
                return f"{MARK} some of it came faster than it could be shown {MARK}\n".encode()
            data.seek(self.at)
            return data.read()

    def _aside(self) -> tuple[int, int]:
        try:
            seen = self.path.with_name(f"{self.path.name}.1").stat()
        except OSError:
            return 0, 0
        return seen.st_ino, seen.st_mtime_ns
