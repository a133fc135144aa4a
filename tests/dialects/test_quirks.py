"""Quirks are read from JSON as they are written, and efforts step down to what is taken."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from reconciler.dialects.quirks import EFFORTS, LOCAL, PLAIN, Quirks, fitting_effort, read_quirks


@pytest.mark.parametrize("quirks", [PLAIN, LOCAL, Quirks(temperature=(0.0, 1.0), effort="", choices=1)])
def test_they_come_back(quirks: Quirks) -> None:
    assert read_quirks(json.loads(json.dumps(dataclasses.asdict(quirks)))) == quirks


def test_what_is_not_said_is_plain() -> None:
    assert read_quirks({}) == PLAIN
    assert read_quirks({"top_k": True}) == dataclasses.replace(PLAIN, top_k=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_q", True),
        ("top_k", 1),
        ("top_k", "yes"),
        ("stop_limit", True),
        ("stop_limit", 1.5),
        ("effort", "huge"),
        ("effort", ["low"]),
        ("max_tokens", None),
        ("temperature", [0]),
        ("temperature", ["a", "b"]),
        ("temperature", 1),
    ],
)
def test_what_is_wrong_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        read_quirks({name: value})


def test_efforts_step_down() -> None:
    for highest in EFFORTS:
        quirks = dataclasses.replace(PLAIN, effort=highest)  # type: ignore[arg-type]
        for effort in EFFORTS:
            lower = min(EFFORTS.index(effort), EFFORTS.index(highest))
            assert fitting_effort(effort, quirks) == EFFORTS[lower]
    assert fitting_effort("low", dataclasses.replace(PLAIN, effort="")) == ""
