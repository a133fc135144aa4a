"""Generations: every manifest that was taken over, with its lock, numbered and kept whole.

The rows are in the ledger; the texts are files of their own, since manifests stay out of it. A generation is written
before it is numbered, so that whatever has a number can be gone back to, without a network.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Refused
from reconciler.host.files import Files
from reconciler.host.layout import Layout
from reconciler.store.ledger import Ledger

FORMAT = 1
COLUMNS = "number, at, digest, manifest, state, locked, policy, routes, targets"


@dataclass(frozen=True, slots=True)
class Generation:
    """`state` is applying, ready, failed, or superseded by a later one before it was either.

    `digest`, `locked`, `policy` and `routes` are sha256 of those texts; `targets` are resource names where only these
    were applied.
    """

    number: int
    at: float
    digest: str
    manifest: str
    state: str = "applying"
    locked: str = ""
    policy: str = ""
    routes: str = ""
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Texts:
    """What a generation was made from: the manifest's path, every file by its path, and the lock's text."""

    root: Path
    files: Mapping[Path, bytes]
    lock: str


@dataclass(frozen=True, slots=True)
class Promise:
    """That `back_to` comes back at `deadline` (Unix seconds) unless a person confirms."""

    generation: int
    back_to: int
    deadline: float


class Generations:
    """The numbered history of one data root."""

    def __init__(self, layout: Layout, files: Files, ledger: Ledger) -> None:
        self._layout, self._files, self._ledger = layout, files, ledger

    # -- which one is in force -----------------------------------------------------------------------------------

    @property
    def current(self) -> int:
        """The number in force; 0 before the first."""
        return int(self._ledger.meta("current", "0"))

    @property
    def held(self) -> str:
        """The digest of the files that were gone back from: while they say the same, they are not taken over again."""
        return self._ledger.meta("held")

    @property
    def asked(self) -> int:
        """The number that a person last applied or went back to; what was saved since may have been taken over, too."""
        return int(self._ledger.meta("asked", "0")) or self.current

    def note_asked(self, number: int) -> None:
        self._ledger.set_meta(asked=str(number))

    def switch(self, number: int, held: str) -> None:
        """Put a generation in force: the one write that a rollback is."""
        self._ledger.set_meta(current=str(number), asked=str(number), held=held, promise="")

    # -- the list ------------------------------------------------------------------------------------------------

    def all(self) -> list[Generation]:
        """Oldest first."""
        rows = self._ledger.rows(f"SELECT {COLUMNS} FROM generations ORDER BY number")  # noqa: S608
        return [_generation(row) for row in rows]

    def get(self, number: int) -> Generation | None:
        rows = self._ledger.rows(f"SELECT {COLUMNS} FROM generations WHERE number = ?", number)  # noqa: S608
        return _generation(rows[0]) if rows else None

    def before(self, number: int) -> Generation | None:
        """The newest earlier one that became ready; else simply the one before."""
        earlier = [g for g in self.all() if g.number < number]
        good = [g for g in earlier if g.state == "ready"]
        return good[-1] if good else earlier[-1] if earlier else None

    # -- writing -------------------------------------------------------------------------------------------------

    def add(self, digest: str, locked: str, texts: Texts, targets: tuple[str, ...] = ()) -> Generation:
        """Keep the texts, number them, and put them in force. What is in force already keeps its number."""
        now = self.get(self.current)
        if now is not None and (now.digest, now.locked, now.targets) == (digest, locked, targets):
            self.switch(now.number, held="")
            return now
        newest = self._ledger.rows("SELECT coalesce(max(number), 0) FROM generations")[0][0]
        made = Generation(newest + 1, time.time(), digest, str(texts.root), locked=locked, targets=targets)
        self._keep(made, texts)
        self._insert(made)
        return made

    def relock(self, number: int, locked: str, texts: Texts) -> None:
        """The lock has learned something new for this generation, and contradicts nothing that it said before."""
        made = self.get(number)
        if made is not None and made.locked != locked:
            self._keep(replace(made, locked=locked), texts)
            with self._ledger.change("generation-lock") as db:
                db.execute("UPDATE generations SET locked = ? WHERE number = ?", (locked, number))

    def forget(self, number: int) -> None:
        """Let one go for good: its row first, so that nothing that has a number is without its texts."""
        with self._ledger.change("generation-forget") as db:
            db.execute("DELETE FROM generations WHERE number = ?", (number,))
        self._files.remove(self._path(number))
        self._files.remove(self._path(number).with_suffix(".yaml"))

    def spared(self, newest: int) -> set[int]:
        """Those that stay when so many of the newest are kept: also what is in force, or may come back by itself."""
        kept = {g.number for g in self.all()[-max(newest, 1) :]} | {self.current, self.asked}
        if (promise := self.promise) is not None:
            kept |= {promise.generation, promise.back_to}
        return kept

    def size(self, number: int) -> int:
        """Bytes of its texts on disk."""
        paths = (self._path(number), self._path(number).with_suffix(".yaml"))
        return sum(path.stat().st_size for path in paths if path.exists())

    def mark(self, number: int, state: str, routes: str = "") -> None:
        with self._ledger.change("generation-state") as db:
            db.execute("UPDATE generations SET state = ?, routes = ? WHERE number = ?", (state, routes, number))

    def _insert(self, made: Generation) -> None:
        row = (made.number, made.at, made.digest, made.manifest, made.state, made.locked, made.policy, made.routes)
        with self._ledger.change("generation") as db:
            db.execute("UPDATE generations SET state = 'superseded' WHERE state = 'applying'")
            db.execute(
                f"INSERT INTO generations ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                (*row, " ".join(made.targets)),
            )
            db.execute("INSERT OR REPLACE INTO meta VALUES ('current', ?), ('held', '')", (str(made.number),))

    # -- texts ---------------------------------------------------------------------------------------------------

    def texts(self, number: int) -> Texts:
        """What a generation was made from. Raises Refused where it was not kept or cannot be read."""
        plain = self._path(number).with_suffix(".yaml")  # how the first release kept them
        known = self.get(number)
        try:
            if known is not None and plain.exists():
                return Texts(Path(known.manifest), {Path(known.manifest): plain.read_bytes()}, "")
            kept = json.loads(self._path(number).read_text())
            files = {Path(path): text.encode() for path, text in kept["files"].items()}
            return Texts(Path(kept["root"]), files, kept["lock"])
        except FileNotFoundError:
            raise Refused(
                f"generation {number} is not kept here", hint="`reconcile history` lists those that are"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"generation {number} cannot be read from {self._path(number)}: {error}") from error

    def _keep(self, made: Generation, texts: Texts) -> None:
        document = {
            "format": FORMAT,
            "number": made.number,
            "at": made.at,
            "digest": made.digest,
            "locked": made.locked,
            "targets": list(made.targets),
            "root": str(texts.root),
            "files": {str(path): text.decode() for path, text in texts.files.items()},
            "lock": texts.lock,
        }
        self._files.write(self._path(made.number), json.dumps(document, indent=1, ensure_ascii=False).encode())

    def _path(self, number: int) -> Path:
        return self._layout.generations / f"{number}.json"

    def recall(self) -> int:
        """Number again what is kept on disk, for a ledger that was lost → how many. The newest is in force."""
        found = []
        for path in sorted(self._layout.generations.glob("*.json"), key=lambda p: (len(p.name), p.name)):
            try:
                kept = json.loads(path.read_text())
                number, at = int(kept["number"]), float(kept["at"])
                digest, locked, root = str(kept["digest"]), str(kept["locked"]), str(kept["root"])
                targets = tuple(str(t) for t in kept["targets"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if path == self._path(number):  # somebody's copy has another name
                found.append(Generation(number, at, digest, root, "ready", locked, targets=targets))
        for made in found:
            self._insert(made)
        return len(found)

    # -- a promise to go back ------------------------------------------------------------------------------------

    @property
    def promise(self) -> Promise | None:
        text = self._ledger.meta("promise")
        return Promise(**json.loads(text)) if text else None

    def set_promise(self, promise: Promise | None) -> None:
        made = (
            {"generation": promise.generation, "back_to": promise.back_to, "deadline": promise.deadline}
            if promise
            else None
        )
        self._ledger.set_meta(promise=json.dumps(made) if made else "")


def _generation(row: Sequence[Any]) -> Generation:
    number, at, digest, manifest, state, locked, policy, routes, targets = row
    return Generation(number, at, digest, manifest, state, locked, policy, routes, tuple(targets.split()))
