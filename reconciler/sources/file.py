"""`file:path/model.gguf`: a file of this machine, copied into the store as it is hashed."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.bulk import in_bulk
from reconciler.host.fetch import Progress
from reconciler.host.files import disk_faults, disk_full, nearest_folder
from reconciler.sources import Brought, Listing, Remote, Request, Tap


async def find(source: str, tap: Tap) -> Listing:
    path = _path(source, tap)
    return Listing("", (Remote(path.name, (str(path),), path.stat().st_size),))


async def bring(request: Request, tap: Tap) -> Brought:
    path = Path(request.remote.urls[0])
    tap.files.folder(request.part.parent)
    size = path.stat().st_size
    if size > shutil.disk_usage(nearest_folder(request.part)).free:
        raise disk_full(request.part, size)
    with tap.effects("copy", request.part):
        digest = await in_bulk(_copy, path, request.part, request.progress)
    return Brought(digest, size, path.name)


async def peek(remote: Remote, start: int, length: int, tap: Tap) -> bytes:
    with Path(remote.urls[0]).open("rb") as data:
        data.seek(start)
        return data.read(length)


def _path(source: str, tap: Tap) -> Path:
    named = source.removeprefix("file:").removeprefix("//")
    path = tap.base / os.path.expanduser(named)  # noqa: PTH111  (pathlib's raises where there is no such user)
    if not path.is_file():
        raise Fault(
            "FILE_NOT_FOUND",
            f"{path} is not a file",
            hint="a relative path counts from the folder of the manifest",
            kind=FaultClass.NEEDS_HUMAN,
        )
    return path


def _copy(source: Path, target: Path, progress: Progress) -> str:
    hasher, done, size = hashlib.sha256(), 0, source.stat().st_size
    with source.open("rb") as data, disk_faults(target), target.open("wb") as out:
        while piece := data.read(1 << 20):
            out.write(piece)
            hasher.update(piece)
            done += len(piece)
            progress(done, size)
        out.flush()
        os.fsync(out.fileno())
    return hasher.hexdigest()
