"""Model files that other tools have brought to this machine: where they may lie, and which may be the one wanted.

What is found is a *candidate*: a name that carries the digest, or a size that fits, proves nothing. Whoever takes one
hashes it on the way (`link.take`) and lets go of it when it is another.

Only looking happens here. Everything that is found was written by others: links are never followed, only ordinary files
count, nothing is read but small texts, and a cache with too many entries is left at that. What cannot be read is as if
it were not there.

    the hub's client   HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface/hub   models--O--N/blobs/<sha256>
    Ollama             OLLAMA_MODELS, ~/.ollama/models, the service's own    blobs/sha256-<sha256>
    Docker             ~/.docker/models                                      blobs/sha256/<sha256>
    Jan                its data folder                                       llamacpp/models/ID/model.yml says it
    LM Studio          ~/.lmstudio/models, or where its settings say         publisher/repository/file: by size
    llama.cpp          LLAMA_CACHE, ~/.cache/llama.cpp                       files: by size
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconciler.foreign.home import Home, System
from reconciler.foreign.text import NotThere, small_text, tolerant

MOST = 20_000  # entries that are looked at in one cache
DEPTH = 6  # folders below the root of a cache
SHA256 = re.compile(r"[0-9a-f]{64}")
UNFINISHED = re.compile(r"\.(incomplete|part|partial|tmp|download|downloading|downloadInProgress|lock)$|-partial", re.I)

Naming = Literal["hub", "ollama", "docker", "jan", "size"]


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder that a tool keeps model files in, and how their digests are found there."""

    tool: str
    root: Path
    naming: Naming


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may have the wanted bytes. `named` says that its name, or a text beside it, claims so."""

    path: Path
    size: int
    tool: str
    named: bool


def where(environ: Mapping[str, str], home: Path, os: System) -> list[Cache]:
    """The caches that exist, those first whose names carry digests. `os` is linux, darwin or windows."""
    told = Home(environ, home, os, home)
    return [cache for cache in _once(_possible(told)) if cache.root.is_dir()]


def candidates(sha256: str, size: int | None, caches: Collection[Cache]) -> Iterator[Candidate]:
    """Files that may be the one with this sha256 (hex), the likeliest first.

    `size` in bytes; without one, only what is named by its digest counts, since all else would have to be hashed.
    """
    if not SHA256.fullmatch(sha256):
        return
    for named in (True, False):
        for cache in caches:
            if (cache.naming == "size") is not named:
                yield from _of(cache, sha256, size)


def lookup(sha256: str, size: int | None, caches: Collection[Cache], tried: Collection[Path] = ()) -> Candidate | None:
    """The likeliest candidate that was not tried yet; None where there is none (left)."""
    return next((c for c in candidates(sha256, size, caches) if c.path not in tried), None)


# -- where -----------------------------------------------------------------------------------------------------------


def _possible(home: Home) -> Iterator[Cache]:
    for root in hub_roots(home):
        yield Cache("the hub's cache", root, "hub")
    for root in ollama_roots(home):
        yield Cache("Ollama", root, "ollama")
    yield Cache("Docker", home.folder / ".docker" / "models", "docker")
    for root in jan_roots(home):
        yield Cache("Jan", root, "jan")
    for root in lmstudio_roots(home):
        yield Cache("LM Studio", root, "size")
    yield Cache("llama.cpp", home.named("LLAMA_CACHE") or home.caches / "llama.cpp", "size")


def _once(caches: Iterator[Cache]) -> Iterator[Cache]:
    seen: set[Path] = set()
    for cache in caches:
        whole = Path(os.path.realpath(cache.root))
        if whole not in seen:
            seen.add(whole)
            yield cache


def hub_roots(home: Home) -> Iterator[Path]:
    """HF_HUB_CACHE (or its older name), HF_HOME/hub, and the default."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if root := home.named(variable):
            yield root
    if root := home.named("HF_HOME"):
        yield root / "hub"
    base = home.named("XDG_CACHE_HOME") or home.folder / ".cache"  # on macOS, too
    yield base / "huggingface" / "hub"


def ollama_roots(home: Home) -> Iterator[Path]:
    """OLLAMA_MODELS, the person's own, and those of the services that its installers set up."""
    if root := home.named("OLLAMA_MODELS"):
        yield root
    yield home.folder / ".ollama" / "models"
    if home.system == "linux":
        yield Path("/usr/share/ollama/.ollama/models")
        yield Path("/var/lib/ollama/models")


def jan_roots(home: Home) -> Iterator[Path]:
    """Its data folders: JAN_DATA_FOLDER, what its settings.json says, and the default."""
    if root := home.named("JAN_DATA_FOLDER"):
        yield root
    for base in (home.data / "Jan", home.settings / "Jan"):
        told = _said(base / "settings.json", "data_folder")
        if told:
            yield base / told if not told.startswith("~") else home.path(told)
    yield home.data / "Jan" / "data"


def lmstudio_roots(home: Home) -> Iterator[Path]:
    """Its model folders: what its settings say, the default, and the older default."""
    for base in lmstudio_homes(home):
        for key in ("downloadsFolder", "modelsDirectory"):
            if told := _said(base / "settings.json", key):
                yield home.path(told)
        yield base / "models"
        yield base / ".internal" / "bundled-models"


def lmstudio_homes(home: Home) -> Iterator[Path]:
    try:
        pointed = small_text(home.folder / ".lmstudio-home-pointer").strip()
    except NotThere:
        pointed = ""
    if pointed:
        yield home.path(pointed)
    yield home.folder / ".lmstudio"
    yield home.folder / ".cache" / "lm-studio"


def _said(path: Path, key: str) -> str:
    """A text of a settings file, empty where it says none. Settings of others may be broken."""
    values = tolerant(path)
    told = values.get(key) if isinstance(values, dict) else None
    return told if isinstance(told, str) and "\0" not in told else ""


# -- which -----------------------------------------------------------------------------------------------------------


def _of(cache: Cache, sha256: str, size: int | None) -> Iterator[Candidate]:
    match cache.naming:
        case "hub":
            for folder in _entries(cache.root):
                if folder.name.startswith("models--"):
                    yield from _named(cache, cache.root / folder.name / "blobs" / sha256, size)
        case "ollama":
            yield from _named(cache, cache.root / "blobs" / f"sha256-{sha256}", size)
        case "docker":
            yield from _named(cache, cache.root / "blobs" / "sha256" / sha256, size)
        case "jan":
            yield from _of_jan(cache, sha256, size)
        case "size":
            yield from _of_size(cache, cache.root, size)


def _of_jan(cache: Cache, sha256: str, size: int | None) -> Iterator[Candidate]:
    """What a model.yml claims, then files of the right size."""
    models = cache.root / "llamacpp" / "models"
    for path in walk(models):
        if path.name == "model.yml" and isinstance(said := tolerant(path), dict):
            for of, at in (("model_sha256", "model_path"), ("mmproj_sha256", "mmproj_path")):
                if said.get(of) == sha256 and isinstance(named := said.get(at), str) and "\0" not in named:
                    yield from _named(cache, cache.root / named, size)
    yield from _of_size(cache, models, size)


def _of_size(cache: Cache, root: Path, size: int | None) -> Iterator[Candidate]:
    for path in walk(root) if size else ():
        if not UNFINISHED.search(path.name):
            for found in _named(cache, path, size):
                yield Candidate(found.path, found.size, found.tool, named=False)


def _named(cache: Cache, path: Path, size: int | None) -> Iterator[Candidate]:
    try:
        info = path.lstat()
    except (OSError, ValueError):
        return
    if stat.S_ISREG(info.st_mode) and info.st_size and (size is None or info.st_size == size):
        yield Candidate(path, info.st_size, cache.tool, named=True)


def walk(root: Path) -> Iterator[Path]:
    """Ordinary files below a folder, in order of their names; links are not followed, and there is an end to it."""
    left = MOST
    folders = [(root, 0)]
    while folders:
        folder, depth = folders.pop()
        below: list[tuple[Path, int]] = []
        for entry in _entries(folder):
            left -= 1
            if left < 0:
                return
            if _is(entry, "file"):
                yield folder / entry.name
            elif depth < DEPTH and _is(entry, "folder"):
                below.append((folder / entry.name, depth + 1))
        folders += reversed(below)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    out: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                out.append(entry)
                if len(out) >= MOST:
                    break
    except (OSError, ValueError):
        return out
    return sorted(out, key=lambda entry: entry.name)


def _is(entry: os.DirEntry[str], what: Literal["file", "folder"]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False) if what == "file" else entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
