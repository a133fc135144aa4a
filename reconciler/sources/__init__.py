"""Where a model's bytes come from: one file a scheme, and this registry.

A source first says what it holds (`find`: metadata only), then brings the bytes of one file to a part file and says
what they are (`bring`). It never puts anything into the store, and none of its names is ever used as a path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from reconciler.host.effects import Effects
from reconciler.host.fetch import OPEN, Access, Fetch, Progress
from reconciler.host.files import Files


@dataclass(frozen=True, slots=True)
class Hub:
    """The model hub that `hf:` means. Mirrors are tried first, in order, and never get the token.

    An empty endpoint is the public one; `token` is the secret itself, for the endpoint's own host only.
    """

    endpoint: str = ""
    mirrors: tuple[str, ...] = ()
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Tap:
    """What a source needs of the machine to look and to bring."""

    base: Path  # what relative paths are relative to
    files: Files
    effects: Effects
    fetch: Fetch
    hub: Hub = Hub()
    token: str = field(default="", repr=False)  # for the source's own host; wins over the hub's
    folders: str = ""  # whether a folder of weights `may` be meant where there is no GGUF, or is the `only` thing meant


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a file that lies in a package: which package, and which member of it.

    `sha256` is the package's. `member` is its path in the archive, only ever compared; empty where it is known only
    once the package is here, and then the sizes are not known either. `packed` is what it takes in the archive,
    `offset` where its local header begins, `method` the archive's number for how it is packed. All sizes in bytes.
    """

    urls: tuple[str, ...]
    sha256: str = ""
    access: Access = OPEN
    member: str = ""
    size: int = 0
    packed: int = 0
    offset: int = 0
    method: int = 0


@dataclass(frozen=True, slots=True)
class Remote:
    """One file of a source. `size` (bytes) is None and `sha256` empty where the source does not say.

    `name` is for people and for patterns: made printable, with the folders of a repository, never to be used as a
    path. `urls` are where it lies, the best first; for `file:` a path, for a wheel the wheel's own address. `pieces`
    are what it is joined from, in order, where it lies in packages; empty for a plain file.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    sha256: str = ""
    access: Access = OPEN
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds now: its immutable form (empty where it has none), its model files in order of their names.

    `opaque` says that the one Remote is a package whose files are known only once it is here. `size` and `sha256` are
    then the package's own. `notes` are sentences that a person should see: a new name, a mirror that was passed over.
    `folder` says that its files are one model together: a folder of weights, with plain names.
    """

    resolved: str
    files: tuple[Remote, ...]
    licence: str = ""
    opaque: bool = False
    notes: tuple[str, ...] = ()
    folder: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One file to be brought to `part`. `pattern` is a glob that chooses within a package.

    `sha256` is what the file must have; empty when it is not known yet.
    """

    remote: Remote
    part: Path
    progress: Progress
    pattern: str = ""
    sha256: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Brought:
    """The bytes are at the part's path: sha256 (hex), size in bytes, the file's own name.

    `blocks` are the CRC-32 of each 16 MiB, as hex; empty where they were not computed on the way.
    """

    sha256: str
    size: int
    name: str
    blocks: tuple[str, ...] = ()


class Source(Protocol):
    """What each module here offers. All raise Fault."""

    async def find(self, source: str, tap: Tap) -> Listing:
        """What `source` (the manifest's text, or an earlier `resolved`) holds now. Metadata only."""

    async def bring(self, request: Request, tap: Tap) -> Brought: ...

    async def peek(self, remote: Remote, start: int, length: int, tap: Tap) -> bytes:
        """Bytes of a file without bringing it, fewer at its end; Fault `NO_RANGES` where that is not possible."""


def source_for(text: str) -> Source:
    """The source of a manifest's `source:` text, whose scheme was checked when it was read."""
    return _SOURCES.get(text.partition(":")[0], _url)()


def _hf() -> Source:
    from reconciler.sources import huggingface

    return huggingface


def _pypi() -> Source:
    from reconciler.sources import pypi

    return pypi


def _file() -> Source:
    from reconciler.sources import file

    return file


def _url() -> Source:
    from reconciler.sources import url

    return url


_SOURCES: dict[str, Callable[[], Source]] = {"hf": _hf, "pypi": _pypi, "file": _file}
