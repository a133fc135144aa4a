"""A manifest and what it includes → one document in which every value keeps the place that it came from.

Bytes come from `Texts` only, so that a kept generation is put together exactly as it was on the day it was written.
Relative paths in *values* (`file:` sources, engine paths) count from the folder of the root manifest, wherever they
are written; only `include` counts from the file that says it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from reconciler.core.diagnostics import Diagnostic, Refused, Where
from reconciler.host.files import nearest_folder
from reconciler.manifest import read as reader
from reconciler.manifest.read import Document, Places, read

MAX_FILES = 200
MAX_TOTAL = 16 << 20  # bytes of all files together

SECTIONS = ("engines", "models", "providers", "routes", "mcp_servers")  # merged by name
SETTINGS = ("gateway", "hub", "limits")  # merged by key
LISTS = ("policy",)  # joined

Key = tuple[str | int, ...]


class Texts(Protocol):
    """Where the bytes of manifests come from. Paths are absolute."""

    def read(self, path: Path) -> bytes:
        """Raises OSError."""

    def names(self, folder: Path) -> Iterable[str]:
        """What lies in a folder, for patterns; nothing where it is no folder."""


@dataclass(slots=True)
class Disk:
    """The files as they are now, and a memory of what was looked at.

    `said` is what each file said, None for one that could not be read; `listed` the names that lay in each folder
    which a pattern looked into; `folders` are those in which a change may matter, and all of them exist.
    """

    said: dict[Path, bytes | None] = field(default_factory=dict)
    listed: dict[Path, frozenset[str]] = field(default_factory=dict)
    folders: set[Path] = field(default_factory=set)

    def read(self, path: Path) -> bytes:
        self.folders.add(nearest_folder(path.parent))
        self.said[path] = None
        self.said[path] = text = _read(path)
        return text

    def names(self, folder: Path) -> Iterable[str]:
        self.folders.add(nearest_folder(folder))
        self.listed[folder] = names = _listing(folder)
        return names

    def moved(self) -> bool:
        """Whether any of it says something else by now."""
        return any(text != contents(path) for path, text in self.said.items()) or any(
            names != _listing(folder) for folder, names in self.listed.items()
        )


def contents(path: Path) -> bytes | None:
    """The bytes of a file; None where there is no ordinary file that can be read."""
    try:
        return _read(path)
    except OSError:
        return None


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file")  # a pipe would block us for ever
    with path.open("rb") as file:
        return file.read(reader.MAX_BYTES + 1)


def _listing(folder: Path) -> frozenset[str]:
    try:
        return frozenset(path.name for path in folder.iterdir())
    except OSError:
        return frozenset()


class Kept:
    """The files of a generation, by absolute path: patterns find what was found then."""

    def __init__(self, texts: Mapping[Path, bytes]) -> None:
        self._texts = texts
        self._names: dict[Path, set[str]] = {}
        for path in texts:
            for inner in (path, *path.parents[:-1]):
                self._names.setdefault(inner.parent, set()).add(inner.name)

    def read(self, path: Path) -> bytes:
        if path not in self._texts:
            raise FileNotFoundError(errno.ENOENT, "it was not kept")
        return self._texts[path]

    def names(self, folder: Path) -> Iterable[str]:
        return self._names.get(folder, ())


@dataclass(frozen=True, slots=True)
class Gathered:
    """One document of all files with the faults of all of them; their texts by absolute path, in reading order."""

    document: Document
    texts: Mapping[Path, bytes]


def gather(path: Path, texts: Texts) -> Gathered:
    """Read `path` and all that it includes. Raises Refused where the root itself cannot be read; every other fault
    is in the document."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  (lexical: kept paths must be found without a disk)
    reading = _Reading(texts)
    reading.root(path)
    return Gathered(_merge(reading.documents, reading.faults), reading.texts)


def shown(path: Path) -> str:
    """The path as a person would write it: relative where it lies below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


# -- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A file that somebody includes. `chain` are the files on the way to it, the root first."""

    path: Path
    where: Where
    chain: tuple[Path, ...]
    by_pattern: bool


class _Reading:
    def __init__(self, source: Texts) -> None:
        self.source = source
        self.texts: dict[Path, bytes] = {}
        self.documents: list[Document] = []
        self.faults: list[Diagnostic] = []

    def root(self, path: Path) -> None:
        try:
            text = self.source.read(path)
        except FileNotFoundError:
            hint = "name the manifest with -f FILE, or write one with `reconcile init`"
            raise Refused(f"there is no {path}", hint=hint) from None
        except OSError as error:
            hint = "name the manifest with -f FILE"
            raise Refused(f"{path} cannot be read: {error.strerror}", hint=hint) from error
        pending = self._take(path, text, ())
        while pending:  # depth first, in the order in which they are written
            pending = [*self._visit(pending[0]), *pending[1:]]

    def _visit(self, wanted: _Wanted) -> list[_Wanted]:
        path = wanted.path
        if path in wanted.chain:
            if not wanted.by_pattern:  # a pattern such as *.yaml may well match the file that says it
                loop = " → ".join(shown(p) for p in (*wanted.chain[wanted.chain.index(path) :], path))
                self._fault("the file includes itself", wanted.where, f"it goes round: {loop}")
            return []
        if path in self.texts:
            return []
        if len(self.texts) == MAX_FILES:
            self._once(f"more than {MAX_FILES} files are included", wanted.where, "join some of them")
            return []
        try:
            text = self.source.read(path)
        except FileNotFoundError:
            hint = "a path counts from the folder of the file that says it; a pattern such as team/*.yaml may be empty"
            self._fault(f"there is no file {shown(path)}", wanted.where, hint)
            return []
        except OSError as error:
            self._fault(f"{shown(path)} cannot be read: {error.strerror}", wanted.where)
            return []
        if sum(map(len, self.texts.values())) + len(text) > MAX_TOTAL:
            self._once(f"all files together have more than {MAX_TOTAL} bytes", wanted.where, "include fewer of them")
            return []
        return self._take(path, text, wanted.chain)

    def _take(self, path: Path, text: bytes, chain: tuple[Path, ...]) -> list[_Wanted]:
        self.texts[path] = text
        document = read(text, shown(path))
        self.documents.append(document)
        self.faults += document.faults
        if chain and document.values is not None and not isinstance(document.values, dict):
            self._fault("must be a mapping", document.where(()), "write sections such as `models:` here")
        return list(self._includes(document, path, (*chain, path)))

    def _includes(self, document: Document, path: Path, chain: tuple[Path, ...]) -> Iterator[_Wanted]:
        values = document.values if isinstance(document.values, dict) else {}
        patterns = values.get("include", [])
        if not isinstance(patterns, list):
            where = document.where(("include",))
            self._fault("must be a list", where, "write it as `include: [team/*.yaml]`", "include")
            return
        for i, pattern in enumerate(patterns):
            where = document.where(("include", i))
            if not isinstance(pattern, str) or not pattern.strip():
                self._fault("must be a file name", where, "such as team/*.yaml", f"include.{i}")
            elif "**" in pattern:
                self._fault("`**` is not known here", where, "name each folder, as in team/*/*.yaml", f"include.{i}")
            else:
                by_pattern = "*" in pattern or "?" in pattern
                for found in _matches(path.parent, Path(pattern), self.source):
                    yield _Wanted(found, where, chain, by_pattern)

    def _fault(self, summary: str, where: Where, hint: str = "", path: str = "") -> None:
        self.faults.append(Diagnostic(summary, where, hint, path))

    def _once(self, summary: str, where: Where, hint: str) -> None:
        if all(fault.summary != summary for fault in self.faults):
            self._fault(summary, where, hint)


def _matches(folder: Path, pattern: Path, source: Texts) -> list[Path]:
    """The files that a pattern stands for, sorted; a path without wildcards stands for itself, there or not."""
    found = [folder]
    for part in pattern.parts:
        if "*" not in part and "?" not in part:
            found = [Path(os.path.normpath(path / part)) for path in found]
            continue
        # Names that begin with a dot are what editors and half-written files leave behind.
        found = [
            path / name
            for path in found
            for name in sorted(source.names(path))
            if fnmatchcase(name, part.replace("[", "[[]")) and (part[0] == "." or name[0] != ".")
        ]
    return found


# -- merging --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Claim:
    """What one file says of one entry, setting or top-level key."""

    document: Document
    path: Key
    value: Any
    override: bool

    @property
    def where(self) -> Where:
        return self.document.where(self.path, key=True)


class _Merged:
    """What has been put together so far. A file alone keeps the positions that its reader noted."""

    def __init__(self, file: str, faults: list[Diagnostic], alone: bool) -> None:
        self.alone = alone
        self.values: dict[str, Any] = {}
        self.keys, self.places = Places(file), Places(file)
        self.faults = faults

    def place(self, source: Document, path: Key, to: Key) -> None:
        """Note where the value at `to` came from."""
        self.keys.take(to, source.keys, path)
        self.places.take(to, source.places, path)

    def place_all(self, source: Document, path: Key, value: Any, to: Key) -> None:
        if self.alone:
            return
        self.place(source, path, to)
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for part, item in inner:
            self.place_all(source, (*path, part), item, (*to, part))

    def open(self, source: Document, key: str, empty: Any) -> Any:
        """A section or list, there even where nothing is in it; its place is in the first file that has it."""
        if key not in self.values:
            self.values[key] = empty
            self.place(source, (key,), (key,))
        return self.values[key]


def _merge(documents: list[Document], faults: list[Diagnostic]) -> Document:
    """`faults` are those of reading; the document gets them, and those of merging."""
    root = documents[0]
    if not isinstance(root.values, dict):
        root.faults = faults
        return root
    merged = _Merged(root.file, faults, len(documents) == 1)
    merged.place(root, (), ())
    mappings = [d for d in documents if isinstance(d.values, dict)]
    claims: dict[Key, list[_Claim]] = {}
    for document in mappings:
        for claim in _claims(document, mappings, merged):
            claims.setdefault(claim.path, []).append(claim)
    for path, several in claims.items():
        _settle(path, several, merged)
    document = Document(root.file, values=merged.values, faults=faults)
    source = root if merged.alone else merged
    document.keys, document.places = source.keys, source.places
    return document


def _claims(document: Document, documents: list[Document], merged: _Merged) -> Iterator[_Claim]:
    """Everything that one file says, cut into the pieces that files are merged by."""
    whole = _wins(document, (), document.values, merged)
    for key, value in document.values.items():
        if key in ("include", "override"):
            continue
        shape = dict if key in (*SECTIONS, *SETTINGS) else list if key in LISTS else None
        if shape is None:
            yield _Claim(document, (key,), value, whole)
        elif not isinstance(value, shape):
            if sum(key in d.values for d in documents) == 1:
                yield _Claim(document, (key,), value, whole)  # the checker of types has the better words for it
            else:
                must = "must be a mapping" if shape is dict else "must be a list"
                merged.faults.append(Diagnostic(must, document.where((key,), key=True), path=key))
        elif isinstance(value, list):
            joined = merged.open(document, key, [])
            for i, item in enumerate(value):
                merged.place_all(document, (key, i), item, (key, len(joined)))
                joined.append(item)
        elif key in SETTINGS:
            merged.open(document, key, {})
            wins = _wins(document, (key,), value, merged) or whole
            yield from (_Claim(document, (key, k), v, wins) for k, v in value.items() if k != "override")
        else:
            merged.open(document, key, {})
            for name, entry in value.items():
                wins = isinstance(entry, dict) and entry.get("override") is True
                yield _Claim(document, (key, name), entry, wins or whole)


def _wins(document: Document, path: Key, value: dict[str, Any], merged: _Merged) -> bool:
    """Whether a file, or its settings, say `override: true`, which is consumed here; entries keep theirs."""
    given = value.get("override", False)
    if not isinstance(given, bool):
        where = document.where((*path, "override"))
        dotted = ".".join(map(str, (*path, "override")))
        merged.faults.append(Diagnostic("must be true or false", where, path=dotted))
    return given is True


def _settle(path: Key, claims: list[_Claim], merged: _Merged) -> None:
    """One value of all that is said about it. Whoever overrides wins, wherever it is included."""
    plain, winners = [c for c in claims if not c.override], [c for c in claims if c.override]
    dotted = ".".join(map(str, path))
    both = "remove one, or say `override: true` in the one that shall win"
    if path == ("version",):  # said by each file, of the same language
        plain = [c for i, c in enumerate(plain) if i == 0 or _typed(c) != _typed(plain[0])]
        both = "both must be the same"
    for group, hint in ((plain, both), (winners, "both say `override: true`; only one can win")):
        for later in group[1:]:
            summary = f"{dotted} is also in {group[0].where}"
            merged.faults.append(Diagnostic(summary, later.where, hint, dotted))
    layers = [*plain[:1], *winners[:1]]
    value = layers[0].value
    for layer in layers[1:]:
        value = _laid(layer.value, value)
    for layer in layers:
        merged.place_all(layer.document, layer.path, layer.value, path)
    holder = merged.values
    for part in path[:-1]:
        holder = holder[str(part)]
    holder[str(path[-1])] = value


def _typed(claim: _Claim) -> tuple[type, Any]:
    return type(claim.value), claim.value


def _laid(over: Any, base: Any) -> Any:
    """Mappings key by key, all else replaced."""
    if not (isinstance(over, dict) and isinstance(base, dict)):
        return over
    return base | {key: _laid(value, base[key]) if key in base else value for key, value in over.items()}
