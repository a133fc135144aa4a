"""Models: their bytes are in the store and verified, or must be brought there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.core.ids import Ref
from reconciler.core.plan import Action, Change, FieldChange, Op, Phase, Price, human_bytes
from reconciler.core.state import VOLATILE, Drift, World
from reconciler.core.status import Condition, no, yes
from reconciler.kinds.fit import Fit, judged
from reconciler.kinds.model.spec import MMPROJ, MODEL, ModelSpec, Piece, pieces, shape_text, shown


@dataclass(frozen=True, slots=True)
class ModelState:
    """What is known of a model's bytes, of all its files together; `sha256` is that of the first one.

    `sha256` is empty before its source was looked at, or where the source does not say it before the first download.
    `suspect` says why a file must be proved again before it is used; `lost` why one is to be fetched again. `found`
    says that its source was looked at. `shape` (JSON) is what its need of memory follows from; `ahead` what a look at
    the source that nobody wrote down gave (JSON).
    """

    sha256: str = ""
    size: int = 0
    present: bool = False
    suspect: str = ""
    lost: str = ""
    token: str = ""
    pieces: tuple[Piece, ...] = ()
    found: bool = False
    shape: str = ""
    ahead: str = field(default="", metadata=VOLATILE)

    @property
    def usable(self) -> bool:
        return self.present and not self.suspect

    @property
    def foreseen(self) -> Mapping[str, Any]:
        """What a look at the source gave: name, size, quant, shape …; or the fault that it met."""
        return json.loads(self.ahead) if self.ahead else {}


class ModelRules:
    drift = Drift.CORRECT
    runs = False

    def change(self, ref: Ref, world: World) -> Change | None:
        declared, state = world.desired.get(ref), world.found(ref) or ModelState()
        if declared is None:
            return self._removal(ref, world, state)
        spec: ModelSpec = declared.spec
        owned = world.owned.get(ref)
        if state.suspect:
            known = owned is not None
            drift = owned is not None and owned.digest == declared.digest
            verify = Action(Phase.MATERIALISE, "verify", f"prove {human_bytes(state.size)} again by sha256")
            op = Op.UPDATE if known else Op.ADOPT
            return Change(ref, op, state.suspect, (verify,), where=declared.where, drift=drift)
        if state.present:
            if owned is not None and owned.digest == declared.digest:
                return None
            keep = Action(Phase.MATERIALISE, "keep", "use the file that is already in the store")
            fields = _fields(ref, owned.spec if owned else {}, spec)
            reason = "its bytes are in the store already" if owned is None else "its declaration changed"
            return Change(ref, Op.ADOPT if owned is None else Op.UPDATE, reason, (keep,), fields, where=declared.where)
        verdict = fitting(spec, state, world)
        if verdict is not None and verdict.refused and not spec.force:
            return Change(ref, Op.DENIED, verdict.refusal, where=declared.where)
        if (fault := state.foreseen.get("fault")) and fault["final"] and not state.found:
            hint = f" ({fault['hint']})" if fault["hint"] else ""
            return Change(ref, Op.DENIED, f"{fault['message']}{hint}", where=declared.where, wrong=True)
        fields = _fields(ref, owned.spec, spec) if owned else ()
        op = Op.CREATE if owned is None else Op.REPLACE if fields else Op.UPDATE
        gone = "its file is gone from the store" if owned else "not here yet"
        reason = "its source changed" if fields else state.lost or gone
        size = state.size or int(state.foreseen.get("total", 0)) or None
        price = Price(download=size, disk=size)
        drift = owned is not None and owned.digest == declared.digest and not fields
        return Change(ref, op, reason, _bringing(spec, state), fields, price, declared.where, drift)

    def _removal(self, ref: Ref, world: World, state: ModelState) -> Change:
        purge = world.purge and state.present
        size = f" ({human_bytes(state.size)})" if state.present else ""
        text = f"remove its file{size}" if purge else f"release it; its file{size} stays until `reconcile down --purge`"
        hold = f"{server} uses it" if (server := Ref("server", ref.name)) in world.owned else ""
        action = Action(Phase.SWEEP, "purge" if purge else "release", text, hold=hold)
        price = Price(disk=-state.size if purge else 0)
        return Change(ref, Op.DELETE, "no longer in the manifest", (action,), price=price)

    def conditions(self, ref: Ref, world: World) -> tuple[Condition, ...]:
        state = world.found(ref) or ModelState()
        if not state.present:
            declared = world.desired.get(ref)
            verdict = fitting(declared.spec, state, world) if declared is not None else None
            if verdict is not None and verdict.refused and declared is not None and not declared.spec.force:
                return no("Ready", "DoesNotFit", verdict.reason), no("Downloaded", "NotFetched")
            reason = "Lost" if state.lost else "NotFetched"
            return no("Ready", reason, state.lost), no("Downloaded", reason), no("Verified", reason)
        if state.suspect:
            return no("Ready", "Suspect", state.suspect), yes("Downloaded", "InStore"), no("Verified", "Suspect")
        size = human_bytes(state.size)
        return yes("Ready", "Verified", size), yes("Downloaded", "InStore"), yes("Verified", "Sha256", state.sha256)


def _bringing(spec: ModelSpec, state: ModelState) -> tuple[Action, ...]:
    """First see what the source holds, where that is not known; then fetch."""
    ahead = state.foreseen
    quant = f", {ahead['quant']}" if ahead.get("quant") else ""
    meant = f" ({ahead['name']}{quant})" if ahead.get("name") else ""
    several = f" ({len(state.pieces)} files)" if len(state.pieces) > 1 else ""
    fetch = Action(Phase.MATERIALISE, "fetch", f"fetch {shown(spec.source)}{meant or several} and verify it")
    if state.found or state.lost:
        return (fetch,)
    problem = f": {ahead['fault']['message']}" if "fault" in ahead else ""
    return Action(Phase.MATERIALISE, "resolve", f"see what {shown(spec.source)} holds{problem}"), fetch


def fitting(spec: ModelSpec, state: ModelState, world: World) -> Fit | None:
    """How its server would fit the memory; None where that is not known, or not its own question."""
    if spec.role != MODEL:
        return None
    beside = state.pieces or pieces(state.foreseen)
    projector = sum(piece.size for piece in beside if piece.role == MMPROJ)
    return judged(state.shape or shape_text(state.foreseen), replace(spec.demand, projector=projector), world.host)


def _fields(ref: Ref, before: object, spec: ModelSpec) -> tuple[FieldChange, ...]:
    old = before if isinstance(before, dict) else {}
    new = {"source": spec.source, "file": spec.file, "sha256": spec.sha256, "locked": spec.locked, "quant": spec.quant}
    return tuple(
        FieldChange(
            f"models.{ref.name}.{key}" if key != "locked" else f"stack.lock {shown(spec.source)}",
            shown(old[key]),
            shown(new[key]),
        )
        for key in new
        if key in old and old[key] != new[key] and (key != "locked" or (old[key] and new[key]))
    )
