"""The manifest as the controller has it: the generation in force, and what is wrong with the file as it is now.

A file that is right becomes a generation. One that is not is refused, and the last good generation stays. Going back
puts an earlier generation in force and remembers what the files said at that moment: while they say the same, they
are not taken over again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reconciler.controller.binding import bound
from reconciler.controller.turn import Wanted, look, wanted_of
from reconciler.core import planner
from reconciler.core.diagnostics import Diagnostic, Fault, Refused, Where
from reconciler.core.ids import Ref
from reconciler.core.state import Declared, Suspension
from reconciler.host import secrets
from reconciler.kinds.base import Kind, Tools
from reconciler.manifest import lock as locks
from reconciler.manifest.include import Disk, contents
from reconciler.manifest.lock import Lock
from reconciler.manifest.reading import Reading, digest_of_texts, kept, pins_of, reading
from reconciler.store.generations import Generation, Generations, Promise, Texts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ask:
    """How a person wants a manifest applied.

    `targets` limit it, `locked` forbids what the lock does not pin, `confirm` is the number of seconds after which
    the generation before comes back unless confirmed, `binding` what a saved plan was made from.
    """

    allow_empty: bool = False
    targets: frozenset[Ref] = frozenset()
    locked: bool = False
    confirm: float = 0.0
    binding: Any = None


@dataclass(frozen=True, slots=True)
class Held:
    """A reading that is in force, and what it asks for."""

    reading: Reading
    wanted: Wanted

    @property
    def pins(self) -> dict[str, tuple[Declared, ...]]:
        return pins_of(self.wanted.resources)


class Source:
    """Files that people edit. `held` is None only before there was ever a good generation."""

    def __init__(self, path: Path, tools: Tools, kinds: Mapping[str, Kind]) -> None:
        self.path, self._tools, self._kinds = path, tools, kinds
        self.generations = Generations(tools.layout, tools.files, tools.ledger)
        self.held: Held | None = None
        self.faults: tuple[Diagnostic, ...] = ()
        self._disk: Disk | None = None  # what the files said when they were last read
        self.unkept: Fault | None = None  # why what is in force could not be kept as a generation
        self._moved = asyncio.Event()
        self._lock_problem = ""
        self._watched: set[Path] = set()

    @property
    def wanted(self) -> Wanted:
        return self.held.wanted if self.held is not None else Wanted()

    @property
    def generation(self) -> Generation | None:
        return self.generations.get(self.generations.current)

    # -- taking over ---------------------------------------------------------------------------------------------

    def apply(self, path: Path, ask: Ask) -> Generation:
        """Take `path` as the manifest now. Raises Refused, and then nothing has changed."""
        suspension = self._tools.ledger.suspension()
        secrets.forget()  # who asks may have just stored the one that was missing
        disk = self._new_disk()
        made = self._hold(reading(path, disk), ask.targets)
        self._judge(made, ask)
        before = self.generations.asked
        if ask.confirm and not before:
            raise Refused("there is no earlier generation to go back to", hint="apply without --confirm-within")
        self.path, self._disk = path, disk
        taken = self._take(made)
        if taken.state in ("failed", "superseded"):
            self.generations.mark(taken.number, "applying", taken.routes)
        if ask.confirm and taken.number != before:
            self.generations.set_promise(Promise(taken.number, before, time.time() + ask.confirm))
        self.generations.note_asked(taken.number)
        self._let_through(suspension)
        return taken

    def read(self) -> bool:
        """Take the files over if they changed and are right; False if they did not change."""
        if self._disk is not None and not self._disk.moved():
            if self.unkept is not None and self.held is not None:
                self._try_to_take(self.held)
            return False
        self._disk = self._new_disk()
        try:
            made = reading(self.path, self._disk)
        except Refused as refused:
            gone = Diagnostic("the manifest is gone", Where(str(self.path)), "put it back, or `reconcile down`")
            self._refuse(refused if self.path.exists() else Refused([gone]))
            return True
        if self.generations.held == self._said():
            self.faults = ()
            if self.held is None:
                self._recall(self.generations.current)
            return True
        now = self.generation
        same = now is not None and now.digest == made.digest and not self._tools.ledger.meta("whole")
        try:
            held = self._hold(made, _refs(now) if same else frozenset())
            self._judge(held, Ask())
        except Refused as refused:
            self._refuse(refused)
        else:
            self._try_to_take(held)
            self._tools.ledger.set_meta(whole="")
        return True

    def recall(self) -> None:
        """Hold the generation in force, whatever the files say: a controller that starts while it is suspended."""
        if self.held is None and (now := self.generation) is not None:
            self._recall(now.number)

    def resume(self) -> None:
        """Have the files read anew, though they may not have changed since they were last looked at."""
        self._disk = None

    def _let_through(self, suspension: Suspension | None) -> None:
        """A person has put something in force by hand while suspended: that is carried out."""
        if suspension is not None and not suspension.asked:
            self._tools.ledger.set_suspension(replace(suspension, asked=True))

    def peek(self) -> None:
        """Hold what the files say without taking it over. Raises Refused."""
        self._disk = Disk()
        self._put(self._hold(reading(self.path, self._disk)))

    def back(self, number: int | None, why: str) -> Generation:
        """Put an earlier generation in force: one write, no network. Raises Refused."""
        suspension = self._tools.ledger.suspension()
        if self._disk is None or suspension is not None:  # what the files say now is what is gone back from
            self._disk = self._new_disk()
            with suppress(Refused):
                reading(self.path, self._disk)
        current = self.generations.current
        aim = self.generations.before(current) if number is None else self.generations.get(number)
        if aim is None:
            known = ", ".join(str(g.number) for g in self.generations.all())
            missing = "there is no earlier generation" if number is None else f"there is no generation {number}"
            raise Refused(missing, hint=f"there are: {known}" if known else "nothing was applied yet")
        if aim.number == current:
            raise Refused(f"generation {current} is in force already", hint="`reconcile history` lists the others")
        held = self._kept(aim)
        planner.refuse_denied(look(held.wanted, self._tools, self._kinds).plan)
        self.generations.switch(aim.number, self._said())
        if aim.state != "ready":
            self.generations.mark(aim.number, "applying", aim.routes)
        self._put(held)
        self._let_through(suspension)
        self._tools.ledger.event("manifest", "RolledBack", f"generation {current} → {aim.number}: {why}")
        return aim

    def keep_promise(self) -> None:
        """Go back where a generation was to be confirmed and was not."""
        promise = self.generations.promise
        if promise is None or time.time() < promise.deadline:
            return
        self.generations.set_promise(None)
        if promise.back_to != self.generations.current:
            self._back_by_itself(promise.back_to, f"generation {promise.generation} was not confirmed in time")

    def judge_health(self, ready: bool, settled: bool, routes: str, failed: str) -> None:
        """Note what became of the generation in force; one that failed goes back where the manifest says so.

        `failed` says what has failed, and why.
        """
        now = self.generation
        if now is None or now.state != "applying" or self.held is None or not (ready or settled):
            return
        self.generations.mark(now.number, "ready" if ready else "failed", routes)
        if ready:
            self._tools.ledger.event("manifest", "GenerationReady", f"generation {now.number}")
            return
        what = f"generation {now.number} did not become ready" + (f": {failed}" if failed else "")
        self._tools.ledger.event("manifest", "GenerationFailed", what)
        earlier = self.generations.before(now.number)
        wants_back = self.held.reading.manifest.stack.on_failure == "rollback"
        if wants_back and earlier is not None and earlier.state == "ready":
            self._back_by_itself(earlier.number, what)

    def confirm(self) -> Generation:
        """A person is content with the generation in force. Raises Refused where nothing waits for that."""
        now = self.generation
        if self.generations.promise is None or now is None:
            raise Refused(
                "nothing waits to be confirmed", hint="`reconcile history` shows which generation is in force"
            )
        self.generations.set_promise(None)
        self._tools.ledger.event("manifest", "Confirmed", f"generation {now.number}")
        return now

    # -- the lock ------------------------------------------------------------------------------------------------

    def learn(self) -> None:
        """Write into the lock what sources were found to be, where it does not say yet."""
        if self.held is None or self.faults or self.generations.held:
            return
        self.relock(lambda lock, pins, keys: lock.learned(pins, keys))

    def relock(self, change: Callable[[Lock, Mapping[str, Any], set[str]], Lock]) -> Lock:
        """Change the lock of what is in force, on disk and in its generation → the new lock."""
        assert self.held is not None
        made, keys = self.held.reading, set(self.held.pins)
        lock = change(made.agreed(self.held.wanted.resources), self._tools.ledger.pins(), keys)
        if lock == made.lock:
            return lock
        path = locks.beside(made.manifest.path)
        try:
            self._tools.files.write(path, lock.text().encode(), mode=0o644)
            self._lock_problem = ""
        except Fault as fault:
            if self._lock_problem != fault.message:
                self._lock_problem = fault.message
                self._tools.ledger.event("manifest", "LockNotWritten", f"{fault.message}; the pins are in the ledger")
        made = replace(made, lock=lock)
        self._put(self._hold(made, self.held.wanted.targets))
        if self._disk is not None and path in self._disk.said:
            self._disk.said[path] = contents(path)
        now = self.generation
        if now is not None and now.digest == made.digest:
            self.generations.relock(now.number, lock.digest(keys), _texts(made))
        return lock

    # -- watching ------------------------------------------------------------------------------------------------

    async def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` when a file changes, for ever. Watches the folders, not the files: editors replace files."""
        from watchfiles import awatch

        while True:
            self._moved.clear()
            self._watched = self._folders()
            try:
                # It looks every `step` ms whether a burst of changes is over: shorter costs processor time all day.
                async for changes in awatch(
                    *sorted(f for f in self._watched if f.is_dir()),
                    recursive=False,
                    debounce=100,
                    step=50,
                    stop_event=self._moved,
                ):
                    if any(self._concerns(Path(name)) for _, name in changes):
                        wake()
            except (OSError, RuntimeError) as error:
                # The loop reads the files every few seconds anyway; only the quick answer is lost meanwhile.
                log.warning("cannot watch folder=%s error=%s", self.path.parent, error)
                await asyncio.sleep(2.0)

    def _folders(self) -> set[Path]:
        return {self.path.parent, *(self._disk.folders if self._disk is not None else ())}

    def _concerns(self, path: Path) -> bool:
        known = self._disk.said if self._disk is not None else {}
        return path == self.path or path in known or path.suffix in (".yaml", ".yml")

    # -- inside --------------------------------------------------------------------------------------------------

    def _judge(self, held: Held, ask: Ask) -> None:
        """Raise Refused for a manifest that must not be carried out as it is."""
        view = look(held.wanted, self._tools, self._kinds)
        planner.refuse_strangers(held.wanted.targets, view.world)
        planner.refuse_halted(ask.targets, ask.binding is not None, view.world)
        made = bound(held.reading, view, self._tools.ledger)
        if ask.locked:
            made.refuse_gaps()
        planner.refuse_denied(view.plan)
        if not ask.allow_empty:
            planner.refuse_emptying(view.plan, view.world)
        if ask.binding is not None:
            made.refuse_stale(ask.binding)

    def _take(self, held: Held) -> Generation:
        """Put a reading in force: as a new generation, or as the one that it is already. Raises Fault, and then not."""
        made, keys, now = held.reading, set(held.pins), self.generation
        locked, names = made.lock.digest(keys), tuple(sorted(str(ref) for ref in held.wanted.targets))
        same = now is not None and (now.digest, now.targets) == (made.digest, names) and not self.generations.held
        if now is not None and same and made.lock.extends(self._kept_lock(now.number), keys):
            self.generations.relock(now.number, locked, _texts(made))
            self._put(held)
            return now
        taken = self.generations.add(made.digest, locked, _texts(made), names)
        self._put(held)
        what = f" ({', '.join(names)} only)" if names else ""
        self._tools.ledger.event("manifest", "Accepted", f"generation {taken.number}{what}")
        return taken

    def _try_to_take(self, held: Held) -> None:
        """Put a reading in force even where a full disk does not let us keep it; the next reading tries again."""
        try:
            self._take(held)
            self.unkept = None
        except Fault as fault:
            if fault.code == "LOCK_LOST":
                raise
            self.unkept = fault
            self._put(held)

    def _put(self, held: Held) -> None:
        before = self.held.reading.manifest.stack.limits if self.held is not None else None
        limits = held.reading.manifest.stack.limits
        if before is None or before.downloads != limits.downloads:
            self._tools.downloads.resize(limits.downloads)
        self._tools.fetch.bandwidth = None if limits.bandwidth == "none" else float(limits.bandwidth)
        self.held, self.faults, self._tools.base = held, (), held.reading.manifest.path.parent
        if self._folders() != self._watched:
            self._moved.set()

    def _refuse(self, refused: Refused) -> None:
        self.faults = refused.diagnostics
        self._tools.ledger.event("manifest", "Rejected", str(self.faults[0]))
        log.warning("manifest rejected: %s", self.faults[0])
        now = self.generation
        if self.held is None and now is not None and Path(now.manifest) == self.path:
            self._recall(now.number)  # a controller that starts with a broken file
            self.faults = refused.diagnostics

    def _recall(self, number: int) -> None:
        now = self.generations.get(number)
        try:
            if now is not None:
                self._put(self._kept(now))
        except Refused as refused:
            log.warning("generation=%d cannot be recalled: %s", number, refused)

    def _back_by_itself(self, number: int, why: str) -> None:
        try:
            self.back(number, why)
        except Refused as refused:
            self._tools.ledger.event("manifest", "RollbackRefused", str(refused))

    def _kept(self, generation: Generation) -> Held:
        """A generation as it was kept. Raises Refused."""
        texts = self.generations.texts(generation.number)
        return self._hold(kept(texts.root, texts.files, texts.lock), _refs(generation))

    def _hold(self, made: Reading, targets: frozenset[Ref] = frozenset()) -> Held:
        return Held(made, wanted_of(made, self._tools.layout, targets))

    def _new_disk(self) -> Disk:
        labels = self._tools.layout.labels
        return Disk(said={labels: contents(labels)})

    def _said(self) -> str:
        """The digest of what the files say, broken ones included."""
        return digest_of_texts(Path("/"), self._disk.said if self._disk is not None else {})

    def _kept_lock(self, number: int) -> Lock:
        try:
            return locks.read(self.generations.texts(number).lock.encode(), "lock")
        except Refused:
            return Lock()


def _refs(generation: Generation | None) -> frozenset[Ref]:
    return frozenset(Ref.parse(name) for name in generation.targets) if generation is not None else frozenset()


def _texts(made: Reading) -> Texts:
    return Texts(made.manifest.path, made.manifest.texts, made.lock.text())
