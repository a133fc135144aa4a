"""Answers that are kept, so that a request can go on from one of them by `previous_response_id`.

One SQLite file in a folder of its own, private to its owner, used by all workers at once; it survives `kill -9` (WAL;
a power cut may lose the last answers, never the file). It is bounded in bytes and in age, the oldest go first, and an
answer belongs to the key that asked for it: another one finds nothing. It is a convenience: what is damaged or from
another version is left aside, a full disk keeps nothing, and neither is ever an error of a request.

A call of a few KiB takes 0.2 ms, one of a MiB (images) 10 to 25 ms, and one in several that of moving the journal, up
to 0.15 s on a busy disk; it waits at most `WAIT` seconds for another worker's write. So an event loop leaves them to a
thread: any may call.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reconciler.gateway.kept_file import KeptFile, writing

Item = dict[str, Any]

VERSION = 1
DAYS = 30.0
BYTES = 256 * 1024 * 1024
LONGEST_CHAIN = 10_000
PAGE = 100  # input items that one listing gives at most
_DAY = 86_400.0
_SCHEMA = """
CREATE TABLE answer (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, parent TEXT, made REAL NOT NULL, bytes INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX answer_made ON answer (made);
CREATE TABLE item (
    answer TEXT NOT NULL REFERENCES answer (id) ON DELETE CASCADE, place INTEGER NOT NULL, output INTEGER NOT NULL,
    id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (answer, place)
) WITHOUT ROWID;
CREATE INDEX item_id ON item (id);
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
CREATE TRIGGER more AFTER INSERT ON answer BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER less AFTER DELETE ON answer BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
"""
# Oldest first; `steps` ends the walk, should the file lie about who came before whom.
_CHAIN = """
WITH RECURSIVE chain (id, parent, steps) AS (
    SELECT id, parent, 0 FROM answer WHERE id = :id AND owner = :owner AND made >= :since
    UNION ALL
    SELECT answer.id, answer.parent, chain.steps + 1 FROM chain JOIN answer ON answer.id = chain.parent
    WHERE answer.owner = :owner AND answer.made >= :since AND chain.steps < :most
)
SELECT id, parent FROM chain ORDER BY steps DESC
"""


class ResponsesStore:
    """`folder` None keeps nothing. `most` is in bytes, `days` the age that an answer reaches.

    Ids are those of responses; `key_name` is the name of the key that a request came with, None for none.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        most: int = BYTES,
        days: float = DAYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file = KeptFile(folder, _SCHEMA, VERSION)
        self._most = most
        self._age = days * _DAY
        self._clock = clock

    def put(
        self,
        id: str,
        parent: str | None,
        key_name: str | None,
        input_items: list[Item],
        output_items: list[Item],
        now: float | None = None,
        answer: dict[str, Any] | None = None,
    ) -> bool:
        """Keep an answer; whether it is kept. `input_items` are its own, without the parent's.

        `answer` is the Response object for `get`. An id that is kept already stays as it is.
        """
        made = self._clock() if now is None else now
        listed = [(item, False) for item in input_items] + [(item, True) for item in output_items]
        try:
            rows = [
                (place, output, _plain(str(item.get("id", ""))), _dump(item))
                for place, (item, output) in enumerate(listed)
            ]
            body = _dump({**(answer or {"id": id, "object": "response"}), "output": None})
        except (ValueError, RecursionError):  # what JSON cannot say
            return False
        size = len(body) + sum(len(row[3]) + 64 for row in rows)
        if size > self._most:
            return False

        def keep(database: sqlite3.Connection) -> bool:
            with writing(database):
                self._make_room(database, size, made)
                done = database.execute(
                    "INSERT OR IGNORE INTO answer VALUES (?, ?, ?, ?, ?, ?)",
                    (_plain(id), _owner(key_name), None if parent is None else _plain(parent), made, size, body),
                )
                if done.rowcount != 1:
                    return False
                database.executemany("INSERT INTO item VALUES (?, ?, ?, ?, ?)", [(_plain(id), *row) for row in rows])
            return True

        return self._file.run(keep, False)

    def history(self, id: str, key_name: str | None) -> list[Item] | None:
        """The conversation up to and with that answer, oldest item first; None where a part of it is not kept."""
        return self._file.run(lambda database: self._items_of_chain(database, id, key_name), None)

    def get(self, id: str, key_name: str | None) -> dict[str, Any] | None:
        """The Response object."""

        def read(database: sqlite3.Connection) -> dict[str, Any] | None:
            row = database.execute(
                "SELECT body FROM answer WHERE id = ? AND owner = ? AND made >= ?",
                (_plain(id), _owner(key_name), self._since()),
            ).fetchone()
            if row is None:
                return None
            answer: dict[str, Any] = json.loads(row[0])
            answer["output"] = _items(database, id, output=True)
            return answer

        return self._file.run(read, None)

    def items(self, ids: list[str], key_name: str | None) -> dict[str, Item]:
        """Kept items by their id, of those that are asked for; the newest where an id was used again."""

        def read(database: sqlite3.Connection) -> dict[str, Item]:
            found = {}
            for id in dict.fromkeys(ids):
                row = database.execute(
                    "SELECT item.body FROM item JOIN answer ON answer.id = item.answer"
                    " WHERE item.id = ? AND answer.owner = ? AND answer.made >= ? ORDER BY answer.made DESC LIMIT 1",
                    (_plain(id), _owner(key_name), self._since()),
                ).fetchone()
                if row is not None:
                    found[id] = json.loads(row[0])
            return found

        return self._file.run(read, {})

    def input_items(
        self, id: str, key_name: str | None, *, after: str | None = None, limit: int = 20, order: str = "desc"
    ) -> dict[str, Any] | None:
        """A page of what the answer was made from, in the shape of the API's lists; None where it is not kept.

        With what came before by `previous_response_id`, as far as that is still kept. `after` is an item's id, `limit`
        from 1 to 100, `order` `asc` or `desc`.
        """

        def read(database: sqlite3.Connection) -> list[Item] | None:
            row = database.execute(
                "SELECT parent FROM answer WHERE id = ? AND owner = ? AND made >= ?",
                (_plain(id), _owner(key_name), self._since()),
            ).fetchone()
            if row is None:
                return None
            before = [] if row[0] is None else self._items_of_chain(database, row[0], key_name) or []
            return before + _items(database, id, output=False)

        listed = self._file.run(read, None)
        return None if listed is None else _page(listed, after, limit, order)

    def delete(self, id: str, key_name: str | None) -> bool:
        """Forget an answer; whether it was there. What goes on from it cannot be gone on from any more."""

        def forget(database: sqlite3.Connection) -> bool:
            with writing(database):
                done = database.execute("DELETE FROM answer WHERE id = ? AND owner = ?", (_plain(id), _owner(key_name)))
            return done.rowcount == 1

        return self._file.run(forget, False)

    def close(self) -> None:
        """Let go of the file; it may be used again."""
        self._file.close()

    def _since(self) -> float:
        return self._clock() - self._age

    def _items_of_chain(self, database: sqlite3.Connection, id: str, key_name: str | None) -> list[Item] | None:
        asked = {"id": _plain(id), "owner": _owner(key_name), "since": self._since(), "most": LONGEST_CHAIN}
        chain = database.execute(_CHAIN, asked).fetchall()
        if not chain or chain[0][1] is not None:  # nothing, or the beginning is not there
            return None
        return [item for (answer, _) in chain for item in _items(database, answer)]

    def _make_room(self, database: sqlite3.Connection, size: int, now: float) -> None:
        database.execute("DELETE FROM answer WHERE made < ?", (now - self._age,))
        while database.execute("SELECT bytes FROM total").fetchone()[0] > self._most - size:
            database.execute("DELETE FROM answer WHERE id = (SELECT id FROM answer ORDER BY made, rowid LIMIT 1)")


def _plain(text: str) -> str:
    """What a caller sends as an id may hold lone surrogates, which SQLite cannot take."""
    return text.encode("utf-8", "backslashreplace").decode()


def _owner(key_name: str | None) -> str:
    return "" if key_name is None else _plain(f"key {key_name}")


def _items(database: sqlite3.Connection, answer: str, *, output: bool | None = None) -> list[Item]:
    rows = database.execute("SELECT body, output FROM item WHERE answer = ? ORDER BY place", (_plain(answer),))
    return [json.loads(body) for body, is_output in rows if output is None or bool(is_output) == output]


def _page(items: list[Item], after: str | None, limit: int, order: str) -> dict[str, Any]:
    listed = items if order == "asc" else items[::-1]
    if after is not None:
        places = [place for place, item in enumerate(listed) if item.get("id") == after]
        listed = listed[places[0] + 1 :] if places else []
    data = listed[: max(1, min(PAGE, limit))]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0].get("id", "") if data else "",
        "last_id": data[-1].get("id", "") if data else "",
        "has_more": len(data) < len(listed),
    }


def _dump(document: object) -> str:
    # ASCII: lone surrogates, which a caller may send, stay escapes.
    return json.dumps(document, separators=(",", ":"), allow_nan=False)
