"""Where a model's bytes come from: one file a scheme, and this registry.

A source brings its bytes to a part file and says what they are. It never puts anything into the store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from reconciler.host.effects import Effects
from reconciler.host.fetch import Fetch, Progress
from reconciler.host.files import Files


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a source. `part` is where the bytes go."""

    source: str
    file: str  # glob for sources that hold several files; empty where there is only one
    sha256: str  # of the wanted file; empty when it is not known yet
    part: Path
    base: Path  # what relative paths are relative to
    files: Files
    effects: Effects
    fetch: Fetch
    progress: Progress


@dataclass(frozen=True, slots=True)
class Brought:
    """The bytes are at the part's path: sha256 (hex), size in bytes, the file's own name.

    `resolved` is the source in its immutable form; empty where it has no other.
    """

    sha256: str
    size: int
    name: str
    resolved: str = ""


Source = Callable[[Request], Awaitable[Brought]]


async def immutable(text: str) -> str:
    """A source in the form that always means the same bytes, as it is now; itself where it has no other."""
    if text.startswith("pypi:"):
        from reconciler.sources import pypi

        return await pypi.immutable(text)
    return text


def source_for(text: str) -> Source:
    """The source of a manifest's `source:` text, whose scheme was checked when it was read."""
    scheme = text.partition(":")[0]
    if scheme == "pypi":
        from reconciler.sources import pypi

        return pypi.bring
    if scheme == "file":
        from reconciler.sources import file

        return file.bring
    from reconciler.sources import url

    return url.bring
