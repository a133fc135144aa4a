"""Models: their bytes are in the store and verified, or must be brought there."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.core.ids import Ref
from reconciler.core.plan import Action, Change, FieldChange, Op, Phase, Price, human_bytes
from reconciler.core.state import Drift, World
from reconciler.core.status import Condition, no, yes
from reconciler.kinds.model.spec import ModelSpec, shown


@dataclass(frozen=True, slots=True)
class ModelState:
    """What is known of a model's bytes. `sha256` is empty before a source without one was fetched for the first time.

    `suspect` says why the file must be proved again before it is used; `lost` why it is to be fetched again.
    """

    sha256: str = ""
    size: int = 0
    present: bool = False
    suspect: str = ""
    lost: str = ""
    token: str = ""

    @property
    def usable(self) -> bool:
        return self.present and not self.suspect


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
        fetch = Action(Phase.MATERIALISE, "fetch", f"fetch {shown(spec.source)} and verify it")
        fields = _fields(ref, owned.spec, spec) if owned else ()
        op = Op.CREATE if owned is None else Op.REPLACE if fields else Op.UPDATE
        gone = "its file is gone from the store" if owned else "not here yet"
        reason = "its source changed" if fields else state.lost or gone
        price = Price(download=state.size or None, disk=state.size or None)
        drift = owned is not None and owned.digest == declared.digest and not fields
        return Change(ref, op, reason, (fetch,), fields, price, declared.where, drift)

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
            reason = "Lost" if state.lost else "NotFetched"
            return no("Ready", reason, state.lost), no("Downloaded", reason), no("Verified", reason)
        if state.suspect:
            return no("Ready", "Suspect", state.suspect), yes("Downloaded", "InStore"), no("Verified", "Suspect")
        size = human_bytes(state.size)
        return yes("Ready", "Verified", size), yes("Downloaded", "InStore"), yes("Verified", "Sha256", state.sha256)


def _fields(ref: Ref, before: object, spec: ModelSpec) -> tuple[FieldChange, ...]:
    old = before if isinstance(before, dict) else {}
    new = {"source": spec.source, "file": spec.file, "sha256": spec.sha256, "locked": spec.locked}
    return tuple(
        FieldChange(
            f"models.{ref.name}.{key}" if key != "locked" else f"stack.lock {shown(spec.source)}",
            shown(old[key]),
            shown(new[key]),
        )
        for key in new
        if key in old and old[key] != new[key] and (key != "locked" or (old[key] and new[key]))
    )
