"""Who wants which server in memory: clients, for as long as they wait, and a person, until he says otherwise.

What a person loads is in the ledger, so that it outlives every process. What clients wait for is only as long-lived
as their requests.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from reconciler.controller.turn import View
from reconciler.core import status
from reconciler.core.diagnostics import FaultClass, Refused
from reconciler.core.ids import Ref
from reconciler.core.plan import Op
from reconciler.core.residency import Asked
from reconciler.core.retry import next_try, wait_for
from reconciler.core.state import Declared, Trouble
from reconciler.kinds.carried import REDUCED
from reconciler.kinds.workload import forget_short
from reconciler.store.ledger import Ledger

if TYPE_CHECKING:
    from reconciler.controller.daemon import Controller

SHORT = 2.0  # seconds of backoff that a client waits out


class Asking:
    """`now` may be called from another thread; all else belongs to the controller's loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: dict[Ref, tuple[float, ...]] = {}  # since when, each; Unix seconds
        self._dropped: frozenset[Ref] = frozenset()

    def now(self) -> Mapping[Ref, Asked]:
        waiting, dropped, loaded = dict(self._waiting), self._dropped, self._ledger.loaded()
        return {
            ref: Asked(
                len(waiting.get(ref, ())),
                min(waiting.get(ref, ()), default=loaded.get(ref, 0.0)),
                ref in loaded,
                ref in dropped,
            )
            for ref in {*waiting, *dropped, *loaded}
        }

    @contextmanager
    def waiting(self, ref: Ref) -> Iterator[float]:
        """One client waits for it; gives since when."""
        since = time.time()
        self._waiting[ref] = (*self._waiting.get(ref, ()), since)
        try:
            yield since
        finally:
            left = list(self._waiting[ref])
            left.remove(since)
            self._waiting[ref] = tuple(left)
            if not left:
                del self._waiting[ref]

    def load(self, ref: Ref) -> bool:
        """Keep it in memory until `unload` → whether that is new. Raises Fault where that cannot be written down."""
        self._dropped -= {ref}
        loaded = dict(self._ledger.loaded())
        if ref in loaded:
            return False
        self._ledger.set_loaded(loaded | {ref: time.time()})
        self._ledger.event(str(ref), "Load", "asked for by a person")
        return True

    def unload(self, ref: Ref) -> None:
        """Let it go as soon as it has answered what it is answering. Raises Fault."""
        loaded = dict(self._ledger.loaded())
        if loaded.pop(ref, None) is not None:
            self._ledger.set_loaded(loaded)
        self._dropped |= {ref}
        self._ledger.event(str(ref), "Unload", "asked for by a person")

    def settle(self, wanted: Mapping[Ref, Declared]) -> None:
        """Forget wishes that are fulfilled, or for what is no longer theirs to load. Raises Fault."""
        living = {row.ref for row in self._ledger.processes()}
        self._dropped &= living
        loaded = self._ledger.loaded()
        kept = {ref: at for ref, at in loaded.items() if starts(wanted.get(ref)) != "always"}
        if kept != loaded:
            self._ledger.set_loaded(kept)


def starts(declared: Declared | None) -> str:
    """always, on_demand or manual; what is not declared counts as `always`: there is nothing to ask for."""
    return str(declared.spec.start) if declared is not None else "always"


def refuse_unasked(ref: Ref, asked: Mapping[Ref, Asked], declared: Declared | None) -> None:
    """Raise Refused where waiting would load nothing: only a person does."""
    if starts(declared) == "manual" and not asked.get(ref, Asked()).kept:
        raise Refused(
            f"{ref.name} is not loaded, and starts only by hand", hint=f"`reconcile load {ref.name}` loads it"
        )


def refuse_fixed(ref: Ref, declared: Declared | None) -> None:
    """Raise Refused for what always runs."""
    if starts(declared) == "always":
        hint = f"declare `start: on_demand` or `start: manual` for models.{ref.name}"
        raise Refused(f"{ref.name} has `start: always`: it is never unloaded", hint=hint)


def serves(ref: Ref, view: View) -> bool:
    """Whether it runs as wanted and clients' requests are led to it."""
    known = {c.type: c for c in view.conditions.get(ref, ())}
    if "Ready" not in known or known["Ready"].status != "True":
        return False
    return starts(view.world.desired.get(ref)) == "always" or known["Routed"].status == "True"


def hopeless(ref: Ref, view: View, since: float) -> tuple[str, float]:
    """Why waiting for it is of no use now, and seconds after which it may be; an empty reason where it is of use."""
    world, declared, change = view.world, view.world.desired.get(ref), view.plan.change(ref)
    for one in (ref, *(declared.needs if declared is not None else ())):
        trouble = world.troubles.get(one)
        soon = trouble is not None and (trouble.at < since or _makes_do(trouble))
        if trouble is None or (soon and wait_for(one, world) <= SHORT):
            continue
        wait = wait_for(one, world)
        after = 60.0 if math.isinf(wait) else next_try(one, trouble) - world.now
        return f"{one} failed with {trouble.code}", min(60.0, max(1.0, after))
    held = world.standing.get(ref)
    if held is not None and held.never:
        return held.hold or held.why, 30.0
    if starts(declared) == "manual" and held is not None and not held.wanted and world.now >= since:
        return "it starts only by hand now", 30.0  # which it did not when this client came
    if change is not None and (change.halt is not None or change.contested or change.op is Op.DENIED):
        return change.reason, 30.0
    return "", 2.0


def _makes_do(trouble: Trouble) -> bool:
    """Whether it ran out of memory and is about to be tried with less, which is worth the wait."""
    return trouble.code == "OUT_OF_MEMORY" and trouble.kind is FaultClass.TRANSIENT


async def ensure_ready(controller: Controller, name: str, timeout: float) -> dict[str, Any]:
    """Wait until the model that clients call `name` can be asked, loading it if need be → its server's conditions.

    Ends earlier where waiting has no sense: `why` says so. Raises Refused.
    """
    # One that has just been started knows no model yet, and a gateway asks it before the command that started it does.
    await _until(controller, lambda: _informed(controller), timeout)
    ref = controller.server_of(name)
    declared = controller.desired().get(ref)
    refuse_unasked(ref, controller.asking.now(), declared)

    def answered() -> bool:
        view = controller.view
        if view is None or serves(ref, view):
            return view is not None
        return starts(declared) != "always" and ref not in controller.work and bool(hopeless(ref, view, since)[0])

    with controller.asking.waiting(ref) as since:
        await _until(controller, answered, timeout)
        view = controller.view
        ready = view is not None and serves(ref, view)
        why, after = hopeless(ref, view, since) if view is not None and not ready else ("", 2.0)
    return {"ready": ready, "why": why, "retry_after": after, **_told(controller, ref)}


def _informed(controller: Controller) -> bool:
    """Whether it has a manifest, or has looked for one."""
    return controller.source.held is not None or (controller.mode != "wait" and controller.view is not None)


async def load(controller: Controller, name: str, timeout: float) -> dict[str, Any]:
    """Load a model and keep it loaded, over restarts too, until `unload` → as `ensure_ready`. Raises Refused, Fault.

    One that runs with less than its manifest says is tried with its own settings again, also where it always runs.
    """
    ref, tools = controller.server_of(name), controller.tools
    declared = controller.desired().get(ref)
    less = any(REDUCED in row.inputs for row in tools.ledger.processes() if row.ref == ref)
    if not less:
        refuse_fixed(ref, declared)
    if starts(declared) != "always":
        controller.asking.load(ref)
    forget_short(ref, tools)
    tools.ledger.set_trouble(ref, None)  # a person does not wait out a backoff
    if less:
        turn = await controller.next_turn()
        await _until(controller, lambda: controller.turns > turn and _at_rest(controller, ref), timeout)
    return await ensure_ready(controller, name, timeout)


def _at_rest(controller: Controller, ref: Ref) -> bool:
    """Whether nothing is being done for it, nor about to be."""
    view = controller.view
    return view is not None and ref not in controller.work and view.plan.change(ref) is None


async def unload(controller: Controller, name: str, timeout: float) -> dict[str, Any]:
    """Let a model go, and wait until its memory is free → whether it is. Raises Refused, Fault."""
    ref, ledger = controller.server_of(name), controller.tools.ledger
    refuse_fixed(ref, controller.desired().get(ref))
    controller.asking.unload(ref)

    def gone() -> bool:
        return all(row.ref != ref for row in ledger.processes())

    await _until(controller, gone, timeout)
    return {"unloaded": gone(), **_told(controller, ref)}


async def _until(controller: Controller, condition: Callable[[], bool], timeout: float) -> None:
    """Wait for something that a turn brings; at most `timeout` seconds."""
    controller.wake()
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout), controller.turned:
            await controller.turned.wait_for(condition)


def _told(controller: Controller, ref: Ref) -> dict[str, Any]:
    return status.to_json({ref: controller.told.get(ref, ())})[0]
