"""Log files of workloads: their last lines, and rotation by us, since the writers outlive us and know nothing of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from reconciler.host.files import Files, disk_faults

LIMIT = 16 << 20  # bytes in a log file before it is set aside
KEPT = 3  # older files kept beside it


def tail(path: Path, lines: int, start: int = 0) -> list[str]:
    """The last lines of a file, reading at most 256 KiB of its end, none of it before `start` (bytes)."""
    try:
        with path.open("rb") as data:
            end = data.seek(0, os.SEEK_END)
            data.seek(max(start if start <= end else 0, end - (256 << 10)))
            text = data.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-lines:] if lines else text.splitlines()


def rotate(path: Path, files: Files) -> None:
    """Set a log aside once it is long. The writer has it open for appending, so it is copied and cut, not moved."""
    try:
        if path.stat().st_size < LIMIT:
            return
    except OSError:
        return
    with files.effects("rotate", path), disk_faults(path):
        for number in range(KEPT - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            if older.exists():
                older.replace(path.with_name(f"{path.name}.{number + 1}"))
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)
