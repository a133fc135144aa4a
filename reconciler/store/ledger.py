"""The ledger: what we own, what we intended, which processes are ours. SQLite, WAL, synchronous=FULL, one writer.

The writer holds the OS lock of the data root (store/lock.py) and a fenced epoch: every write checks that no later
writer has opened the ledger, so a controller that lost its lock can change nothing. Readers open it without a trace.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from reconciler.core.diagnostics import Exit, Fault, FaultClass, Refused
from reconciler.core.ids import Ref, canonical
from reconciler.core.state import Owned, Restored, Suspension, Trouble
from reconciler.core.status import Condition
from reconciler.host.effects import Denied, Effects
from reconciler.host.files import disk_faults
from reconciler.host.process import Identity
from reconciler.store.schema import EVENTS_KEPT, JOURNAL_KEPT, MIGRATIONS, RESTORED_KEPT, VERSION

UNWRITABLE = "LEDGER_UNWRITABLE"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A process of ours as the ledger knows it. Times are Unix seconds; None where it has not happened."""

    nonce: str
    ref: Ref
    digest: str
    host: str
    port: int
    inputs: Mapping[str, str]
    log: str
    created: float
    identity: Identity | None
    ready: float | None
    retiring: float | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """Verified bytes; `token` is how the file looked (inode, size, mtime) when they were, and empty once they are
    known to be damaged. `checked` is when all of it was last hashed (Unix seconds).
    """

    digest: str
    size: int
    token: str
    verified: float
    checked: float = 0.0


@dataclass(frozen=True, slots=True)
class Operation:
    seq: int
    ref: Ref
    verb: str
    intent: Mapping[str, Any]


class Ledger:
    """Open with `Ledger.read` to look or `Ledger.write` to own. Safe to use from several threads."""

    def __init__(self, connection: sqlite3.Connection, effects: Effects, epoch: int) -> None:
        self._db = connection
        self._effects = effects
        self._mutex = threading.RLock()
        self.epoch = epoch
        # What a full disk keeps from being written is remembered here, so that it can at least be told.
        self._unsaved: dict[Ref, Trouble | None] = {}
        self.on_event: Callable[[dict[str, Any]], None] | None = None
        self._made: dict[str, Any] = {}  # by query: what was made of its rows when the ledger had `_version`
        self._version = -1

    # -- opening ---------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """For looking only, leaving no trace. An absent ledger reads as an empty one. Refused: newer or damaged."""
        if not path.exists():
            db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
            for script in MIGRATIONS:
                db.executescript(script)
        else:
            db = _connect(_looking(path), path)
            if (found := _version(db, path)) < VERSION:
                db = _copy_in_memory(db, found)
        return cls(db, Denied(), epoch=0)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def write(cls, path: Path, effects: Effects) -> Ledger:
        """For the holder of the lock: migrates after a backup, and starts a new epoch. Refused: newer or damaged."""
        if path.exists():
            with closing(_connect(_looking(path), path)) as probe:
                found = _version(probe, path)
                if 0 < found < VERSION:
                    _back_up(probe, path.with_name(f"{path.name}.v{found}.bak"), effects)
        with effects("ledger-open", path), disk_faults(path), _ledger_faults():
            path.touch(mode=0o600)  # before SQLite makes it: the journal beside it gets the same mode
            db = _connect(path.as_uri(), path)
            try:
                _migrate(db, path)
            except BaseException:
                db.close()  # what was begun is undone
                raise
        ledger = cls(db, effects, epoch=0)
        with ledger.change("ledger-epoch", fenced=False) as db:
            epoch = int(ledger.meta("epoch", "0")) + 1
            db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (str(epoch),))
            db.execute("INSERT OR IGNORE INTO meta VALUES ('lineage', ?)", (str(uuid.uuid4()),))
            db.execute("INSERT OR IGNORE INTO meta VALUES ('serial', '0')")
            ledger.epoch = epoch
        return ledger

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def change(self, what: str, fenced: bool = True, serial: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction through the choke-point; `serial` counts it as a change of what is owned."""
        with self._mutex, self._effects(what, "ledger"), _ledger_faults():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if fenced and int(self.meta("epoch", "0")) != self.epoch:
                    raise Fault(
                        "LOCK_LOST",
                        "another controller has taken over this data root",
                        kind=FaultClass.PERMANENT,
                    )
                yield self._db
                if serial:
                    self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'serial'")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled it back already
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._made.clear()

    def rows(self, query: str, *values: Any) -> list[Any]:
        with self._mutex:
            return self._db.execute(query, values).fetchall()

    def _known(self, query: str, make: Callable[[list[Any]], T]) -> T:
        """What `make` makes of the rows, made again only once the ledger has changed. Nobody may change it."""
        with self._mutex:
            version = self._db.execute("PRAGMA data_version").fetchone()[0]  # counts what other connections write
            if version != self._version:
                self._made.clear()
                self._version = version
            if query not in self._made:
                self._made[query] = make(self._db.execute(query).fetchall())
            made: T = self._made[query]
            return made

    def meta(self, key: str, default: str = "") -> str:
        """A single fact of the whole ledger."""
        rows = self.rows("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else default

    def metas(self, prefix: str) -> dict[str, str]:
        """All single facts whose keys begin so, by what their keys go on with."""
        rows = self.rows("SELECT key, value FROM meta WHERE key GLOB ? || '*'", prefix)
        return {str(key).removeprefix(prefix): str(value) for key, value in rows}

    def set_meta(self, what: str = "meta", /, **facts: str) -> None:
        """Write single facts, all at once; `what` is the effect's name."""
        if any(self.meta(key) != value for key, value in facts.items()):
            with self.change(what) as db:
                db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(facts.items()))

    # -- who and what -----------------------------------------------------------------------------------------

    @property
    def lineage(self) -> str:
        """Names this ledger for as long as it lives; empty before the first write."""
        return self.meta("lineage", "")

    @property
    def serial(self) -> int:
        """Counts changes of what is owned; a turn that does nothing keeps it."""
        return int(self.meta("serial", "0"))

    def owned(self) -> Mapping[Ref, Owned]:
        return self._known(
            "SELECT ref, digest, spec, protect FROM owned ORDER BY ref",
            lambda rows: {
                (name := Ref.parse(ref)): Owned(name, digest, json.loads(spec), bool(protect))
                for ref, digest, spec, protect in rows
            },
        )

    def own(self, ref: Ref, digest: str, spec: Any) -> None:
        text = canonical(spec)
        if self.rows("SELECT 1 FROM owned WHERE ref = ? AND digest = ? AND spec = ?", str(ref), digest, text):
            return
        with self.change("own", serial=True) as db:
            db.execute(
                "INSERT INTO owned (ref, digest, spec, since) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (ref) DO UPDATE SET"
                " digest = excluded.digest, spec = excluded.spec, since = excluded.since",
                (str(ref), digest, text, time.time()),
            )

    def protect(self, flags: Mapping[Ref, bool]) -> None:
        """Note which of what is owned may not be removed by a changed manifest."""
        if flags:
            with self.change("protect") as db:
                rows = [(flag, str(ref)) for ref, flag in flags.items()]
                db.executemany("UPDATE owned SET protect = ? WHERE ref = ?", rows)

    def disown(self, ref: Ref) -> None:
        """Forget a resource, once its removal is confirmed."""
        with self.change("disown", serial=True) as db:
            db.execute("DELETE FROM owned WHERE ref = ?", (str(ref),))
            db.execute("DELETE FROM troubles WHERE ref = ?", (str(ref),))

    def export(self) -> dict[str, list[dict[str, Any]]]:
        """Every table with every row."""
        out = {}
        for (table,) in self.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"):
            with self._mutex:
                cursor = self._db.execute(f"SELECT * FROM {table}")  # noqa: S608
                names = [column[0] for column in cursor.description]
                out[str(table)] = [dict(zip(names, row, strict=True)) for row in cursor]
        return out

    # -- journal ----------------------------------------------------------------------------------------------

    def begin(self, ref: Ref, verb: str, intent: Mapping[str, Any]) -> int:
        with self.change("intent") as db:
            row = db.execute(
                "INSERT INTO journal (epoch, ref, verb, intent, opened) VALUES (?, ?, ?, ?, ?)",
                (self.epoch, str(ref), verb, canonical(intent), time.time()),
            )
            assert row.lastrowid is not None
            return row.lastrowid

    def end(self, seq: int, outcome: str) -> None:
        with self.change("outcome") as db:
            db.execute("UPDATE journal SET closed = ?, outcome = ? WHERE seq = ?", (time.time(), outcome, seq))
            db.execute("DELETE FROM journal WHERE seq <= ? AND closed IS NOT NULL", (seq - JOURNAL_KEPT,))

    def operations(self, limit: int = 1000) -> list[dict[str, Any]]:
        """The journal, oldest first: what was meant, when, why, and what came of it (None: still open)."""
        names = ("seq", "ref", "verb", "intent", "opened", "closed", "outcome")
        rows = self.rows(f"SELECT {', '.join(names)} FROM journal ORDER BY seq DESC LIMIT ?", limit)  # noqa: S608
        return [{**dict(zip(names, row, strict=True)), "intent": json.loads(row[3])} for row in reversed(rows)]

    def open_operations(self) -> list[Operation]:
        """Intents without an outcome: what a crash interrupted."""
        rows = self.rows("SELECT seq, ref, verb, intent FROM journal WHERE closed IS NULL ORDER BY seq")
        return [Operation(seq, Ref.parse(ref), verb, json.loads(intent)) for seq, ref, verb, intent in rows]

    # -- processes --------------------------------------------------------------------------------------------

    def processes(self) -> Sequence[ProcessRow]:
        return self._known(
            "SELECT nonce, ref, digest, host, port, inputs, log, created, pid, start, boot, ready, retiring"
            " FROM processes ORDER BY created, nonce",
            lambda rows: [_process(*row) for row in rows],
        )

    def intend_process(
        self, nonce: str, ref: Ref, digest: str, host: str, port: int, inputs: Mapping[str, str], log: Path
    ) -> None:
        with self.change("process-intent") as db:
            db.execute(
                "INSERT INTO processes (nonce, ref, digest, host, port, inputs, log, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (nonce, str(ref), digest, host, port, canonical(inputs), str(log), time.time()),
            )

    def record_spawned(self, nonce: str, identity: Identity) -> None:
        with self.change("process-spawned") as db:
            db.execute(
                "UPDATE processes SET pid = ?, start = ?, boot = ? WHERE nonce = ?",
                (identity.pid, identity.start, identity.boot, nonce),
            )

    def record_ready(self, nonce: str) -> None:
        with self.change("process-ready") as db:
            db.execute("UPDATE processes SET ready = ? WHERE nonce = ? AND ready IS NULL", (time.time(), nonce))

    def record_retiring(self, nonce: str) -> None:
        with self.change("process-retiring") as db:
            db.execute("UPDATE processes SET retiring = ? WHERE nonce = ? AND retiring IS NULL", (time.time(), nonce))

    def forget_process(self, nonce: str) -> None:
        with self.change("process-forget") as db:
            db.execute("DELETE FROM processes WHERE nonce = ?", (nonce,))

    # -- artefacts and pins -----------------------------------------------------------------------------------

    def artifact(self, digest: str) -> Artifact | None:
        rows = self.rows("SELECT digest, size, token, verified, checked FROM artifacts WHERE digest = ?", digest)
        return Artifact(*rows[0]) if rows else None

    def artifacts(self) -> Sequence[Artifact]:
        return self._known(
            "SELECT digest, size, token, verified, checked FROM artifacts",
            lambda rows: [Artifact(*row) for row in rows],
        )

    def blocks(self, digest: str) -> tuple[str, ...]:
        """The CRC-32 (hex) of each 16 MiB of the verified file; empty where they are not known."""
        rows = self.rows("SELECT blocks FROM artifacts WHERE digest = ?", digest)
        return tuple(json.loads(rows[0][0])) if rows else ()

    def record_artifact(self, digest: str, size: int, token: str, blocks: Sequence[str] = ()) -> None:
        """All of the file was hashed just now. Without `blocks`, those that are known of these bytes stay."""
        now = time.time()
        with self.change("artifact") as db:
            db.execute(
                "INSERT INTO artifacts (digest, size, token, verified, checked, blocks) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (digest) DO UPDATE SET size = excluded.size, token = excluded.token,"
                " verified = excluded.verified, checked = excluded.checked,"
                " blocks = CASE excluded.blocks WHEN '[]' THEN blocks ELSE excluded.blocks END",
                (digest, size, token, now, now, canonical(list(blocks))),
            )

    def doubt_artifact(self, digest: str, token: str) -> bool:
        """Note that the file which looks like `token` is not what was verified → whether it still looked so."""
        with self.change("artifact-doubt") as db:
            return (
                db.execute("UPDATE artifacts SET token = '' WHERE digest = ? AND token = ?", (digest, token)).rowcount
                > 0
            )

    def forget_artifact(self, digest: str) -> None:
        with self.change("artifact-forget") as db:
            db.execute("DELETE FROM artifacts WHERE digest = ?", (digest,))

    def pins(self) -> Mapping[str, Mapping[str, Any]]:
        """Source → what it was found to be (sha256, size, file)."""
        return self._known(
            "SELECT source, facts FROM pins",
            lambda rows: {source: json.loads(facts) for source, facts in rows},
        )

    def pin(self, source: str, facts: Mapping[str, Any]) -> None:
        with self.change("pin") as db:
            db.execute("INSERT OR REPLACE INTO pins VALUES (?, ?, ?)", (source, canonical(facts), time.time()))

    # -- troubles, events, generations ------------------------------------------------------------------------

    def troubles(self) -> dict[Ref, Trouble]:
        out = {Ref.parse(ref): _trouble(text) for ref, text in self.rows("SELECT ref, facts FROM troubles")}
        for unsaved, trouble in self._unsaved.items():
            if trouble is None:
                out.pop(unsaved, None)
            else:
                out[unsaved] = trouble
        return out

    def trouble(self, ref: Ref) -> Trouble | None:
        """That of one resource."""
        if ref in self._unsaved:
            return self._unsaved[ref]
        rows = self.rows("SELECT facts FROM troubles WHERE ref = ?", str(ref))
        return _trouble(rows[0][0]) if rows else None

    def set_trouble(self, ref: Ref, trouble: Trouble | None) -> None:
        if trouble is None and self.trouble(ref) is None:
            return
        try:
            with self.change("trouble") as db:
                if trouble is None:
                    db.execute("DELETE FROM troubles WHERE ref = ?", (str(ref),))
                else:
                    db.execute("INSERT OR REPLACE INTO troubles VALUES (?, ?)", (str(ref), canonical(trouble)))
            self._unsaved.pop(ref, None)
        except Fault as fault:
            if fault.code != UNWRITABLE:
                raise
            self._unsaved[ref] = trouble

    def event(self, ref: str, type_: str, message: str) -> None:
        """Append to the bounded event log and tell whoever follows it. Told even when it cannot be written (seq 0)."""
        now, seq = time.time(), 0
        try:
            with self.change("event") as db:
                row = db.execute(
                    "INSERT INTO events (at, ref, type, message) VALUES (?, ?, ?, ?)", (now, ref, type_, message)
                )
                seq = row.lastrowid or 0
                db.execute("DELETE FROM events WHERE seq <= ?", (seq - EVENTS_KEPT,))
        except Fault as fault:
            if fault.code != UNWRITABLE:
                raise
        if self.on_event is not None:
            self.on_event({"seq": seq, "at": now, "ref": ref, "type": type_, "message": message})

    def events(self, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        rows = self.rows(
            "SELECT seq, at, ref, type, message FROM events WHERE seq > ? ORDER BY seq DESC LIMIT ?", after, limit
        )
        return [dict(zip(("seq", "at", "ref", "type", "message"), row, strict=True)) for row in reversed(rows)]

    # -- what a person holds ----------------------------------------------------------------------------------

    def paused(self) -> Mapping[Ref, float]:
        """What a person has paused, and since when (Unix seconds)."""
        return self._marked("paused")

    def set_paused(self, paused: Mapping[Ref, float]) -> None:
        self._mark("paused", paused)

    def loaded(self) -> Mapping[Ref, float]:
        """Servers that a person has loaded, and since when (Unix seconds)."""
        return self._marked("loaded")

    def set_loaded(self, loaded: Mapping[Ref, float]) -> None:
        self._mark("loaded", loaded)

    def _marked(self, key: str) -> Mapping[Ref, float]:
        return self._known(
            f"SELECT value FROM meta WHERE key = '{key}'",  # noqa: S608  one of the words above
            lambda rows: {Ref.parse(name): at for name, at in json.loads(rows[0][0]).items()} if rows else {},
        )

    def _mark(self, key: str, marks: Mapping[Ref, float]) -> None:
        self.set_meta("hold", **{key: canonical({str(ref): at for ref, at in marks.items()})})

    def suspension(self) -> Suspension | None:
        """That a person has suspended the controller; None where none has."""
        return self._known(
            "SELECT value FROM meta WHERE key = 'suspended' AND value <> ''",
            lambda rows: Suspension(**json.loads(rows[0][0])) if rows else None,
        )

    def set_suspension(self, suspension: Suspension | None) -> None:
        self.set_meta("hold", suspended=canonical(suspension) if suspension is not None else "")

    # -- conditions and what was put back ----------------------------------------------------------------------

    def conditions(self) -> dict[Ref, tuple[Condition, ...]]:
        """As they were last told, `Ready` first; without messages."""
        out: dict[Ref, tuple[Condition, ...]] = {}
        query = "SELECT ref, type, status, reason, since FROM conditions ORDER BY ref, type <> 'Ready', type"
        for text, type_, status, reason, since in self.rows(query):
            ref = Ref.parse(text)
            out[ref] = (*out.get(ref, ()), Condition(type_, status, reason, since=since))
        return out

    def set_conditions(
        self, found: Mapping[Ref, tuple[Condition, ...]], earlier: Mapping[Ref, tuple[Condition, ...]]
    ) -> None:
        """Write down those that differ from the `earlier` ones; those of resources that are no more are dropped."""
        moved, ended = [], []
        for ref, group in found.items():
            if (before := earlier.get(ref, ())) is not group:
                known = {c.type: c.since for c in before}
                moved += [(ref, c) for c in group if known.get(c.type) != c.since]
                ended += [(str(ref), type_) for type_ in known.keys() - {c.type for c in group}]
        gone = [ref for ref in earlier if ref not in found]
        if not moved and not gone and not ended:
            return
        with self.change("conditions") as db:
            db.executemany(
                "INSERT OR REPLACE INTO conditions VALUES (?, ?, ?, ?, ?)",
                [(str(ref), c.type, c.status, c.reason, c.since) for ref, c in moved],
            )
            db.executemany("DELETE FROM conditions WHERE ref = ? AND type = ?", ended)
            db.executemany("DELETE FROM conditions WHERE ref = ?", [(str(ref),) for ref in gone])

    def restored(self) -> dict[Ref, tuple[Restored, ...]]:
        """What had to be put back, oldest first."""
        out: dict[Ref, tuple[Restored, ...]] = {}
        for text, at, saw in self.rows("SELECT ref, at, saw FROM restored ORDER BY seq"):
            ref = Ref.parse(text)
            out[ref] = (*out.get(ref, ()), Restored(at, saw))
        return out

    def note_restored(self, ref: Ref, saw: str) -> None:
        with self.change("restored") as db:
            row = db.execute("INSERT INTO restored (ref, at, saw) VALUES (?, ?, ?)", (str(ref), time.time(), saw))
            db.execute("DELETE FROM restored WHERE seq <= ?", ((row.lastrowid or 0) - RESTORED_KEPT,))

    def forget_restored(self) -> None:
        """A person has taken notice: everything is put back again without being counted against it."""
        if self.rows("SELECT 1 FROM restored LIMIT 1"):
            with self.change("restored-forget") as db:
                db.execute("DELETE FROM restored")


def _process(
    nonce: str, ref: str, digest: str, host: str, port: int, inputs: str, log: str, created: float,
    pid: int | None, start: str, boot: str, ready: float | None, retiring: float | None,
) -> ProcessRow:  # fmt: skip
    identity = Identity(pid, start, boot) if pid is not None else None
    said = json.loads(inputs)
    return ProcessRow(nonce, Ref.parse(ref), digest, host, port, said, log, created, identity, ready, retiring)


def _trouble(text: str) -> Trouble:
    facts = json.loads(text)
    return Trouble(**{**facts, "kind": FaultClass(facts["kind"])})


@contextmanager
def _ledger_faults() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise Fault(
            UNWRITABLE,
            f"the ledger cannot be written: {error}",
            hint="free some space on its disk, and see that this user may write there",
            kind=FaultClass.NEEDS_HUMAN,
        ) from error


def _looking(path: Path) -> str:
    # Without a -wal file nobody has it open: immutable keeps SQLite from making one (and from locking).
    return f"{path.as_uri()}?mode=ro" + ("" if path.with_name(path.name + "-wal").exists() else "&immutable=1")


def _connect(uri: str, path: Path) -> sqlite3.Connection:
    db = None
    try:
        db = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=5.0)
        problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)
    except sqlite3.DatabaseError as error:
        if db is not None:
            db.close()
        raise Refused(
            f"the ledger {path} cannot be read: {error}",
            hint="is it on a failing disk? `reconcile state rebuild` makes it again from what is on disk and what runs",
        ) from error
    return db


def _version(db: sqlite3.Connection, path: Path) -> int:
    found = int(db.execute("PRAGMA user_version").fetchone()[0])
    if found > VERSION:
        db.close()
        raise Refused(
            f"the ledger {path} was written by a newer version of reconcile (format {found}; this one knows {VERSION})",
            hint="upgrade reconciler with pip, or use another --data-root; nothing was touched",
            exit_code=Exit.ERROR,
        )
    return found


def _back_up(db: sqlite3.Connection, to: Path, effects: Effects) -> None:
    with effects("backup", to):
        to.touch(mode=0o600)
        with closing(sqlite3.connect(to)) as backup:
            db.backup(backup)


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    for number in range(_version(db, path), VERSION):
        db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version={number + 1}; COMMIT;")


def _copy_in_memory(source: sqlite3.Connection, found: int) -> sqlite3.Connection:
    """A reader's copy of an older ledger, migrated in memory only."""
    db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    source.backup(db)
    source.close()
    for number in range(found, VERSION):
        db.executescript(MIGRATIONS[number])
    return db
