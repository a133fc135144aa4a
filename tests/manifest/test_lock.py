"""stack.lock: the same pins give the same bytes, a pin of another machine is kept, and damage is told by its place."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.diagnostics import Diagnostic, Refused, Where
from reconciler.core.ids import Ref, pin_key
from reconciler.core.state import HostFacts
from reconciler.kinds.engine.spec import EMBEDDED_VERSION
from reconciler.manifest import lock as locks
from reconciler.manifest.lock import Lock, beside, gaps, read
from reconciler.manifest.reading import Reading, pins_of, sources_of
from reconciler.manifest.resolve import resolve
from tests.manifest.helper import read_text

A, B = "a" * 64, "b" * 64
X, Y, XY = pin_key("file:x"), pin_key("pypi:y>=1", "*q8*"), pin_key("file:x", "y")
LINUX, MAC = (pin_key("pypi:z==1", "", platform) for platform in ("linux-x86_64-cp311", "macos-arm64-cp311"))
PINS: dict[str, dict[str, Any]] = {
    MAC: {"name": "z-mac.whl", "sha256": B},
    X: {"sha256": A, "size": 0, "name": "x", "licence": "mit", "header": B, "file_type": 7},
    Y: {"sha256": B, "size": 5, "name": "ü.gguf", "resolved": "pypi:y==1.2"},
    LINUX: {"name": "z-linux.whl", "sha256": A},
    XY: {"sha256": B},
}


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_the_text_of_a_lock() -> None:
    assert (
        Lock({Y: PINS[Y], X: PINS[X]}).text()
        == f"""\
{{
  "version": 1,
  "pins": [
    {{
      "source": "file:x",
      "name": "x",
      "size": 0,
      "sha256": "{A}",
      "file_type": 7,
      "header": "{B}",
      "licence": "mit"
    }},
    {{
      "source": "pypi:y>=1",
      "file": "*q8*",
      "resolved": "pypi:y==1.2",
      "name": "ü.gguf",
      "size": 5,
      "sha256": "{B}"
    }}
  ]
}}
"""
    )


def test_the_same_pins_give_the_same_bytes_in_whatever_order_they_were_learned() -> None:
    expected = Lock(PINS).text()
    assert expected == Lock().learned(PINS, PINS).text()
    for seed in range(20):
        order = random.Random(seed).sample(sorted(PINS), len(PINS))
        lock = Lock()
        for key in order:
            facts = dict(random.Random(seed).sample(sorted(PINS[key].items()), len(PINS[key])))
            lock = lock.learned({key: facts}, [key])
        assert lock.text() == expected
        assert lock.digest(order) == Lock(PINS).digest(PINS)


def test_what_was_written_is_what_is_read() -> None:
    text = Lock(PINS).text()
    assert read(text.encode(), "stack.lock") == Lock(PINS)
    assert read(text.encode(), "stack.lock").text() == text
    assert read(Lock().text().encode(), "stack.lock") == Lock()


sources = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
facts = st.fixed_dictionaries(
    {"sha256": st.sampled_from([A, B])},
    optional={"size": st.integers(0, 1 << 50), "name": sources, "resolved": sources, "extra": st.lists(sources)},
)


@given(st.dictionaries(st.builds(pin_key, sources, sources | st.just(""), sources | st.just("")), facts, max_size=5))
def test_any_pins_come_back_from_their_text(pins: dict[str, dict[str, Any]]) -> None:
    lock = read(Lock(pins).text().encode(), "stack.lock")
    assert lock == Lock(pins)
    assert lock.text() == Lock(pins).text()


def test_a_pin_that_is_added_touches_no_other_line() -> None:
    before = Lock({k: v for k, v in PINS.items() if k != XY}).text().splitlines()
    after = Lock(PINS).text().splitlines()
    rest = iter(after)
    assert all(line in rest for line in before), "what was there is there, in the same order"
    assert len(after) - len(before) == 5


def test_digests_are_of_the_pins_that_count_here() -> None:
    lock = Lock(PINS)
    assert lock.digest([X, LINUX]) == Lock({X: PINS[X], LINUX: PINS[LINUX]}).digest([LINUX, X, Y])
    assert lock.digest([X]) != lock.digest([Y]) != lock.digest([])
    other = lock.renewed({MAC: {"sha256": A}})
    assert other.digest([X, LINUX]) == lock.digest([X, LINUX])
    assert other.digest(PINS) != lock.digest(PINS)


def test_it_lies_beside_the_manifest() -> None:
    assert beside(Path("/etc/ai/stack.yaml")) == Path("/etc/ai/stack.lock")
    assert beside(Path("team.prod.yml")) == Path("team.prod.lock")


# -- learning ---------------------------------------------------------------------------------------------------------


def test_learning_adds_what_is_asked_for_and_contradicts_nothing() -> None:
    lock = Lock({X: PINS[X], MAC: PINS[MAC]})
    found = {X: {"sha256": B}, Y: PINS[Y], XY: PINS[XY]}
    learned = lock.learned(found, [X, Y, LINUX])
    assert learned.pins == {X: PINS[X], MAC: PINS[MAC], Y: PINS[Y]}
    assert learned.extends(lock, PINS)
    assert learned.learned(found, [X, Y, LINUX]) is learned


def test_renewing_takes_what_was_found_and_keeps_other_platforms() -> None:
    renewed = Lock(PINS).renewed({X: {"sha256": B}, LINUX: {"sha256": B}})
    assert renewed.pins == {**PINS, X: {"sha256": B}, LINUX: {"sha256": B}}
    assert not renewed.extends(Lock(PINS), [X])
    assert renewed.extends(Lock(PINS), [Y, MAC])


def test_pruning_drops_sources_that_nobody_names_on_any_platform() -> None:
    assert set(Lock(PINS).pruned({("file:x", "", ""), ("pypi:z==1", "", "")}).pins) == {X, LINUX, MAC}
    assert Lock(PINS).pruned([]).pins == {}


def test_a_lock_without_a_pin_does_not_extend_one_with_it() -> None:
    assert not Lock().extends(Lock({X: PINS[X]}), [X])
    assert Lock().extends(Lock({X: PINS[X]}), [Y])
    assert Lock(PINS).extends(Lock(), PINS)


# -- damage -----------------------------------------------------------------------------------------------------------


def wrong(text: str | bytes) -> list[Diagnostic]:
    with pytest.raises(Refused) as caught:
        read(text.encode() if isinstance(text, str) else text, "stack.lock")
    return list(caught.value.diagnostics)


def the_wrong(text: str | bytes) -> tuple[str, Where | None, str]:
    (fault,) = wrong(text)
    return fault.summary, fault.where, fault.hint


SIDES = f"""\
<<<<<<< HEAD
      "sha256": "{A}"
=======
      "sha256": "{B}"
>>>>>>> theirs"""
CONFLICT = Lock(PINS).text().replace(f'      "sha256": "{A}"', SIDES, 1)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (CONFLICT, 8),
        ("<<<<<<< ours\n{}\n=======\n{}\n>>>>>>> theirs\n", 1),
        ("{\n||||||| base\n", 2),
        ("{\n\n=======\n", 3),
        ("{\n>>>>>>> theirs", 2),
    ],
)
def test_conflict_markers_are_told_by_their_line(text: str, line: int) -> None:
    lines = text.splitlines()
    assert lines[line - 1][:7] in ("<<<<<<<", "|||||||", "=======", ">>>>>>>")
    summary, where, hint = the_wrong(text)
    assert (summary, where) == ("a merge left conflict markers in it", Where("stack.lock", line, 1))
    assert "git checkout --theirs" in hint
    assert "`reconcile lock`" in hint


def test_what_only_looks_like_a_marker_is_none() -> None:
    pins = {pin_key("file:======="): {"sha256": A, "name": "<<<<<<< HEAD\n=======\n"}}
    assert read(Lock(pins).text().encode(), "stack.lock") == Lock(pins)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("", 1, 1),
        ('{\n  "version": 1,\n  "pins": [}\n', 3, 12),
        ('{\n"version": 1 "pins": []}', 2, 14),
        ('{\n  "version": 1,\n  "pi', 3, 3),
        (b"\xff\xfe\x00", 1, 1),
        (b'{"version": "\xff"}', 1, 1),
    ],
)
def test_damage_is_told_by_line_and_column(text: str | bytes, line: int, column: int) -> None:
    summary, where, hint = the_wrong(text)
    assert summary.startswith("it is not JSON: ")
    assert where == Where("stack.lock", line, column)
    assert "`git checkout` the last good one" in hint


def test_a_lock_that_is_nested_without_end_is_refused() -> None:
    summary, _, _ = the_wrong("[" * 200_000)
    assert summary.startswith("it is not JSON")


@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"', "{}", '{"pins": []}', '{"version": 1, "pins": {}}'])
def test_other_json_is_no_lock(text: str) -> None:
    assert the_wrong(text)[:2] == ("it is not a lock", Where("stack.lock", 1, 1))


@pytest.mark.parametrize("pins", ["[]", "{}", '[{"uri": 1}]'])
def test_a_newer_format_is_refused_whatever_it_looks_like(pins: str) -> None:
    summary, where, hint = the_wrong(f'{{"version": 2, "pins": {pins}}}')
    assert (summary, where) == ("it has format 2; this version of reconcile knows 1", Where("stack.lock", 1, 1))
    assert "upgrade" in hint


def with_entry(change: Any) -> str:
    """The lock of PINS with its second pin made wrong."""
    document = json.loads(Lock(PINS).text())
    document["pins"][1] = change(document["pins"][1])
    return json.dumps(document, indent=2, ensure_ascii=False)


@pytest.mark.parametrize(
    ("change", "summary"),
    [
        (lambda e: {**e, "sha256": A[:-1]}, "its sha256 must have 64 lower-case hexadecimal digits"),
        (lambda e: {**e, "sha256": A + "a"}, "its sha256 must have 64 lower-case hexadecimal digits"),
        (lambda e: {**e, "sha256": A.upper()}, "its sha256 must have 64 lower-case hexadecimal digits"),
        (lambda e: {**e, "sha256": A + "\n"}, "its sha256 must have 64 lower-case hexadecimal digits"),
        (lambda e: {**e, "sha256": 5}, "its sha256 must have 64 lower-case hexadecimal digits"),
        (lambda e: {"source": e["source"]}, "its sha256 must have 64 lower-case hexadecimal digits"),
        (lambda e: {**e, "size": -1}, "its size must be a number of bytes"),
        (lambda e: {**e, "size": 1.0}, "its size must be a number of bytes"),
        (lambda e: {**e, "size": True}, "its size must be a number of bytes"),
        (lambda e: {**e, "size": "5"}, "its size must be a number of bytes"),
        (lambda e: {**e, "size": None}, "its size must be a number of bytes"),
        (lambda e: {**e, "source": ""}, "has no source"),
        (lambda e: {**e, "source": 1}, "has no source"),
        (lambda e: {**e, "file": ["x"]}, "has no source"),
        (lambda e: {k: v for k, v in e.items() if k != "source"}, "has no source"),
        (lambda e: [], "must be a mapping"),
        (lambda e: "file:x", "must be a mapping"),
    ],
)  # fmt: skip
def test_a_wrong_pin_is_told(change: Any, summary: str) -> None:
    found, _, hint = the_wrong(with_entry(change))
    assert found == f"pin 2: {summary}"
    assert hint


def test_wrong_pins_are_told_all_at_once_each_by_its_line() -> None:
    text = Lock(PINS).text().replace(A, "no")
    lines = text.splitlines()
    found = wrong(text)
    assert [f.summary[:5] for f in found] == ["pin 1", "pin 4"]
    for fault in found:
        assert fault.where is not None
        assert lines[fault.where.line - 1] == "    {"
        assert "no" in "".join(lines[fault.where.line : fault.where.line + 5])


def test_a_pin_that_is_there_twice_is_told_by_the_line_of_the_second() -> None:
    document = json.loads(Lock(PINS).text())
    document["pins"].append({**document["pins"][0], "sha256": B})
    text = json.dumps(document, indent=2, ensure_ascii=False)
    summary, where, _ = the_wrong(text)
    assert summary == "pin 6: file:x is pinned twice"
    begins = [number for number, line in enumerate(text.splitlines(), 1) if line == "    {"]
    assert where == Where("stack.lock", begins[5], 1)


# -- a lock and its manifest ------------------------------------------------------------------------------------------

HOST = HostFacts(os="linux", arch="x86_64")
TEXT = """\
version: 1
models:
  a: {source: file:x}
  b: {source: "https://host/m.gguf?token=hunter2", file: y}
  c: {source: "pypi:z>=1", when: host.os == "macos"}
"""
TOKEN = pin_key("https://host/m.gguf?token=hunter2", "y")
ENGINE = pin_key(f"pypi:xllamacpp=={EMBEDDED_VERSION}", "", "linux-x86_64-cp311")


def both(text: str, pins: dict[str, dict[str, Any]]) -> tuple[Reading, dict[Ref, Any]]:
    manifest, lock = read_text(text), Lock(pins)
    return Reading(manifest, lock), dict(resolve(manifest, "cp311", HOST, lock))


def test_a_pin_is_needed_for_each_model_and_wheel_of_this_machine() -> None:
    _, resources = both(TEXT, {})
    assert {key: str(needs[0].ref) for key, needs in pins_of(resources).items()} == {
        X: "model/a",
        TOKEN: "model/b",
        ENGINE: "engine/embedded",
    }


def test_what_is_not_pinned_is_told_where_it_is_declared_and_without_its_token() -> None:
    made, resources = both(TEXT, {X: PINS[X]})
    found = {f.path: f for f in made.gaps(resources)}
    assert found.keys() == {"model/b", "engine/embedded"}
    assert found["model/b"].summary == "https://host/m.gguf?… is not pinned in the lock"
    assert found["model/b"].where == Where("stack.yaml", 4, 3)
    assert found["model/b"].hint == "run `reconcile lock`"
    assert found["engine/embedded"].where is None
    made, resources = both(TEXT, {X: PINS[X], TOKEN: {"sha256": A}, ENGINE: {"sha256": A}})
    assert made.gaps(resources) == []
    assert list(gaps(Lock(), {})) == []


def test_a_pin_that_the_manifest_contradicts_does_not_count() -> None:
    text = TEXT.replace("file:x}", f"file:x, sha256: {B}}}")
    made, resources = both(text, {X: PINS[X], TOKEN: {"sha256": A}})
    assert made.agreed(resources).pins == {TOKEN: {"sha256": A}}
    assert "model/a" in [gap.path for gap in made.gaps(resources)]
    spec = resources[Ref("model", "a")].spec
    assert (spec.sha256, spec.locked, spec.resolved) == (B, "", "")
    made, resources = both(text, {X: {"sha256": B}})
    assert made.agreed(resources) is made.lock
    assert resources[Ref("model", "a")].spec.locked == B


def test_what_the_lock_says_enters_a_spec_and_not_its_identity() -> None:
    pins = {X: {"sha256": A, "resolved": "file:/x"}, ENGINE: {"sha256": B}}
    _, without = both(TEXT, {})
    _, with_ = both(TEXT, pins)
    model, engine = Ref("model", "a"), Ref("engine", "embedded")
    assert (with_[model].spec.locked, with_[model].spec.resolved) == (A, "file:/x")
    assert with_[engine].spec.locked == B
    for ref in with_:
        assert with_[ref].digest == without[ref].digest, "a lock that learns changes nothing that runs"
    changed = {ref for ref in with_ if with_[ref].attempt != without[ref].attempt}
    assert changed == {model, engine}, "but what failed is tried again"


def test_sources_are_named_whatever_machine_they_are_for() -> None:
    default = (f"pypi:xllamacpp=={EMBEDDED_VERSION}", "", "")
    named = sources_of(read_text(TEXT).stack)
    assert named == {
        ("file:x", "", ""),
        ("https://host/m.gguf?token=hunter2", "y", ""),
        ("pypi:z>=1", "", ""),
        default,
    }
    other = read_text("version: 1\nengines: {e: {type: embedded, version: '1.0'}}\n").stack
    assert sources_of(other) == {("pypi:xllamacpp==1.0", "", ""), default}


def test_the_module_knows_one_format() -> None:
    assert json.loads(Lock().text())["version"] == locks.FORMAT == 1
