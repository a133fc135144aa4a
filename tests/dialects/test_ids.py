"""Tool call ids come back as they were; thinking comes back for as long as it is kept."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dialects.ids import pack, safe, unpack
from reconciler.dialects.kept import Kept

FUZZ = settings(max_examples=300, derandomize=True, deadline=None, database=None)
ANTHROPIC = re.compile(r"[A-Za-z0-9_-]+")


@pytest.mark.parametrize("ident", ["call_1", "toolu_01A-b", "0"])
def test_a_plain_id_stays(ident: str) -> None:
    assert pack(ident) == safe(ident) == ident
    assert unpack(ident) == (ident, "")


@FUZZ
@given(st.text(), st.text())
def test_any_id_and_signature_come_back(ident: str, signature: str) -> None:
    packed = pack(ident, signature)
    assert ANTHROPIC.fullmatch(packed)
    assert unpack(packed) == (ident, signature)
    assert unpack(pack(packed)) == (packed, "")


@FUZZ
@given(st.text())
def test_any_id_is_made_safe_and_alike(ident: str) -> None:
    assert ANTHROPIC.fullmatch(safe(ident))
    assert safe(safe(ident)) == safe(ident)


@pytest.mark.parametrize("ident", ["rcid_", "rcid_!", "rcid_W10", "rcid_eyJ9", "rcid_WzEsMl0", "rcid_äö"])
def test_an_id_that_only_looks_packed_stays(ident: str) -> None:
    assert unpack(ident) == (ident, "")


def thought(text: str) -> list[dict[str, str]]:
    return [{"type": "thinking", "thinking": text, "signature": "s"}]


def test_kept_thinking_is_bounded_by_number() -> None:
    kept = Kept(most=2)
    for ident in ("a", "b"):
        kept.put(ident, thought(ident))
    assert kept.get("a") == thought("a")
    kept.put("c", thought("c"))
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (thought("a"), [], thought("c"))


def test_kept_thinking_is_bounded_by_size() -> None:
    kept = Kept(size=1000)
    kept.put("a", thought("x" * 600))
    kept.put("a", thought("y" * 600))
    assert kept.get("a") == thought("y" * 600)
    kept.put("b", thought("z" * 600))
    assert (kept.get("a"), kept.get("b")) == ([], thought("z" * 600))
    kept.put("c", thought("x" * 2000))
    assert (kept.get("b"), kept.get("c")) == ([], [])
    kept.put("d", thought("x" * 600))
    assert kept.get("d") == thought("x" * 600)
