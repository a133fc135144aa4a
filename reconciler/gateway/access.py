"""Access log: one JSON line for each request, in a file that only its owner can read.

Lines are gathered and written a few times a second, so one that is killed loses at most what came since. The file is
set aside when it has grown to `LIMIT` bytes, and `KEPT` older ones stay: it never takes more than (KEPT + 1) × LIMIT
bytes and one writing. Where it cannot be written, requests are answered all the same. Never content, never a secret.
"""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

from reconciler.gateway.log import log
from reconciler.gateway.mask import Mask
from reconciler.gateway.record import Record

LIMIT = 16 << 20  # bytes of one file
KEPT = 3  # older files beside it
GATHERED = 64 << 10  # characters that are held before they are written at once
_TEXT = 200  # characters of what a client made up
_MASK = Mask()
_plain = json.encoder.encode_basestring_ascii


class AccessLog:
    """The log at `path`. Its folder is made if need be; raises OSError where it cannot be opened at all."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self._path = path
        self._limit = limit
        self._lines: list[str] = []
        self._held = 0
        self._failed = False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file, self._size = _open(path)

    def take(self, record: Record, seconds: float) -> None:
        """Add the line of a request that is over, after so many seconds."""
        self._lines.append(line := as_line(record, seconds, time.time()))
        self._held += len(line)
        if self._held >= GATHERED:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if not self._lines:
            return
        data = "".join(self._lines).encode()
        self._lines, self._held = [], 0
        try:
            if self._size + len(data) > self._limit and self._size:
                self._set_aside()
            elif self._moved():
                os.close(self._file)
                self._file, self._size = _open(self._path)
            self._size += os.write(self._file, data)
        except OSError as error:
            if not self._failed:
                log("error", "access-log-failed", path=self._path, reason=error.strerror or error)
            self._failed = True
        else:
            self._failed = False

    def close(self) -> None:
        """Write what is left, and end."""
        self.flush()
        os.close(self._file)

    def _moved(self) -> bool:
        """Whether somebody else took the file away."""
        try:
            return self._path.stat().st_ino != os.fstat(self._file).st_ino
        except FileNotFoundError:
            return True

    def _set_aside(self) -> None:
        for number in range(KEPT, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number}"))
        opened = _open(self._path)
        os.close(self._file)
        self._file, self._size = opened


def as_line(record: Record, seconds: float, ended: float) -> str:
    """The record as one line; `ended` in Unix seconds. What is not known is left out."""
    model = record.model if record.model == record.known else _MASK.text(record.model[:_TEXT])
    parts = [
        f'{{"time":"{_moment(ended - seconds)}","id":"{record.request_id}","client":{_plain(record.address)},'
        f'"key":{_plain(record.key)},"operation":"{record.operation}"'
    ]
    if record.path:
        parts.append(f'"path":{_plain(_MASK.text(record.path[:_TEXT]))}')
    if model:
        parts.append(f'"model":{_plain(model)},"target":{_plain(record.target)},"attempts":{record.attempts}')
    parts.append(f'"status":{record.status},"bytes_in":{record.received},"bytes_out":{record.sent}')
    if record.streamed:
        parts.append('"stream":true')
    if record.read is not None:
        parts.append(f'"tokens_in":{record.read}')
    if record.written is not None:
        parts.append(f'"tokens_out":{record.written}')
    if record.first:
        parts.append(f'"first_byte_ms":{(record.first - record.began) * 1000:.1f}')
    parts.append(f'"ms":{seconds * 1000:.1f}')
    if record.broke:
        parts.append(f'"broke":"{record.broke}"')
    return ",".join(parts) + "}\n"


def _open(path: Path) -> tuple[int, int]:
    """(descriptor, size). A link is not followed, and others lose what they could read."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    opened = os.open(path, flags, 0o600)
    found = os.fstat(opened)
    if not stat.S_ISREG(found.st_mode):
        os.close(opened)
        raise OSError(f"{path} is not a file")
    os.fchmod(opened, 0o600)
    return opened, found.st_size


_second: tuple[int, str] = (0, "")


def _moment(at: float) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    global _second
    whole = int(at)
    if _second[0] != whole:
        _second = (whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)))
    return f"{_second[1]}.{int((at - whole) * 1000):03}Z"
