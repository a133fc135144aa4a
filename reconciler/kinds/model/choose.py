"""Which files of a source are meant: by glob, by quantization, by what fits; shards and projector found and grouped.

Pure. Names only suggest: what a file really is, its header says, and that is judged before anything is used.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.plan import human_bytes
from reconciler.gguf.names import Group, Named, from_filename, groups
from reconciler.gguf.quant import Quant
from reconciler.kinds.model.spec import DRAFT, LORA, MMPROJ, MODEL, ModelSpec, bounds, shown
from reconciler.sources import Remote

PROJECTORS = (Quant.F16, Quant.BF16, Quant.Q8_0, Quant.F32)  # which one is taken, where a source holds several
LISTED = 12  # files that an error names


@dataclass(frozen=True, slots=True)
class Offer:
    """One model of a source: its files in order (several where it is split), and what their names say."""

    group: Group
    named: Named
    files: tuple[Remote, ...]

    @property
    def quant(self) -> Quant | None:
        return self.named.quant

    @property
    def size(self) -> int | None:
        """Bytes of all files; None where one is not known."""
        sizes = [f.size for f in self.files]
        return None if None in sizes else sum(s for s in sizes if s is not None)

    @property
    def label(self) -> str:
        return self.named.label or self.files[0].name


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and why in words where there was a choice to explain."""

    offer: Offer
    projector: Remote | None = None
    why: tuple[str, ...] = ()


Best = Callable[[Sequence[Offer], Quant | None, Quant | None], tuple[Offer | None, tuple[str, ...]]]
"""(offers, at least, at most) → (the best that fits, a line about each)."""


ROLES = {MODEL: ("",), DRAFT: ("", "draft"), LORA: ("", "lora"), MMPROJ: ("mmproj",)}  # as names may hint at them


def offers(files: Iterable[Remote], role: str) -> list[Offer]:
    """The models (or projectors, adapters …) among files, as far as names tell, in order of their names."""
    by_name = {f.name: f for f in files}
    found = [(g, from_filename(g.names[0])) for g in groups(by_name)]
    return [Offer(g, named, tuple(by_name[n] for n in g.names)) for g, named in found if named.role in ROLES[role]]


def choose(files: Sequence[Remote], spec: ModelSpec, best: Best) -> Choice:
    """Raises Fault, with what is there instead, where nothing fits or more than one thing does."""
    found = offers(files, spec.role)
    if len(files) == 1:  # the only file there is, whatever it is called
        named = from_filename(files[0].name)
        found = [Offer(Group(named.stem, (files[0].name,), 1), named, (files[0],))]
    fitting = [o for o in found if _meant(o, spec.file)]
    if not fitting:
        what = f"a file named {spec.file}" if spec.file else _WORDS[spec.role]
        raise _fault("FILE_NOT_FOUND", f"{shown(spec.source)} does not hold {what}", found, "correct file:")
    if not (whole := [o for o in fitting if o.group.whole]):
        group = fitting[0].group
        missing = ", ".join(map(str, group.missing[:LISTED]))
        faults = [*group.faults, *([f"part {missing} of {group.of} is missing"] if missing else [])]
        raise _fault("SHARDS_MISSING", f"{shown(spec.source)}: {fitting[0].label}: {'; '.join(faults)}", found, "")
    offer, why = _pick(whole, spec, best)
    return Choice(offer, projector_of(files, offer) if spec.projector else None, why)


_WORDS = {MODEL: "a GGUF model", MMPROJ: "a projector", DRAFT: "a draft model", LORA: "an adapter"}


def _meant(offer: Offer, pattern: str) -> bool:
    """Whether the glob means this one: its path in the source, or its own name."""
    if not pattern:
        return True
    names = [f.name for f in offer.files]
    return any(fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(PurePosixPath(n).name, pattern) for n in names)


def _pick(found: list[Offer], spec: ModelSpec, best: Best) -> tuple[Offer, tuple[str, ...]]:
    if spec.role == MMPROJ:
        return min(found, key=_projector_rank), ()
    if spec.quant.startswith("fit"):
        low, high = bounds(spec.quant)
        plain = [o for o in found if o.quant is not None]
        offer, why = best(plain, low, high)
        if offer is None:
            raise Fault(
                "NOTHING_FITS",
                f"{shown(spec.source)} holds nothing that fits: " + "; ".join(why[:LISTED]),
                hint="ask for a shorter context, a smaller quantization, or another model",
                kind=FaultClass.PERMANENT,
            )
        return offer, why
    if spec.quant:
        of_quant = [o for o in found if o.quant == spec.quant]
        if not of_quant and len(found) == 1 and found[0].quant is None:
            return found[0], ()  # its name says nothing; its header will
        if not of_quant:
            raise _fault("QUANT_NOT_FOUND", f"{shown(spec.source)} holds no {spec.quant}", found, "correct quant:")
        plain = [o for o in of_quant if not o.named.mixed]
        found = plain or of_quant
    if len(found) > 1:
        name_it = "say which one with file:" if spec.quant else "say which one with quant: or file:"
        what = f"{len(found)} models" + (f" that are {spec.quant}" if spec.quant else "")
        raise _fault("FILE_AMBIGUOUS", f"{shown(spec.source)} holds {what}", found, name_it, ": ")
    return found[0], ()


def projector_of(files: Sequence[Remote], offer: Offer) -> Remote | None:
    """The projector that goes with a model: one in its own folder before one at the top."""
    found = offers(files, MMPROJ)
    folder = PurePosixPath(offer.files[0].name).parent
    near = [o for o in found if PurePosixPath(o.files[0].name).parent == folder] or found
    return min(near, key=_projector_rank).files[0] if near else None


def _projector_rank(offer: Offer) -> tuple[int, str]:
    quant = offer.quant
    return (PROJECTORS.index(quant) if quant in PROJECTORS else len(PROJECTORS), offer.files[0].name)


def _fault(code: str, what: str, found: Sequence[Offer], hint: str, colon: str = "; it holds ") -> Fault:
    listed = ", ".join(f"{o.label}" + (f" ({human_bytes(o.size)})" if o.size else "") for o in found[:LISTED])
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return Fault(code, f"{what}{colon}{listed}{more}" if listed else what, hint=hint, kind=FaultClass.PERMANENT)
