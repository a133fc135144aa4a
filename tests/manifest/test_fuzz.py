"""Manifests nobody would write: each is either right, and then the machine becomes it, or refused with a place.

Half of them are right by the JSON Schema, the other half are spoiled ones of those.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.cli.render import plan_lines
from reconciler.core.diagnostics import Refused
from reconciler.core.plan import Plan
from reconciler.manifest.parse import Manifest, check
from reconciler.manifest.resolve import resolve
from reconciler.manifest.schema import schema
from tests.core.simulation import Machine
from tests.manifest.generate import STYLES, spoiled_text, spoiled_values, styled, values

NIGHTLY = os.environ.get("RECONCILER_NIGHTLY") == "1"
SETTINGS = settings(
    max_examples=26_000 if NIGHTLY else 500,
    derandomize=not NIGHTLY,
    print_blob=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SCHEMA = schema()
STACKS = values(SCHEMA, SCHEMA)
PATH = Path("stack.yaml")


@st.composite
def right(draw: st.DrawFn) -> bytes:
    return styled(draw(STACKS), draw(st.sampled_from(STYLES))).encode("utf-8", "surrogatepass")


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    stack = draw(STACKS)
    wrong = draw(spoiled_values(stack)) if draw(st.booleans()) else stack
    text = styled(wrong, draw(st.sampled_from(STYLES)))
    if wrong is stack or draw(st.booleans()):
        return draw(spoiled_text(text))
    return text.encode("utf-8", "surrogatepass")


def checked(text: bytes) -> Manifest | None:
    """The manifest; or None for one that was refused as it should be."""
    try:
        return check(text, PATH)
    except Refused as error:
        refused = error
    shown = text.decode("utf-8-sig", "replace")
    lines, widest = shown.splitlines(), max(len(line) for line in shown.split("\n"))  # YAML's own breaks lie in between
    assert refused.diagnostics
    for fault in refused.diagnostics:
        assert fault.summary.strip()
        assert fault.where is not None, fault
        assert 1 <= fault.where.line <= len(lines) + 1, fault
        assert 1 <= fault.where.column <= widest + 1, fault
        json.dumps(fault.to_json(), ensure_ascii=False).encode()
    return None


def becomes(manifest: Manifest) -> None:
    """The machine becomes it: the second plan is empty, and every plan can be printed, sent, and made again."""
    desired = dict(resolve(manifest, "cp311"))
    assert set(desired) == set(resolve(manifest, "cp311"))
    assert {r: d.digest for r, d in desired.items()} == {r: d.digest for r, d in resolve(manifest, "cp311").items()}
    machine = Machine()
    first = machine.plan(desired)
    assert sent(first) == sent(machine.plan(dict(reversed(desired.items()))))
    for plan in machine.converge(desired):
        sent(plan)
        assert "\n".join(plan_lines(plan)).encode()
    assert machine.plan(desired).empty
    assert not machine.wrongs


def sent(plan: Plan) -> bytes:
    return json.dumps(plan.to_json(), ensure_ascii=False).encode()


def tried(texts: st.SearchStrategy[bytes], count: Counter[str]) -> None:
    @SETTINGS
    @given(texts)
    def trial(text: bytes) -> None:
        count["manifests"] += 1
        if (manifest := checked(text)) is not None:
            count["accepted"] += 1
            becomes(manifest)

    trial()


@pytest.mark.timeout(0 if NIGHTLY else 120)
@pytest.mark.parametrize(
    ("name", "texts", "share"), [("right by the schema", right(), 0.15), ("spoiled", spoiled(), 0.01)]
)
def test_a_manifest_is_right_or_refused_with_a_place(
    name: str, texts: st.SearchStrategy[bytes], share: float, record_property: Callable[[str, Any], None]
) -> None:
    count: Counter[str] = Counter()
    try:
        tried(texts, count)
    finally:
        record_property(f"count:fuzzed manifests, {name}", json.dumps(count))
    assert count["accepted"] > share * count["manifests"], "too few of them are right: the trial shows little"
