"""Names of things: a resource is a `Ref`, a spec is known by the digest of its canonical JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple


class Ref(NamedTuple):
    """A resource: `server/chat`. A tuple, because names are compared and looked up far more than all else."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Ref:
        """`kind/name` → Ref. ValueError for anything else."""
        kind, slash, name = text.partition("/")
        if not (kind and slash and name):
            raise ValueError(f"{text!r} is not a resource; write it as kind/name, for example server/chat")
        return cls(kind, name)


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces. Dataclasses count as their fields."""
    return _ENCODER.encode(value)


def digest_of(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def pin_key(source: str, file: str = "", platform: str = "", asked: str = "") -> str:
    """How a pin is known: by its source, the file asked for, the platform where the bytes depend on one, and what
    else was asked for (a quantization, a projector)."""
    return canonical([source, file, platform, *([asked] if asked else [])])


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")


# json.dumps would make one anew for each value.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
