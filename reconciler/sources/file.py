"""`file:path/model.gguf`: a file of this machine, copied into the store as it is hashed; a split model with its parts.

`file:path/folder` where an engine loads folders of weights.

The original is only ever read. Where the file system can, the copy shares the original's blocks (a reflink); a hard
link is not made, since who writes to the original would write to the store.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.bulk import in_bulk, in_bulk_until
from reconciler.host.digest import Digest
from reconciler.host.fetch import Progress
from reconciler.host.files import disk_faults, require_room
from reconciler.sources import Brought, Listing, Remote, Request, Tap
from reconciler.sources.names import of_folder, printable, shards

FICLONE = 0x40049409  # _IOW(0x94, 9, int) of linux/fs.h
CHUNK = 1 << 20


async def find(source: str, tap: Tap) -> Listing:
    named = source.removeprefix("file:").removeprefix("//")
    path = tap.base / os.path.expanduser(named)  # noqa: PTH111  (pathlib's raises where there is no such user)
    if tap.folders and path.is_dir() and (inside := await in_bulk(_weights, path)):
        return Listing("", tuple(_remote(path / name, 1) for name in inside), folder=True)
    paths = [path.with_name(name) for name in shards(path.name)] or [path]
    return Listing("", tuple(_remote(path, len(paths)) for path in paths))


async def bring(request: Request, tap: Tap) -> Brought:
    path, part = Path(request.remote.urls[0]), request.part
    tap.files.folder(part.parent)
    size = _remote(path, 1).size or 0
    require_room(part, size)
    stop = threading.Event()
    with tap.effects("copy", part):
        digest = await in_bulk_until(stop, _copy, path, part, request.progress, stop)
    return Brought(digest.sha256, digest.size, request.remote.name, digest.blocks)


async def peek(remote: Remote, start: int, length: int, tap: Tap) -> bytes:
    return await in_bulk(_read, Path(remote.urls[0]), start, length)


def _read(path: Path, start: int, length: int) -> bytes:
    with _opened(path) as data:
        data.seek(start)
        return data.read(length)


def _remote(path: Path, parts: int) -> Remote:
    """The file as it is now. Raises Fault unless it is one that can be read; links are followed."""
    if not path.is_file():  # before it is opened: a pipe would never answer
        what = f"{path} is a folder, not a file" if path.is_dir() else f"{path} is not a file"
        hint = "a relative path counts from the folder of the manifest"
        if path.is_dir() and (inside := _models(path)):
            hint = f"name the file in it: {inside}; {hint}"
        elif parts > 1:
            hint = f"by its name the model has {parts} parts, and all lie beside each other; {hint}"
        raise Fault("FILE_NOT_FOUND", what, hint=hint, kind=FaultClass.NEEDS_HUMAN)
    with _opened(path) as data:
        return Remote(printable(path.name), (str(path),), os.fstat(data.fileno()).st_size)


def _weights(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return of_folder(path.name for path in folder.iterdir() if path.is_file())
    return []


def _models(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return ", ".join(printable(path.name) for path in sorted(folder.glob("*.gguf"))[:5])
    return ""


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise Fault(
            "FILE_UNREADABLE",
            f"{path} cannot be read: {error.strerror}",
            hint="give this user read access to the file and to the folders above it",
            kind=FaultClass.NEEDS_HUMAN,
        ) from error


def _copy(source: Path, target: Path, progress: Progress, stop: threading.Event) -> Digest:
    """Copy and hash in one pass; what came must be what the file was when it was opened."""
    with _opened(source) as data:
        before = os.fstat(data.fileno())
        with disk_faults(target):
            target.unlink(missing_ok=True)  # never through a link that an earlier try left
        with disk_faults(target), target.open("x+b") as out:
            shared = _reflink(data, out)
            digest = _hash(source, out if shared else data, None if shared else out, before.st_size, progress, stop)
            out.flush()
            os.fsync(out.fileno())
        after = os.fstat(data.fileno())
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if digest.size != before.st_size or not (same or shared):
        raise Fault("FILE_CHANGED", f"{source} was written to while it was copied", hint="it is tried again shortly")
    return digest


def _hash(
    source: Path, data: BinaryIO, out: BinaryIO | None, size: int, progress: Progress, stop: threading.Event
) -> Digest:
    digest = Digest()
    while piece := _piece(source, data):
        if stop.is_set():
            break
        if out is not None:
            out.write(piece)
        digest.update(piece)
        progress(digest.size, size)
    return digest


def _piece(source: Path, data: BinaryIO) -> bytes:
    try:
        return data.read(CHUNK)
    except OSError as error:
        raise Fault(
            "FILE_UNREADABLE",
            f"{source} cannot be read: {error.strerror}",
            hint="check the disk that it lies on",
            kind=FaultClass.NEEDS_HUMAN,
        ) from error


def _reflink(data: BinaryIO, out: BinaryIO) -> bool:
    """Share the source's blocks with the target; False where the file system cannot."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(out.fileno(), FICLONE, data.fileno())
    except OSError:
        return False
    return True
