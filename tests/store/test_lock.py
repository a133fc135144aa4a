"""One controller for one data root, for as long as it lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Exit, Refused
from reconciler.host.effects import Effects
from reconciler.host.files import Files
from reconciler.host.layout import Layout
from reconciler.store.lock import RootLock, owner
from tests.support.processes import kill9

HOLD = """
import sys, time
from pathlib import Path
from reconciler.host.effects import Effects
from reconciler.host.files import Files
from reconciler.host.layout import Layout
from reconciler.store.lock import RootLock

lock = RootLock(Layout(Path(sys.argv[1])), Files(Effects()))
lock.acquire("/srv/stack.yaml")
print("held", flush=True)
time.sleep(100)
"""

Hold = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def hold(layout: Layout) -> Iterator[Hold]:
    """Starts a process that holds the lock."""
    children: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", HOLD, str(layout.root)], stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        return child

    yield start
    for child in children:
        kill9(child.pid)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_a_second_controller_is_refused_and_told_who_holds_it(layout: Layout, files: Files, hold: Hold) -> None:
    child = hold()
    with pytest.raises(Refused) as caught:
        RootLock(layout, files).acquire("/other.yaml")
    assert caught.value.exit_code is Exit.LOCKED == 4
    (diagnostic,) = caught.value.diagnostics
    assert f"pid {child.pid}," in diagnostic.summary
    assert "/srv/stack.yaml" in diagnostic.summary
    assert str(layout.root) in diagnostic.summary
    assert "--data-root" in diagnostic.hint
    note = owner(layout)
    assert note is not None
    assert (note["pid"], note["manifest"]) == (child.pid, "/srv/stack.yaml")


def test_the_lock_dies_with_its_holder(layout: Layout, files: Files, hold: Hold) -> None:
    child = hold()
    kill9(child.pid)
    assert layout.owner.exists()  # it had no time to take its note away
    assert owner(layout) is None
    lock = RootLock(layout, files)
    lock.acquire("/mine.yaml")
    note = owner(layout)
    assert note is not None
    assert (note["pid"], note["manifest"]) == (os.getpid(), "/mine.yaml")
    lock.release()


def test_a_released_lock_leaves_no_owner_and_can_be_taken(layout: Layout, files: Files, hold: Hold) -> None:
    lock = RootLock(layout, files)
    lock.acquire("/a.yaml")
    lock.release()
    assert owner(layout) is None
    assert not layout.owner.exists()
    hold()


def test_two_roots_do_not_disturb_each_other(tmp_path: Path, layout: Layout, files: Files, hold: Hold) -> None:
    hold()
    lock = RootLock(Layout(tmp_path / "other"), files)
    lock.acquire("/b.yaml")
    lock.release()


def test_a_locked_root_without_a_note_is_still_locked(layout: Layout, files: Files, hold: Hold) -> None:
    hold()
    layout.owner.write_text("{")
    with pytest.raises(Refused, match="locked by another process") as caught:
        RootLock(layout, files).acquire("/other.yaml")
    assert caught.value.exit_code is Exit.LOCKED


def test_a_refused_controller_leaves_the_owners_note(layout: Layout, files: Files, hold: Hold) -> None:
    hold()
    before = layout.owner.read_bytes()
    with pytest.raises(Refused):
        RootLock(layout, files).acquire("/other.yaml")
    assert layout.owner.read_bytes() == before


NOTES = {
    "empty": "",
    "a list": "[]",
    "nothing in it": "{}",
    "no pid": '{"pid": "x", "start": "1", "boot": "b"}',
    "a pid that was reused": json.dumps({"pid": os.getpid(), "start": "1", "boot": "b"}),
}


@pytest.mark.parametrize("note", NOTES.values(), ids=NOTES.keys())
def test_a_note_that_names_nobody_alive_counts_for_nothing(layout: Layout, note: str) -> None:
    layout.run.mkdir()
    layout.owner.write_text(note)
    assert owner(layout) is None


def test_a_root_that_cannot_be_made_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"cannot be (made|written)") as caught:
        RootLock(Layout(tmp_path / "file" / "root"), Files(Effects())).acquire("/a.yaml")
    assert caught.value.exit_code is Exit.ERROR
    assert "--data-root" in caught.value.diagnostics[0].hint


def test_what_the_lock_leaves_is_private(layout: Layout, files: Files) -> None:
    lock = RootLock(layout, files)
    lock.acquire("/a.yaml")
    assert [path.stat().st_mode & 0o077 for path in (layout.run, layout.owner, layout.lock)] == [0, 0, 0]
    lock.release()
