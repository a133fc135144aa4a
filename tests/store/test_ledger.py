"""The ledger remembers what was committed, whoever dies, and obeys one writer only."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.diagnostics import Fault, FaultClass, Refused
from reconciler.core.ids import Ref
from reconciler.core.state import Trouble
from reconciler.core.status import yes
from reconciler.host.effects import Effects
from reconciler.host.process import Identity
from reconciler.store.ledger import Ledger
from reconciler.store.schema import EVENTS_KEPT, VERSION

CHAT, EMBED = Ref("model", "chat"), Ref("model", "embed")
Open = Callable[[], Ledger]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "a root" / "50% #1?"  # signs that mean something in a URI
    folder.mkdir(parents=True)
    return folder / "ledger.db"


@pytest.fixture
def write(path: Path, effects: Effects) -> Iterator[Open]:
    opened: list[Ledger] = []

    def make() -> Ledger:
        opened.append(Ledger.write(path, effects))
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.close()


@pytest.fixture
def read(path: Path) -> Iterator[Open]:
    opened: list[Ledger] = []

    def make() -> Ledger:
        opened.append(Ledger.read(path))
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.close()


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file with its bytes, mode and time of change."""
    found = {}
    for file in sorted(folder.iterdir()):
        info = file.stat()
        found[file.name] = (file.read_bytes(), info.st_mode, info.st_mtime_ns)
    return found


# -- who and what ---------------------------------------------------------------------------------------------------


def test_a_new_ledger_is_private_and_empty(write: Open, path: Path) -> None:
    ledger = write()
    assert path.stat().st_mode & 0o777 == 0o600
    assert (ledger.epoch, ledger.serial) == (1, 0)
    assert len(ledger.lineage) == 36
    empty: list[Any] = [ledger.owned(), ledger.processes(), ledger.open_operations(), ledger.artifacts(), ledger.pins()]
    assert not any([*empty, ledger.troubles(), ledger.events(), ledger.conditions(), ledger.restored()])


def test_what_is_owned_comes_back_and_the_serial_counts_changes_only(write: Open) -> None:
    ledger = write()
    ledger.own(CHAT, "d1", {"b": 1, "a": ["ü", None, 1.5, True]})
    ledger.own(EMBED, "d2", {})
    assert ledger.serial == 2
    for _ in range(3):
        ledger.own(CHAT, "d1", {"a": ["ü", None, 1.5, True], "b": 1})
    assert ledger.serial == 2
    owned = ledger.owned()
    assert list(owned) == [CHAT, EMBED]
    assert (owned[CHAT].digest, owned[CHAT].spec) == ("d1", {"a": ["ü", None, 1.5, True], "b": 1})
    ledger.own(CHAT, "d3", {"b": 1, "a": ["ü", None, 1.5, True]})
    ledger.disown(EMBED)
    assert ledger.serial == 4
    assert {ref: o.digest for ref, o in ledger.owned().items()} == {CHAT: "d3"}


def test_a_ledger_keeps_its_lineage_and_each_writer_has_a_new_epoch(write: Open) -> None:
    first = write()
    first.own(CHAT, "d", {})
    first.close()
    second = write()
    assert (second.lineage, second.serial, second.epoch) == (second.lineage, 1, first.epoch + 1)
    assert second.owned().keys() == {CHAT}


def test_two_ledgers_have_two_lineages(tmp_path: Path, effects: Effects) -> None:
    ledgers = [Ledger.write(tmp_path / name, effects) for name in ("a", "b")]
    assert ledgers[0].lineage != ledgers[1].lineage
    for ledger in ledgers:
        ledger.close()


# -- journal, processes, artefacts ----------------------------------------------------------------------------------


def test_an_intent_without_an_outcome_stays_open_over_a_restart(write: Open) -> None:
    ledger = write()
    one = ledger.begin(CHAT, "fetch", {"part": "p"})
    two = ledger.begin(EMBED, "fetch", {})
    ledger.end(two, "done")
    assert one < two
    ledger.close()
    (left,) = write().open_operations()
    assert (left.seq, left.ref, left.verb, left.intent) == (one, CHAT, "fetch", {"part": "p"})


def test_the_journal_is_bounded_but_never_forgets_what_is_open(write: Open, path: Path) -> None:
    ledger = write()
    forgotten = ledger.begin(CHAT, "fetch", {})
    with sqlite3.connect(path) as db:
        rows = [(1, "model/x", "v", "{}", 1.0, 1.0, "done")] * (EVENTS_KEPT + 500)
        db.executemany(
            "INSERT INTO journal (epoch, ref, verb, intent, opened, closed, outcome) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
        )
    db.close()
    ledger.end(ledger.begin(EMBED, "fetch", {}), "done")
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM journal").fetchone()[0] <= EVENTS_KEPT + 1
    db.close()
    assert [o.seq for o in ledger.open_operations()] == [forgotten]


def test_a_process_is_known_before_it_exists_and_until_it_is_forgotten(write: Open) -> None:
    ledger, who = write(), Identity(4711, "123456", "boot-1")
    ledger.intend_process("n1", Ref("server", "chat"), "d", "127.0.0.1", 8080, {"model": "x"}, Path("/log"))
    (row,) = ledger.processes()
    assert (row.identity, row.ready, row.retiring) == (None, None, None)
    assert (row.ref, row.port, row.inputs, row.log) == (Ref("server", "chat"), 8080, {"model": "x"}, "/log")
    ledger.record_spawned("n1", who)
    ledger.record_ready("n1")
    ledger.record_retiring("n1")
    (row,) = ledger.processes()
    assert row.identity == who
    assert row.ready is not None
    assert row.retiring is not None
    ledger.record_ready("n1")
    ledger.record_retiring("n1")
    assert ledger.processes() == [row]
    ledger.forget_process("n1")
    assert ledger.processes() == []


def test_artefacts_and_pins_come_back(write: Open) -> None:
    ledger = write()
    ledger.record_artifact("a" * 64, 5, "1:5:1")
    ledger.record_artifact("a" * 64, 6, "1:6:2")
    found = ledger.artifact("a" * 64)
    assert found is not None
    assert (found.size, found.token) == (6, "1:6:2")
    assert [a.digest for a in ledger.artifacts()] == ["a" * 64]
    assert ledger.artifact("b" * 64) is None
    ledger.forget_artifact("a" * 64)
    assert ledger.artifacts() == []
    ledger.pin("pypi:x", {"sha256": "1", "size": 5})
    ledger.pin("pypi:x", {"sha256": "2", "size": 6})
    assert ledger.pins() == {"pypi:x": {"sha256": "2", "size": 6}}


# -- troubles, events -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FaultClass)
def test_a_trouble_comes_back_as_it_was(write: Open, kind: FaultClass) -> None:
    trouble = Trouble("d", 3, 1234.5, "DISK_FULL", "no röom", "free some", kind, 7.5)
    ledger = write()
    ledger.set_trouble(CHAT, trouble)
    ledger.close()
    ledger = write()
    assert ledger.troubles() == {CHAT: trouble}
    ledger.set_trouble(CHAT, None)
    ledger.set_trouble(EMBED, None)
    assert ledger.troubles() == {}
    assert ledger.serial == 0


def test_a_trouble_goes_with_its_resource(write: Open) -> None:
    ledger = write()
    ledger.own(CHAT, "d", {})
    ledger.set_trouble(CHAT, Trouble("d", 1, 1.0, "C", "m", "", FaultClass.TRANSIENT))
    ledger.disown(CHAT)
    assert ledger.troubles() == {}


def test_events_come_in_order_and_are_told_to_who_follows(write: Open) -> None:
    ledger = write()
    heard: list[dict[str, Any]] = []
    ledger.on_event = heard.append
    for number in range(5):
        ledger.event("model/chat", "Fetched", f"m{number}")
    events = ledger.events()
    assert events == heard
    assert [e["message"] for e in events] == ["m0", "m1", "m2", "m3", "m4"]
    assert [e["message"] for e in ledger.events(after=events[2]["seq"])] == ["m3", "m4"]
    assert [e["message"] for e in ledger.events(limit=2)] == ["m3", "m4"]


def test_events_are_bounded_and_the_newest_stay(write: Open, path: Path) -> None:
    ledger = write()
    with sqlite3.connect(path) as db:
        rows = [(1.0, "model/x", "Old", str(i)) for i in range(EVENTS_KEPT + 500)]
        db.executemany("INSERT INTO events (at, ref, type, message) VALUES (?, ?, ?, ?)", rows)
    db.close()
    ledger.event("model/chat", "New", "the last")
    events = ledger.events(limit=10 * EVENTS_KEPT)
    assert len(events) == EVENTS_KEPT
    assert events[-1]["message"] == "the last"
    assert events[0]["message"] == "501"


# -- one writer -----------------------------------------------------------------------------------------------------

WRITES: list[tuple[str, Callable[[Ledger], object]]] = [
    ("own", lambda ledger: ledger.own(EMBED, "d", {})),
    ("disown", lambda ledger: ledger.disown(CHAT)),
    ("begin", lambda ledger: ledger.begin(CHAT, "v", {})),
    ("end", lambda ledger: ledger.end(1, "done")),
    ("intend", lambda ledger: ledger.intend_process("n", CHAT, "d", "h", 1, {}, Path("/l"))),
    ("spawned", lambda ledger: ledger.record_spawned("old", Identity(1, "1", "1"))),
    ("ready", lambda ledger: ledger.record_ready("old")),
    ("retiring", lambda ledger: ledger.record_retiring("old")),
    ("forget", lambda ledger: ledger.forget_process("old")),
    ("artifact", lambda ledger: ledger.record_artifact("a", 1, "t")),
    ("forget artifact", lambda ledger: ledger.forget_artifact("old")),
    ("pin", lambda ledger: ledger.pin("s", {})),
    ("trouble", lambda ledger: ledger.set_trouble(CHAT, Trouble("d", 1, 1.0, "C", "m", "", FaultClass.TRANSIENT))),
    ("event", lambda ledger: ledger.event("r", "t", "m")),
    ("meta", lambda ledger: ledger.set_meta(current="1")),
    ("protect", lambda ledger: ledger.protect({CHAT: True})),
    ("conditions", lambda ledger: ledger.set_conditions({CHAT: (yes("Ready", "Verified"),)}, {EMBED: ()})),
    ("restored", lambda ledger: ledger.note_restored(CHAT, "it was gone")),
]


def contents(path: Path) -> str:
    """Every row of every table."""
    db = sqlite3.connect(path)
    try:
        return "\n".join(db.iterdump())
    finally:
        db.close()


def test_a_writer_that_was_overtaken_can_change_nothing(write: Open, path: Path) -> None:
    old = write()
    old.own(CHAT, "d", {})
    old.begin(CHAT, "v", {})
    old.record_artifact("old", 1, "t")
    old.intend_process("old", CHAT, "d", "h", 1, {}, Path("/l"))
    new = write()
    before = contents(path)
    told: list[dict[str, Any]] = []
    old.on_event = told.append
    for name, attempt in WRITES:
        with pytest.raises(Fault) as caught:
            attempt(old)
        assert (caught.value.code, caught.value.kind) == ("LOCK_LOST", FaultClass.PERMANENT), name
    assert contents(path) == before
    assert told == []
    new.own(EMBED, "d", {})
    assert old.owned().keys() == new.owned().keys() == {CHAT, EMBED}


def test_a_reader_can_change_nothing(write: Open, read: Open, path: Path) -> None:
    write().close()
    before = contents(path)
    for _, attempt in WRITES:
        with pytest.raises(PermissionError, match="only looking"):
            attempt(read())
    assert contents(path) == before


def test_a_write_that_fails_half_way_leaves_nothing_of_itself(write: Open) -> None:
    ledger = write()
    ledger.own(CHAT, "d", {})
    ledger.intend_process("n", CHAT, "d", "h", 1, {}, Path("/l"))
    with pytest.raises(sqlite3.IntegrityError):
        ledger.intend_process("n", CHAT, "other", "h", 1, {}, Path("/l"))
    with pytest.raises(TypeError, match="no canonical form"):
        ledger.own(EMBED, "d", {"x": object()})
    ledger.own(EMBED, "d", {})
    assert [row.digest for row in ledger.processes()] == ["d"]
    assert (ledger.serial, len(ledger.owned())) == (2, 2)


# -- readers --------------------------------------------------------------------------------------------------------


def test_a_reader_sees_all_and_leaves_no_trace(write: Open, read: Open, path: Path) -> None:
    ledger = write()
    ledger.own(CHAT, "d", {})
    ledger.close()
    path.parent.chmod(0o555)
    try:
        before = snapshot(path.parent)
        reader = read()
        assert (reader.owned().keys(), reader.serial, reader.lineage) == ({CHAT}, 1, ledger_lineage(path))
        reader.close()
        assert snapshot(path.parent) == before
    finally:
        path.parent.chmod(0o755)


def ledger_lineage(path: Path) -> str:
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        return str(db.execute("SELECT value FROM meta WHERE key = 'lineage'").fetchone()[0])
    finally:
        db.close()


def test_a_reader_sees_what_a_living_writer_has_committed(write: Open, read: Open, path: Path) -> None:
    ledger = write()
    ledger.own(CHAT, "d", {})
    before = snapshot(path.parent)
    reader = read()
    assert reader.owned().keys() == {CHAT}
    ledger.own(EMBED, "d", {})
    assert reader.owned().keys() == {CHAT, EMBED}
    assert snapshot(path.parent).keys() == before.keys()


def test_an_absent_ledger_reads_as_an_empty_one_and_stays_absent(read: Open, path: Path) -> None:
    reader = read()
    assert (reader.owned(), reader.lineage, reader.serial, reader.export()["generations"]) == ({}, "", 0, [])
    assert list(path.parent.iterdir()) == []


# -- strangers and damage -------------------------------------------------------------------------------------------

OPENERS = [
    pytest.param(lambda path: Ledger.read(path), id="read"),
    pytest.param(lambda path: Ledger.write(path, Effects()), id="write"),
]


@pytest.mark.parametrize("open_", OPENERS)
@pytest.mark.parametrize("wal", [True, False])
def test_a_newer_ledger_is_refused_and_not_touched(path: Path, open_: Callable[[Path], Ledger], wal: bool) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA journal_mode={'WAL' if wal else 'DELETE'}")
    db.execute("CREATE TABLE meta (key TEXT)")
    db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.commit()
    db.close()
    before = snapshot(path.parent)
    with pytest.raises(Refused, match="newer version") as caught:
        open_(path)
    assert "upgrade" in caught.value.diagnostics[0].hint
    assert snapshot(path.parent) == before


STRANGERS = {
    "text": b"not a database " * 500,
    "zeros": bytes(8192),
    "header only": b"SQLite format 3\x00" + b"\xff" * 8000,
}


@pytest.mark.parametrize("open_", OPENERS)
@pytest.mark.parametrize("content", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_file_that_is_no_ledger_is_refused_and_not_touched(
    path: Path, open_: Callable[[Path], Ledger], content: bytes
) -> None:
    path.write_bytes(content)
    before = snapshot(path.parent)
    with pytest.raises(Refused, match="cannot be read") as caught:
        open_(path)
    assert "`reconcile state rebuild`" in caught.value.diagnostics[0].hint
    assert snapshot(path.parent) == before


@pytest.mark.parametrize("open_", OPENERS)
def test_a_ledger_with_damaged_pages_is_refused(write: Open, path: Path, open_: Callable[[Path], Ledger]) -> None:
    ledger = write()
    for number in range(50):
        ledger.own(Ref("model", f"m{number}"), "d", {"text": "x" * 500})
    ledger.close()
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(Refused, match="cannot be read"):
        open_(path)


@pytest.mark.parametrize("open_", OPENERS)
def test_a_folder_in_the_ledgers_place_is_refused(path: Path, open_: Callable[[Path], Ledger]) -> None:
    path.mkdir()
    with pytest.raises(Refused, match="cannot be read"):
        open_(path)


def test_an_empty_file_becomes_a_ledger(write: Open, path: Path) -> None:
    path.touch()
    ledger = write()
    ledger.own(CHAT, "d", {})
    assert ledger.owned().keys() == {CHAT}


FULL = """
import resource, sys
from pathlib import Path
from reconciler.core.diagnostics import Fault
from reconciler.core.ids import Ref
from reconciler.host.effects import Effects
from reconciler.store.ledger import Ledger

path = Path(sys.argv[1])
ledger = Ledger.write(path, Effects())
ledger.own(Ref("model", "a"), "d", {})
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name(path.name + "-wal").stat().st_size, hard))
try:
    ledger.own(Ref("model", "b"), "d", {"x": "y" * 100_000})
except Fault as fault:
    print("fault", fault.code, bool(fault.hint))
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
ledger.own(Ref("model", "c"), "d", {})
print(*sorted(ref.name for ref in ledger.owned()), ledger.serial)
"""


def test_a_disk_without_room_is_a_fault_and_the_ledger_goes_on_after_it(path: Path) -> None:
    """The kernel refuses the write: the process may not let its files grow."""
    ran = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True)
    said, state = (ran.stdout.splitlines() or [ran.stderr])[:2] if ran.returncode == 0 else ("", ran.stderr[-500:])
    assert said.startswith("fault "), state
    assert said.endswith(" True"), "it has a hint"
    assert state == "a c 2"


# -- kill -9 --------------------------------------------------------------------------------------------------------

MANY_WRITES = """
import itertools, json, sys
from pathlib import Path
from reconciler.core.ids import Ref
from reconciler.host.effects import Effects
from reconciler.store.ledger import Ledger

ledger = Ledger.write(Path(sys.argv[1]), Effects())
for i in itertools.count():
    seq = ledger.begin(Ref("model", f"m{i}"), "fetch", {"i": i})
    ledger.own(Ref("model", f"m{i}"), f"d{i}", {"i": i})
    ledger.end(seq, "done")
    sys.stdout.write(json.dumps([i, seq]) + "\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("after", [1, 7, 60])
def test_nothing_that_was_committed_is_lost_when_the_writer_is_killed(write: Open, path: Path, after: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", MANY_WRITES, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(after)]
    child.kill()
    lines += child.stdout.readlines()
    child.stdout.close()
    assert child.wait() == -9
    told = [json.loads(line) for line in lines if line.endswith(b"\n")]
    assert len(told) >= after

    reader = Ledger.read(path)
    seen = reader.owned()
    reader.close()
    ledger = write()
    assert ledger.owned() == seen
    assert {Ref("model", f"m{i}") for i, _ in told} <= seen.keys()
    assert len(seen) - len(told) in (0, 1)
    assert all(owned.spec == {"i": int(owned.digest[1:])} for owned in seen.values())
    assert ledger.serial == len(seen)
    assert ledger.epoch == 2
    open_ = ledger.open_operations()
    assert len(open_) <= 1
    assert all(operation.seq > told[-1][1] for operation in open_)
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


def test_a_reader_leaves_what_a_killed_writer_left(path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", MANY_WRITES, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    for _ in range(5):
        child.stdout.readline()
    child.kill()
    child.wait()
    child.stdout.close()
    before = snapshot(path.parent)
    reader = Ledger.read(path)
    assert len(reader.owned()) >= 5
    reader.close()
    after = snapshot(path.parent)
    shared = path.name + "-shm"  # SQLite's scratch memory; its content is not kept by any promise
    assert {k: v for k, v in after.items() if k != shared} == {k: v for k, v in before.items() if k != shared}
    assert after.keys() == before.keys()
