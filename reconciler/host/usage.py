"""Which processes use which files: looks only. What belongs to other users may not be seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def users(folder: Path) -> dict[Path, frozenset[int]]:
    """The files below `folder` that a process has open or mapped, with the ids of those processes."""
    real = os.path.realpath(folder)
    out: dict[Path, set[int]] = {}
    for pid, name in _used() if PROC.joinpath("self/maps").exists() else _open_elsewhere():
        if name.startswith(real + os.sep):
            out.setdefault(folder / name[len(real) + 1 :], set()).add(pid)
    return {path: frozenset(pids) for path, pids in out.items()}


def _used() -> Iterator[tuple[int, str]]:
    for process in PROC.iterdir():
        if not process.name.isdigit():
            continue
        pid = int(process.name)
        with suppress(OSError):
            for name in _mapped(process / "maps"):
                yield pid, name
        with suppress(OSError):
            for file in (process / "fd").iterdir():
                with suppress(OSError):
                    yield pid, str(file.readlink())


def _mapped(maps: Path) -> set[str]:
    """The files of /proc/PID/maps: the sixth column, which may hold spaces. One that was removed is called so there."""
    out = set()
    with maps.open(errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6 and fields[5].startswith("/"):
                out.add(fields[5])
    return out


def _open_elsewhere() -> Iterator[tuple[int, str]]:
    """Where there is no /proc: what processes have open; what they only map is not to be seen."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            for file in process.open_files():
                yield process.pid, file.path
