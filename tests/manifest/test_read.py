"""The reader in its places, at its limits and in its words, with libyaml and without."""

from __future__ import annotations

import sys
import time

import pytest

from reconciler.core.diagnostics import Diagnostic, Where
from reconciler.manifest.read import MAX_BYTES, MAX_DEPTH, MAX_NODES, Document, meaning, read


def document(text: str | bytes) -> Document:
    return read(text.encode() if isinstance(text, str) else text, "f")


def fault(text: str | bytes) -> Diagnostic:
    [found] = document(text).faults
    return found


def place(text: str) -> tuple[int, int]:
    where = fault(text).where
    assert where
    return where.line, where.column


@pytest.fixture(params=["libyaml", "pure"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both builds of PyYAML: without libyaml its import fails."""
    if request.param == "pure":
        monkeypatch.setitem(sys.modules, "yaml._yaml", None)
    else:
        import yaml._yaml  # noqa: F401
    return str(request.param)


# -- places ---------------------------------------------------------------------------------------------------------

SCRIPTS = 'é😀: {☃: "𝒳\\n", b: [日本, !t x]}\nempty:\n"q": |\n  é\n'


def test_columns_count_code_points(parser: str) -> None:
    found = document(SCRIPTS)
    assert found.values == {"é😀": {"☃": "𝒳\n", "b": ["日本", "x"]}, "empty": None, "q": "é\n"}
    assert [(d.where, d.summary) for d in found.faults] == [(Where("f", 1, 24), "the tag !t is not used here")]
    assert dict(found.keys) == {
        ("é😀",): Where("f", 1, 1),
        ("é😀", "☃"): Where("f", 1, 6),
        ("é😀", "b"): Where("f", 1, 16),
        ("empty",): Where("f", 2, 1),
        ("q",): Where("f", 3, 1),
    }
    assert found.places[()] == Where("f", 1, 1)
    assert found.places["é😀", "b", 0] == Where("f", 1, 20)
    assert found.places[("empty",)] == Where("f", 2, 1), "where nothing is written, the key is the place"
    assert found.places[("q",)] == Where("f", 3, 6)
    assert ("é😀", "b", 2) not in found.places
    assert found.where(("é😀", "b", 2, "x")) == Where("f", 1, 19)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_counts_once(end: str, parser: str) -> None:
    found = document(end.join(["a: 1", "", "b: |", "  x", "  y", "c: 2", ""]))
    assert found.values == {"a": 1, "b": "x\ny\n", "c": 2}
    assert found.keys[("c",)].line == 6


def test_faults_before_broken_text_are_reported_with_it(parser: str) -> None:
    assert [d.where and d.where.line for d in document("a: 1\na: 2\nb: !t x\nc: @\nd: *y\n").faults] == [2, 3, 4]


# -- limits ---------------------------------------------------------------------------------------------------------


def within(seconds: float, text: str | bytes) -> Diagnostic:
    before = time.perf_counter()
    found = document(text).faults
    assert time.perf_counter() - before < seconds
    return found[-1]


def test_a_file_with_too_many_bytes_is_not_parsed() -> None:
    found = within(0.1, b"a: @\n#" + b"x" * MAX_BYTES)
    assert found.summary == f"the file has more than {MAX_BYTES} bytes"  # no more of it is read than shows that
    assert found.where == Where("f", 1, 1)


def test_the_limit_is_of_values_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken text behind the limit is not seen: reading has ended. Values that are passed over count, too."""
    monkeypatch.setattr("reconciler.manifest.read.MAX_NODES", 1000)
    many = "- 1\n" * 600
    assert [(d.summary, d.where) for d in document(many * 2 + "@").faults] == [
        ("more than 1000 values in one file", Where("f", 1000, 3))  # the list itself is one
    ]
    assert "more than" in document(f"a: 1\na:\n{many}a:\n{many}@").faults[-1].summary
    assert "more than" in document("? - 1\n" + "  - 1\n" * 1000 + "@").faults[-1].summary


def test_a_manifest_of_ten_thousand_resources_is_within_the_limits() -> None:
    assert MAX_NODES >= 10_000 * 20
    assert MAX_BYTES >= 10_000 * 20 * 25


@pytest.mark.parametrize("opening", ["[", "{", "{a: ", "- ", "? ", "[{", "{[", "- - ? ", "{a: 1, a: ", "[[]: "])
def test_a_megabyte_of_openings_is_refused_at_once(opening: str, parser: str) -> None:
    found = within(5, opening * ((1 << 20) // len(opening)))
    assert found.summary == f"nested deeper than {MAX_DEPTH} levels"
    assert found.where
    assert found.where.column < 1000


def test_as_many_levels_as_are_allowed_are_read(parser: str) -> None:
    assert not document("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)).faults
    assert document("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2)).faults


@pytest.mark.parametrize(
    "text", ["%TAG !a! b\n" * 90_000, "".join(f"%TAG !a{i}! b\n" for i in range(60_000)), "--- 1\n%TAG ! b\n"]
)
def test_tag_directives_are_refused_before_libyaml_compares_them_all(text: str) -> None:
    assert "%TAG" in within(1, text).summary


def test_ten_thousand_resources_are_read_at_once() -> None:
    """0.2 s where nothing else runs. It was 4 s when the values were built from a tree of nodes."""
    one = "  m{0}:\n    source: file:/srv/{0}.gguf\n    context: 16k\n    parallel: 2\n    aliases: [a{0}, b{0}]\n"
    text = ("version: 1\nmodels:\n" + "".join(one.format(i) for i in range(5000))).encode()
    before = time.process_time()
    assert not read(text, "f").faults
    assert time.process_time() - before < 1.5


# -- words ----------------------------------------------------------------------------------------------------------

CONFLICT = "a: 1\nb:\n<<<<<<< HEAD\n  c: 1\n=======\n  c: 2\n>>>>>>> other\n"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_merge_conflict_is_called_by_its_name(end: str, parser: str) -> None:
    found = fault(CONFLICT.replace("\n", end))
    assert "merge conflict" in found.summary
    assert found.where == Where("f", 3, 1)
    assert ">>>>>>>" in found.hint


def test_what_looks_like_a_merge_conflict_in_a_text_is_text() -> None:
    assert document("a: |\n  <<<<<<< HEAD\n  =======\n").values == {"a": "<<<<<<< HEAD\n=======\n"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_another_encoding_is_refused_with_a_remedy(encoding: str) -> None:
    found = fault("version: 1\nname: é\n".encode(encoding))
    assert "UTF-8" in found.summary or "U+0000" in found.summary
    assert "UTF-8" in found.hint or "text file" in found.hint
    assert ("UTF-16" in found.hint) == (encoding in ("utf-16", "utf-32"))


@pytest.mark.parametrize("unseen", ["\x85", "\u2028", "\u2029", "\ufeff", "\x01", "\x7f", "\x9f", "\ufffe"])
def test_a_character_that_an_editor_hides_is_named(unseen: str) -> None:
    found = fault(f"a: 1\n# x{unseen}b: 2\n")
    assert f"U+{ord(unseen):04X} in column 4" in found.summary
    assert found.where == Where("f", 2, 1)
    assert document(f'a: "\\u{ord(unseen):04x}"').values == {"a": unseen}, "the way that the hint names"


@pytest.mark.parametrize(
    ("text", "line", "column", "hint"),
    [
        ("a:\n\tb: 1\n", 2, 1, "indent with spaces"),
        ("a:\n  b: 1\n\tc: 2\n", 3, 1, "indent with spaces"),
        ("file: *.gguf\n", 1, 8, "* or & needs quotes"),
        ("file: *Q4_K_M*.gguf\n", 1, 14, "* or & needs quotes"),
        ("file: *Q4\n", 1, 7, "* needs quotes"),
        ("a: @x\n", 1, 4, "needs quotes"),
        ("a: %x\n", 1, 4, "needs quotes"),
        ("a: !x y\n", 1, 4, "! needs quotes"),
        ("a: {{ x }}\n", 1, 5, "{ or [ needs quotes"),
        ("hosts: [::1]\n", 1, 9, "begins with :"),
        ('path: "C:\\Users"\n', 1, 12, "single quotes"),
        ('path: "C:\\qwen"\n', 1, 10, "single quotes"),
        ("a: 'x\n", 2, 1, "closing quote"),
        ("a: [b\nc: d\n", 2, 2, "comma"),
        ("a: {b: 1 c: 2}\n", 1, 11, "comma"),
        ("a: 'it's'\n", 1, 8, "Quotes go around a whole value"),
        ("a:\n    b: 1\n  c: 2\n", 3, 3, "indented like its neighbours"),
        ("a: - b\n", 1, 4, "in the line below"),
    ],
)
def test_broken_text_has_a_place_and_a_hint(text: str, line: int, column: int, hint: str) -> None:
    assert place(text) == (line, column)
    assert hint in fault(text).hint


@pytest.mark.parametrize(
    "text",
    [
        *("a: @x", "a:\n\tb: 1", "a: *.x", "a: *x", "a: b: c", 'a: "\\q"', 'a: "\\UFFFFFFFF"', "a: &x b", "a: {b: }}"),
        *("%YAML 1.3\n---\na", "%YAML 2.0\n---\na", "a\n---\nb", "a: 1\n... b", "a: 1\na: 2", "[a]: 1", "a: \x00"),
    ],
)
def test_both_parsers_refuse_at_the_same_place(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = document(text).faults
    monkeypatch.setitem(sys.modules, "yaml._yaml", None)
    pure = document(text).faults
    assert fast
    assert [(d.where and d.where.line, d.hint) for d in fast] == [(d.where and d.where.line, d.hint) for d in pure]


@pytest.mark.parametrize("text", ["9" * 65, "0x" + "f" * 64, "1e999", ".inf", "-.INF", "+.Inf", ".NaN"])
def test_a_number_that_cannot_be_kept_has_no_meaning(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        meaning(text)


@pytest.mark.parametrize(
    "text", ["-.nan", ".iNf", "0x", "0x_", "0o8", "-", "+", ".", "-_1", "_1", "1.5.3", "e3", "tRue"]
)
def test_what_is_nearly_a_number_is_text(text: str) -> None:
    assert meaning(text) == text
