"""Models: look at the store, bring bytes into it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import Action
from reconciler.core.state import Declared, Found, Observation
from reconciler.host import secrets
from reconciler.host.bulk import in_bulk
from reconciler.host.fetch import Progress
from reconciler.host.files import require_room
from reconciler.kinds.base import Tools
from reconciler.kinds.model.rules import ModelRules, ModelState
from reconciler.kinds.model.spec import FILE, ModelSpec, Piece, pieces, shape_text, shown
from reconciler.sources import Brought, Hub, Remote, Request, Tap, source_for
from reconciler.store.blobs import token
from reconciler.store.ledger import Artifact

if TYPE_CHECKING:  # what only work on bytes needs is loaded when there is some
    from reconciler.foreign.caches import Cache
    from reconciler.kinds.model.repair import Patch
    from reconciler.kinds.model.survey import Survey

FRESH = 60.0  # seconds that what a source said is still believed
CANDIDATES = 8  # files of other tools that are hashed in search of one


class ModelKind:
    name = "model"
    rules = ModelRules()

    def observe(self, refs: Iterable[Ref], desired: Mapping[Ref, Declared], tools: Tools) -> dict[Ref, Observation]:
        owned, pins = tools.ledger.owned(), tools.ledger.pins()
        verified = {artifact.digest: artifact for artifact in tools.ledger.artifacts()}
        out: dict[Ref, Observation] = {}
        for ref in refs:
            spec = desired[ref].spec if ref in desired else ModelSpec.of(owned[ref].spec)
            out[ref] = Found(_look(spec, pins.get(spec.pin), verified, tools))
        return out

    async def apply(self, action: Action, ref: Ref, declared: Declared | None, tools: Tools) -> None:
        if declared is None:
            spec = ModelSpec.of(tools.ledger.owned()[ref].spec)
            if action.verb == "purge":
                for sha256 in _digests(spec, tools) - _needed(tools, besides=ref):
                    await in_bulk(tools.blobs.remove, sha256)
            tools.ledger.disown(ref)
            return
        spec = declared.spec
        match action.verb:
            case "resolve":
                await _resolve(ref, spec, tools)
                return
            case "fetch":
                async with tools.downloads(declared.priority):
                    await _fetch(ref, spec, tools, declared.priority)
            case "renew":
                await _renew(ref, spec, tools, declared.priority)
            case "verify":
                from reconciler.kinds.model.repair import restore

                for piece in _pieces(spec, tools.ledger.pins().get(spec.pin)):
                    if not tools.blobs.holds(piece.sha256):
                        await restore(ref, piece.sha256, tools, _mending(spec, piece, tools))
        part = _part(spec, tools)
        if (lock := tools.bringing.get(str(part))) is None or not lock.locked():  # else it is on its way for another
            tools.fetch.discard(part)  # a crash may have left its sidecar, whichever action comes after it
        tools.ledger.own(ref, declared.digest, spec)

    async def forget_partial(self, ref: Ref, declared: Declared, tools: Tools) -> bool:
        part = _part(declared.spec, tools)
        left = list(part.parent.glob(f"{part.name}*"))  # of each file, with sidecars and the package it comes out of
        for path in left:
            tools.files.remove(path)
        return bool(left)

    def sweep(self, tools: Tools) -> None:
        needed = _needed(tools)
        for sha256 in tools.blobs.digests():
            if sha256 not in needed:
                tools.blobs.remove(sha256)


def _needed(tools: Tools, besides: Ref | None = None) -> set[str]:
    """The sha256 of everything that models which are owned are made of."""
    owned = {ref: o for ref, o in tools.ledger.owned().items() if ref.kind == ModelKind.name and ref != besides}
    return {sha256 for o in owned.values() for sha256 in _digests(ModelSpec.of(o.spec), tools)}


def _digests(spec: ModelSpec, tools: Tools) -> set[str]:
    return {piece.sha256 for piece in _pieces(spec, tools.ledger.pins().get(spec.pin))}


def _pieces(spec: ModelSpec, pin: Mapping[str, Any] | None) -> tuple[Piece, ...]:
    """Which files are meant: the manifest's word, the lock's, or what was found first."""
    wanted, found = spec.sha256 or spec.locked, pieces(pin or {})
    known = spec.pieces or found
    if wanted and not (known and known[0].sha256 == wanted):
        fits = bool(found) and found[0].sha256 == wanted
        known = found if fits else (Piece(spec.role, "", spec.size if wanted == spec.locked else 0, wanted),)
    return known if spec.projector else tuple(p for p in known if p.role in (spec.role, FILE))


def _look(spec: ModelSpec, pin: Mapping[str, Any] | None, verified: Mapping[str, Artifact], tools: Tools) -> ModelState:
    """All files of one model, seen together."""
    meant = _pieces(spec, pin)
    shape = spec.shape or shape_text(pin or {})
    ahead = tools.ahead.get(spec.pin, "")
    found = pin is not None or bool(spec.pieces)
    if not meant:
        total = sum(int(f.get("size") or 0) for f in ((pin or {}), *(pin or {}).get("also", ())))
        return ModelState(size=total, found=found, shape=shape, ahead=ahead)
    seen = [_look_at(piece, verified, tools) for piece in meant]
    return ModelState(
        sha256=meant[0].sha256,
        size=sum(s.size for s in seen),
        present=all(s.present for s in seen),
        suspect=next((s.suspect for s in seen if s.suspect), ""),
        lost=next((s.lost for s in seen if s.lost), ""),
        token=" ".join(s.token for s in seen) if all(s.token for s in seen) else "",
        pieces=meant,
        found=found,
        shape=shape,
        ahead=ahead,
    )


def _look_at(piece: Piece, verified: Mapping[str, Artifact], tools: Tools) -> ModelState:
    sha256, record, seen = piece.sha256, verified.get(piece.sha256), token(tools.layout.blob(piece.sha256))
    known = record.size if record else piece.size
    if seen is None:
        return ModelState(sha256, known, lost="its file is gone from the store" if record else "")
    size = int(seen.split(":")[1])
    if record is None:
        return ModelState(
            sha256, size, present=True, suspect="a file of that name is in the store, but not in the ledger"
        )
    if record.token != seen:
        what = f"its size went from {record.size} to {size} bytes" if size != record.size else "it was written to"
        return ModelState(sha256, size, present=True, suspect=f"its file changed since it was verified: {what}")
    return ModelState(sha256, size, present=True, token=seen)


# -- looking at a source --------------------------------------------------------------------------------------------


async def _resolve(ref: Ref, spec: ModelSpec, tools: Tools) -> None:
    """See what the source holds, choose, and note it: only which bytes it is may still be unknown."""
    async with tools.bringing.setdefault(spec.pin, asyncio.Lock()):
        if spec.pin in tools.ledger.pins():  # another model asked the same of it meanwhile
            return
        tools.progress(ref, f"looking at {shown(spec.source)}", 0, None)
        seen = await surveyed(spec, spec.resolved or spec.source, tools)
        tools.ledger.pin(spec.pin, seen.facts)
        tools.looked[spec.pin] = (time.monotonic(), spec.demand, seen)
    for line in seen.why:
        tools.ledger.event(str(ref), "Considered", line)
    for note in seen.notes:
        tools.ledger.event(str(ref), "Noted", note)


async def _renew(ref: Ref, spec: ModelSpec, tools: Tools, priority: int) -> None:
    """See what the source is now, whatever was pinned; what is in use stays so until the new bytes are here."""
    from reconciler.kinds.model.survey import survey

    anew = replace(spec, locked="", resolved="", size=0, pieces=(), shape="")
    pin = tools.ledger.pins().get(spec.pin, {})
    tap = tap_for(spec, tools)
    listing = await source_for(spec.source).find(spec.source, tap)
    same = pin.get("resolved") and listing.resolved == pin.get("resolved")
    if same and pieces(pin) and all(tools.blobs.holds(piece.sha256) for piece in pieces(pin)):
        return
    seen = await survey(listing, anew, tap, tools.host())
    if pieces(seen.facts) and all(piece.sha256 for piece in pieces(seen.facts)):
        tools.ledger.pin(spec.pin, seen.facts)
        return
    async with tools.downloads(priority):
        await _bring(ref, anew, replace(seen, known=()), tools, spec.sha256, priority)


async def surveyed(spec: ModelSpec, source: str, tools: Tools) -> Survey:
    """What a source (the spec's own, or its immutable form) holds of what the spec asks for. Raises Fault."""
    from reconciler.kinds.model.survey import survey

    tap = tap_for(spec, tools)
    listing = await source_for(source).find(source, tap)
    return await survey(listing, spec, tap, tools.host(), lambda size: require_room(tools.layout.partial, size))


def tap_for(spec: ModelSpec, tools: Tools) -> Tap:
    """What a source needs, with the secrets that the spec refers to. Raises Fault where one is missing."""
    hub = Hub(spec.hub.endpoint, spec.hub.mirrors, _secret(spec.hub.token, tools))
    return Tap(tools.base, tools.files, tools.effects, tools.fetch, hub, _secret(spec.token, tools), spec.folders)


def _secret(reference: str, tools: Tools) -> str:
    return secrets.resolve(reference, tools.base) if reference else ""


# -- bringing bytes -------------------------------------------------------------------------------------------------


async def _fetch(ref: Ref, spec: ModelSpec, tools: Tools, priority: int) -> None:
    """Bring the bytes, judge them, and only then let them into the store."""
    pin = tools.ledger.pins().get(spec.pin, {})
    wanted = spec.sha256 or spec.locked or str(pin.get("sha256", ""))
    remembered = pin.get("resolved", "") if pin.get("sha256", wanted) == wanted else ""  # of other bytes, it misleads
    source = spec.resolved or str(remembered) or spec.source
    known = _pieces(spec, pin)
    if known and known[0].name and all(piece.sha256 for piece in known):
        seen = await _as_known(spec, source, known, tools)
    else:
        seen = _looked_just_now(spec, tools) or await surveyed(spec, source, tools)
    await _bring(ref, spec, replace(seen, known=known), tools, wanted, priority)


def _looked_just_now(spec: ModelSpec, tools: Tools) -> Survey | None:
    """What a look at the source gave a moment ago; once only, since a fetch that fails had better look again."""
    seen: Survey | None
    at, demand, seen = tools.looked.pop(spec.pin, (0.0, None, None))
    fresh = time.monotonic() - at < FRESH and demand == spec.demand
    return seen if fresh else None


async def _as_known(spec: ModelSpec, source: str, known: tuple[Piece, ...], tools: Tools) -> Survey:
    """The files that a pin names, at their source. Nothing is asked of it while all of them are in the store."""
    from reconciler.kinds.model.survey import Survey

    if all(tools.blobs.holds(piece.sha256) for piece in known):
        remotes = tuple((piece.role, Remote(piece.name, (), piece.size, piece.sha256)) for piece in known)
        return Survey(remotes, spec.resolved)
    listing = await source_for(source).find(source, tap_for(spec, tools))
    if listing.opaque:
        return Survey(((spec.role, listing.files[0]),), listing.resolved, licence=listing.licence, opaque=True)
    there = {remote.name: remote for remote in listing.files}
    if len(known) == len(listing.files) == 1:
        there[known[0].name] = listing.files[0]
    if gone := [piece.name for piece in known if piece.name not in there]:
        raise Fault(
            "FILE_NOT_FOUND",
            f"{shown(source)} no longer holds {', '.join(gone)}, which the lock names",
            hint="see what it holds now with `reconcile lock --upgrade`",
            kind=FaultClass.PERMANENT,
        )
    remotes = tuple((piece.role, replace(there[piece.name], size=piece.size or None)) for piece in known)
    return Survey(remotes, listing.resolved, licence=listing.licence)


async def _bring(ref: Ref, spec: ModelSpec, seen: Survey, tools: Tools, wanted: str, priority: int) -> None:
    """Every file of what was chosen, one after the other; `wanted` is the sha256 of the first, if that is known."""
    from reconciler.kinds.model.survey import facts_of

    tap = tap_for(spec, tools)
    total = sum(remote.size or 0 for _, remote in seen.remotes) or None
    done: list[Brought] = []

    def progress(part: int, size: int | None) -> None:
        before = sum(b.size for b in done)
        tools.progress(ref, "fetching", before + part, total if len(seen.remotes) > 1 else size)

    for i, (role, remote) in enumerate(seen.remotes):
        expected = wanted if i == 0 and wanted else _known(seen.known, role, remote)
        done.append(await _one(ref, spec, seen, i, expected, tap, tools, progress, priority))
    paths = [tools.layout.blob(b.sha256) for b in done]
    tools.ledger.pin(spec.pin, await in_bulk(facts_of, seen, spec, paths, done))


def _known(known: tuple[Piece, ...], role: str, remote: Remote) -> str:
    return next((p.sha256 for p in known if (p.role, p.name) == (role, remote.name)), remote.sha256)


async def _one(
    ref: Ref,
    spec: ModelSpec,
    seen: Survey,
    number: int,
    wanted: str,
    tap: Tap,
    tools: Tools,
    progress: Progress,
    priority: int,
) -> Brought:
    """One file into the store, unless it is there; two models that want the same file wait for each other."""
    from reconciler.kinds.model.folder import judge_weights
    from reconciler.kinds.model.survey import judge_file

    role, remote = seen.remotes[number]
    part = _part(spec, tools, number)
    async with AsyncExitStack() as alone:
        for what in filter(None, (str(part), wanted)):  # in this order always, so that no two wait for each other
            await alone.enter_async_context(tools.bringing.setdefault(what, asyncio.Lock()))
        if wanted and tools.blobs.holds(wanted):
            return Brought(wanted, tools.layout.blob(wanted).stat().st_size, remote.name)
        if wanted and (adopted := await _adopted(ref, wanted, remote, part, tools, progress)) is not None:
            return adopted
        source = source_for(spec.source)
        brought = await source.bring(Request(remote, part, progress, spec.file, wanted, priority), tap)
        if wanted and brought.sha256 != wanted:
            tools.fetch.discard(part)
            raise _mismatch(ref, spec, brought, wanted)
        try:
            await in_bulk(judge_weights if seen.folder else judge_file, part, brought, role)
        except Fault:
            tools.fetch.discard(part)
            raise
        if not tools.blobs.holds(brought.sha256):
            await in_bulk(tools.blobs.take, part, brought.sha256, brought.blocks)
        tools.fetch.discard(part)
        return brought


async def _adopted(
    ref: Ref, wanted: str, remote: Remote, part: Path, tools: Tools, progress: Progress
) -> Brought | None:
    """The file from another tool's cache on this machine, linked into the store; None where there is none."""
    from reconciler.foreign import caches, link

    places = _caches()
    found, tried = await in_bulk(caches.lookup, wanted, remote.size, places), set[Path]()
    while found is not None and len(tried) < CANDIDATES:
        tried.add(found.path)
        own = link.apart(part)
        try:
            taken = await link.take(found, own, tools.effects, progress)
        except Fault as fault:
            if fault.code != "CANDIDATE_GONE":
                raise
        else:
            if taken.sha256 == wanted:
                await in_bulk(tools.blobs.take, own, wanted, taken.blocks)
                link.drop(own, tools.effects)  # renaming a link onto its own inode leaves the name
                how = {"link": "linked", "reflink": "shared", "copy": "copied"}[taken.how]
                text = f"{how} from the cache of {found.tool} instead of fetched: {found.path}"
                tools.ledger.event(str(ref), "Adopted", text)
                return Brought(wanted, taken.size, remote.name, taken.blocks)
            link.drop(own, tools.effects)
        found = await in_bulk(caches.lookup, wanted, remote.size, places, tried)
    return None


def _caches() -> list[Cache]:
    from reconciler.foreign import caches
    from reconciler.foreign.home import this_home

    try:
        home = this_home()
    except RuntimeError:  # a service without a home folder
        return []
    return caches.where(home.environ, home.folder, home.system)


def _mending(spec: ModelSpec, piece: Piece, tools: Tools) -> Patch:
    """How damaged blocks of a piece are fetched again."""

    async def patch(path: Path, spans: Sequence[tuple[int, int]], size: int) -> None:
        pin = tools.ledger.pins().get(spec.pin, {})
        known = _pieces(spec, pin)
        seen = await _as_known(spec, spec.resolved or str(pin.get("resolved", "")) or spec.source, known, tools)
        remote = next((r for (_, r), p in zip(seen.remotes, known, strict=False) if p.sha256 == piece.sha256), None)
        if remote is None or seen.opaque or spec.source.startswith(("file:", "pypi:")):
            raise Fault("NO_RANGES", "its source offers no parts of it", kind=FaultClass.PERMANENT)
        await tools.fetch.patch(remote.urls, path, spans, size, lambda done, total: None, remote.access)

    return patch


def _part(spec: ModelSpec, tools: Tools, number: int = 0) -> Path:
    name = hashlib.sha256(spec.pin.encode()).hexdigest()[:32]
    return tools.layout.partial / (f"{name}.{number}" if number else name)


def _mismatch(ref: Ref, spec: ModelSpec, brought: Brought, wanted: str) -> Fault:
    if spec.sha256:
        said, remedy = "the manifest says", "correct sha256: in the manifest"
    else:
        said = "the lock says" if spec.locked else "it was pinned on first use to"
        remedy = f"`reconcile lock --upgrade {ref}`"
    return Fault(
        "CHECKSUM_MISMATCH",
        f"{brought.name} from {shown(spec.source)} has sha256 {brought.sha256}, but {said} {wanted}",
        hint=f"{remedy} if this file is the one you mean; otherwise distrust the source",
        kind=FaultClass.PERMANENT,
    )
