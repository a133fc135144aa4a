"""Whatever has a number can be gone back to: kept whole, found again after the ledger was lost, and never confused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, Refused
from reconciler.host.files import Files
from reconciler.host.layout import Layout
from reconciler.store.generations import Generation, Generations, Promise, Texts
from reconciler.store.ledger import Ledger

ROOT = Path("/etc/ai stack/stäck.yaml")
BYTES = "\ufeffversion: 1\r\n# ü 🙂 \u2028\n".encode()
TEXTS = Texts(ROOT, {ROOT: BYTES, Path("/etc/team/a.yaml"): b""}, '{"version": 1, "pins": []}\n')


@pytest.fixture
def ledger(layout: Layout, files: Files) -> Iterator[Ledger]:
    ledger = Ledger.write(layout.ledger, files.effects)
    yield ledger
    ledger.close()


@pytest.fixture
def made(layout: Layout, files: Files, ledger: Ledger) -> Generations:
    return Generations(layout, files, ledger)


def add(made: Generations, *digests: str) -> list[int]:
    return [made.add(digest, "", TEXTS).number for digest in digests]


def kept(layout: Layout) -> list[str]:
    return sorted(path.name for path in layout.generations.iterdir())


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_before_the_first_there_is_nothing(made: Generations) -> None:
    assert (made.current, made.held, made.promise, made.all()) == (0, "", None, [])
    assert made.get(0) is made.get(1) is made.before(0) is made.before(9) is None


def test_each_is_numbered_and_in_force_and_the_same_again_keeps_its_number(made: Generations) -> None:
    assert add(made, "a", "a", "b", "a") == [1, 1, 2, 3]
    assert made.current == 3
    assert [(g.number, g.digest, g.state) for g in made.all()] == [
        (1, "a", "superseded"),
        (2, "b", "superseded"),
        (3, "a", "applying"),
    ]


def test_another_lock_or_other_targets_make_another_one(made: Generations) -> None:
    numbers = [made.add("a", "", TEXTS), made.add("a", "l", TEXTS), made.add("a", "l", TEXTS, ("model/a", "model/b"))]
    assert [g.number for g in numbers] == [1, 2, 3]
    last = made.get(3)
    assert last is not None
    assert (last.locked, last.targets) == ("l", ("model/a", "model/b"))
    assert made.add("a", "l", TEXTS, ("model/a", "model/b")) == last


def test_a_number_is_never_given_twice_after_going_back(made: Generations) -> None:
    add(made, "a", "b")
    made.switch(1, held="what the files say")
    assert (made.current, made.held) == (1, "what the files say")
    assert add(made, "c") == [3]
    assert (made.current, made.held) == (3, "")


def test_taking_what_is_in_force_ends_the_hold(made: Generations) -> None:
    add(made, "a", "b")
    made.switch(1, held="x")
    assert add(made, "a") == [1]
    assert made.held == ""


def test_it_all_outlives_the_process(made: Generations, layout: Layout, files: Files, ledger: Ledger) -> None:
    first = made.add("a", "l", TEXTS, ("server/chat",))
    made.mark(1, "ready", "routes")
    made.switch(1, held="h")
    made.set_promise(Promise(2, 1, 1234.5))
    ledger.close()
    with Ledger.write(layout.ledger, files.effects) as again:
        other = Generations(layout, files, again)
        assert other.get(1) == Generation(1, first.at, "a", str(ROOT), "ready", "l", "", "routes", ("server/chat",))
        assert (other.current, other.held, other.promise) == (1, "h", Promise(2, 1, 1234.5))


def test_a_promise_ends_with_going_back_or_by_itself(made: Generations) -> None:
    add(made, "a", "b")
    made.set_promise(Promise(2, 1, 5.0))
    made.switch(1, held="")
    assert made.promise is None
    made.set_promise(Promise(2, 1, 5.0))
    made.set_promise(None)
    assert made.promise is None


def test_before_prefers_the_newest_that_was_ready(made: Generations) -> None:
    add(made, "a", "b", "c", "d")
    last = made.before(4)
    assert last is not None
    assert last.number == 3, "none was ready: simply the one before"
    made.mark(1, "ready")
    made.mark(2, "ready")
    made.mark(3, "failed")
    assert [g and g.number for g in map(made.before, (1, 2, 3, 4))] == [None, 1, 2, 2]


# -- texts ------------------------------------------------------------------------------------------------------------


def test_texts_come_back_byte_for_byte(made: Generations) -> None:
    add(made, "a")
    assert made.texts(1) == TEXTS


def test_what_is_kept_is_private(made: Generations, layout: Layout) -> None:
    add(made, "a")
    assert (layout.generations / "1.json").stat().st_mode & 0o077 == 0


def test_a_text_is_kept_before_it_has_a_number(made: Generations, layout: Layout) -> None:
    layout.generations.write_text("a file is in the way")
    with pytest.raises(Fault, match="cannot be made"):
        add(made, "a")
    assert (made.all(), made.current) == ([], 0)


def test_the_first_release_kept_a_manifest_alone(made: Generations, layout: Layout) -> None:
    add(made, "a")
    (layout.generations / "1.json").unlink()
    (layout.generations / "1.yaml").write_bytes(BYTES)
    assert made.texts(1) == Texts(ROOT, {ROOT: BYTES}, "")


def test_what_is_not_kept_is_refused(made: Generations, layout: Layout) -> None:
    add(made, "a")
    (layout.generations / "1.json").unlink()
    for number in (0, 1, 7):
        with pytest.raises(Refused, match=f"generation {number} is not kept here") as caught:
            made.texts(number)
        assert "`reconcile history`" in caught.value.diagnostics[0].hint


DAMAGED = ["", "{", "[]", "null", "1", '"text"', "{}", '{"root": "/x", "files": [], "lock": ""}', "\x00" * 40]


@pytest.mark.parametrize("text", [*DAMAGED, '{"root": "/x", "files": {"/x": 1}, "lock": ""}'])
def test_a_damaged_one_is_refused_by_its_path(made: Generations, layout: Layout, text: str) -> None:
    add(made, "a")
    path = layout.generations / "1.json"
    path.write_text(text)
    with pytest.raises(Refused, match="generation 1 cannot be read from") as caught:
        made.texts(1)
    assert str(path) in str(caught.value)


def test_a_relock_keeps_the_number_and_changes_only_the_lock(made: Generations, layout: Layout) -> None:
    first = made.add("a", "old", TEXTS)
    learned = Texts(TEXTS.root, TEXTS.files, "the new lock")
    made.relock(1, "new", learned)
    (now,) = made.all()
    assert (now.number, now.at, now.digest, now.locked) == (1, first.at, "a", "new")
    assert made.texts(1) == learned
    path = layout.generations / "1.json"
    before = path.stat().st_mtime_ns
    made.relock(1, "new", learned)
    made.relock(5, "new", learned)
    assert path.stat().st_mtime_ns == before
    assert kept(layout) == ["1.json"]


# -- a ledger that was lost -------------------------------------------------------------------------------------------


@pytest.fixture
def lose(ledger: Ledger, layout: Layout, files: Files) -> Iterator[Callable[[], Generations]]:
    """Takes the ledger away and begins a new one."""
    opened: list[Ledger] = []

    def take_away() -> Generations:
        ledger.close()
        for path in layout.root.glob("ledger.db*"):
            path.unlink()
        opened.append(Ledger.write(layout.ledger, files.effects))
        return Generations(layout, files, opened[-1])

    yield take_away
    for each in opened:
        each.close()


def test_a_lost_ledger_numbers_again_what_is_kept(made: Generations, lose: Callable[[], Generations]) -> None:
    for number in range(1, 12):
        made.add(f"d{number}", f"l{number}", TEXTS, ("model/a",) if number == 3 else ())
    before = made.all()
    again = lose()
    assert again.recall() == 11
    assert [(g.number, g.at, g.digest, g.manifest, g.locked, g.targets) for g in again.all()] == [
        (g.number, g.at, g.digest, g.manifest, g.locked, g.targets) for g in before
    ]
    assert {g.state for g in again.all()} == {"ready"}
    assert again.current == 11, "by number, not by name"
    assert again.texts(2) == TEXTS
    assert add(again, "new") == [12]


def test_recall_passes_over_what_is_damaged(made: Generations, layout: Layout, lose: Callable[[], Generations]) -> None:
    add(made, *"abcde")
    (layout.generations / "2.json").write_text("{")
    (layout.generations / "4.json").write_bytes(b"\xff\xfe")
    document = json.loads((layout.generations / "5.json").read_text())
    (layout.generations / "5.json").write_text(json.dumps({**document, "targets": 3}))
    again = lose()
    assert again.recall() == 2
    assert ([g.number for g in again.all()], again.current) == ([1, 3], 3)


@pytest.mark.parametrize("name", ["2 (copy).json", "1.json", "02.json", "2.json.json"])
def test_recall_passes_over_a_copy_under_another_name(
    made: Generations, layout: Layout, lose: Callable[[], Generations], name: str
) -> None:
    add(made, "a", "b")
    (layout.generations / name).write_bytes((layout.generations / "2.json").read_bytes())
    again = lose()
    again.recall()
    assert [g.number for g in again.all()] == ([2] if name == "1.json" else [1, 2])


def test_recall_of_nothing(made: Generations) -> None:
    assert made.recall() == 0
    assert made.current == 0
