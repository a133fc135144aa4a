"""Short ways to check a manifest's text."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.manifest.parse import Manifest, check, understand
from reconciler.manifest.read import read
from reconciler.manifest.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
WHOLE = (Path(__file__).parent / "whole.yaml").read_text(encoding="utf-8")  # every key of the language


def read_text(text: str | bytes, path: Path = Path("stack.yaml")) -> Manifest:
    return check(text.encode() if isinstance(text, str) else text, path)


def meant(text: str) -> Stack:
    """What a text says in the whole language, whether it can be carried out yet or not."""
    stack, faults = understand(read(text.encode(), "stack.yaml"))
    assert not faults, [str(fault) for fault in faults]
    assert stack is not None
    return stack


def faults(text: str | bytes) -> list[Diagnostic]:
    """Everything that is wrong with a text that must be refused."""
    with pytest.raises(Refused) as caught:
        read_text(text)
    return list(caught.value.diagnostics)


def places(found: list[Diagnostic]) -> list[tuple[int, int]]:
    return [(d.where.line, d.where.column) for d in found if d.where]


def the_fault(text: str | bytes) -> Diagnostic:
    found = faults(text)
    assert len(found) == 1, [str(d) for d in found]
    return found[0]
