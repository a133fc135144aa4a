"""Folders of weights: whether a file of one is what its name says, before it enters the store.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header, JSON that gives where
each tensor lies; what is described must be there. The form is that of the safetensors format.
"""

from __future__ import annotations

import json
from pathlib import Path

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.sources import Brought
from reconciler.sources.names import WEIGHTS

MOST_HEADER = 100 << 20  # bytes; the format's own bound


def judge_weights(path: Path, brought: Brought, role: str) -> None:
    """Raise Fault unless a file that is here is whole: weights by their header, JSON by being JSON."""
    problem = _weights(path, brought.size) if brought.name.endswith(WEIGHTS) else _text(path, brought)
    if problem:
        raise Fault(
            "BROKEN_WEIGHTS",
            f"{brought.name} {problem}",
            hint="the file at the source is incomplete, or something else answers for it",
            kind=FaultClass.PERMANENT,
        )


def _weights(path: Path, size: int) -> str:
    with path.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        if not 2 <= length <= min(MOST_HEADER, size - 8):
            return "is no safetensors file: its header has no sensible length"
        try:
            header = json.loads(data.read(length))
            ends = [int(one["data_offsets"][1]) for name, one in header.items() if name != "__metadata__"]
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return "is no safetensors file: its header is none"
    described = 8 + length + max(ends, default=0)
    return f"has {size} bytes, but its header describes {described}" if described > size else ""


def _text(path: Path, brought: Brought) -> str:
    if not brought.name.endswith(".json"):
        return ""
    if brought.size > MOST_HEADER:
        return f"is JSON of {brought.size} bytes: no model needs so much"
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return "is not JSON"
    return ""
