"""Servers: see which processes run, start and stop them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
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
from reconciler.kinds.fit import judged
from reconciler.kinds.flags import Unfit
from reconciler.kinds.server.rules import LAYERS, Instance, ServerRules, ServerState, artifacts, demand
from reconciler.kinds.server.spec import Paths, ServerSpec, arguments
from reconciler.kinds.workload import (
    Launch,
    loading_rate,
    new_nonce,
    note_rate,
    row_phase,
    row_silent,
    start,
    stop,
)
from reconciler.store.ledger import ProcessRow
from reconciler.store.views import together
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
        for ref in refs:
            found = tuple(_instance(row, graphics, tools) for row in rows.get(ref, []))
            out[ref] = Found(ServerState(found)) if found else Absent()
        return out

    async def apply(self, action: Action, ref: Ref, declared: Declared | None, tools: Tools) -> None:
        match action.verb:
            case "start":
                assert declared is not None
                await _start(ref, declared, tools)
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
                    await stop(row, tools, GRACE)
            case "release":
                tools.ledger.disown(ref)

    async def answers(self, row: ProcessRow, tools: Tools) -> bool:
        """Its /health answers; or it is at work: long generations may keep every thread that could answer busy."""
        before = _cpu(row)
        if await healthy(row.host, row.port, timeout=PATIENCE):
            return True
        gateway = tools.look(Ref("gateway", "main"))
        return gateway is not None and row.nonce in gateway.inflight and _cpu(row) > before


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


async def _start(ref: Ref, declared: Declared, tools: Tools) -> None:
    spec: ServerSpec = declared.spec
    engine, made = tools.look(Ref("engine", spec.engine)), artifacts(spec, tools.look)
    if engine is None or not all(state is not None and state.usable for _, state in made):
        raise Fault("NOT_READY", "its engine or its model has just gone away")
    paths = _paths(spec, dict(made), tools)
    size = sum(state.size for _, state in made)
    host = tools.host()
    fit = judged(made[0][1].shape, demand(spec, tools.look), host)
    layers = fit.found.gpu_layers if fit is not None and host.devices and spec.gpu_layers < 0 else spec.gpu_layers
    placing = {LAYERS: str(layers)} if host.devices and layers >= 0 else {}
    nonce, key = new_nonce(), secrets.token_urlsafe(32)
    port = free_port(HOST)
    budget = start_budget(size, loading_rate(tools))

    async def ready(identity: Identity, log: Path, log_start: int) -> None:
        tools.progress(ref, "loading", 0, None)
        began = time.monotonic()
        await wait_ready(tools.processes, identity, HOST, port, budget, log, log_start, spec.limits.memory)
        note_rate(size, time.monotonic() - began, tools)

    await start(
        Launch(
            ref,
            declared.digest,
            [*engine.argv, *_arguments(spec, paths, port, layers, engine)],
            {**dict(spec.env), "LLAMA_API_KEY": key},
            HOST,
            port,
            {key: state.token for key, state in (*made, ("engine", engine)) if state.token} | placing,
            nonce,
            key,
            ready,
            spec.limits,
        ),
        tools,
    )


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
        await wait_ready(tools.processes, row.identity, row.host, row.port, LEAST * 5, log, 0)
    except Fault:
        await stop(row, tools, GRACE)
        raise
    tools.ledger.record_ready(row.nonce)
