"""Providers: the list of each one's models under the data root, and asking for it.

A provider that cannot be asked is no failed action: what happened is noted beside the last good list, status tells it,
and it is asked again later (`refresh`), beside the plan. Nothing waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Mapping

from reconciler.core.diagnostics import Fault
from reconciler.core.ids import Ref
from reconciler.core.plan import Action
from reconciler.core.state import Absent, Declared, Found, Observation
from reconciler.kinds.base import Tools
from reconciler.kinds.credentials import Credentials, credentials
from reconciler.kinds.provider.asking import ask
from reconciler.kinds.provider.rules import KEY_REFUSED, SECRET_MISSING, ProviderRules, Record, counted, record, seen
from reconciler.kinds.provider.spec import ProviderSpec


class ProviderKind:
    name = "provider"
    rules = ProviderRules()

    def __init__(self) -> None:
        self._shown: dict[Ref, str] = {}  # a digest of the keys that were last refused, for as long as we live

    def observe(self, refs: Iterable[Ref], desired: Mapping[Ref, Declared], tools: Tools) -> dict[Ref, Observation]:
        return {ref: self._look(desired.get(ref), tools) for ref in refs}

    def _look(self, declared: Declared | None, tools: Tools) -> Observation:
        if declared is None:
            return Absent("it is not declared")
        spec: ProviderSpec = declared.spec
        _, fault = _credentials(spec, tools)
        return Found(seen(spec, _read(spec, tools), fault.message if fault is not None else ""))

    async def apply(self, action: Action, ref: Ref, declared: Declared | None, tools: Tools) -> None:
        match action.verb:
            case "discover":
                assert declared is not None
                await self.refresh(ref, declared, tools)
                tools.ledger.own(ref, declared.digest, declared.spec)
            case "note":
                assert declared is not None
                tools.files.remove(tools.layout.provider(ref.name))
                tools.ledger.own(ref, declared.digest, declared.spec)
            case "release":
                tools.files.remove(tools.layout.provider(ref.name))
                tools.ledger.disown(ref)

    def due(self, ref: Ref, declared: Declared, tools: Tools) -> bool:
        """Whether it should be asked again now. The first time belongs to the plan."""
        spec: ProviderSpec = declared.spec
        known = _read(spec, tools) if spec.discovers else None
        if known is None:
            return False
        if known.code in (SECRET_MISSING, KEY_REFUSED):
            shown, fault = _credentials(spec, tools)
            if known.code == SECRET_MISSING and fault is None:
                return True
            if known.code == KEY_REFUSED and self._shown.get(ref, "") not in ("", _digest(shown)):
                return True
        return known.due(ref, time.time())

    async def refresh(self, ref: Ref, declared: Declared, tools: Tools) -> bool:
        """Ask it for its models, and note what came of that → whether anything is otherwise now.

        Raises Fault only where that cannot be written down.
        """
        spec: ProviderSpec = declared.spec
        before = _read(spec, tools) or Record(spec.asked)
        shown, missing = await asyncio.to_thread(_credentials, spec, tools)
        try:
            if missing is not None:
                raise Fault(SECRET_MISSING, missing.message, hint=missing.hint, kind=missing.kind)
            found = await ask(spec, shown)
            after = before.listed(found.models, found.how, time.time())
        except Fault as fault:
            after = before.failed(fault.code, fault.message, fault.hint, fault.after, time.time())
        self._shown[ref] = _digest(shown)
        tools.files.write(tools.layout.provider(ref.name), after.to_bytes())
        _tell(ref, before, after, tools)
        return (before.models, before.code) != (after.models, after.code)


def _credentials(spec: ProviderSpec, tools: Tools) -> tuple[Credentials, Fault | None]:
    return credentials(spec.keys, spec.secret_headers, spec.secret_proxy, tools.base)


def _digest(shown: Credentials) -> str:
    return hashlib.sha256(repr(sorted(shown.keys)).encode()).hexdigest()


def _read(spec: ProviderSpec, tools: Tools) -> Record | None:
    try:
        return record(tools.layout.provider(spec.name).read_bytes(), spec.asked)
    except OSError:
        return None


def _tell(ref: Ref, before: Record, after: Record, tools: Tools) -> None:
    """An event where a list is otherwise, or where the way in which it cannot be had is."""
    if after.failures and after.code != before.code:
        tools.ledger.event(str(ref), "NotListed", after.message)
    elif not after.failures and (before.failures or before.models != after.models):
        tools.ledger.event(str(ref), "Listed", f"{counted(len(after.models or ()))}, {after.how}")
