"""What each resource holds of the disk: its files in the store by sha256, and its engine's folder.

The one place that knows how digests hang in specs and pins. It reads them as plain values: a spec or a pin that has
more files than one lists them as mappings, each with a `sha256` of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from reconciler.controller.turn import Wanted, wanted_of
from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.core.ids import Ref
from reconciler.core.state import Declared, Owned
from reconciler.kinds.base import Tools
from reconciler.kinds.engine.spec import EngineSpec
from reconciler.kinds.model.spec import shown as shown
from reconciler.manifest.reading import kept, sources_of
from reconciler.store.generations import Generation, Generations

MODEL, ENGINE = "model", "engine"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMED = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")

Pins = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Piece:
    """One file of a resource. `digest` is its sha256, empty before it was ever fetched; `size` in bytes, 0 if unknown.

    `source` is what the manifest says, `resolved` its immutable form; `role` what the file is for, where that is said.
    """

    digest: str
    name: str = ""
    size: int = 0
    source: str = ""
    resolved: str = ""
    licence: str = ""
    quant: str = ""
    role: str = ""


def pieces(spec: Mapping[str, Any], pins: Pins, generous: bool = False) -> tuple[Piece, ...]:
    """The files that a model is made of, in order of their names. One that was never fetched has a file without digest.

    What the spec itself says (`sha256`, `locked`) wins over a pin that says otherwise; `generous` counts both.
    """
    said = _said(spec)
    out: dict[str, Piece] = {}
    for key, facts in pins.items():
        if not _belongs(key, spec):
            continue
        if said and facts.get("sha256") not in said and not generous:
            continue
        for piece in _of_pin(facts, json.loads(key)[0], facts):
            out.setdefault(piece.digest, piece)
    for digest, inner in said.items():
        name, size = str(inner.get("name", "")), int(inner.get("size") or 0)
        role = str(inner.get("role", ""))
        out.setdefault(digest, Piece(digest, name, size, str(spec.get("source", "")), role=role))
    if not out:
        return (Piece("", source=str(spec.get("source", ""))),)
    return tuple(sorted(out.values(), key=lambda p: (p.name, p.digest)))


def _belongs(key: str, spec: Mapping[str, Any]) -> bool:
    """Whether a pin is of a source that the spec names, and of what of it the spec means: file, platform, sort."""
    source, file, platform, asked = (*json.loads(key), "", "", "")[:4]
    texts = {value for value in _leaves(spec) if isinstance(value, str)}
    role = str(spec.get("role", MODEL))
    meant = (spec.get("file", ""), spec.get("platform", ""), spec.get("quant", "") if role == MODEL else role)
    return source in texts and (file, platform, asked) == meant


def _said(spec: Any) -> dict[str, Mapping[str, Any]]:
    """Every sha256 that a spec states of its files, with the mapping that does. The manifest wins over the lock."""
    out: dict[str, Mapping[str, Any]] = {}
    for inner in _mappings(spec):
        digest = str(inner.get("sha256") or inner.get("locked") or "")
        if _SHA256.fullmatch(digest):
            out[digest] = inner
    return out


def _of_pin(facts: Mapping[str, Any], source: str, whole: Mapping[str, Any]) -> Iterator[Piece]:
    for inner in _mappings(facts):
        digest = inner.get("sha256")
        if isinstance(digest, str) and _SHA256.fullmatch(digest):
            about = {key: str(inner.get(key) or whole.get(key) or "") for key in ("resolved", "licence", "quant")}
            name, size, role = str(inner.get("name", "")), inner.get("size"), str(inner.get("role", ""))
            yield Piece(digest, name, size if type(size) is int else 0, source, role=role, **about)


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _mappings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _mappings(inner)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def plain(spec: Any) -> dict[str, Any]:
    """A spec as plain values, as the ledger keeps it."""
    return asdict(spec) if is_dataclass(spec) and not isinstance(spec, type) else dict(spec)


def models(
    desired: Mapping[Ref, Declared], owned: Mapping[Ref, Owned], pins: Pins, generous: bool = False
) -> dict[Ref, tuple[Piece, ...]]:
    """The files of every model that is declared or owned. Of one that is both, those of either: what is in use stays
    needed until what is wanted is here.
    """
    out: dict[Ref, dict[str, Piece]] = {}
    for ref, spec in _specs(desired, owned, MODEL):
        held = out.setdefault(ref, {})
        for piece in pieces(spec, pins, generous):
            held.setdefault(piece.digest, piece)
    return {ref: tuple(p for d, p in held.items() if d or len(held) == 1) for ref, held in sorted(out.items())}


def folders(desired: Mapping[Ref, Declared], owned: Mapping[Ref, Owned]) -> dict[str, list[Ref]]:
    """The names of the folders under engines/ that are declared or owned, with the engines that they are of."""
    out: dict[str, list[Ref]] = {}
    for ref, spec in _specs(desired, owned, ENGINE):
        if folder := engine_folder(spec):
            out.setdefault(folder, [])
            if ref not in out[folder]:
                out[folder].append(ref)
    return out


def engine_folder(spec: Mapping[str, Any]) -> str:
    """The folder under engines/ of an engine that was installed there; empty of one that was there before us."""
    try:
        made = EngineSpec(**spec)
    except TypeError:  # written by another release
        return ""
    return made.folder if made.source else ""


def _specs(
    desired: Mapping[Ref, Declared], owned: Mapping[Ref, Owned], kind: str
) -> Iterator[tuple[Ref, Mapping[str, Any]]]:
    for ref, declared in desired.items():
        if ref.kind == kind:
            yield ref, plain(declared.spec)
    for ref, mine in owned.items():
        if ref.kind == kind:
            yield ref, mine.spec


@dataclass(frozen=True, slots=True)
class Kept:
    """What going back to one generation needs: files by sha256, folders under engines/.

    `whole` says that its folders are not known, since this release cannot resolve it: then every one counts.
    """

    number: int
    digests: frozenset[str]
    folders: frozenset[str] = frozenset()
    whole: bool = False


def of_generation(generation: Generation, generations: Generations, tools: Tools) -> Kept | Diagnostic:
    """What a generation needs, or why nobody can go back to it."""
    try:
        texts = generations.texts(generation.number)
    except Refused as refused:
        return refused.diagnostics[0]
    said = [text.decode(errors="replace") for text in texts.files.values()]
    try:
        reading = kept(texts.root, texts.files, texts.lock)
        wanted: Wanted = wanted_of(reading, tools.layout)
    except Refused:
        return Kept(generation.number, frozenset(named_in([*said, texts.lock])), whole=True)
    # Pins of what its manifest does not name are left over from others; those that `when` leaves out here count.
    lock = reading.lock.pruned(sources_of(reading.manifest.stack))
    held = models(wanted.resources, {}, {**tools.ledger.pins(), **lock.pins})
    digests = {piece.digest for group in held.values() for piece in group if piece.digest}
    digests |= named_in([*said, *(str(facts) for facts in lock.pins.values())])
    return Kept(generation.number, frozenset(digests), frozenset(folders(wanted.resources, {})))


def named_in(texts: Iterable[str]) -> set[str]:
    """Every sha256 that is written in these texts."""
    return {found for text in texts for found in _NAMED.findall(text)}
