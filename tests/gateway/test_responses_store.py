"""Answers that are kept for `previous_response_id`: by several workers, through crashes, in bounds."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.gateway import kept_file
from reconciler.gateway.responses_store import BYTES, DAYS, VERSION, ResponsesStore
from tests.support.processes import wait_until

DAY = 86_400.0
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[ResponsesStore]:
    one = ResponsesStore(tmp_path / "responses", clock=clock)
    yield one
    one.close()


def said(text: str) -> list[dict[str, Any]]:
    return [{"type": "message", "id": f"in_{text}", "role": "user", "content": [{"type": "input_text", "text": text}]}]


def answered(text: str) -> list[dict[str, Any]]:
    return [
        {
            "type": "message",
            "id": f"out_{text}",
            "role": "assistant",
            "content": [{"type": "output_text", "text": text}],
        }
    ]


def put(store: ResponsesStore, name: str, parent: str | None = None, key: str | None = "anna") -> bool:
    answer = {"id": name, "object": "response", "status": "completed", "output": answered(name)}
    return store.put(name, parent, key, said(name), answered(name), answer=answer)


def path(store_folder: Path, number: int = 1) -> Path:
    return store_folder / f"v{VERSION}-{number}.sqlite"


def test_a_conversation_is_the_whole_chain_oldest_first(store: ResponsesStore) -> None:
    assert put(store, "a")
    assert put(store, "b", "a")
    assert put(store, "c", "b")
    assert put(store, "fork", "a")
    assert store.history("c", "anna") == [
        *said("a"),
        *answered("a"),
        *said("b"),
        *answered("b"),
        *said("c"),
        *answered("c"),
    ]
    assert store.history("fork", "anna") == [*said("a"), *answered("a"), *said("fork"), *answered("fork")]
    assert store.history("nobody", "anna") is None


def test_the_answer_comes_back_as_it_was(store: ResponsesStore) -> None:
    put(store, "a")
    assert store.get("a", "anna") == {"id": "a", "object": "response", "status": "completed", "output": answered("a")}
    assert store.put("bare", None, "anna", said("x"), answered("y"))
    assert store.get("bare", "anna") == {"id": "bare", "object": "response", "output": answered("y")}


def test_text_of_every_kind_comes_back(store: ResponsesStore) -> None:
    items = said("Grüße 🌍\u2028\x00 \ud800 \"'")
    assert store.put("a", None, None, items, [])
    assert store.history("a", None) == items
    strange = "\ud800\x00'"
    assert store.put(strange, None, strange, items, [])
    assert store.history(strange, strange) == items
    assert store.items([strange, items[0]["id"]], strange) == {items[0]["id"]: items[0]}
    assert store.input_items(strange, strange) is not None
    assert store.delete(strange, strange)
    assert store.history("a", None) == items


def test_an_answer_belongs_to_the_key_that_made_it(store: ResponsesStore) -> None:
    put(store, "a")
    put(store, "open", key=None)
    for key in ("ben", None, ""):
        assert store.history("a", key) is None
        assert store.get("a", key) is None
        assert store.input_items("a", key) is None
        assert store.items(["in_a", "out_a"], key) == {}
        assert not store.delete("a", key)
    assert store.get("open", "anna") is None
    assert store.get("open", None) is not None
    assert put(store, "theirs", "a", key="ben")  # a chain through somebody else's answer is no chain
    assert store.history("theirs", "ben") is None
    assert store.get("a", "anna") is not None


def test_an_id_that_is_there_stays_as_it_is(store: ResponsesStore) -> None:
    put(store, "a")
    assert not put(store, "a", key="ben")
    assert not store.put("a", None, "anna", said("other"), [])
    assert store.history("a", "anna") == [*said("a"), *answered("a")]


def test_items_by_their_id(store: ResponsesStore, clock: Clock) -> None:
    put(store, "a")
    clock.now += 1
    store.put("b", None, "anna", [{**said("a")[0], "role": "developer"}], [])
    found = store.items(["in_a", "out_a", "in_a", "nothing"], "anna")
    assert found == {"in_a": {**said("a")[0], "role": "developer"}, "out_a": answered("a")[0]}


def test_input_items_come_in_pages(store: ResponsesStore) -> None:
    store.put("a", None, "anna", [item for text in "12" for item in said(text)], answered("3"))
    store.put("b", "a", "anna", [item for text in "45" for item in said(text)], answered("6"))
    ids = ["in_1", "in_2", "out_3", "in_4", "in_5"]

    def page(**how: Any) -> tuple[list[str], bool]:
        listed = store.input_items("b", "anna", **how)
        assert listed is not None
        found = [item["id"] for item in listed["data"]]
        assert (listed["object"], listed["first_id"], listed["last_id"]) == (
            "list", found[0] if found else "", found[-1] if found else "",
        )  # fmt: skip
        return found, listed["has_more"]

    assert page(order="asc") == (ids, False)
    assert page() == (ids[::-1], False)
    assert page(order="asc", limit=2) == (ids[:2], True)
    assert page(order="asc", limit=2, after="in_2") == (ids[2:4], True)
    assert page(limit=2, after="in_2") == (["in_1"], False)
    assert page(after="unknown") == ([], False)
    assert page(limit=0) == (["in_5"], True)
    assert store.input_items("nothing", "anna") is None
    store.delete("a", "anna")
    assert page(order="asc") == (["in_4", "in_5"], False)


def test_the_official_client_reads_the_page(store: ResponsesStore) -> None:
    from openai.types.responses import ResponseItemList

    put(store, "a")
    read = ResponseItemList.model_validate(store.input_items("a", "anna"))
    assert [item.id for item in read.data] == ["in_a"]


def test_what_is_deleted_is_gone_and_so_is_the_way_over_it(store: ResponsesStore) -> None:
    put(store, "a")
    put(store, "b", "a")
    assert store.delete("a", "anna")
    assert not store.delete("a", "anna")
    assert store.get("a", "anna") is None
    assert store.items(["in_a"], "anna") == {}
    assert store.history("b", "anna") is None
    assert store.get("b", "anna") is not None


def test_answers_grow_old(store: ResponsesStore, clock: Clock, tmp_path: Path) -> None:
    put(store, "a")
    clock.now += DAYS * DAY - 1
    put(store, "b", "a")
    assert store.history("b", "anna") is not None
    clock.now += 2
    assert store.get("a", "anna") is None
    assert store.items(["in_a"], "anna") == {}
    assert store.history("b", "anna") is None
    put(store, "c")
    assert rows(tmp_path / "responses", "SELECT id FROM answer ORDER BY id") == ["b", "c"]


def rows(folder: Path, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path(folder))) as database:
        return [row[0] for row in database.execute(query)]


def test_the_time_that_is_handed_over_counts(store: ResponsesStore) -> None:
    assert store.put("a", None, "anna", said("a"), [], NOW - DAYS * DAY - 1)
    assert store.get("a", "anna") is None


def test_the_oldest_go_when_there_is_no_room(tmp_path: Path, clock: Clock) -> None:
    most = 100_000
    store = ResponsesStore(tmp_path, most=most, clock=clock)
    for number in range(100):
        clock.now += 1
        assert put(store, f"r{number}-" + "x" * 5_000)
    kept = [number for number in range(100) if store.get(f"r{number}-" + "x" * 5_000, "anna")]
    assert kept == list(range(100 - len(kept), 100))
    assert 3 <= len(kept) <= 20
    assert not put(store, "y" * most)  # more than all the room: what is kept stays
    assert store.get("r99-" + "x" * 5_000, "anna") is not None
    store.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 3 * most


def test_what_json_cannot_say_is_not_kept(store: ResponsesStore) -> None:
    assert not store.put("a", None, None, [{"x": float("nan")}], [])
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert not store.put("b", None, None, [{"x": deep}], [])
    assert put(store, "c")


def deeper(levels: int, work: Callable[[], Any]) -> Any:
    return work() if levels == 0 else deeper(levels - 1, work)


def test_what_is_nested_too_deeply_to_be_read_does_no_harm(store: ResponsesStore, tmp_path: Path) -> None:
    put(store, "a")
    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit() * 3 // 4):
        deep = [deep]
    assert store.put("deep", None, "anna", [{"x": deep}], [])
    read = deeper(sys.getrecursionlimit() // 3, lambda: store.history("deep", "anna"))
    assert read in (None, [{"x": deep}])  # newer Pythons can read it
    assert store.history("a", "anna") == [*said("a"), *answered("a")]
    assert not path(tmp_path / "responses", 2).exists()


def test_nothing_is_kept_where_it_is_switched_off(tmp_path: Path) -> None:
    store = ResponsesStore(None)
    assert not put(store, "a")
    assert (store.history("a", "anna"), store.get("a", "anna"), store.input_items("a", "anna")) == (None, None, None)
    assert store.items(["in_a"], "anna") == {}
    assert not store.delete("a", "anna")
    store.close()


def test_the_files_are_private(store: ResponsesStore, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        put(store, "a")
    finally:
        os.umask(before)
    folder = tmp_path / "responses"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert {f"v{VERSION}-1.sqlite", f"v{VERSION}-1.sqlite-wal", "lock"} <= files.keys()
    assert set(files.values()) == {0o600}


def test_it_survives_a_restart(tmp_path: Path, clock: Clock) -> None:
    first = ResponsesStore(tmp_path, clock=clock)
    put(first, "a")
    first.close()
    put(first, "b", "a")  # closed is not over
    second = ResponsesStore(tmp_path, clock=clock)
    assert second.history("b", "anna") == first.history("b", "anna") != None  # noqa: E711
    first.close()
    second.close()


DAMAGE = {
    "nonsense": lambda file: file.write_bytes(b"nonsense " * 1000),
    "its beginning": lambda file: file.write_bytes(b"\0" * 4096 + file.read_bytes()[4096:]),
    "its pages": lambda file: file.write_bytes(file.read_bytes()[:4096] + b"\xff" * (file.stat().st_size - 4096)),
    "its end": lambda file: file.write_bytes(file.read_bytes()[:5000]),
    "a newer version": lambda file: _run(file, "PRAGMA user_version = 99"),
    "other tables": lambda file: _run(file, "DROP TABLE item"),
    "text that is no JSON": lambda file: _run(file, "UPDATE item SET body = '{'"),
}


def _run(file: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute(statement)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("open_meanwhile", [False, True])
def test_a_damaged_file_is_left_aside(
    tmp_path: Path, clock: Clock, capfd: pytest.CaptureFixture[str], damage: str, open_meanwhile: bool
) -> None:
    one, other = ResponsesStore(tmp_path, clock=clock), ResponsesStore(tmp_path, clock=clock)
    for number in range(40):
        put(one, f"r{number}", f"r{number - 1}" if number else None)
    one.close()
    if open_meanwhile:
        assert other.get("r1", "anna")
    database = sqlite3.connect(path(tmp_path))
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    database.close()
    DAMAGE[damage](path(tmp_path))
    for store in (one, other):
        assert store.history("r39", "anna") is None
    assert put(one, "new")
    assert other.history("new", "anna") == one.history("new", "anna") == [*said("new"), *answered("new")]
    assert "responses-store-damaged" in capfd.readouterr().err
    assert path(tmp_path).exists()
    assert path(tmp_path, 2).exists()
    one.close()
    other.close()


def test_of_damaged_files_one_is_kept(tmp_path: Path, clock: Clock) -> None:
    store = ResponsesStore(tmp_path, clock=clock)
    for number in range(1, 5):
        put(store, "a")
        store.close()
        path(tmp_path, number).write_bytes(b"nonsense " * 1000)
    assert put(store, "a")
    store.close()
    assert sorted(file.name for file in tmp_path.glob("*.sqlite")) == [path(tmp_path, 4).name, path(tmp_path, 5).name]


def test_a_folder_that_is_removed_is_made_again(tmp_path: Path, clock: Clock) -> None:
    store = ResponsesStore(tmp_path / "responses", clock=clock)
    put(store, "a")
    for file in (tmp_path / "responses").iterdir():
        file.unlink()
    (tmp_path / "responses").rmdir()
    assert store.get("a", "anna") is None
    assert put(store, "b")
    store.close()


def test_where_a_file_stands_in_place_of_the_folder_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "responses").write_text("mine")
    store = ResponsesStore(tmp_path / "responses")
    assert not put(store, "a")
    assert store.history("a", "anna") is None
    assert (tmp_path / "responses").read_text() == "mine"


# Other processes, each a program of its own.

_PROGRAM = """
import sys
from pathlib import Path
from reconciler.gateway.responses_store import ResponsesStore
store = ResponsesStore(Path(sys.argv[1]), most=int(sys.argv[3]))
name = sys.argv[2]
item = {"type": "message", "id": name, "role": "user", "content": "x" * 2000}
"""


def program(folder: Path, name: str, code: str, most: int = BYTES, **how: Any) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", _PROGRAM + code, str(folder), name, str(most)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


_MANY = """
parent = None
for number in range(200):
    mine = f"{name}-{number}"
    while not store.put(mine, parent, name, [item], [item]):  # on a busy disk another one's turn may be long
        pass
    parent = mine
    assert len(store.history(mine, name)) == 2 * (number + 1)
print("done")
"""


def test_several_workers_at_once(tmp_path: Path) -> None:
    workers = [program(tmp_path, f"w{number}", _MANY) for number in range(3)]
    for worker in workers:
        out, err = worker.communicate(timeout=60)
        assert (out, worker.returncode) == ("done\n", 0), err
        assert "damaged" not in err
    store = ResponsesStore(tmp_path)
    for number in range(3):
        assert len(store.history(f"w{number}-199", f"w{number}") or []) == 400
    store.close()


_FOREVER = """
number = 0
while True:
    assert store.put(f"{name}-{number}", None, name, [item] * 50, [item] * 50)
    print(number, flush=True)
    number += 1
"""


def test_killed_in_the_middle_it_keeps_what_it_had_and_nothing_half(tmp_path: Path) -> None:
    store = ResponsesStore(tmp_path)
    for number in range(6):
        worker = program(tmp_path, f"w{number}", _FOREVER)
        assert worker.stdout is not None
        for _ in range(3 + number):
            worker.stdout.readline()
        time.sleep(0.0007 * number)  # so that it is hit at different places
        worker.send_signal(signal.SIGKILL)
        rest = worker.communicate()[0].split()
        told = int(rest[-1]) if rest else 2 + number
        for kept in range(told + 1):
            assert len(store.history(f"w{number}-{kept}", f"w{number}") or []) == 100
        unsure = store.history(f"w{number}-{told + 1}", f"w{number}")  # in between its commit and its word
        assert unsure is None or len(unsure) == 100
        assert put(store, f"after-{number}")
    store.close()
    database = sqlite3.connect(path(tmp_path))
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    (total,) = database.execute("SELECT bytes FROM total").fetchone()
    assert database.execute("SELECT sum(bytes) FROM answer").fetchone() == (total,)
    database.close()


_FULL = """
kept = 0
for number in range(400):
    kept += store.put(f"{name}-{number}", None, name, [item] * 5, [])
print(kept, store.history(f"{name}-0", name) == [item] * 5, store.history(f"{name}-399", name))
"""


def test_a_full_disk_keeps_nothing_more_and_is_no_error(tmp_path: Path) -> None:
    size = 600_000

    def limited() -> None:  # a file that would become larger cannot be written, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    worker = program(tmp_path, "w", _FULL, preexec_fn=limited)
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == 0, err
    kept, first, last = out.split()
    assert 5 < int(kept) < 400
    assert (first, last) == ("True", "None")
    assert "responses-store-failed" in err
    store = ResponsesStore(tmp_path)  # there is room again
    assert put(store, "a")
    assert store.history("w-0", "w") is not None
    store.close()


_HOLD = """
import sqlite3
store.put(name, None, None, [], [])
database = sqlite3.connect(Path(sys.argv[1]) / "v1-1.sqlite")
database.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_worker_that_holds_the_file_delays_others_for_a_moment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_file, "WAIT", 0.05)
    worker = program(tmp_path, "w", _HOLD, stdin=subprocess.PIPE)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "held\n"
        store = ResponsesStore(tmp_path)
        assert store.get("w", None) is not None  # readers do not wait
        assert not put(store, "a")
    finally:
        worker.communicate("")
    wait_until(lambda: put(store, "b"), 10)
    store.close()


def test_a_lock_that_is_not_let_go_is_no_error_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_file, "WAIT", 0.05)
    with kept_file._alone(tmp_path):
        store = ResponsesStore(tmp_path)
        assert not put(store, "a")
    assert put(store, "a")
    store.close()


def test_what_is_in_the_file_is_what_was_put(store: ResponsesStore, tmp_path: Path) -> None:
    put(store, "a")
    store.close()
    kept = rows(tmp_path / "responses", "SELECT body FROM item ORDER BY place")
    assert [json.loads(body) for body in kept] == [*said("a"), *answered("a")]
