"""What a file or a source is, by headers alone: for a person who asks before anything is declared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reconciler.core.diagnostics import Fault
from reconciler.core.ids import canonical
from reconciler.core.state import HostFacts
from reconciler.gguf.header import Header
from reconciler.gguf.names import from_filename
from reconciler.gguf.roles import summary
from reconciler.gguf.shape import Shape, scaled, shape_of
from reconciler.gguf.verdict import judge
from reconciler.kinds.base import Tools
from reconciler.kinds.fit import Fit, judged
from reconciler.kinds.model.choose import Offer, choose, offers
from reconciler.kinds.model.io import tap_for
from reconciler.kinds.model.spec import MMPROJ, MODEL, ModelSpec
from reconciler.kinds.model.survey import header_at, no_fit
from reconciler.sources import Listing, source_for


async def inspect(spec: ModelSpec, tools: Tools) -> dict[str, Any]:
    """What is there, as JSON values: one model with all that its headers say, or the models to choose from.

    Raises Fault.
    """
    tap = tap_for(spec, tools)
    listing = await source_for(spec.source).find(spec.source, tap)
    told: dict[str, Any] = {"source": spec.source, "resolved": listing.resolved, "licence": listing.licence or None}
    if listing.opaque:
        return told | {"model": None, "offers": [], "note": "what is inside is known once it was fetched"}
    if listing.folder:
        return told | {"model": None, "offers": [], "note": "a folder of weights, for engines that load such"}
    host = tools.host()
    try:
        chosen = choose(listing.files, spec, no_fit).offer
    except Fault as fault:
        if fault.code != "FILE_AMBIGUOUS":
            raise
        return told | {"model": None, "offers": await _offers(listing, spec, tools, host)}
    headers = [h for remote in chosen.files if (h := await header_at(remote, spec.source, tap)) is not None]
    if not headers:
        return told | {
            "model": None,
            "offers": [_offer(chosen, None, spec.demand.context)],
            "note": "the server does not send parts of files",
        }
    beside = offers(listing.files, MMPROJ)
    return told | {"model": _model(chosen, headers, spec, host), "offers": [], "projectors": [o.label for o in beside]}


def _model(offer: Offer, headers: Sequence[Header], spec: ModelSpec, host: HostFacts) -> dict[str, Any]:
    shape, told = shape_of(headers), summary(headers)
    verdict = judge(from_filename(offer.files[0].name), None, headers, explicit=True)
    return {
        "files": [{"name": f.name, "size": f.size, "sha256": f.sha256 or None} for f in offer.files],
        "role": told.role.name.value,
        "role_reason": told.role.reason,
        "task": told.task.value or None,
        "architecture": told.architecture,
        "name": told.name or None,
        "licence": told.licence or None,
        "parameters": told.parameters,
        "context": told.context_length or None,
        "layers": told.layers or None,
        "experts": told.experts or None,
        "senses": list(told.senses),
        "chat_template": told.chat_template,
        "tools": told.tools,
        "thinks": told.thinks,
        "quant": verdict.label,
        "bits": round(verdict.bits, 2),
        "mixture": {part.type: round(part.share, 4) for part in verdict.mixture},
        "note": verdict.refusal or verdict.note or None,
        "fit": _fit(judged(canonical(shape.to_json()), spec.demand, host), spec.demand.context),
    }


async def _offers(listing: Listing, spec: ModelSpec, tools: Tools, host: HostFacts) -> list[dict[str, Any]]:
    """Every model of a source, with how it would fit: one header tells the shape, their sizes the rest."""
    found = offers(listing.files, MODEL)
    sized = [o for o in found if o.size and o.group.whole]
    shape = None
    if sized:
        header = await header_at(min(sized, key=lambda o: o.size or 0).files[0], spec.source, tap_for(spec, tools))
        shape = shape_of([header]) if header is not None else None

    def fit(offer: Offer, known: Shape) -> Fit | None:
        text = canonical(scaled(known, offer.size or 0).to_json())
        return judged(text, spec.demand, host)

    return [_offer(o, fit(o, shape) if shape is not None and o.size else None, spec.demand.context) for o in found]


def _offer(offer: Offer, fit: Fit | None, context: int) -> dict[str, Any]:
    return {
        "label": offer.label,
        "quant": offer.quant.value if offer.quant is not None else None,
        "files": [f.name for f in offer.files],
        "size": offer.size,
        "whole": offer.group.whole,
        "fit": _fit(fit, context),
    }


def _fit(fit: Fit | None, context: int) -> dict[str, Any] | None:
    if fit is None:
        return None
    return {
        "verdict": fit.found.verdict.value,
        "memory": fit.memory,
        "gpu_layers": fit.found.gpu_layers,
        "reason": fit.found.reason,
        "remedy": fit.found.remedy or None,
        "longer_than_trained": 0 < fit.trained < context,
        "devices": [
            {"name": row.name, "takes": row.takes, "free": row.free, "total": row.total} for row in fit.found.rows
        ],
    }
