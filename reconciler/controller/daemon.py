"""The controller process: one task group that watches, thinks and works.

Level-triggered: an event (a saved file, a dead process, a finished action) only wakes the loop; each turn looks at
the world anew and starts whatever its plan has runnable and not already in work. One action at a time a resource;
different resources work beside each other, so that a long download holds up nothing else.

If this process is killed, workloads and gateway go on; the next one takes them over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.controller import recovery
from reconciler.controller.source import Source
from reconciler.controller.turn import View, look
from reconciler.core import planner, status
from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import Action, Change, Op, Phase
from reconciler.core.retry import next_try
from reconciler.core.state import Declared, Trouble
from reconciler.host.process import alive
from reconciler.kinds.base import Kind, Supervised, Tools
from reconciler.kinds.engine.io import python_tag
from reconciler.manifest.resolve import resolve
from reconciler.store.ledger import ProcessRow
from reconciler.supervise.actor import Watched, watch
from reconciler.supervise.logs import rotate

log = logging.getLogger(__name__)

RESYNC = 2.0  # seconds between two looks when nothing happens
SOON = 0.2  # between two looks while something is held back by something that tells nobody when it is done


@dataclass(slots=True)
class Work:
    """An action being carried out."""

    action: Action
    digest: str
    task: asyncio.Task[None]


@dataclass(slots=True)
class Progress:
    what: str
    done: int = 0
    total: int | None = None
    since: float = field(default_factory=time.monotonic)


class Controller:
    """One controller of one data root. `run` returns when it was told to stop, or when `down` is complete."""

    def __init__(self, path: Path, tools: Tools, kinds: Mapping[str, Kind], entitled: Callable[[], bool]) -> None:
        """`entitled` says whether the data root is still ours."""
        self.tools, self.kinds, self._entitled = tools, kinds, entitled
        self.source = Source(path, tools, kinds)
        self.mode = "run"  # run | down | purge
        self.turns = 0
        self.view: View | None = None
        self.work: dict[Ref, Work] = {}
        self.progress: dict[Ref, Progress] = {}
        self.turned = asyncio.Condition()
        self._read_in = 0  # the turn that read the manifest last
        self._ended: set[Ref] = set()  # resources whose work ended during this turn's look
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._listeners: set[Callable[[dict[str, Any]], None]] = set()

    # -- life -------------------------------------------------------------------------------------------------

    async def run(self, serve: Callable[[Controller], Any]) -> None:
        """`serve` is the coroutine function of the control API."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        self.tools.progress = self._note_progress
        self.tools.ledger.on_event = self._event
        await recovery.recover(self.tools)
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(serve(self)), group.create_task(self.source.watch(self.wake))]
                try:
                    await self._loop(group)
                finally:
                    for task in (*helpers, *self._watchers.values(), *(w.task for w in self.work.values())):
                        task.cancel()
        except* Fault as faults:
            raise faults.exceptions[0] from None  # the control API could not be set up: one clear message
        finally:
            await self.tools.fetch.close()

    def stop(self) -> None:
        self._stop.set()
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    async def _loop(self, group: asyncio.TaskGroup) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            if not self._entitled():
                log.error("stopping: the data root was removed or replaced under us")
                return
            try:
                await self.turn(group)
            except Fault as fault:
                log.error("turn=%d %s", self.turns, fault)
                if fault.code == "LOCK_LOST":
                    return
            except Exception:
                log.exception("bug turn=%d", self.turns)
            if self._finished():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()

    def _pause(self) -> float:
        """Seconds until the world is worth another look."""
        if self.view is None:
            return RESYNC
        world, pause = self.view.world, RESYNC
        for change in self.view.plan.changes:
            if change.ref in self.work or not change.actions:
                continue
            if change.actions[0].hold:
                pause = min(pause, SOON)
            elif (trouble := world.troubles.get(change.ref)) is not None and trouble.kind is not FaultClass.PERMANENT:
                pause = min(pause, max(0.01, next_try(change.ref, trouble) - world.now))
        return pause

    def _finished(self) -> bool:
        if self.mode == "run" or self.work:
            return False
        left = self.tools.ledger.owned()
        running = [ref for ref in left if self.mode == "purge" or ref.kind in ("server", "gateway")]
        return not running and not self.tools.ledger.processes()

    # -- one turn ---------------------------------------------------------------------------------------------

    async def turn(self, group: asyncio.TaskGroup) -> None:
        """Look, plan, and start what can be started."""
        if self.source.read():
            self._read_in = self.turns + 1
        desired = self.desired()
        self._drop_unwanted(desired)
        self._ended.clear()
        view = await asyncio.to_thread(look, desired, self.tools, self.kinds, self.mode == "purge")
        self._watch_processes(group)
        for change, action in planner.runnable(view.plan, view.world):
            # What ended while we looked is not as we saw it: its turn is the next one, which is due at once.
            if change.ref not in self.work and change.ref not in self._ended and self._allowed(change, action):
                self._begin(group, change, action, desired.get(change.ref))
        self._forgive(view)
        self.turns += 1
        self.view = view
        self._publish()
        async with self.turned:
            self.turned.notify_all()

    def desired(self) -> Mapping[Ref, Declared]:
        if self.mode == "purge" or self.source.manifest is None:
            return {}
        declared = resolve(self.source.manifest, python_tag())
        if self.mode == "down":
            return {ref: d for ref, d in declared.items() if ref.kind in ("engine", "model")}
        return declared

    def _allowed(self, change: Change, action: Action) -> bool:
        if self.mode != "run":
            return change.op is Op.DELETE and (self.mode == "purge" or change.ref.kind in ("server", "gateway"))
        return self.source.manifest is not None or action.phase < Phase.STOP

    def _drop_unwanted(self, desired: Mapping[Ref, Declared]) -> None:
        """Cancel work whose resource is no longer declared as it was when the work began."""
        for ref, work in self.work.items():
            wanted = desired.get(ref)
            if work.action.phase <= Phase.ROUTE and (wanted is None or wanted.digest != work.digest):
                work.task.cancel()

    def _forgive(self, view: View) -> None:
        for ref, trouble in view.world.troubles.items():
            row = next((r for r in self.tools.ledger.processes() if r.ref == ref), None)
            if row is not None:
                # An earlier version that serves on says nothing for the one that cannot be started.
                if row.ready is not None and view.plan.change(ref) is None:
                    recovery.forgive(ref, self.tools, max(row.ready, trouble.at))
            elif ref not in view.world.desired and ref not in view.world.owned:
                self.tools.ledger.set_trouble(ref, None)

    # -- work -------------------------------------------------------------------------------------------------

    def _begin(self, group: asyncio.TaskGroup, change: Change, action: Action, declared: Declared | None) -> None:
        digest = declared.digest if declared is not None else ""
        task = group.create_task(self._carry_out(change, action, declared, digest))
        self.work[change.ref] = Work(action, digest, task)

    async def _carry_out(self, change: Change, action: Action, declared: Declared | None, digest: str) -> None:
        """intent → effect → outcome."""
        ref, ledger = change.ref, self.tools.ledger
        log.info("begin ref=%s action=%s reason=%r", ref, action.verb, change.reason)
        try:
            seq = ledger.begin(ref, action.verb, {"digest": digest, "reason": change.reason})
            outcome = "cancelled"
            try:
                await self.kinds[ref.kind].apply(action, ref, declared, self.tools)
                outcome = "done"
                if ref.kind not in ("server", "gateway"):
                    ledger.set_trouble(ref, None)
                ledger.event(str(ref), action.verb.capitalize(), action.text)
            except Fault as fault:
                outcome = fault.code
                self._trouble(ref, digest, fault)
            except Exception as error:
                log.exception("bug ref=%s action=%s", ref, action.verb)
                outcome = "INTERNAL_ERROR"
                self._trouble(ref, digest, Fault("INTERNAL_ERROR", f"{type(error).__name__}: {error}"))
            finally:
                ledger.end(seq, outcome)
        except Fault as fault:  # the ledger itself cannot be written
            if fault.code == "LOCK_LOST":
                log.error("stopping: %s", fault)
                self.stop()
            elif ref not in ledger.troubles():
                self._trouble(ref, digest, fault)
        finally:
            log.info("end ref=%s action=%s", ref, action.verb)
            self.work.pop(ref, None)
            self._ended.add(ref)
            self.progress.pop(ref, None)
            self.wake()

    def _trouble(self, ref: Ref, digest: str, fault: Fault) -> None:
        earlier = self.tools.ledger.troubles().get(ref)
        count = earlier.count + 1 if earlier is not None and earlier.digest == digest else 1
        trouble = Trouble(digest, count, time.time(), fault.code, fault.message, fault.hint, fault.kind, fault.after)
        self.tools.ledger.set_trouble(ref, trouble)
        self.tools.ledger.event(str(ref), "Failed", str(fault))
        log.warning("failed ref=%s count=%d %s", ref, count, fault)

    # -- watching processes -----------------------------------------------------------------------------------

    def _watch_processes(self, group: asyncio.TaskGroup) -> None:
        """One watching task for every process that was ready once; the rest are watched by who starts them."""
        for row in self.tools.ledger.processes():
            rotate(Path(row.log), self.tools.files)
            if row.nonce in self._watchers or row.ref in self.work:
                continue
            if row.identity is None or not alive(row.identity):
                recovery.settle(row, self.tools)  # it ended while nobody watched
                self.wake()
            elif row.ready is not None:
                self._watchers[row.nonce] = group.create_task(self._watch_one(row))

    async def _watch_one(self, row: ProcessRow) -> None:
        assert row.identity is not None
        seen = self.tools.watched.setdefault(row.nonce, Watched())

        kind = self.kinds[row.ref.kind]
        assert isinstance(kind, Supervised)

        async def answers() -> bool:
            return await kind.answers(row, self.tools)

        try:
            code = await watch(self.tools.processes, row.identity, seen, answers, self.wake)
            current = next((r for r in self.tools.ledger.processes() if r.nonce == row.nonce), None)
            if current is not None and row.ref not in self.work:
                declared = self.desired().get(row.ref)
                recovery.settle(current, self.tools, code, declared.digest if declared else "")
        finally:
            self._watchers.pop(row.nonce, None)
            self.wake()

    # -- what the control API asks ----------------------------------------------------------------------------

    async def apply(self, path: Path, allow_empty: bool) -> int:
        """Take `path` as the manifest now, and try again what has failed, without waiting out its backoff.

        Returns the number of the turn whose view takes the manifest into account.
        """
        for ref in self.tools.ledger.troubles():
            self.tools.ledger.set_trouble(ref, None)
        self.source.reread(path, allow_empty)
        self.wake()
        async with self.turned:
            await self.turned.wait_for(lambda: not self.source.unread and self.turns >= self._read_in)
        return self.turns

    def take_down(self, purge: bool) -> None:
        self.mode = "purge" if purge else "down"
        self.wake()

    # -- telling ----------------------------------------------------------------------------------------------

    def listen(self, hear: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Have `hear` called with every message; returns the function that ends it."""
        self._listeners.add(hear)
        return lambda: self._listeners.discard(hear)

    def snapshot(self) -> dict[str, Any]:
        """The whole status as JSON values."""
        view = self.view
        working = {str(ref): w.action.text for ref, w in self.work.items()}
        return {
            "format": "1.0",
            "controller": {"pid": os.getpid(), "mode": self.mode, "turn": self.turns},
            "manifest": {
                "path": str(self.source.path),
                "generation": self.source.generation,
                "faults": [d.to_json() for d in self.source.faults],
            },
            "ready": bool(view and view.ready and not self.work),
            "settled": bool(view and not self.work and status.settled(view.world, view.plan)),
            "resources": status.to_json(view.conditions) if view else [],
            "working": working,
            "progress": {
                str(ref): {"what": p.what, "done": p.done, "total": p.total, "seconds": time.monotonic() - p.since}
                for ref, p in self.progress.items()
            },
        }

    def _publish(self) -> None:
        if self._listeners:
            self._tell({"type": "status", **self.snapshot()})

    def _tell(self, message: dict[str, Any]) -> None:
        for hear in tuple(self._listeners):
            hear(message)

    def _event(self, event: dict[str, Any]) -> None:
        self._tell({"type": "event", "event": event})

    def _note_progress(self, ref: Ref, what: str, done: int, total: int | None) -> None:
        known = self.progress.get(ref)
        if known is None or known.what != what:
            self.progress[ref] = Progress(what, done, total)
        else:
            known.done, known.total = done, total
