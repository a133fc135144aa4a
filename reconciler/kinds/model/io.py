"""Models: look at the store, bring bytes into it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import Action
from reconciler.core.state import Declared, Found, Observation
from reconciler.gguf import header as gguf
from reconciler.gguf.quant import named
from reconciler.host.bulk import in_bulk
from reconciler.host.files import Files, disk_faults
from reconciler.kinds.base import Tools
from reconciler.kinds.model.rules import ModelRules, ModelState
from reconciler.kinds.model.spec import ModelSpec, shown
from reconciler.sources import Brought, Request, Tap, source_for
from reconciler.store.blobs import sha256_of, token
from reconciler.store.ledger import Artifact

HEADER_STEP = 1 << 20
HEADER_MOST = 256 << 20


class ModelKind:
    name = "model"
    rules = ModelRules()

    def observe(self, refs: Iterable[Ref], desired: Mapping[Ref, Declared], tools: Tools) -> dict[Ref, Observation]:
        owned, pins = tools.ledger.owned(), tools.ledger.pins()
        verified = {artifact.digest: artifact for artifact in tools.ledger.artifacts()}
        out: dict[Ref, Observation] = {}
        for ref in refs:
            spec = desired[ref].spec if ref in desired else ModelSpec(**owned[ref].spec)
            out[ref] = Found(_look(spec, pins.get(spec.pin, {}), verified, tools))
        return out

    async def apply(self, action: Action, ref: Ref, declared: Declared | None, tools: Tools) -> None:
        if declared is None:
            spec = ModelSpec(**tools.ledger.owned()[ref].spec)
            if action.verb == "purge" and (sha256 := _sha256(spec, tools)) not in _needed(tools, besides=ref):
                await in_bulk(tools.blobs.remove, sha256)
            tools.ledger.disown(ref)
            return
        spec = declared.spec
        match action.verb:
            case "fetch":
                async with tools.downloads:
                    await _fetch(ref, spec, tools, declared.priority)
            case "renew":
                async with tools.downloads:
                    await _renew(ref, spec, tools, declared.priority)
            case "verify":
                await _verify(ref, _sha256(spec, tools), tools)
        tools.fetch.discard(_part(spec, tools))  # a crash may have left its sidecar, whichever action comes after it
        tools.ledger.own(ref, declared.digest, spec)

    async def forget_partial(self, ref: Ref, declared: Declared, tools: Tools) -> bool:
        part = _part(declared.spec, tools)
        left = list(part.parent.glob(f"{part.name}*"))  # with its sidecar, and the package that it comes out of
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
    return {_sha256(ModelSpec(**o.spec), tools) for o in owned.values()}


def _sha256(spec: ModelSpec, tools: Tools) -> str:
    """Which bytes are meant: the manifest's word, the lock's, or what was found first."""
    return spec.sha256 or spec.locked or str(tools.ledger.pins().get(spec.pin, {}).get("sha256", ""))


def _look(spec: ModelSpec, pin: Mapping[str, object], verified: Mapping[str, Artifact], tools: Tools) -> ModelState:
    sha256 = spec.sha256 or spec.locked or str(pin.get("sha256", ""))
    if not sha256:
        return ModelState()
    record, seen = verified.get(sha256), token(tools.layout.blob(sha256))
    pinned = int(str(pin.get("size", 0))) if pin.get("sha256") == sha256 else spec.size
    known = record.size if record else pinned
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


async def _renew(ref: Ref, spec: ModelSpec, tools: Tools, priority: int) -> None:
    """See what the source is now, whatever was pinned; what is in use stays so until the new bytes are here."""
    found = (await source_for(spec.source).find(spec.source, _tap(tools))).resolved or spec.source
    pin = tools.ledger.pins().get(spec.pin, {})
    if found == pin.get("resolved") and tools.blobs.holds(str(pin.get("sha256"))):
        return
    await _fetch(ref, replace(spec, locked="", resolved=found), tools, priority, spec.sha256)


async def _fetch(ref: Ref, spec: ModelSpec, tools: Tools, priority: int, wanted: str | None = None) -> None:
    """Bring the bytes, judge them, and only then let them into the store."""
    part = _part(spec, tools)
    wanted = _sha256(spec, tools) if wanted is None else wanted
    pin = tools.ledger.pins().get(spec.pin, {})
    remembered = pin.get("resolved", "") if pin.get("sha256") == wanted else ""  # of other bytes, it leads astray
    resolved = spec.resolved or str(remembered)
    source, tap = source_for(spec.source), _tap(tools)
    listing = await source.find(resolved or spec.source, tap)
    request = Request(
        listing.files[0],
        part,
        lambda done, total: tools.progress(ref, "fetching", done, total),
        spec.file,
        wanted,
        priority,
    )
    brought = await source.bring(request, tap)
    if wanted and brought.sha256 != wanted:
        tools.fetch.discard(part)
        raise _mismatch(ref, spec, brought, wanted)
    try:
        facts = await in_bulk(_judge, part, brought, listing.resolved)
    except Fault:
        tools.fetch.discard(part)
        raise
    tools.ledger.pin(spec.pin, facts)
    if not tools.blobs.holds(brought.sha256):
        tools.blobs.take(part, brought.sha256)


def _tap(tools: Tools) -> Tap:
    return Tap(tools.base, tools.files, tools.effects, tools.fetch)


def _part(spec: ModelSpec, tools: Tools) -> Path:
    return tools.layout.partial / hashlib.sha256(spec.pin.encode()).hexdigest()[:32]


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


def _judge(path: Path, brought: Brought, resolved: str) -> dict[str, Any]:
    """What is to be pinned of a file. Raises Fault unless it is a whole GGUF."""
    try:
        header = read_header(path)
    except gguf.NotGguf as error:
        hint = "the address leads to a web page; use the direct download link" if _html(path) else ""
        raise Fault(
            "NOT_A_GGUF",
            f"{brought.name} is not a GGUF model: {error}",
            hint=hint or "models are GGUF files here",
            kind=FaultClass.PERMANENT,
        ) from error
    if header.size > brought.size:
        raise Fault(
            "TRUNCATED",
            f"{brought.name} has {brought.size} bytes, but its header describes {header.size}",
            hint="the file at the source is incomplete",
            kind=FaultClass.PERMANENT,
        )
    licence, kind = header.keys.get("general.license"), header.keys.get("general.file_type")
    facts = {
        "resolved": resolved,
        "name": brought.name,
        "size": brought.size,
        "sha256": brought.sha256,
        "header": sha256_of(path, most=header.data),
        "quant": named(kind) if type(kind) is int else None,
        "licence": licence if isinstance(licence, str) else None,
    }
    return {key: value for key, value in facts.items() if value not in (None, "")}


def read_header(path: Path) -> gguf.Header:
    """The header of a local GGUF file. Raises NotGguf; reads no more than the header needs."""
    wanted = HEADER_STEP
    with path.open("rb") as data:
        while True:
            data.seek(0)
            buffer = data.read(wanted)
            try:
                return gguf.parse(buffer)
            except gguf.Short as short:
                if len(buffer) < wanted or wanted >= HEADER_MOST:
                    raise gguf.NotGguf(f"it ends after {len(buffer)} bytes, inside its own header") from short
                wanted = min(max(wanted * 2, short.needed), HEADER_MOST)


def _html(path: Path) -> bool:
    with path.open("rb") as data:
        start = data.read(512).lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html"))


async def _verify(ref: Ref, sha256: str, tools: Tools) -> None:
    """Hash the file again: note it as good, or set it aside so that it is fetched anew."""
    path = tools.layout.blob(sha256)
    found = await in_bulk(sha256_of, path)
    if found == sha256:
        await in_bulk(_protect, path, tools.files)
        tools.blobs.record(sha256)
        return
    aside = tools.blobs.set_aside(sha256)
    tools.ledger.event(str(ref), "Quarantined", f"its bytes are no longer what was verified; moved to {aside.name}")


def _protect(path: Path, files: Files) -> None:
    with files.effects("chmod", path), disk_faults(path):
        path.chmod(0o444)
