"""Conditions are checked before they are used, and cannot hang or crash what evaluates them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.diagnostics import Refused
from reconciler.core.section import Section
from reconciler.core.state import HostFacts
from reconciler.manifest.read import read
from reconciler.manifest.when import FACTS, MAX_LENGTH, dropped, holds, problem

GIB = 1 << 30
BOX = HostFacts(15 * GIB + GIB // 2, 0, "linux", "x86_64", 8, "nvidia", (("team", "ml"),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host.os == 'linux'", True),
        ("host.os in ['macos', 'windows']", False),
        ("host.arch == 'x86_64' && host.cpu >= 8", True),
        ("host.cpu > 8", False),
        ("host.memory_gib == 16", True),
        ("host.gpu != ''", True),
        ("host.gpu == 'apple' || host.memory_gib >= 32", False),
        ("host.labels.team == 'ml'", True),
        ("'x' in host.labels && host.labels.x == 'y'", False),
        ("host.os.startsWith('lin')", True),
    ],
)
def test_a_condition_is_true_or_false_of_a_machine(text: str, expected: bool) -> None:
    assert problem(text) == ""
    assert holds(text, BOX) is expected


def test_every_fact_can_be_used() -> None:
    for fact in FACTS:
        assert problem(f"{fact} == {fact}") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host.oz == 'linux'", "there is no 'host.oz'; did you mean 'host.os'?"),
        ("memory > 3", "there is no 'memory'; one of: host.arch, host.cpu, host.gpu, host.labels"),
        ("host.cpu", "the condition gives int, but must be true or false, such as `host.memory_gib >= 16`"),
        ("dyn(true)", "the condition gives dyn"),
        ("host.memory_gib >= 8.5", "'>=' cannot be applied to (int, double) in column 17; write whole numbers"),
        ("host.cpu > '4'", "'>' cannot be applied to (int, string) in column 10; texts are quoted"),
        ("host.memory_gib >=", "not a condition: mismatched input '<EOF>' in column 19; write it as in"),
        ("", "not a condition: mismatched input '<EOF>'"),
        ("(" * 400 + "true" + ")" * 400, "the condition is nested too deeply"),
        ("true" + " " * MAX_LENGTH, "the condition has 1004 characters; 1000 are the limit"),
        ("'\ud800' == ''", "not a condition"),
    ],
)
def test_what_is_no_condition_is_told_in_plain_words(text: str, expected: str) -> None:
    assert problem(text).startswith(expected)
    assert "\n" not in problem(text)
    with pytest.raises(Refused):
        holds(text, BOX)


@pytest.mark.parametrize(
    ("text", "summary", "hint"),
    [
        ("host.labels.site == 'b'", "no label 'site'", "`'site' in host.labels && …`"),
        ("host.labels['a b'] == ''", "no label 'a b'", "`'a b' in host.labels && …`"),
        ("1 / (host.cpu - 8) == 1", "divide by zero", ""),
        ("9223372036854775807 + host.cpu > 0", "integer overflow", ""),
    ],
)
def test_a_condition_that_cannot_be_evaluated_says_why(text: str, summary: str, hint: str) -> None:
    assert problem(text) == ""
    with pytest.raises(Refused) as caught:
        holds(text, BOX)
    (fault,) = caught.value.diagnostics
    assert summary in fault.summary
    assert hint in fault.hint


def test_nested_comprehensions_end_in_time() -> None:
    text = "true"
    for name in "abcdefgh":
        text = f"[1,2,3,4,5,6,7,8,9,0].all({name}, {text})"
    started = time.monotonic()
    with pytest.raises(Refused, match="too many steps"):
        holds(text, BOX)
    assert time.monotonic() - started < 2


@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from([*FACTS, "(", ")", "&&", "'", "==", "1", "[", "]", "."])).map("".join)
)
@settings(max_examples=300, derandomize=True, deadline=None, database=None)
def test_any_text_at_all_is_judged(text: str) -> None:
    if not problem(text):
        with contextlib.suppress(Refused):
            assert holds(text, BOX) in (True, False)


class Entry(Section):
    when: str = ""


class Sections(Section):
    version: int = 1
    models: dict[str, Entry] = {}
    routes: dict[str, Entry] = {}


def entries(**conditions: str) -> dict[str, Any]:
    return {name: Entry(when=text) for name, text in conditions.items()}


def test_entries_that_are_not_for_this_machine_are_dropped() -> None:
    stack = Sections(
        models=entries(always="", here="host.cpu == 8", there="host.os == 'macos'"), routes=entries(there="false")
    )
    assert dropped(stack, BOX) == {("models", "there"), ("routes", "there")}


def test_every_condition_that_fails_is_told_with_its_place() -> None:
    text = b"models:\n  a: {when: host.labels.x == ''}\nroutes:\n  b: {when: 1/0 == 1}\n"
    stack = Sections(models=entries(a="host.labels.x == ''"), routes=entries(b="1/0 == 1"))
    with pytest.raises(Refused) as caught:
        dropped(stack, BOX, read(text, "stack.yaml"))
    assert [(d.path, str(d.where)) for d in caught.value.diagnostics] == [
        ("models.a.when", "stack.yaml:2:13"),
        ("routes.b.when", "stack.yaml:4:13"),
    ]


def test_entries_without_the_key_are_kept_and_cel_is_not_loaded() -> None:
    code = (
        "import sys; from pathlib import Path; from reconciler.manifest.parse import check;"
        "from reconciler.core.state import HostFacts; from reconciler.manifest.when import dropped;"
        "stack = check(b'version: 1\\nmodels: {a: {source: file:x}}', Path('stack.yaml')).stack;"
        "assert dropped(stack, HostFacts()) == set(); assert 'cel_expr_python' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
