"""A ledger of an earlier format becomes one of this format, with a copy kept; for a reader it stays as it is."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.diagnostics import Fault, FaultClass, Refused
from reconciler.core.ids import Ref, canonical, pin_key
from reconciler.core.state import Trouble
from reconciler.host.effects import Effects
from reconciler.host.files import Files
from reconciler.host.layout import Layout
from reconciler.host.process import Identity
from reconciler.kinds.model.spec import ModelSpec
from reconciler.store.generations import Generations
from reconciler.store.ledger import Ledger
from reconciler.store.schema import MIGRATIONS, VERSION

CHAT, SERVER = Ref("model", "chat"), Ref("server", "chat")
SPEC = {"source": "pypi:tiny>=1", "file": "*q8*", "sha256": ""}
TROUBLE = Trouble("d", 2, 9.0, "DISK_FULL", "no room", "free some", FaultClass.NEEDS_HUMAN)
ROWS: dict[str, list[tuple[Any, ...]]] = {
    "meta": [("epoch", "7"), ("lineage", "a-lineage"), ("serial", "4")],
    "owned": [(str(CHAT), ModelSpec(**SPEC).digest, canonical(SPEC), 5.0)],
    "journal": [(3, 7, str(CHAT), "fetch", "{}", 1.0, None, None), (4, 7, str(CHAT), "fetch", "{}", 1.0, 2.0, "done")],
    "processes": [("n1", str(SERVER), "d", "127.0.0.1", 8080, '{"model":"t"}', "/l", 1.0, 42, "17", "boot", 2.0, None)],
    "artifacts": [("a" * 64, 5, "1:5:1", 3.0)],
    "pins": [
        (canonical(["pypi:tiny>=1", "*q8*"]), '{"sha256":"x"}', 1.0),
        (canonical(['https://h/a"b].gguf', ""]), '{"sha256":"y"}', 1.0),
    ],
    "troubles": [(str(SERVER), canonical(TROUBLE))],
    "events": [(9, 1.0, str(CHAT), "Fetched", "here")],
    "generations": [(1, 1.0, "d1", "/old.yaml"), (2, 2.0, "d2", "/stack.yaml")],
}


@pytest.fixture
def path(layout: Layout) -> Path:
    """A ledger of the first format with rows in every table."""
    path = layout.ledger
    db = sqlite3.connect(path)
    db.executescript(MIGRATIONS[0])
    tables = {str(t) for (t,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")} - {"sqlite_sequence"}
    assert tables == ROWS.keys(), "every table has rows"
    for table, rows in ROWS.items():
        db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    db.execute("PRAGMA user_version=1")
    db.commit()
    db.close()
    path.chmod(0o600)
    return path


def dump(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    try:
        return [*db.iterdump(), str(db.execute("PRAGMA user_version").fetchone())]
    finally:
        db.close()


def holds_all(ledger: Ledger) -> None:
    owned = ledger.owned()[CHAT]
    assert (owned.digest, owned.spec, owned.protect) == (ModelSpec(**owned.spec).digest, SPEC, False)
    assert (ledger.lineage, ledger.serial) == ("a-lineage", 4)
    assert [(o.seq, o.verb) for o in ledger.open_operations()] == [(3, "fetch")]
    assert [o["outcome"] for o in ledger.operations()] == [None, "done"]
    (row,) = ledger.processes()
    assert (row.ref, row.identity, row.ready) == (SERVER, Identity(42, "17", "boot"), 2.0)
    found = ledger.artifact("a" * 64)
    assert found is not None
    assert found.token == "1:5:1"
    assert ledger.pins() == {
        pin_key("pypi:tiny>=1", "*q8*"): {"sha256": "x"},
        pin_key('https://h/a"b].gguf'): {"sha256": "y"},
    }
    assert ModelSpec(**owned.spec).pin in ledger.pins()
    assert ledger.troubles() == {SERVER: TROUBLE}
    assert [e["seq"] for e in ledger.events()] == [9]
    assert (ledger.conditions(), ledger.restored(), ledger.meta("current")) == ({}, {}, "2")


def test_a_writer_migrates_and_keeps_every_row_and_a_copy(path: Path, layout: Layout, files: Files) -> None:
    before = dump(path)
    with Ledger.write(path, files.effects) as ledger:
        holds_all(ledger)
        assert ledger.epoch == 8
        made = Generations(layout, files, ledger)
        assert [(g.number, g.digest, g.manifest, g.state) for g in made.all()] == [
            (1, "d1", "/old.yaml", "ready"),
            (2, "d2", "/stack.yaml", "ready"),
        ]
        assert made.current == 2
    backup = path.with_name("ledger.db.v1.bak")
    assert dump(backup) == before
    assert backup.stat().st_mode & 0o777 == 0o600, "as private as what it is a copy of"
    assert dump(path)[-1] == f"({VERSION},)"


def test_a_migrated_ledger_has_the_tables_of_a_new_one(path: Path, tmp_path: Path, effects: Effects) -> None:
    Ledger.write(path, effects).close()
    Ledger.write(tmp_path / "new.db", effects).close()

    def columns(file: Path) -> dict[str, list[Any]]:
        db = sqlite3.connect(file)
        try:
            names = [n for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type='table' ORDER BY name")]
            return {name: db.execute(f"PRAGMA table_info({name})").fetchall() for name in names}
        finally:
            db.close()

    assert columns(path) == columns(tmp_path / "new.db")


def test_it_is_migrated_once(path: Path, effects: Effects) -> None:
    Ledger.write(path, effects).close()
    pins, backup = [line for line in dump(path) if '"pins"' in line], path.with_name("ledger.db.v1.bak")
    backup.unlink()
    Ledger.write(path, effects).close()
    assert [line for line in dump(path) if '"pins"' in line] == pins
    assert not backup.exists()


def test_a_reader_sees_it_migrated_and_leaves_no_trace(path: Path) -> None:
    before = (path.read_bytes(), path.stat().st_mtime_ns, [p.name for p in path.parent.iterdir()])
    path.parent.chmod(0o555)
    try:
        with Ledger.read(path) as ledger:
            holds_all(ledger)
    finally:
        path.parent.chmod(0o755)
    assert (path.read_bytes(), path.stat().st_mtime_ns, [p.name for p in path.parent.iterdir()]) == before


def test_a_ledger_without_generations_has_none_in_force(path: Path, layout: Layout, files: Files) -> None:
    db = sqlite3.connect(path)
    db.execute("DELETE FROM generations")
    db.commit()
    db.close()
    with Ledger.write(path, files.effects) as ledger:
        assert Generations(layout, files, ledger).current == 0


@pytest.mark.parametrize("open_", [Ledger.read, lambda path: Ledger.write(path, Effects())], ids=["read", "write"])
def test_one_of_a_later_release_is_refused_and_not_touched(path: Path, open_: Callable[[Path], Ledger]) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(Refused, match=f"format {VERSION + 1}; this one knows {VERSION}"):
        open_(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_migration_that_fails_leaves_the_first_format_to_the_next_try(path: Path, effects: Effects) -> None:
    """A table that is there already stands for whatever may go wrong half-way."""
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE restored (x)")
    db.commit()
    db.close()
    before = dump(path)
    with pytest.raises(Fault, match="already exists") as caught:
        Ledger.write(path, effects)
    assert caught.value.code == "LEDGER_UNWRITABLE"
    assert dump(path) == before
    db = sqlite3.connect(path)
    db.execute("DROP TABLE restored")
    db.commit()
    db.close()
    with Ledger.write(path, effects) as ledger:
        holds_all(ledger)


def test_rows_of_the_first_format_are_exported_whole(path: Path) -> None:
    with Ledger.read(path) as ledger:
        out = ledger.export()
    assert {table: len(rows) for table, rows in out.items() if table in ROWS and table != "meta"} == {
        table: len(rows) for table, rows in ROWS.items() if table != "meta"
    }
    assert out["owned"] == [
        {"ref": str(CHAT), "digest": ROWS["owned"][0][1], "spec": canonical(SPEC), "since": 5.0, "protect": 0}
    ]
    json.dumps(out)
