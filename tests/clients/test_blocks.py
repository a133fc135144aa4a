"""A block goes in and comes out of any file, and what a person did to it is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.clients.blocks import MADE, Mark, cut, insert, replace
from reconciler.core.diagnostics import Refused
from tests.clients.generated import GENERATED

MARK = Mark("aider", "file")
BODY = ("model: x", "  more: 'y'")
NONE: frozenset[str] = frozenset()

TEXTS = st.lists(
    st.sampled_from([b"a", b"\n", b"\r\n", b"export X=1", b" ", b"{", b"}", b"# >>> mine >>>", b"\xff", b"\\"]),
    max_size=9,
).map(b"".join)


def put(text: bytes, mark: Mark = MARK, body: tuple[str, ...] = BODY) -> bytes:
    return insert(text, len(text), mark, body, NONE)


def taken(text: bytes, mark: Mark = MARK) -> bytes:
    block = mark.find(text)
    assert block is not None
    return cut(text, block)


@GENERATED
@given(TEXTS)
def test_what_went_in_comes_out_to_the_byte(text: bytes) -> None:
    new = put(text)
    assert new.startswith(text)
    block = MARK.find(new)
    assert block is not None
    assert block.body == BODY
    assert taken(new) == text


@GENERATED
@given(TEXTS, st.sampled_from([b"", b"x", b"x\n", b"\r\n"]))
def test_lines_that_a_person_adds_behind_it_stay_lines(text: bytes, more: bytes) -> None:
    new = put(text)
    whole = new if new.endswith(b"\n") else new + b"\n"
    left = taken(whole + more)
    ended = text if not more or not text or text.endswith(b"\n") else text + b"\n"
    assert left.replace(b"\r\n", b"\n") == (ended + more).replace(b"\r\n", b"\n")


@GENERATED
@given(TEXTS, st.integers(0, 40))
def test_it_may_stand_anywhere(text: bytes, where: int) -> None:
    at = min(where, len(text))
    new = insert(text, at, MARK, BODY, NONE)
    assert MARK.find(new) is not None
    assert taken(new).replace(b"\r", b"").replace(b"\n", b"") == text.replace(b"\r", b"").replace(b"\n", b"")


@GENERATED
@given(TEXTS, st.permutations(["a", "b", "c"]))
def test_blocks_of_several_clients_come_out_in_any_order(text: bytes, order: list[str]) -> None:
    new = text
    for name in ("a", "b", "c"):
        new = put(new, Mark(name, "file"))
    for name in order:
        new = taken(new, Mark(name, "file"))
    assert new == text


def test_a_new_body_takes_the_place_of_the_old_one() -> None:
    for before, after in ((b"x\n", b"y\n"), (b"x\r\n", b"y\r\n"), (b"x", b"")):
        old = insert(before, len(before), MARK, BODY, frozenset([MADE])) + after
        block = MARK.find(old)
        assert block is not None
        new = replace(old, block, MARK, ("other",), NONE)
        found = MARK.find(new)
        assert found is not None
        assert (found.body, MADE in found.flags) == (("other",), True)
        assert taken(new) == taken(old) == before + after


def test_line_ends_are_those_of_the_file() -> None:
    assert put(b"a\r\nb\r\n").count(b"\r\n") == put(b"a\r\nb\r\n").count(b"\n")
    assert b"\r" not in put(b"a\nb\n")


def test_an_editor_may_change_line_ends_and_indentation_unasked() -> None:
    new = put(b"a\n")
    assert MARK.find(new.replace(b"\n", b"\r\n")) is not None
    assert MARK.find(b"\n".join(b"  " + line for line in new.split(b"\n"))) is not None


@pytest.mark.parametrize(
    ("spoil", "what", "line"),
    [
        (lambda t: t.replace(b"model: x", b"model: mine"), "changed by hand", 2),
        (lambda t: t.replace(b"model: x\n", b"model: x\nmine\n"), "changed by hand", 2),
        (lambda t: t.replace(b"# <<< reconcile env aider <<<\n", b""), "not whole", 2),
        (lambda t: b"\n".join(line for line in t.split(b"\n") if b">>>" not in line), "not whole", 4),
        (lambda t: t.replace(b" >>>\n", b"\n"), "not whole", 2),
        (lambda t: t + t, "more than one", 7),
        (lambda t: t.replace(b"# >>>", b"// >>>"), "not whole", 2),
    ],
)
def test_what_a_person_did_to_a_block_is_noticed(spoil: object, what: str, line: int) -> None:
    assert callable(spoil)
    with pytest.raises(Refused) as caught:
        MARK.find(spoil(put(b"first\n")))
    (fault,) = caught.value.diagnostics
    assert what in fault.summary
    assert fault.where is not None
    assert (fault.where.file, fault.where.line) == ("file", line)
    assert fault.hint


def test_names_that_begin_alike_are_not_confused() -> None:
    new = put(put(b"", Mark("claude", "f")), Mark("claude-code", "f"))
    for name in ("claude", "claude-code"):
        block = Mark(name, "f").find(new)
        assert block is not None
        assert f"reconcile env {name} [".encode() in new[block.start : block.end]
