"""The slots of a server: what they hold is written to the disk before it is unloaded, and read after it is loaded.

Nothing here keeps a server from being stopped or from serving: whatever goes wrong, or takes too long, is an event.
Files are `slots/SERVER/FOLDER/slot-N.bin` (0600, folders 0700); one that is being written is called `.new` until it is
whole and on the disk.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Fault
from reconciler.core.ids import Ref
from reconciler.core.plan import human_bytes
from reconciler.host.bulk import in_bulk
from reconciler.host.files import nearest_folder
from reconciler.host.probes import http_post
from reconciler.kinds.base import Tools
from reconciler.kinds.carried import CACHE
from reconciler.kinds.server.kept import LEAST, Kept, read
from reconciler.kinds.workload import key_of
from reconciler.store.ledger import ProcessRow

SAVE_MOST = 15.0  # seconds that all slots together may take: somebody may be waiting for the memory
RESTORE_MOST = 30.0  # the same for reading, which is to be quicker than computing
SPARE = 1 << 30  # bytes that stay free on the disk


def prepare(ref: Ref, one: Kept | None, tools: Tools) -> str:
    """The folder for a new process, without what was never finished; what was kept for other settings goes.

    Empty where there is none, or none can be had.
    """
    home = tools.layout.slots / ref.name
    used = {k.folder for row in tools.ledger.processes() if row.ref == ref and (k := read(row.inputs, CACHE))}
    try:
        for other in home.glob("*"):
            if other.name not in used and (one is None or other.name != one.folder):
                tools.files.remove_tree(other)
        if one is None:
            return ""
        for folder in (tools.layout.slots, home, home / one.folder):  # one by one: each is private
            tools.files.folder(folder)
        for left in folder.glob("*.new"):
            tools.files.remove(left)
    except Fault as fault:
        _tell(ref, "CacheNotKept", fault.message, tools)
        return ""
    return str(folder)


async def save(row: ProcessRow, tools: Tools) -> list[Path]:
    """Have the engine write what its slots hold → the files, which are to be settled once it has ended."""
    one = read(row.inputs, CACHE)
    if one is None:
        return []
    written: list[Path] = []
    try:
        folder = tools.layout.slots / row.ref.name / one.folder
        _require_room(folder, one)
        async with asyncio.timeout(SAVE_MOST):
            for slot in range(one.slots):
                path = folder / f"slot-{slot}.new"
                with tools.effects("slot-save", path):
                    answer = await _ask(row, slot, "save", path.name, tools)
                if int(answer.get("n_saved", 0)) >= LEAST:
                    written.append(path)
                else:
                    tools.files.remove(path)
    except (Fault, OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
        _tell(row.ref, "CacheNotKept", _why(error, SAVE_MOST), tools)
    return written


async def settle(ref: Ref, written: Sequence[Path], tools: Tools) -> None:
    """Put what was written on the disk for good, under its name; the process that wrote it has ended."""
    try:
        size = await in_bulk(lambda: sum(_settled(path, tools) for path in written)) if written else 0
    except (Fault, OSError) as error:
        _tell(ref, "CacheNotKept", _why(error, SAVE_MOST), tools)
        return
    if written:
        _tell(ref, "CacheKept", f"{human_bytes(size)} in {len(written)} files", tools)


async def restore(row: ProcessRow, tools: Tools) -> None:
    """Have the engine read what was kept, before anybody asks it."""
    one = read(row.inputs, CACHE)
    if one is None:
        return
    folder, tokens, path = tools.layout.slots / row.ref.name / one.folder, 0, None
    try:
        async with asyncio.timeout(RESTORE_MOST):
            for slot in range(one.slots):
                path = folder / f"slot-{slot}.bin"
                if path.exists():
                    with tools.effects("slot-restore", path):
                        answer = await _ask(row, slot, "restore", path.name, tools)
                    tokens += int(answer.get("n_restored", 0))
    except (Fault, OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
        _tell(row.ref, "CacheNotRestored", _why(error, RESTORE_MOST), tools)
        if path is not None:
            _drop(path, tools)
    if tokens:
        _tell(row.ref, "CacheRestored", f"{tokens} tokens need not be computed anew", tools)


def sweep(needed: set[str], tools: Tools) -> None:
    """Remove what was kept for servers that are not `needed`. Raises Fault."""
    for home in tools.layout.slots.glob("*"):
        if home.name not in needed:
            tools.files.remove_tree(home)


async def _ask(row: ProcessRow, slot: int, action: str, name: str, tools: Tools) -> dict[str, Any]:
    """What the engine answers. Raises OSError, ValueError; TimeoutError is the caller's."""
    headers = {"Authorization": f"Bearer {key_of(row.nonce, tools)}"}
    status, answer = await http_post(row.host, row.port, f"/slots/{slot}?action={action}", {"filename": name}, headers)
    if status != 200:
        said = answer.get("error")
        raise ValueError(str(said.get("message", "")) if isinstance(said, dict) else f"it answered {status}")
    return answer


def _require_room(folder: Path, one: Kept) -> None:
    free = shutil.disk_usage(nearest_folder(folder)).free
    if free < one.most + SPARE:
        raise ValueError(f"{human_bytes(free)} are free on the disk, and it may take {human_bytes(one.most)}")


def _settled(path: Path, tools: Tools) -> int:
    """Bytes of the file. An earlier one of its name is replaced."""
    with tools.effects("slot-settle", path):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fchmod(fd, 0o600)
            os.fsync(fd)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
    tools.files.move(path, path.with_suffix(".bin"))
    return size


def _drop(path: Path, tools: Tools) -> None:
    """What could not be read once is not tried again."""
    try:
        tools.files.remove(path)
    except Fault as fault:
        _tell(Ref("server", path.parent.parent.name), "CacheNotRestored", fault.message, tools)


def _why(error: Exception, most: float) -> str:
    if isinstance(error, TimeoutError):
        return f"it took longer than {most:.0f} s"
    return str(error) or type(error).__name__


def _tell(ref: Ref, type_: str, message: str, tools: Tools) -> None:
    tools.ledger.event(str(ref), type_, message)
