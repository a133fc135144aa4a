"""A look asks the ledger as often for many resources as for few, and unpacks again only what has changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.app import tools_for
from reconciler.controller.turn import Wanted, look
from reconciler.core.diagnostics import FaultClass
from reconciler.core.ids import Ref
from reconciler.core.state import Trouble
from reconciler.host.effects import Denied, Effects
from reconciler.host.layout import Layout
from reconciler.host.process import Identity
from reconciler.kinds.registry import KINDS
from reconciler.manifest.parse import check
from reconciler.manifest.resolve import resolve
from reconciler.store.ledger import Ledger


def wanted(models: int) -> Wanted:
    entries = "".join(f'  m{n}: {{source: "file:{n}.gguf"}}\n' for n in range(models))
    return Wanted(resolve(check(f"version: 1\nmodels:\n{entries}".encode(), Path("/etc/stack.yaml")), "cp311"))


def fill(ledger: Ledger, asked: Wanted) -> None:
    """Rows of every kind for each resource."""
    for number, (ref, declared) in enumerate(asked.resources.items()):
        ledger.own(ref, declared.digest, declared.spec)
        ledger.set_trouble(ref, Trouble(declared.attempt, 1, 0.0, "GONE", "it is gone", "", FaultClass.TRANSIENT))
        ledger.note_restored(ref, "it was gone")
        if ref.kind == "model":
            ledger.pin(declared.spec.pin, {"sha256": f"{number:064x}", "size": 1})
            ledger.record_artifact(f"{number:064x}", 1, "token")
        elif ref.kind == "server":
            ledger.intend_process(ref.name, ref, declared.digest, "127.0.0.1", 1, {}, Path("/nowhere"))
            ledger.record_spawned(ref.name, Identity(1, "never", "boot"))


@contextmanager
def listening(layout: Layout) -> Iterator[tuple[Ledger, list[str]]]:
    """A reader of the ledger, and what it asks."""
    db = sqlite3.connect(layout.ledger, isolation_level=None)
    asked: list[str] = []
    db.set_trace_callback(asked.append)
    with Ledger(db, Denied(), epoch=0) as ledger:
        yield ledger, asked


def statements(layout: Layout, models: int, effects: Effects) -> list[str]:
    """What one look asks the ledger when this many models are owned, run and are in trouble."""
    asked = wanted(models)
    with Ledger.write(layout.ledger, effects) as ledger:
        fill(ledger, asked)
    with listening(layout) as (ledger, said):
        view = look(asked, tools_for(layout, layout.root, Denied(), ledger, KINDS), KINDS)
        assert len(view.world.observed) > 2 * models
        return said


def test_a_look_asks_as_often_for_many_as_for_few(tmp_path: Path, effects: Effects) -> None:
    few, many = Layout(tmp_path / "few"), Layout(tmp_path / "many")
    few.root.mkdir()
    many.root.mkdir()
    assert sorted(statements(few, 2, effects)) == sorted(statements(many, 40, effects))


def test_a_second_look_does_not_unpack_the_large_tables_again(layout: Layout, effects: Effects) -> None:
    statements(layout, 2, effects)
    with listening(layout) as (ledger, said):
        tools = tools_for(layout, layout.root, Denied(), ledger, KINDS)
        look(wanted(2), tools, KINDS)
        said.clear()
        look(wanted(2), tools, KINDS)
        assert not [s for s in said if any(f"FROM {t}" in s for t in ("owned", "processes", "pins", "artifacts"))]


@pytest.mark.parametrize("by_another", [False, True])
def test_what_was_written_is_seen_at_once(layout: Layout, effects: Effects, by_another: bool) -> None:
    ref = Ref("model", "chat")
    with Ledger.write(layout.ledger, effects) as ledger, Ledger.read(layout.ledger) as other:
        reader = other if by_another else ledger
        assert not reader.owned()
        ledger.own(ref, "1", {"n": 1})
        assert reader.owned()[ref].digest == "1"
        ledger.own(ref, "2", {"n": 2})
        assert reader.owned()[ref].digest == "2"
        ledger.disown(ref)
        assert not reader.owned()


def test_what_was_taken_back_is_not_remembered(layout: Layout, effects: Effects) -> None:
    def cut_off(ledger: Ledger) -> None:
        with ledger.change("own") as db:
            db.execute("INSERT INTO owned (ref, digest, spec, since) VALUES ('model/chat', '1', '{}', 0)")
            assert ledger.owned()
            raise RuntimeError

    with Ledger.write(layout.ledger, effects) as ledger:
        with pytest.raises(RuntimeError):
            cut_off(ledger)
        assert not ledger.owned()
