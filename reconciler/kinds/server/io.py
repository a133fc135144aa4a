"""Servers: see which processes run, start and stop them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import Action
from reconciler.core.state import Absent, Declared, Found, Observation
from reconciler.host.hardware import gpu_memory
from reconciler.host.probes import free_port
from reconciler.host.process import Identity, cpu_seconds, memory
from reconciler.kinds.base import Tools
from reconciler.kinds.carried import CACHE, LAYERS, REDUCED, WITHIN
from reconciler.kinds.fit import judged
from reconciler.kinds.flags import Unfit
from reconciler.kinds.server import slots
from reconciler.kinds.server.kept import Kept, kept, unkept
from reconciler.kinds.server.kept import told as kept_told
from reconciler.kinds.server.reduced import Settings, applied, next_settings, shortage, told, words
from reconciler.kinds.server.rules import Instance, ServerRules, ServerState, artifacts, demand
from reconciler.kinds.server.spec import Paths, ServerSpec, arguments
from reconciler.kinds.server.templated import Bound, health_of, launch_of
from reconciler.kinds.workload import (
    Launch,
    forget_short,
    loading_rate,
    new_nonce,
    note_rate,
    row_phase,
    row_silent,
    short_of,
    shorts,
    start,
    stop,
)
from reconciler.store.ledger import ProcessRow
from reconciler.store.views import by_name, together
from reconciler.supervise.exits import SHRINK_HINT
from reconciler.supervise.readiness import LEAST, healthy, start_budget, wait_ready

HOST = "127.0.0.1"
PATIENCE = 5.0  # seconds that a server may take to say that it lives
GRACE = 10.0  # seconds between SIGTERM and SIGKILL


class ServerKind:
    name = "server"
    rules = ServerRules()

    def observe(self, refs: Iterable[Ref], desired: Mapping[Ref, Declared], tools: Tools) -> dict[Ref, Observation]:
        rows: dict[Ref, list[ProcessRow]] = {}
        for row in tools.ledger.processes():
            rows.setdefault(row.ref, []).append(row)
        out: dict[Ref, Observation] = {}
        refs = list(refs)
        graphics = gpu_memory(
            [row.identity.pid for ref in refs for row in rows.get(ref, ()) if row.identity is not None]
        )
        known = shorts(tools)
        for ref in refs:
            found, short = (
                tuple(_instance(row, graphics, tools) for row in rows.get(ref, [])),
                shortage(known.get(ref, "")),
            )
            out[ref] = Found(ServerState(found, short)) if found or short is not None else Absent()
        return out

    async def apply(self, action: Action, ref: Ref, declared: Declared | None, tools: Tools) -> None:
        match action.verb:
            case "start":
                assert declared is not None
                await _start(ref, declared, action.args, tools)
                tools.ledger.own(ref, declared.digest, declared.spec)
            case "adopt":
                assert declared is not None
                tools.ledger.own(ref, declared.digest, declared.spec)
            case "await":
                assert declared is not None
                await _await(_row(action, tools), tools)
                tools.ledger.own(ref, declared.digest, declared.spec)
            case "retire":
                tools.ledger.record_retiring(str(action.args["nonce"]))
            case "stop":
                if (row := _row(action, tools)) is not None:
                    written = await slots.save(row, tools) if action.args.get("keep") else []
                    await stop(row, tools, GRACE)
                    await slots.settle(ref, written, tools)
            case "release":
                forget_short(ref, tools)
                tools.ledger.disown(ref)

    def sweep(self, tools: Tools) -> None:
        slots.sweep({ref.name for ref in tools.ledger.owned() if ref.kind == self.name}, tools)

    async def answers(self, row: ProcessRow, tools: Tools) -> bool:
        """Its /health answers; or it is at work: long generations may keep every thread that could answer busy."""
        before = _cpu(row)
        if await healthy(row.host, row.port, PATIENCE, health_of(row, tools)):
            return True
        if _cpu(row) <= before:
            return False
        gateway = tools.look(Ref("gateway", "main"))
        return gateway is not None and row.nonce in gateway.inflight


def _cpu(row: ProcessRow) -> float:
    return cpu_seconds(row.identity.pid) if row.identity is not None else 0.0


def _instance(row: ProcessRow, graphics: Mapping[int, tuple[int, ...]], tools: Tools) -> Instance:
    life, silent = row_phase(row, tools), row_silent(row, tools)
    whole, private = memory(row.identity.pid) if row.identity is not None else (0, 0)
    return Instance(
        row.nonce,
        row.digest,
        life,
        row.host,
        row.port,
        row.inputs,
        row.ready,
        row.retiring,
        silent,
        tools.layout.key(row.nonce).exists(),
        whole,
        private,
        row.ready - row.created if row.ready is not None else 0.0,
        graphics.get(row.identity.pid, ()) if row.identity is not None else (),
    )


def _row(action: Action, tools: Tools) -> ProcessRow | None:
    return next((row for row in tools.ledger.processes() if row.nonce == action.args["nonce"]), None)


async def _start(ref: Ref, declared: Declared, args: Mapping[str, Any], tools: Tools) -> None:
    less: Settings | None = args.get("settings")  # what it runs with in place of the manifest's
    spec: ServerSpec = applied(declared.spec, less)
    engine, made = tools.look(Ref("engine", spec.engine)), artifacts(spec, tools.look)
    if engine is None or not all(state is not None and state.usable for _, state in made):
        raise Fault("NOT_READY", "its engine or its model has just gone away")
    paths = _paths(spec, dict(made), tools)
    host = tools.host()
    fit = judged(made[0][1].shape, demand(spec, tools.look), host)
    layers = fit.found.gpu_layers if fit is not None and host.devices and spec.gpu_layers < 0 else spec.gpu_layers
    inputs = {key: state.token for key, state in (*made, ("engine", engine)) if state.token}
    if host.devices and layers >= 0:
        inputs[LAYERS] = str(layers)
    if less is not None:
        inputs[REDUCED] = told(declared.spec, less)
        tools.ledger.event(str(ref), "Reduced", f"{words(declared.spec, less)}: its own settings ran out of memory")
    bound = Bound(
        paths.model, HOST, free_port(HOST, args.get("avoid", 0)), new_nonce(), secrets.token_urlsafe(32), inputs
    )
    if engine.template is not None:
        launch = await launch_of(ref, declared.digest, spec, engine.template, bound, tools)
    else:
        cache = _kept(ref, spec, made, layers, bool(paths.mmproj), engine, tools) if spec.keep_cache else None
        paths = replace(paths, slots=slots.prepare(ref, cache, tools))
        if cache is not None and paths.slots:
            inputs[CACHE] = kept_told(cache)
        argv = [*engine.argv, *_arguments(spec, paths, bound.port, layers, engine)]
        launch = _own_launch(ref, declared.digest, spec, argv, bound, sum(state.size for _, state in made), tools)
    try:
        await start(launch, tools)
    except Fault as fault:
        raise _once_more(ref, declared.spec, less, fault, tools) from fault
    if less is None:
        forget_short(ref, tools)


def _own_launch(
    ref: Ref, digest: str, spec: ServerSpec, argv: list[str], bound: Bound, size: int, tools: Tools
) -> Launch:
    """A llama-server, which is to load `size` bytes."""
    budget = start_budget(size, loading_rate(tools))

    async def ready(identity: Identity, log: Path, log_start: int) -> None:
        tools.progress(ref, "loading", 0, None)
        began = time.monotonic()
        await wait_ready(tools.processes, identity, HOST, bound.port, budget, log, log_start, spec.limits.memory)
        note_rate(size, time.monotonic() - began, tools)
        if (row := next((r for r in tools.ledger.processes() if r.nonce == bound.nonce), None)) is not None:
            await slots.restore(row, tools)

    env = {**dict(spec.env), "LLAMA_API_KEY": bound.key}
    return Launch(ref, digest, argv, env, HOST, bound.port, bound.inputs, bound.nonce, bound.key, ready, spec.limits)


def _kept(
    ref: Ref, spec: ServerSpec, made: Sequence[tuple[str, Any]], layers: int, projector: bool, engine: Any, tools: Tools
) -> Kept | None:
    """Where what its cache holds is kept; None where it cannot be."""
    shape = made[0][1].shape
    if why := unkept(spec, shape, projector, engine.flags):
        tools.ledger.event(str(ref), "CacheNotKept", why)
        return None
    sha256s = [p.sha256 for _, state in made for p in state.pieces] or [state.sha256 for _, state in made]
    return kept(spec, sha256s, engine.token, demand(spec, tools.look), shape, layers)


def _once_more(ref: Ref, spec: ServerSpec, less: Settings | None, fault: Fault, tools: Tools) -> Fault:
    """Out of memory with the manifest's settings: where it may make do with less, that is tried at once."""
    if fault.code != "OUT_OF_MEMORY" or not spec.shrink or less is not None:
        return fault
    model, short = tools.look(Ref("model", spec.model)), shortage(short_of(ref, tools))
    shape = model.shape if model is not None else ""
    hint = fault.hint.replace(SHRINK_HINT, "")
    following = next_settings(spec, demand(spec, tools.look), shape, tools.host(), short)
    if following is None:
        message = f"{fault.message}; nothing less fits what is free, either"
        return Fault(fault.code, message, hint=hint, kind=fault.kind, after=fault.after)
    message = f"{fault.message}; next with {words(spec, following)}"
    return Fault(fault.code, message, hint=hint, kind=FaultClass.TRANSIENT)


def _arguments(spec: ServerSpec, paths: Paths, port: int, layers: int, engine: Any) -> list[str]:
    """Raises Fault where the engine has become another one since the plan was made."""
    try:
        return arguments(spec, paths, HOST, port, layers, engine.flags)
    except Unfit as error:
        hint = "change `options`, or use another engine version"
        raise Fault("INVALID_ARGUMENT", str(error), hint=hint, kind=FaultClass.PERMANENT) from error


def _paths(spec: ServerSpec, made: Mapping[str, Any], tools: Tools) -> Paths:
    """Where its files lie. The parts of a split model are found by their names: they get a folder of links."""
    own = made["model"].pieces
    if any(piece.role == "file" for piece in own):
        return Paths(str(by_name({piece.name: piece.sha256 for piece in own}, tools.layout, tools.files)))
    parts = [piece.sha256 for piece in own if piece.role == "model"] or [made["model"].sha256]
    model = tools.layout.blob(parts[0]) if len(parts) == 1 else together(parts, tools.layout, tools.files)
    where = {
        extra.name: str(tools.layout.blob(made[extra.name.removeprefix(spec.model)].sha256)) for extra in spec.extras
    }
    inside = next((str(tools.layout.blob(piece.sha256)) for piece in own if piece.role == "mmproj"), "")
    by_role = {extra.role: where[extra.name] for extra in spec.extras}
    loras = tuple((where[extra.name], extra.scale) for extra in spec.extras if extra.role == "lora")
    return Paths(str(model), by_role.get("mmproj", inside), by_role.get("draft", ""), loras)


async def _await(row: ProcessRow | None, tools: Tools) -> None:
    """Wait for a process that the controller before us had started."""
    if row is None or row.identity is None:
        raise Fault("PROCESS_EXITED", "the process is gone")
    log = Path(row.log)
    try:
        budget = float(row.inputs.get(WITHIN, LEAST * 5))
        health = health_of(row, tools)
        await wait_ready(tools.processes, row.identity, row.host, row.port, budget, log, 0, health=health)
    except Fault:
        await stop(row, tools, GRACE)
        raise
    await slots.restore(row, tools)
    tools.ledger.record_ready(row.nonce)
