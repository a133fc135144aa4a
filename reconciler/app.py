"""The composition root: the only file that knows every room. The command line calls it, and nobody else."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.controller.binding import Planned, planned
from reconciler.controller.hands import Hold, hold_offline
from reconciler.controller.turn import View, Wanted, look, wanted_of
from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.core.ids import Ref
from reconciler.core.residency import Asked
from reconciler.core.state import Declared, Found
from reconciler.core.status import stamp
from reconciler.host import hardware
from reconciler.host.effects import Denied, Effects
from reconciler.host.fetch import Fetch
from reconciler.host.files import Files
from reconciler.host.layout import Layout
from reconciler.host.process import Processes
from reconciler.kinds.base import Kind, Tools
from reconciler.kinds.flags import FlagSet
from reconciler.kinds.registry import KINDS
from reconciler.manifest.reading import Reading, reading
from reconciler.store.blobs import Blobs
from reconciler.store.generations import Generation, Generations
from reconciler.store.ledger import Ledger

if TYPE_CHECKING:
    from reconciler.controller.bundle import Bundled
    from reconciler.controller.daemon import Controller
    from reconciler.controller.recovery import Rebuilt
    from reconciler.store.lock import RootLock


def tools_for(layout: Layout, base: Path, effects: Effects, ledger: Ledger, kinds: Mapping[str, Kind]) -> Tools:
    """Every tool of one data root, sharing one choke-point for effects."""
    files = Files(effects)

    def found(ref: Ref) -> Any:
        owned = tools.ledger.owned().get(ref)
        declared = tools.desired().get(ref)
        if owned is None and declared is None:
            return None
        desired = {ref: declared} if declared is not None else {}
        return getattr(kinds[ref.kind].observe([ref], desired, tools)[ref], "state", None)

    tools = Tools(
        layout=layout,
        base=base,
        effects=effects,
        files=files,
        processes=Processes(effects, layout.run / "ends"),
        fetch=Fetch(files, effects),
        ledger=ledger,
        blobs=Blobs(layout, files, ledger, effects),
        look=found,
        asked=lambda: {ref: Asked(kept=True) for ref in ledger.loaded()},
        host=hardware.facts,
    )
    return tools


@contextmanager
def looking(layout: Layout, base: Path) -> Iterator[Tools]:
    """Tools that cannot change anything, with or without a controller running."""
    with Ledger.read(layout.ledger) as ledger:
        yield tools_for(layout, base, Denied(), ledger, KINDS)


def preview(made: Reading, layout: Layout, targets: frozenset[Ref] = frozenset(), ahead: bool = False) -> Planned:
    """Look and plan, without any effect. Raises Refused.

    With `ahead` sources that were never looked at are asked what they hold, as far as they answer soon.
    """
    wanted = wanted_of(made, layout, targets)
    with looking(layout, made.manifest.path.parent) as tools:
        if ahead:
            from reconciler.kinds.engine import ahead as engines
            from reconciler.kinds.model.ahead import look_ahead

            engines.look_ahead([d.spec for ref, d in wanted.resources.items() if ref.kind == "engine"], tools)
            look_ahead([d.spec for ref, d in wanted.resources.items() if ref.kind == "model"], tools)
        return planned(made, wanted, tools, KINDS)


def engine_chosen(name: str, made: Reading, layout: Layout) -> dict[str, Any]:
    """Which archive of its release an engine is installed from here, and why; empty where that is not known."""
    from reconciler.kinds.engine.io import known
    from reconciler.kinds.engine.variants import Refusal

    declared = wanted_of(made, layout).resources.get(Ref("engine", name))
    if declared is None or not declared.spec.origin.startswith("github:"):
        return {}
    with looking(layout, made.manifest.path.parent) as tools:
        spec, host = known(declared.spec, tools), tools.host()
    found = spec.chosen(host) if spec.files else None
    if found is None:
        return {}
    if isinstance(found, Refusal):
        return {"variant": "nothing", "name": spec.resolved, "by": found.reason, "why": list(found.considered)}
    why = [f"{found.variant}: {found.why}", *found.considered]
    return {"variant": found.variant, "name": found.names[0], "by": "for this machine", "why": why}


def flags_of(model: str, made: Reading, layout: Layout) -> FlagSet | None:
    """The flags of the engine that a model is for; None where it is not here yet and nothing is known of it."""
    wanted = wanted_of(made, layout).resources
    ref = Ref("engine", made.manifest.stack.models[model].engine)
    if ref not in wanted:
        return None
    with looking(layout, made.manifest.path.parent) as tools:
        seen = KINDS["engine"].observe([ref], wanted, tools)[ref]
    found: FlagSet | None = seen.state.flags if isinstance(seen, Found) else wanted[ref].spec.foreknown
    return found


async def inspect(what: str, settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a file or a source is, by its headers alone. `path` is the manifest, whose `hub` counts if it is there.

    Raises Refused or Fault.
    """
    from pydantic import ValidationError

    from reconciler.gguf.quant import parse
    from reconciler.kinds.model.inspect import inspect as look_into
    from reconciler.kinds.model.spec import ModelSection, resolve

    if settings.get("quant"):
        settings = {**settings, "quant": parse(settings["quant"]) or settings["quant"]}
    local = Path(what).expanduser()
    source = f"file:{local.absolute()}" if local.exists() else what
    try:
        section = ModelSection(source=source, **settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in ("plain", "mapping"))
        hint = "it is neither a file here nor a source" if key == "source" else ""
        raise Refused([Diagnostic(f"{first['msg'].removeprefix('Value error, ')}", path=key, hint=hint)]) from error
    hub = reading(path).manifest.stack.hub if path.exists() else None
    with looking(Layout(Path("/nonexistent")), path.parent) as tools:
        try:
            return await look_into(resolve(section, {}, hub)[""], tools)
        finally:
            await tools.fetch.close()


def conditions(path: Path, layout: Layout) -> tuple[View, Generation | None, tuple[Diagnostic, ...]]:
    """(what a look gives, the generation in force, what is wrong with the manifest), without any effect."""
    faults: tuple[Diagnostic, ...] = ()
    wanted = Wanted()
    try:
        wanted = wanted_of(reading(path), layout)
    except Refused as refused:
        faults = refused.diagnostics
    with looking(layout, path.parent) as tools:
        view = look(wanted, tools, KINDS)
        generations = Generations(layout, tools.files, tools.ledger)
        now = generations.get(generations.current)
        found = stamp(view.conditions, tools.ledger.conditions(), view.world.now, now.number if now else 0)
        return replace(view, conditions=found), now, faults


async def control(path: Path, layout: Layout, effects: Effects, mode: str = "run") -> None:
    """Be the controller: take the lock, open the ledger, run. `mode` `down` or `purge` only takes things down."""
    async with _controller(path, layout, effects) as controller:
        from reconciler.controller.control import serve

        controller.mode = mode
        await controller.run(serve)


async def lock_alone(path: Path, layout: Layout, refs: list[Ref] | None) -> dict[str, Any]:
    """Pin sources where no controller runs. Raises Refused."""
    async with _controller(path, layout, Effects()) as controller:
        controller.mode = "lock"
        controller.source.peek()

        answer: dict[str, Any] | Refused = {}

        async def work(_: Controller) -> None:
            nonlocal answer
            try:
                answer = await controller.lock(refs)
            except Refused as refused:
                answer = refused
            controller.stop()

        await controller.run(work)
        if isinstance(answer, Refused):
            raise answer
        return answer


async def hold_alone(path: Path, layout: Layout, hold: Hold) -> dict[str, Any]:
    """Pause or resume where no controller runs: the next one keeps to it. Raises Refused."""
    if not layout.ledger.exists():  # and an empty one would hide that it was lost
        raise Refused(
            f"nothing was applied in {layout.root} yet", hint="`reconcile apply` does, `--target` a part of it"
        )
    files = Files(Effects())
    with _root(path, layout, files), closing(Ledger.write(layout.ledger, files.effects)) as ledger:
        tools = tools_for(layout, path.parent, files.effects, ledger, KINDS)
        return await hold_offline(hold, _declared(path, layout), tools, KINDS, Generations(layout, files, ledger))


def _declared(path: Path, layout: Layout) -> Mapping[Ref, Declared]:
    try:
        return wanted_of(reading(path), layout).resources
    except Refused:
        return {}


async def rebuild(path: Path, layout: Layout) -> Rebuilt:
    """Set the ledger aside and make it again from disk and process table. Raises Refused while a controller runs."""
    from reconciler.controller import recovery

    files = Files(Effects())
    with _root(path, layout, files):
        stamp_ = time.strftime("%Y%m%d-%H%M%S")
        for name in ("", "-wal", "-shm"):
            part = layout.ledger.with_name(layout.ledger.name + name)
            if part.exists():
                files.move(part, layout.ledger.with_name(f"{layout.ledger.name}.lost-{stamp_}{name}"))
        ledger = Ledger.write(layout.ledger, files.effects)
        try:
            tools = tools_for(layout, path.parent, files.effects, ledger, KINDS)
            found = await recovery.rebuild(tools, KINDS, Generations(layout, files, ledger))
            with suppress(Refused):
                for key, facts in reading(path).lock.pins.items():
                    ledger.pin(key, facts)
            good, damaged = recovery.prove_artifacts(tools)
            return replace(found, artifacts=good, damaged=damaged)
        finally:
            ledger.close()


async def collect(path: Path, layout: Layout, older: float, keep: int | None, yes: bool) -> dict[str, Any]:
    """What nobody needs any more, where no controller runs; with `yes` it is removed. Raises Refused, Fault."""
    from reconciler.controller.garbage import Ask, Garbage, to_json
    from reconciler.controller.proving import wanted

    ask, desired = Ask(older, keep), wanted(path, layout)
    if not yes or not layout.ledger.exists():
        with looking(layout, path.parent) as tools:
            return to_json(Garbage(tools, path).survey(ask, desired), layout.root, None)
    files = Files(Effects())
    with _root(path, layout, files), Ledger.write(layout.ledger, files.effects) as ledger:
        garbage = Garbage(tools_for(layout, path.parent, files.effects, ledger, KINDS), path)
        survey = garbage.survey(ask, desired)
        return to_json(survey, layout.root, await garbage.clear(survey, desired))


def bundle(path: Path, layout: Layout, file: Path, taking: bool) -> Bundled:
    """Write what a manifest needs into one file, or take such a file in. Raises Refused, Fault."""
    from reconciler.controller.bundle import export, take_in
    from reconciler.manifest.lock import beside

    if not taking:
        with looking(layout, path.parent) as tools:
            tools.effects = tools.files.effects = Effects()  # one file is written, which is none of the data root's
            return export(reading(path), tools, file)
    files = Files(Effects())
    files.folder(layout.root)
    with _root(path, layout, files), closing(Ledger.write(layout.ledger, files.effects)) as ledger:
        return take_in(file, beside(path), tools_for(layout, path.parent, files.effects, ledger, KINDS))


@contextmanager
def _root(path: Path, layout: Layout, files: Files) -> Iterator[RootLock]:
    """Hold the data root."""
    from reconciler.store.lock import RootLock

    lock = RootLock(layout, files)
    lock.acquire(str(path))
    try:
        yield lock
    finally:
        lock.release()


@asynccontextmanager
async def _controller(path: Path, layout: Layout, effects: Effects) -> AsyncIterator[Controller]:
    from reconciler.controller.daemon import Controller

    with _root(path, layout, Files(effects)) as lock:
        ledger = Ledger.write(layout.ledger, effects)
        try:
            tools = tools_for(layout, path.parent, effects, ledger, KINDS)
            controller = Controller(path, tools, KINDS, lock.held)
            tools.desired = controller.desired
            yield controller
        finally:
            ledger.close()


def log_to_stderr(verbose: bool) -> None:
    """The controller's own log: an event and its pairs, one a line."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose or os.environ.get("RECONCILER_DEBUG") else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("httpcore2").setLevel(logging.WARNING)
