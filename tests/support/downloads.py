"""What tests of downloads share: what a file should be when it is here, and what a part says of itself."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

from reconciler.host.fetch import BLOCK, Fetched


def quiet(done: int, total: int | None) -> None:
    """A progress that nobody watches."""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def whole(data: bytes) -> Fetched:
    """What a download of these bytes returns, computed the plain way."""
    blocks = tuple(f"{zlib.crc32(data[at : at + BLOCK]):08x}" for at in range(0, len(data), BLOCK))
    return Fetched(sha(data), len(data), blocks)


def vouched(part: Path) -> int:
    """How many bytes of a part its note vouches for."""
    return sum(end - start for start, end in json.loads(part.with_name(part.name + ".json").read_text())["spans"])
