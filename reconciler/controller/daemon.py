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
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.controller import hands, recovery
from reconciler.controller.asking import Asking
from reconciler.controller.binding import planned
from reconciler.controller.hands import Hold
from reconciler.controller.refreshing import refresh
from reconciler.controller.scrub import scrub
from reconciler.controller.source import Ask, Source
from reconciler.controller.turn import View, Wanted, look, wanted_of
from reconciler.core import planner, status
from reconciler.core.diagnostics import Fault, FaultClass, Refused
from reconciler.core.ids import Ref
from reconciler.core.pace import Pace, words
from reconciler.core.plan import Action, Change, Op, Phase, human_bytes
from reconciler.core.retry import next_try
from reconciler.core.state import Declared, Trouble, World
from reconciler.core.status import Condition, stamp
from reconciler.host.process import alive
from reconciler.kinds.base import Kind, Stored, Supervised, Tools
from reconciler.manifest.reading import reading, sources_of
from reconciler.store.ledger import ProcessRow
from reconciler.supervise.actor import Watched, watch
from reconciler.supervise.logs import rotate

log = logging.getLogger(__name__)

RESYNC = 2.0  # seconds between two looks when nothing happens
ASKED_WITHIN = 60.0  # seconds that one started for a command waits for its request
STOPS_WITHIN = 5.0  # seconds that one who pauses waits for what is being done to stop
SOON = 0.2  # between two looks while something is held back by something that tells nobody when it is done


@dataclass(slots=True)
class Work:
    """An action being carried out."""

    action: Action
    attempt: str
    task: asyncio.Task[None]


class Controller:
    """One controller of one data root. `run` returns when it was told to stop, or when `down` is complete."""

    def __init__(self, path: Path, tools: Tools, kinds: Mapping[str, Kind], entitled: Callable[[], bool]) -> None:
        """`entitled` says whether the data root is still ours."""
        self.tools, self.kinds, self._entitled = tools, kinds, entitled
        self.source = Source(path, tools, kinds)
        self.asking = Asking(tools.ledger)
        tools.asked = self.asking.now
        tools.begun = self._starting
        self.mode = "run"  # run | wait (for the first `apply`) | down | purge | lock
        self.started = time.monotonic()
        self.begun = 0  # turns that have begun
        self.turns = 0  # the last one that is complete
        self.view: View | None = None
        self.viewed = 0  # the generation that it is a view of
        self.work: dict[Ref, Work] = {}
        self.progress: dict[Ref, Pace] = {}
        self.fault: Fault | None = None  # what cut the last turn short
        self.turned = asyncio.Condition()
        self.demands: dict[Ref, Action] = {}  # what a person asked for beyond the plan
        self.failed: dict[Ref, Fault] = {}  # of those
        self.told: dict[Ref, tuple[Condition, ...]] = dict(tools.ledger.conditions())
        tools.pressed = any(c.type == status.PRESSURE for group in self.told.values() for c in group)
        self._ended: set[Ref] = set()  # resources whose work ended during this turn's look
        self._eyes = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._loop_: asyncio.AbstractEventLoop | None = None
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._listeners: set[Callable[[dict[str, Any]], None]] = set()

    # -- life -------------------------------------------------------------------------------------------------

    async def run(self, serve: Callable[[Controller], Any]) -> None:
        """`serve` is the coroutine function of the control API."""
        self._loop_ = loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        self.tools.progress = self._note_progress
        self.tools.ledger.on_event = self._event
        await recovery.recover(self.tools, self.kinds, self.source.generations)
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [
                    group.create_task(serve(self)),
                    group.create_task(self.source.watch(self.wake)),
                    group.create_task(scrub(self)),
                    group.create_task(refresh(self)),
                ]
                try:
                    await self._loop(group)
                finally:
                    for task in (*helpers, *self._watchers.values(), *(w.task for w in self.work.values())):
                        task.cancel()
        except* Fault as faults:
            raise faults.exceptions[0] from None  # the control API could not be set up: one clear message
        finally:
            self._eyes.shutdown(wait=False)
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
                self.fault = None
            except Fault as fault:
                log.error("turn=%d %s", self.turns, fault)
                self.fault = fault
                self._publish()
                if fault.code == "LOCK_LOST":
                    return
            except Exception:
                log.exception("bug turn=%d", self.turns)
            if self._finished():
                if self.mode == "purge":
                    await asyncio.to_thread(self._sweep)
                    self._let_go()
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rest()):
                    await self._wake.wait()

    def _rest(self) -> float:
        """Seconds until the world is worth another look."""
        if self.view is None:
            return RESYNC
        world, pause = self.view.world, RESYNC
        for change in self.view.plan.changes:
            if change.ref in self.work or not change.actions or change.halt is not None:
                continue
            if change.actions[0].hold:
                pause = pause if change.contested else min(pause, SOON)
            elif (trouble := world.troubles.get(change.ref)) is not None and trouble.kind is not FaultClass.PERMANENT:
                pause = min(pause, max(0.01, next_try(change.ref, trouble) - world.now))
        return pause

    def _finished(self) -> bool:
        if self.mode == "wait" and time.monotonic() - self.started > ASKED_WITHIN:
            log.error("stopping: nobody asked for anything")
            return True
        if self.mode in ("run", "lock", "wait") or self.work:
            return False
        left = [
            ref
            for ref, owned in self.tools.ledger.owned().items()
            if self.kinds[ref.kind].rules.runs or (self.mode == "purge" and not owned.protect)
        ]
        return not left and not self.tools.ledger.processes()

    def _sweep(self) -> None:
        """Remove what was released earlier, and kept so that going back needs no network."""
        try:
            for kind in self.kinds.values():
                if isinstance(kind, Stored):
                    kind.sweep(self.tools)
        except Fault as fault:
            log.error("not swept: %s", fault)

    def _let_go(self) -> None:
        """Where nothing is left, nothing is held."""
        with suppress(Fault):
            self.tools.ledger.set_paused({})
            self.tools.ledger.set_suspension(None)

    # -- one turn ---------------------------------------------------------------------------------------------

    async def turn(self, group: asyncio.TaskGroup) -> None:
        """Look, plan, and start what can be started."""
        self.begun += 1
        number = self.begun
        if self.mode not in ("lock", "wait"):
            if self.tools.ledger.suspension() is None:
                self.source.read()
            else:
                self.source.recall()
            self.source.keep_promise()
        wanted, of = self.wanted(), self.source.generations.current
        basis = (self.mode, self.source.held)
        self._drop_unwanted(wanted.resources)
        self._ended.clear()
        view = await asyncio.get_running_loop().run_in_executor(self._eyes, look, wanted, self.tools, self.kinds)
        self._watch_processes(group)
        self._start_demands(group, wanted.resources)
        # What a person holds or asks for since we looked is not in the plan: the next turn has it, and is due at once.
        current = self._holds(view.world) and basis == (self.mode, self.source.held)
        steps = planner.runnable(view.plan, view.world) if current else []
        for change, action in steps:
            # What ended while we looked is not as we saw it: its turn is the next one, which is due at once.
            if change.ref not in self.work and change.ref not in self._ended and self._allowed(change, action):
                self._begin(group, change, action, wanted.resources.get(change.ref))
        self.turns, self.view, self.viewed = number, view, of
        self._note(view)
        self._publish()
        async with self.turned:
            self.turned.notify_all()

    def _starting(self) -> frozenset[Ref]:
        """What is being started: a look in its own thread may come before there is a process to be seen."""
        return frozenset(ref for ref, work in tuple(self.work.items()) if work.action.verb == "start")

    def _holds(self, world: World) -> bool:
        """Whether a look still has right what is paused and suspended."""
        ledger = self.tools.ledger
        return (world.paused, world.suspension) == (frozenset(ledger.paused()), ledger.suspension())

    def wanted(self) -> Wanted:
        """What is asked for now: the generation in force, less what a person takes down."""
        wanted = self.source.wanted
        if self.mode == "purge":
            return Wanted(purge=True, down=True)
        if self.mode == "down":
            kept = {ref: d for ref, d in wanted.resources.items() if not self.kinds[ref.kind].rules.runs}
            return Wanted(kept, down=True)
        return wanted

    def desired(self) -> Mapping[Ref, Declared]:
        return self.wanted().resources

    def _allowed(self, change: Change, action: Action) -> bool:
        if self.mode in ("lock", "wait"):
            return False
        if self.mode != "run":
            return change.op is Op.DELETE and (self.mode == "purge" or self.kinds[change.ref.kind].rules.runs)
        return self.source.held is not None or action.phase < Phase.STOP

    def _start_demands(self, group: asyncio.TaskGroup, desired: Mapping[Ref, Declared]) -> None:
        for ref, action in self.demands.items():
            if ref not in self.work and ref in desired:
                self._begin(group, Change(ref, Op.UPDATE, "asked for", (action,)), action, desired[ref])

    def _note(self, view: View) -> None:
        """Write down what this look taught: times of conditions, pins, the health of the generation."""
        now, world = self.source.generation, view.world
        found = stamp(view.conditions, self.told, time.time(), now.number if now is not None else 0)
        earlier, self.told = self.told, found
        guarded = {ref: world.desired[ref].protect for ref in world.owned if ref in world.desired}
        try:
            self._forgive(view)
            if world.desired:  # else nothing was asked for yet: that says nothing of what runs
                self._note_pressure(world.together.pressed)
            if self.source.held is not None:
                gone = [ref for ref in self.tools.ledger.paused() if ref not in self.source.wanted.resources]
                hands.resume(gone, self.tools.ledger, "it is no longer in the manifest")
                self.asking.settle(self.source.wanted.resources)
            self.tools.ledger.set_conditions(found, earlier)
            self.tools.ledger.protect({ref: flag for ref, flag in guarded.items() if world.owned[ref].protect != flag})
            if self.mode == "run":
                if world.suspension is None:  # else the lock on disk may say what was not taken over yet
                    self.source.learn()
                gateway = world.found(Ref("gateway", "main"))
                halted = any(change.halt is not None for change in view.plan.changes)  # which is no failure
                settled = not self.work and not halted and status.settled(world, view.plan)
                ready = view.ready and not self.work
                if now is not None and now.number == self.viewed:  # else another was applied during the look
                    failed = [f"{ref}: {t.message}" for ref, t in world.troubles.items() if view.plan.change(ref)]
                    routes = gateway.digest if gateway is not None else ""
                    self.source.judge_health(ready, settled, routes, "; ".join(failed))
        except Fault as fault:  # a full disk: it is told in the troubles of what failed by it
            if fault.code == "LOCK_LOST":
                raise
            log.warning("not noted turn=%d %s", self.begun, fault)

    def _note_pressure(self, pressed: str) -> None:
        """Once when memory has become too little for what runs, and once when it no longer is."""
        if bool(pressed) != self.tools.pressed:
            said = f"{pressed}; nothing more of it is idle" if pressed else "there is room again for what runs"
            self.tools.ledger.event("memory", status.PRESSURE if pressed else "MemoryRelieved", said)
            self.tools.pressed = bool(pressed)

    def _drop_unwanted(self, desired: Mapping[Ref, Declared]) -> None:
        """Cancel work whose resource is no longer declared as it was when the work began."""
        for ref, work in self.work.items():
            wanted = desired.get(ref)
            if work.action.phase <= Phase.ROUTE and (wanted is None or wanted.attempt != work.attempt):
                work.task.cancel()

    def _forgive(self, view: View) -> None:
        if not view.world.troubles:
            return
        rows = {row.ref: row for row in reversed(self.tools.ledger.processes())}  # the oldest of each
        for ref, trouble in view.world.troubles.items():
            if (row := rows.get(ref)) is not None:
                # An earlier version that serves on says nothing for the one that cannot be started.
                if row.ready is not None and view.plan.change(ref) is None:
                    recovery.forgive(ref, self.tools, max(row.ready, trouble.at))
            elif ref not in view.world.desired and ref not in view.world.owned:
                self.tools.ledger.set_trouble(ref, None)

    # -- work -------------------------------------------------------------------------------------------------

    def _begin(self, group: asyncio.TaskGroup, change: Change, action: Action, declared: Declared | None) -> None:
        attempt = declared.attempt if declared is not None else ""
        task = group.create_task(self._carry_out(change, action, declared, attempt))
        self.work[change.ref] = Work(action, attempt, task)
        # Not in the task itself: one that is cancelled before its first step never runs, not even its `finally`.
        task.add_done_callback(lambda _: self._note_end(change.ref, action))

    def _note_end(self, ref: Ref, action: Action) -> None:
        log.info("end ref=%s action=%s", ref, action.verb)
        if self.demands.get(ref) is action:
            self.demands.pop(ref)
        self.work.pop(ref, None)
        self._ended.add(ref)
        self.progress.pop(ref, None)
        self.wake()

    async def _carry_out(self, change: Change, action: Action, declared: Declared | None, attempt: str) -> None:
        """intent → effect → outcome."""
        ref, ledger = change.ref, self.tools.ledger
        demanded = self.demands.get(ref) is action
        log.info("begin ref=%s action=%s reason=%r", ref, action.verb, change.reason)
        try:
            intent = {"reason": change.reason, "text": action.text, "generation": self.source.generations.current}
            fields = [[f.path, f.before, f.after] for f in change.fields]
            seq = ledger.begin(ref, action.verb, {**intent, "fields": fields, "where": str(change.where or "")})
            outcome = "cancelled"
            try:
                await self.kinds[ref.kind].apply(action, ref, declared, self.tools)
                outcome = "done"
                if not self.kinds[ref.kind].rules.runs:
                    ledger.set_trouble(ref, None)
                    if change.drift:
                        ledger.note_restored(ref, change.reason)
                ledger.event(str(ref), action.verb.capitalize(), self._told(ref, action.text))
            except Fault as fault:
                outcome = fault.code
                if demanded:
                    self.failed[ref] = fault
                    ledger.event(str(ref), "Failed", str(fault))
                else:
                    self._trouble(ref, attempt, fault)
            except Exception as error:
                log.exception("bug ref=%s action=%s", ref, action.verb)
                outcome = "INTERNAL_ERROR"
                self._trouble(ref, attempt, Fault("INTERNAL_ERROR", f"{type(error).__name__}: {error}"))
            finally:
                ledger.end(seq, outcome)
        except Fault as fault:  # the ledger itself cannot be written
            if fault.code == "LOCK_LOST":
                log.error("stopping: %s", fault)
                self.stop()
            elif ledger.trouble(ref) is None:
                self._trouble(ref, attempt, fault)

    def _trouble(self, ref: Ref, attempt: str, fault: Fault) -> None:
        earlier = self.tools.ledger.trouble(ref)
        count = earlier.count + 1 if earlier is not None and earlier.digest == attempt else 1
        trouble = Trouble(attempt, count, time.time(), fault.code, fault.message, fault.hint, fault.kind, fault.after)
        self.tools.ledger.set_trouble(ref, trouble)
        self.tools.ledger.event(str(ref), "Failed", str(fault))
        log.warning("failed ref=%s count=%d %s", ref, count, fault)

    def _told(self, ref: Ref, text: str) -> str:
        """What was done; of what was fetched also how much, and how fast."""
        pace = self.progress.get(ref)
        came = pace.summary() if pace is not None else ""
        return f"{text}: {came}" if came else text

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
                recovery.settle(current, self.tools, code, declared.attempt if declared else "")
        except Fault as fault:
            log.error("unsettled ref=%s %s", row.ref, fault)  # the next turn finds that it ended, and settles it
        finally:
            self._watchers.pop(row.nonce, None)
            self.wake()

    # -- what the control API asks ----------------------------------------------------------------------------

    async def apply(self, path: Path, ask: Ask) -> int:
        """Take `path` as the manifest now, and try again what has failed, without waiting out its backoff.

        Returns the number of the turn whose view takes the manifest into account. Raises Refused.
        """
        self.source.apply(path, ask)
        self._go()
        return await self.next_turn()

    def plan_now(self, path: Path) -> dict[str, Any]:
        """What applying `path` would do now (the published JSON of a plan). Changes nothing. Raises Refused."""
        made = reading(path)
        return planned(made, wanted_of(made, self.tools.layout), self.tools, self.kinds).to_json()

    async def back(self, number: int | None) -> int:
        """Go back to an earlier generation → the turn that takes it into account. Raises Refused."""
        self.source.back(number, "asked for")
        self._go()
        return await self.next_turn()

    async def lock(self, refs: list[Ref] | None) -> dict[str, Any]:
        """Pin what is not pinned yet, and look anew at what `refs` name → what changed, and what failed.

        None for `refs` means nothing anew; an empty list everything. Raises Refused.
        """
        held, ledger = self.source.held, self.tools.ledger
        if ledger.suspension() is not None:
            raise Refused("the controller is suspended", hint="`reconcile resume` first")
        if held is None or self.source.faults:
            raise Refused(self.source.faults or "there is no manifest in force")
        pinned = {d.ref: key for key, needs in held.pins.items() for d in needs}
        if unknown := sorted(str(ref) for ref in set(refs or ()) - set(pinned)):
            names = ", ".join(str(ref) for ref in sorted(pinned))
            raise Refused(f"nothing is pinned for {', '.join(unknown)}", hint=f"there are: {names}")
        planner.refuse_paused(frozenset(refs or ()) & frozenset(ledger.paused()))
        before = held.reading.agreed(held.wanted.resources)
        anew = {key for key in held.pins if key not in before.pins or refs == []} | {pinned[ref] for ref in refs or ()}
        asked = {key: held.pins[key][0].ref for key in sorted(anew)}
        for ref in asked.values():
            self.failed.pop(ref, None)
            if ref in ledger.paused():
                self.failed[ref] = _paused(ref)
                continue
            self.demands[ref] = Action(Phase.MATERIALISE, "renew", "see what its source is now")
        self.wake()
        async with self.turned:
            await self.turned.wait_for(lambda: not any(ref in self.demands for ref in asked.values()))
        good = {key for key, ref in asked.items() if ref not in self.failed}
        named = sources_of(held.reading.manifest.stack)
        after = self.source.relock(
            lambda lock, pins, keys: lock.renewed({k: pins[k] for k in good if k in pins}).pruned(named)
        )
        self.wake()
        failed = [(ref, self.failed[ref]) for ref in asked.values() if ref in self.failed]
        moved = {
            d.ref for key, needs in held.pins.items() if before.pins.get(key) != after.pins.get(key) for d in needs
        }
        return {
            "changed": sorted(map(str, moved)),
            "pins": len(after.pins),
            "faults": [{"ref": str(ref), "message": fault.message, "hint": fault.hint} for ref, fault in failed],
        }

    async def pause(self, hold: Hold) -> dict[str, Any]:
        """Begin nothing more for what is named, or (no names) for anything, and stop what is being fetched of it.

        Raises Refused. What has come is kept, unless it is to be discarded.
        """
        ledger = self.tools.ledger
        refs = await self._meant(hold)
        if hold.discard:
            hands.refuse_undiscardable(refs, self.kinds)
        if refs:
            new = hands.pause(refs, ledger)
            changed: list[object] = [*new]
        else:
            new = []
            changed = [hands.EVERYTHING] if hands.suspend(ledger, self.source.generations.promise is not None) else []
        for ref in new:
            ledger.event(str(ref), "Paused", f"by a person{self._kept(ref)}")
        stopped = self._stop_fetching(refs or tuple({*self.work, *self.demands}))
        if stopped:
            await asyncio.wait(stopped, timeout=None if hold.discard else STOPS_WITHIN)
        gone = [ref for ref in refs if hold.discard and await self._discard(ref)]
        await self.next_turn()
        left = [ref for ref, work in self.work.items() if work.task in stopped]
        return hands.answer(ledger, changed, left, gone)

    async def resume(self, hold: Hold) -> dict[str, Any]:
        """Go on with what is named, or (no names) with everything that was suspended. Raises Refused."""
        ledger = self.tools.ledger
        refs = await self._meant(hold)
        changed: list[object] = [*hands.resume(refs, ledger)]
        if not refs and hands.lift(ledger):
            changed = [hands.EVERYTHING]
            self.source.resume()
            if self.mode == "wait":
                self.mode = "run"
        await self.next_turn()
        return hands.answer(ledger, changed)

    async def _meant(self, hold: Hold) -> tuple[Ref, ...]:
        if self.view is None:  # only a turn says what there is
            await self.next_turn()
        ledger = self.tools.ledger
        known = self.source.wanted.resources if self.source.held is not None else ledger.owned()
        return hands.chosen(hold, known.keys(), ledger.paused().keys())

    def _stop_fetching(self, refs: Iterable[Ref]) -> set[asyncio.Task[None]]:
        """Cancel what brings bytes; what starts, routes or stops is done to its end → the tasks that are to end."""
        out = set()
        for ref in refs:
            if self.demands.pop(ref, None) is not None:
                self.failed[ref] = _paused(ref)
            work = self.work.get(ref)
            if work is not None and work.action.phase is Phase.MATERIALISE:
                work.task.cancel()
                out.add(work.task)
        return out

    async def _discard(self, ref: Ref) -> bool:
        declared = self.source.wanted.resources.get(ref)
        if declared is None or ref in self.work or ref not in self.tools.ledger.paused():
            raise Refused(f"{ref} was resumed meanwhile", hint="nothing of it was thrown away")
        return await hands.discard(ref, declared, self.tools, self.kinds)

    def _kept(self, ref: Ref) -> str:
        pace = self.progress.get(ref)
        if pace is None or not pace.done:
            return ""
        return f"; {human_bytes(pace.done)}" + (f" of {human_bytes(pace.total)} are here" if pace.total else " is here")

    async def next_turn(self) -> int:
        """Wait for a turn that begins after now → its number."""
        number = self.begun + 1
        self.wake()
        async with self.turned:
            await self.turned.wait_for(lambda: self.turns >= number)
        return self.turns

    def _go(self) -> None:
        """A person has said what to do: what has failed is tried again at once."""
        if self.mode == "wait":
            self.mode = "run"
        for ref in self.tools.ledger.troubles():
            self.tools.ledger.set_trouble(ref, None)
        self.tools.ledger.forget_restored()

    def server_of(self, name: str) -> Ref:
        """The server of the model that clients call `name`. Raises Refused."""
        gateway = self.source.wanted.resources.get(Ref("gateway", "main"))
        models = gateway.spec.models if gateway is not None else ()
        for model in models:
            if name in (model.name, *model.aliases, f"server/{model.name}"):
                return Ref("server", model.name)
        known = ", ".join(m.name for m in models) or "none"
        raise Refused(f"there is no model named {name!r}", hint=f"models are: {known}")

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
        view, now, promise = self.view, self.source.generation, self.source.generations.promise
        working = {str(ref): w.action.text for ref, w in self.work.items()}
        fault = self.fault or self.source.unkept
        # What was just taken over has not been looked at: what was true of the generation before says nothing of it.
        idle = view is not None and not self.work and self.viewed == self.source.generations.current
        return {
            "format": "1.0",
            "controller": {"pid": os.getpid(), "mode": self.mode, "turn": self.turns, "fault": str(fault or "")},
            "manifest": {
                "path": str(self.source.path),
                "generation": now.number if now is not None else 0,
                "state": now.state if now is not None else "",
                "targets": list(now.targets) if now is not None else [],
                "held_back": bool(self.source.generations.held),
                "confirm_by": promise.deadline if promise is not None else None,
                "faults": [d.to_json() for d in self.source.faults],
            },
            "ready": bool(view and idle and now is not None and view.ready),  # where nothing is in force, nothing is
            "settled": bool(view and idle and status.settled(view.world, view.plan)),
            "outside_targets": view.plan.outside if view else 0,
            "resources": status.to_json(self.told) if view else [],
            "working": working,
            "progress": {str(ref): _progress(pace, time.monotonic()) for ref, pace in tuple(self.progress.items())},
            **hands.held(self.tools.ledger),
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
        """Called for every piece, and from the threads that copy: cheap, and told on the loop."""
        now, known = time.monotonic(), self.progress.get(ref)
        if known is None:
            self.progress[ref] = Pace(what, done, total, now)
        elif known.what != what:
            self.progress[ref] = known.followed(what, done, total, now)
        else:
            known.note(now, done, total)
            if known.due(now) and self._loop_ is not None:
                self._loop_.call_soon_threadsafe(self._tell_progress, ref, known)

    def _tell_progress(self, ref: Ref, pace: Pace) -> None:
        """As an event that nobody keeps (seq 0): a log of downloads needs its end, not its way there."""
        if self.progress.get(ref) is pace:
            now = _progress(pace, time.monotonic())
            message = f"{pace.what} {words(now['done'], now['total'], now['rate'], now['eta_seconds'])}"
            event = {"seq": 0, "at": time.time(), "ref": str(ref), "type": "Progress", "message": message}
            self._event({**event, "progress": now})


def _progress(pace: Pace, now: float) -> dict[str, Any]:
    return {
        "what": pace.what,
        "done": pace.done,
        "total": pace.total,
        "seconds": now - pace.began,
        "rate": pace.rate(now),
        "eta_seconds": pace.eta(now),
    }


def _paused(ref: Ref) -> Fault:
    return Fault("PAUSED", "it is paused", hint=f"`reconcile resume {ref}` first", kind=FaultClass.NEEDS_HUMAN)
