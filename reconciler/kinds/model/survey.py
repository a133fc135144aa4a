"""Looking at a source before anything is fetched: what is chosen, what its headers say, whether they keep its word.

And the same judgement over files that are here: nothing enters the store by its name alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.state import HostFacts
from reconciler.gguf import header as gguf
from reconciler.gguf.memory import Need, estimate
from reconciler.gguf.memory import best as best_fit
from reconciler.gguf.names import from_filename
from reconciler.gguf.quant import Quant
from reconciler.gguf.roles import RoleName
from reconciler.gguf.roles import role as role_of
from reconciler.gguf.shape import Shape, scaled, shape_of
from reconciler.gguf.verdict import judge
from reconciler.kinds.fit import use_of
from reconciler.kinds.model.choose import Offer, choose, offers, projector_of
from reconciler.kinds.model.spec import DRAFT, FILE, LORA, MMPROJ, MODEL, ModelSpec, Piece, shown
from reconciler.sources import Brought, Listing, Remote, Tap, source_for

FINE = {
    MODEL: (RoleName.MODEL,),
    DRAFT: (RoleName.MODEL, RoleName.DRAFT, RoleName.MTP),
    MMPROJ: (RoleName.MMPROJ,),
    LORA: (RoleName.LORA,),
}
WORDS = {
    RoleName.MODEL: "a model",
    RoleName.MMPROJ: "a projector",
    RoleName.LORA: "an adapter",
    RoleName.DRAFT: "a draft model for one other model",
    RoleName.MTP: "a model's layers for guessing ahead",
    RoleName.VOCAB: "a vocabulary without a model",
    RoleName.IMATRIX: "an importance matrix",
    RoleName.CONTROL_VECTOR: "a control vector",
    RoleName.UNKNOWN: "no model that is known here",
}


@dataclass(frozen=True, slots=True)
class Survey:
    """What is to be brought, in order, and what is known of it already. `why` explains a choice."""

    remotes: tuple[tuple[str, Remote], ...]  # (role, file)
    resolved: str = ""
    licence: str = ""
    opaque: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    why: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what a person should know of the source
    known: tuple[Piece, ...] = ()  # which bytes these files must have, as far as that is known

    @property
    def folder(self) -> bool:
        """Whether these are the files of a folder of weights."""
        return any(role == FILE for role, _ in self.remotes)


async def survey(
    listing: Listing, spec: ModelSpec, tap: Tap, host: HostFacts, room: Callable[[int], None] | None = None
) -> Survey:
    """Choose, read the headers, judge. Raises Fault where the source does not hold what was asked for.

    `room` raises Fault where so many bytes have no room here.
    """
    if listing.opaque:
        return Survey(
            ((spec.role, listing.files[0]),),
            listing.resolved,
            listing.licence,
            opaque=True,
            facts=_plain({"resolved": listing.resolved, "licence": listing.licence}),
        )

    if listing.folder:
        return _folder(listing, spec, room)

    async def read(remote: Remote) -> gguf.Header | None:
        return await header_at(remote, spec.source, tap)

    fit = spec.quant.startswith("fit")
    best = await _judge_of_fit(listing, spec, read, host) if fit else no_fit
    choice, headers = choose(listing.files, spec, best), []
    remotes = [(spec.role, remote) for remote in choice.offer.files]
    if choice.projector is not None:
        remotes.append((MMPROJ, choice.projector))
    if room is not None:
        room(sum(remote.size or 0 for _, remote in remotes))
    for remote in choice.offer.files:
        found = await read(remote)
        if found is None:
            break
        headers.append(found)
    facts: dict[str, Any] = {
        "resolved": listing.resolved,
        **_file(*remotes[0]),
        "licence": listing.licence,
        "also": [{"role": role, **_file(role, remote)} for role, remote in remotes[1:]],
        "why": list(choice.why),
    }
    if len(headers) == len(choice.offer.files):
        told = _told(headers, spec, choice.offer.files[0].name)
        facts |= {"header": headers[0].digest} | told | {"licence": listing.licence or told.get("licence", "")}
    notes = (*listing.notes, *([facts["note"]] if facts.get("note") else []))
    return Survey(tuple(remotes), listing.resolved, listing.licence, False, _plain(facts), choice.why, notes)


def _folder(listing: Listing, spec: ModelSpec, room: Callable[[int], None] | None) -> Survey:
    """All of a folder of weights; nothing of it is chosen, and its headers do not say what it takes."""
    unfit = "quant" if spec.quant else "file" if spec.file else "sha256" if spec.sha256 else ""
    if unfit:
        raise Fault(
            "NOT_A_GGUF",
            f"{shown(spec.source)} is a folder of weights, of which `{unfit}` chooses nothing",
            hint=f"remove `{unfit}`, or name a GGUF",
            kind=FaultClass.PERMANENT,
        )
    remotes = tuple((MODEL if i == 0 else FILE, remote) for i, remote in enumerate(listing.files))
    if room is not None:
        room(sum(remote.size or 0 for remote in listing.files))
    facts: dict[str, Any] = {
        "resolved": listing.resolved,
        **_file(*remotes[0]),
        "licence": listing.licence,
        "also": [{"role": role, **_file(role, remote)} for role, remote in remotes[1:]],
    }
    if not all(remote.sha256 for remote in listing.files):
        facts["sha256"] = ""  # until each is known there is nothing to compare a store with
    return Survey(remotes, listing.resolved, listing.licence, facts=_plain(facts), notes=listing.notes)


def _file(role: str, remote: Remote) -> dict[str, Any]:
    own = {"role": role} if role not in (MODEL,) else {}
    return own | {"name": remote.name, "size": remote.size or 0, "sha256": remote.sha256}


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value not in (None, "", [], {}, 0)}


async def _judge_of_fit(
    listing: Listing, spec: ModelSpec, read: Callable[[Remote], Awaitable[gguf.Header | None]], host: HostFacts
) -> Callable[[Sequence[Offer], Quant | None, Quant | None], tuple[Offer | None, tuple[str, ...]]]:
    """What {fit: auto} decides by: one header tells the shape of all, their sizes tell the rest."""
    sized, shape = [o for o in offers(listing.files, spec.role) if o.size and o.group.whole], None
    if sized and (header := await read(min(sized, key=lambda o: o.size or 0).files[0])) is not None:
        shape = shape_of([header])

    def need(offer: Offer, size: int) -> Need:
        beside = projector_of(listing.files, offer) if spec.projector else None
        demand = replace(spec.demand, projector=beside.size or 0) if beside is not None else spec.demand
        return estimate(scaled(shape or Shape(), size), use_of(demand))

    def best(found: Sequence[Offer], low: Quant | None, high: Quant | None) -> tuple[Offer | None, tuple[str, ...]]:
        usable = [o for o in found if o.quant is not None and o.size and (o.quant.automatic or o.quant in (low, high))]
        needs = [(o.quant, need(o, o.size)) for o in usable if o.quant and o.size]
        chosen, why = best_fit(needs, host, low, high, rank=lambda q: q.rank, limit=spec.demand.at_most or None)
        return (usable[chosen] if chosen is not None else None), why

    return best


def no_fit(found: Sequence[Offer], low: Quant | None, high: Quant | None) -> tuple[Offer | None, tuple[str, ...]]:
    """For those who do not ask for what fits."""
    return None, ()


async def header_at(remote: Remote, source: str, tap: Tap) -> gguf.Header | None:
    """The header of a file that lies elsewhere, by its first bytes alone; None where only the whole is to be had."""
    steps, held = gguf.reading(), b""
    wanted = next(steps)
    try:
        while True:
            held += await source_for(source).peek(remote, len(held), wanted - len(held), tap)
            wanted = steps.send(held)
    except StopIteration as done:
        header: gguf.Header = done.value
        return header
    except gguf.NotGguf as error:
        raise _not_gguf(remote.name, str(error), held) from error
    except Fault as fault:
        if fault.code == "NO_RANGES":
            return None
        raise


# -- judging --------------------------------------------------------------------------------------------------------


def _told(headers: Sequence[gguf.Header], spec: ModelSpec, name: str) -> dict[str, Any]:
    """What headers say, as it is pinned. Raises Fault where that is not what was asked for."""
    _require_role(headers[0], spec.role, name)
    if spec.role != MODEL:
        return {}
    asked = Quant(spec.quant) if spec.quant and not spec.quant.startswith("fit") else None
    explicit = bool(spec.file) or not spec.source.startswith("hf:")
    verdict = judge(from_filename(name), asked, headers, explicit=explicit)
    if not verdict.accepted:
        raise Fault("QUANT_MISMATCH", verdict.refusal, hint=verdict.hint, kind=FaultClass.PERMANENT)
    licence = headers[0].keys.get("general.license")
    return {
        "quant": verdict.label,
        "bits": round(verdict.bits, 2),
        "mixture": {part.type: round(part.share, 3) for part in verdict.mixture if part.share >= 0.0005},
        "licence": licence if isinstance(licence, str) else "",
        "note": verdict.note,
        "shape": shape_of(headers).to_json(),
    }


def _require_role(header: gguf.Header, role: str, name: str) -> None:
    found = role_of(header)
    if found.name not in FINE[role]:
        raise Fault(
            "NOT_A_MODEL" if role == MODEL else "WRONG_KIND_OF_FILE",
            f"{name} is {WORDS[found.name]}: {found.reason}",
            hint=f"what is wanted here is {WORDS[FINE[role][0]]}; name the right file with file:",
            kind=FaultClass.PERMANENT,
        )


def judge_file(path: Path, brought: Brought, role: str) -> None:
    """Raise Fault unless a file that is here is a whole GGUF of this role."""
    header = read_header(path, brought.name)
    if header.size > brought.size:
        raise Fault(
            "TRUNCATED",
            f"{brought.name} has {brought.size} bytes, but its header describes {header.size}",
            hint="the file at the source is incomplete",
            kind=FaultClass.PERMANENT,
        )
    if not header.keys.get("split.no"):  # only the first part of a split model says what it is
        _require_role(header, role, brought.name)


def facts_of(seen: Survey, spec: ModelSpec, paths: Sequence[Path], brought: Sequence[Brought]) -> dict[str, Any]:
    """What is to be pinned of files that are in the store, the first one first. Raises Fault."""
    roles = [role for role, _ in seen.remotes]
    if seen.folder:
        return _plain(_facts(seen, roles, brought) | {"licence": seen.licence})
    headers = [read_header(p, b.name) for p, b, role in zip(paths, brought, roles, strict=True) if role == spec.role]
    told = _told(headers, spec, brought[0].name)
    facts = {
        **_facts(seen, roles, brought),
        "role": spec.role if spec.role != MODEL else "",
        "header": headers[0].digest,
        **told,
        "licence": seen.licence or told.get("licence", ""),
        "why": list(seen.why),
    }
    return _plain(facts)


def _facts(seen: Survey, roles: Sequence[str], brought: Sequence[Brought]) -> dict[str, Any]:
    first = brought[0]
    also = [
        {"role": role, "name": b.name, "size": b.size, "sha256": b.sha256}
        for role, b in zip(roles[1:], brought[1:], strict=True)
    ]
    return {
        "resolved": seen.resolved, "name": first.name, "size": first.size, "sha256": first.sha256, "also": also
    }  # fmt: skip


def read_header(path: Path, name: str) -> gguf.Header:
    """The header of a local GGUF file, reading no more than it needs. Raises Fault."""
    steps, prefix = gguf.reading(), b""
    wanted = next(steps)
    with path.open("rb") as data:
        try:
            while True:
                prefix += data.read(wanted - len(prefix))
                wanted = steps.send(prefix)
        except StopIteration as done:
            header: gguf.Header = done.value
            return header
        except gguf.NotGguf as error:
            raise _not_gguf(name, str(error), prefix) from error


def _not_gguf(name: str, what: str, start: bytes) -> Fault:
    page = start[:512].lstrip().lower().startswith((b"<!doctype html", b"<html"))
    hint = "the address leads to a web page; use the direct download link" if page else "models are GGUF files here"
    return Fault("NOT_A_GGUF", f"{name} is not a GGUF model: {what}", hint=hint, kind=FaultClass.PERMANENT)
