"""What differs between two manifests, key by key. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from reconciler.core.plan import FieldChange
from reconciler.kinds.model.spec import shown
from reconciler.manifest.reading import Reading

PRIVATE = ("env", "headers", "key", "api_key")  # values below these may be secret
_NOTHING = object()


def differences(left: Reading, right: Reading) -> list[FieldChange]:
    """Every key whose value differs, in order; what one side lacks is None there."""
    fields = list(_walk(left.manifest.document.values, right.manifest.document.values, ()))
    for key in sorted({*left.lock.pins, *right.lock.pins}):
        before, after = left.lock.pins.get(key), right.lock.pins.get(key)
        if before != after:
            source, _, platform, *asked = json.loads(key)
            path = f"{shown(source)} in the lock" + "".join(f" for {what}" for what in (platform, *asked) if what)
            fields.append(FieldChange(path, before and before["sha256"], after and after["sha256"]))
    return fields


def _walk(left: Any, right: Any, path: tuple[str, ...]) -> Iterator[FieldChange]:
    if isinstance(left, dict) and isinstance(right, dict):
        for key in [*left, *(k for k in right if k not in left)]:
            yield from _walk(left.get(key, _NOTHING), right.get(key, _NOTHING), (*path, str(key)))
    elif left != right or type(left) is not type(right):
        hidden = any(part in PRIVATE for part in path)
        yield FieldChange(".".join(path), _shown(left, hidden), _shown(right, hidden))


def _shown(value: Any, hidden: bool) -> Any:
    if value is _NOTHING:
        return None
    if isinstance(value, dict):
        return {key: _shown(inner, hidden or key in PRIVATE) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner, hidden) for inner in value]
    return "…" if hidden else shown(value) if isinstance(value, str) else value
