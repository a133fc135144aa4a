"""Harm that no look can see, as an ageing disk does it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from reconciler.kinds.base import Tools


def flip(path: Path, offset: int) -> None:
    """Change one bit; size, time and mode stay."""
    info = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as data:
        data.seek(offset)
        (byte,) = data.read(1)
        data.seek(offset)
        data.write(bytes([byte ^ 1]))
    path.chmod(info.st_mode & 0o777)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def age(tools: Tools, digest: str, days: float) -> None:
    """Have the ledger say that a file was checked so many days ago."""
    with tools.ledger.change("test") as db:
        db.execute("UPDATE artifacts SET checked = ? WHERE digest = ?", (time.time() - days * 86_400, digest))
