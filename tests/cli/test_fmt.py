"""`fmt` changes white space and nothing else, once."""

from __future__ import annotations

import contextlib
import io
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from reconciler.core.diagnostics import Refused
from reconciler.manifest.read import read
from reconciler.manifest.tidy import tidy
from tests.cli.conftest import Run

UNTIDY = """# head

version:   1
models:
    chat:   # inline
        source: 'file:a'
        aliases: [a,   b]
         # of env,
           #   in two lines
        env:
            A: "x"


            B: y
        # chat ends here
    embed: {source: file:b}   \r
policy:
- one  # first
-   two: >-
      folded
      text
note: |
    # no comment
      kept
# end


"""

TIDY = """# head

version: 1
models:
  chat:   # inline
    source: 'file:a'
    aliases: [a, b]
    # of env,
      #   in two lines
    env:
      A: "x"


      B: y
    # chat ends here
  embed: {source: file:b}
policy:
  - one  # first
  - two: >-
      folded
      text
note: |
  # no comment
    kept
# end
"""


def tidied(text: str) -> str:
    return tidy(text.encode(), "stack.yaml").decode()


def test_comments_order_quotes_and_block_texts_stay() -> None:
    assert tidied(UNTIDY) == TIDY
    assert tidied(TIDY) == TIDY


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: [" + "long, " * 60 + "b]\n", "a: [" + "long, " * 60 + "b]\n"),
        ("a: " + "y " * 200 + "y\n", "a: " + "y " * 200 + "y\n"),
        ("a: 1", "a: 1\n"),
        ("\ufeffa: 1\r\nb: 2\r\n", "a: 1\nb: 2\n"),
        ("a: 0x1F\nb: 1_000\nc: 1.50\nd: 'yes'\n", "a: 0x1F\nb: 1_000\nc: 1.50\nd: 'yes'\n"),
        ("a: |+\n  x  \n\nb: 1\n", "a: |+\n  x  \n\nb: 1\n"),
        ("a:\n- b: 1\n  c: 2\n", "a:\n  - b: 1\n    c: 2\n"),
        ("a: ~\nb: 6.4e+16\nc: True\nd:\n", "a: ~\nb: 6.4e+16\nc: True\nd:\n"),
        ("a:\n- b: 1\n  c: 2\n  # of c\n# of b\nb: 1\n", "a:\n  - b: 1\n    c: 2\n    # of c\n# of b\nb: 1\n"),
    ],
)
def test_details(before: str, after: str) -> None:
    assert tidied(before) == after


@pytest.mark.parametrize("text", ["a: [1, # one\n  2]\n", "# one\n---\na: 1\n"])
def test_what_cannot_be_tidied_without_loss_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="without changing it"):
        tidied(text)


SCALARS = st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n#: '\"-"), max_size=12)
KEYS = st.text("abc_# -:", min_size=1, max_size=4)
VALUES = st.recursive(
    SCALARS | TEXTS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=12
)
QUICK = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def dumped(value: Any, mapping: int, sequence: int, offset: int) -> str:
    out = io.StringIO()
    yaml = YAML(typ="rt", pure=True)
    yaml.indent(mapping=mapping, sequence=sequence, offset=offset)
    yaml.dump(value, out)
    return out.getvalue()


@given(
    st.dictionaries(KEYS, VALUES, min_size=1, max_size=4),
    st.sampled_from([(2, 2, 0), (4, 4, 2), (3, 5, 3)]),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), max_size=3),
)
@QUICK
def test_it_says_the_same_and_doing_it_again_changes_nothing(
    value: dict[str, Any], indent: tuple[int, int, int], comments: list[tuple[int, int]]
) -> None:
    lines = dumped(value, *indent).split("\n")
    for at, column in comments:
        lines.insert(at % len(lines), " " * column + "# said")
    before = read("\n".join(lines).encode(), "stack.yaml")
    assume(not before.faults)  # a comment may have fallen into a text of several lines
    try:
        once = tidied("\n".join(lines))
    except Refused:
        assert comments or any(sign in "\n".join(lines) for sign in "\"'|>")  # plain ones never are
        return
    assert repr(read(once.encode(), "stack.yaml").values) == repr(before.values)
    assert tidied(once) == once
    assert once.endswith("\n")
    assert not once.endswith("\n\n") or "|+" in once or ">+" in once


@given(st.text("ab:-# \n'\"[]{},|>?&*!%@~1\t", max_size=40))
@QUICK
def test_any_text_at_all_is_tidied_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        once = tidied(text)
        assert tidied(once) == once
        assert repr(read(once.encode(), "x").values) == repr(read(text.encode(), "x").values)


# -- the verb -------------------------------------------------------------------------------------------------------


def test_the_manifest_is_tidied_in_place(run: Run) -> None:
    path = Path("stack.yaml")
    path.write_text(UNTIDY, newline="")
    path.chmod(0o640)
    said = run("fmt")
    assert (said.code, said.out) == (0, "stack.yaml is now tidy\n")
    assert path.read_text() == TIDY
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (run("fmt").code, run("fmt").out) == (0, "")
    assert list(Path().iterdir()) == [path]


def test_check_names_what_would_change_and_changes_nothing(run: Run) -> None:
    Path("a.yaml").write_text("a:   1\n")
    Path("b.yaml").write_text("a: 1\n")
    said = run("fmt", "--check", "a.yaml", "b.yaml")
    assert (said.code, said.out) == (2, "a.yaml would be tidy\n")
    assert Path("a.yaml").read_text() == "a:   1\n"
    assert run("fmt", "--check", "b.yaml").code == 0
    assert run("fmt", "a.yaml", "b.yaml", "-o", "json").json == {
        "files": [{"file": "a.yaml", "changed": True}, {"file": "b.yaml", "changed": False}],
        "check": False,
    }


def test_a_link_stays_one(run: Run) -> None:
    Path("real.yaml").write_text("a:   1\n")
    Path("stack.yaml").symlink_to("real.yaml")
    assert run("fmt").code == 0
    assert Path("stack.yaml").is_symlink()
    assert Path("real.yaml").read_text() == "a: 1\n"


def test_where_one_file_cannot_be_read_none_is_touched(run: Run) -> None:
    Path("a.yaml").write_text("a:   1\n")
    Path("b.yaml").write_text("x: [\n")
    Path("c.yaml").mkdir()
    said = run("fmt", "a.yaml", "b.yaml", "c.yaml", "gone.yaml")
    assert said.code == 1
    for words in ("b.yaml:2:1: ", "c.yaml is not a file", "gone.yaml cannot be read"):
        assert words in said.err
    assert Path("a.yaml").read_text() == "a:   1\n"
