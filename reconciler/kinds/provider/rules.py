"""Providers: what is known of their models, and when they are to be asked. Nothing here waits for one that is down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from reconciler.core.ids import Ref, canonical
from reconciler.core.plan import Action, Change, FieldChange, Op, Phase
from reconciler.core.retry import Backoff
from reconciler.core.state import VOLATILE, Drift, World
from reconciler.core.status import Condition, no, yes
from reconciler.kinds.provider.spec import ProviderSpec, shape

FRESH = 3600.0  # seconds that a list counts as new
AGAIN = Backoff(first=15.0, cap=900.0)  # after a provider could not be asked
KEY_REFUSED, SECRET_MISSING = "KEY_REFUSED", "SECRET_MISSING"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Record:
    """What asking a provider gave, as it is kept on disk. Times are Unix seconds.

    `asked` says who was asked (`ProviderSpec.asked`). `models` is the last good list, None where there never was one;
    `fetched` when it came, and `how`. `tried` is the last try, `failures` how many have failed since a good one, and
    `code`, `message`, `hint`, `after` (seconds) are of the last failure. What each of several keys may see is not kept.
    """

    asked: str
    models: tuple[str, ...] | None = None
    fetched: float = 0.0
    how: str = ""
    tried: float = 0.0
    failures: int = 0
    code: str = ""
    message: str = ""
    hint: str = ""
    after: float = 0.0

    def due(self, ref: Ref, now: float) -> bool:
        """Whether it is time to ask again. A clock that was set back makes it so, too."""
        if self.tried > now:
            return True
        if not self.failures:
            return now - self.fetched >= FRESH
        return now - self.tried >= max(self.after, AGAIN.delay(ref, self.failures))

    def listed(self, models: tuple[str, ...], how: str, now: float) -> Record:
        return Record(self.asked, models, now, how, now)

    def failed(self, code: str, message: str, hint: str, after: float, now: float) -> Record:
        """The list of before stays as it is."""
        told = replace(self, code=code, message=message, hint=hint, after=after)
        return replace(told, tried=now, failures=self.failures + 1)

    def to_bytes(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()


def record(data: bytes, asked: str) -> Record | None:
    """The record in a file; None where it is none, is of another format, or of somebody else than `asked`."""
    try:
        known = json.loads(data)
        if known.pop("format") != FORMAT or known["asked"] != asked:
            return None
        models = known.pop("models")
        return Record(**known, models=None if models is None else tuple(map(str, models)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class ProviderState:
    """What is known of a provider now.

    `models` may be asked for; where it is `open`, any other, too. `problem` says which of its secrets cannot be
    resolved. `asked` says that it has been asked since it is declared as it is. The rest is the record.
    """

    models: tuple[str, ...] = ()
    open: bool = False
    problem: str = ""
    asked: bool = False
    known: Record | None = field(default=None, metadata=VOLATILE)


def seen(spec: ProviderSpec, known: Record | None, problem: str) -> ProviderState:
    """What follows from a declaration and from what asking gave."""
    if not spec.discovers:
        return ProviderState(spec.named, spec.declared is None and spec.allow is None, problem, True)
    listed = known.models if known is not None else None
    if listed is None:
        return ProviderState(spec.named, spec.allow is None, problem, known is not None, known)
    return ProviderState(tuple(filter(spec.allowed, listed)), False, problem, True, known)


class ProviderRules:
    drift = Drift.CORRECT
    runs = False

    def change(self, ref: Ref, world: World) -> Change | None:
        declared = world.desired.get(ref)
        if declared is None:
            forget = Action(Phase.SWEEP, "release", "forget what is known of it")
            return Change(ref, Op.DELETE, "no longer in the manifest", (forget,))
        spec: ProviderSpec = declared.spec
        state: ProviderState = world.found(ref) or ProviderState()
        owned = world.owned.get(ref)
        same = owned is not None and owned.digest == declared.digest
        if same and state.asked:
            return None
        ask = Action(Phase.MATERIALISE, "discover", f"ask {address(spec)} for its models")
        action = ask if spec.discovers else Action(Phase.MATERIALISE, "note", _offered(spec))
        fields = _fields(owned.spec, spec) if owned is not None else ()
        if owned is None:
            return Change(ref, Op.CREATE, "not known here yet", (action,), where=declared.where)
        reason = "what is known of its models is gone" if same else "its declaration changed"
        return Change(ref, Op.UPDATE, reason, (action,), fields, where=declared.where, drift=same)

    def conditions(self, ref: Ref, world: World) -> tuple[Condition, ...]:
        declared = world.desired.get(ref)
        if declared is None:
            return (no("Ready", "NotWanted", "it is being forgotten"),)
        spec: ProviderSpec = declared.spec
        state: ProviderState = world.found(ref) or ProviderState()
        found = (_discovered(state),) if spec.discovers else ()
        if state.problem:
            return (no("Ready", "SecretMissing", state.problem), *found)
        if not state.asked:
            return (no("Ready", "NotAsked"), *found)
        known = state.known
        if known is not None and known.models is None and known.code == KEY_REFUSED:
            return (no("Ready", "KeyRefused", known.message), *found)
        trouble = f"; {known.message}" if known is not None and known.failures else ""
        if state.open:
            return (yes("Ready", "Open", f"any model that it has can be asked for{trouble}"), *found)
        reason = "Declared" if not spec.discovers else "Listed" if known and known.models is not None else "Allowed"
        return (yes("Ready", reason, f"{counted(len(state.models))}{trouble}"), *found)

    def caution(self, ref: Ref, world: World) -> str:
        """What a person should hear before they carry out a plan; empty where there is nothing."""
        declared, state = world.desired.get(ref), world.found(ref)
        if declared is None:
            return ""
        spec: ProviderSpec = declared.spec
        if spec.keyless:
            return "it has no `api_key`, and answers nobody without one"
        return state.problem if state is not None else ""


def _discovered(state: ProviderState) -> Condition:
    known = state.known
    if known is None:
        return no("Discovered", "NotAsked")
    listed = f"{counted(len(known.models))} of {_date(known.fetched)}" if known.models is not None else ""
    if not known.failures:
        return yes("Discovered", "Listed", f"{listed}, {known.how}")
    hint = f" — {known.hint}" if known.hint else ""
    kept = f"; what counts are its {listed}" if listed else ""
    reason = "".join(part.capitalize() for part in known.code.split("_"))
    return no("Discovered", reason, f"{known.message}{hint}{kept}")


def address(spec: ProviderSpec) -> str:
    """Where it is asked for its list."""
    speaks = dict(spec.speaks)
    return speaks.get(spec.lists) or next(iter(speaks.values()))


def counted(count: int) -> str:
    return "1 model" if count == 1 else f"{count} models"


def _offered(spec: ProviderSpec) -> str:
    return f"offer {counted(len(spec.named))}" if spec.declared is not None else "pass on any model"


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


_SHOWN = {"speaks": "base_url", "keys": "api_key", "declared": "models"}  # as the manifest calls them
_HIDDEN = ("name", "lists", "keyless", "secret_headers", "secret_proxy")


def _fields(before: Mapping[str, Any], spec: ProviderSpec) -> tuple[FieldChange, ...]:
    """What changed of its declaration; references are shown, secrets are not there."""
    out = []
    for key, new in json.loads(canonical(spec)).items():
        old = before.get(key)
        if key in before and old != new and key not in _HIDDEN:
            if key in ("request", "quirks"):
                old, new = shape(str(old)), shape(str(new))
            out.append(FieldChange(f"providers.{spec.name}.{_SHOWN.get(key, key)}", old, new))
    return tuple(out)
