"""Starting and stopping the processes of a kind, so that no crash of ours loses one.

The ledger learns of a process before it exists (intent with a nonce), then who it is, then that it is ready. A crash
in between is settled by looking for the nonce in the environments of living processes.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.diagnostics import Fault
from reconciler.core.ids import Ref, canonical
from reconciler.host.process import ABOUT, NONCE, ROOT, Identity, alive, workload_environment
from reconciler.kinds.base import Tools
from reconciler.store.ledger import ProcessRow
from reconciler.supervise import logs
from reconciler.supervise.machine import SILENCES, Facts, Phase, phase


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start. `ready` waits until it is; it gets the identity and where its part of the log begins."""

    ref: Ref
    digest: str
    argv: list[str]
    env: Mapping[str, str]
    host: str
    port: int
    inputs: Mapping[str, str]
    nonce: str
    key: str  # the session's API key; empty for a process that has none
    ready: Callable[[Identity, Path, int], Awaitable[None]]


def new_nonce() -> str:
    return secrets.token_hex(8)


async def start(launch: Launch, tools: Tools) -> None:
    """Start a process and wait until it is ready. Raises Fault, leaving nothing behind."""
    log = tools.layout.log(str(launch.ref))
    tools.files.folder(log.parent)
    logs.rotate(log, tools.files)
    log_start = log.stat().st_size if log.exists() else 0
    tools.ledger.intend_process(launch.nonce, launch.ref, launch.digest, launch.host, launch.port, launch.inputs, log)
    if launch.key:
        tools.files.write(tools.layout.key(launch.nonce), launch.key.encode())
    about = {"ref": str(launch.ref), "digest": launch.digest, "host": launch.host, "port": launch.port}
    about |= {"inputs": launch.inputs, "log": str(log)}
    marks = {NONCE: launch.nonce, ROOT: str(tools.layout.root), ABOUT: canonical(about)}
    try:
        identity = tools.processes.spawn(
            launch.argv, workload_environment({**launch.env, **marks}), log, tools.layout.root
        )
    except Fault:
        forget(launch.nonce, tools)
        raise
    tools.ledger.record_spawned(launch.nonce, identity)
    try:
        await launch.ready(identity, log, log_start)
    except (Fault, asyncio.CancelledError):
        await tools.processes.stop(identity, launch.nonce, grace=3.0)
        forget(launch.nonce, tools)
        raise
    tools.ledger.record_ready(launch.nonce)


async def stop(row: ProcessRow, tools: Tools, grace: float) -> None:
    """Stop a process and all it started, and forget it once it is gone."""
    tools.ledger.record_retiring(row.nonce)
    if row.identity is not None:
        await tools.processes.stop(row.identity, row.nonce, grace)
    forget(row.nonce, tools)


def forget(nonce: str, tools: Tools) -> None:
    """The process is surely gone: drop its key and its row."""
    tools.files.remove(tools.layout.key(nonce))
    tools.ledger.forget_process(nonce)
    tools.watched.pop(nonce, None)


def remember(identity: Identity, nonce: str, about: str, tools: Tools) -> ProcessRow | None:
    """Write a running process into a ledger that was lost, from what it carries of itself; None if that is broken."""
    try:
        said = json.loads(about)
        ref, digest, host, port = Ref.parse(said["ref"]), str(said["digest"]), str(said["host"]), int(said["port"])
        inputs = {str(k): str(v) for k, v in said["inputs"].items()}
        log = Path(said["log"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    tools.ledger.intend_process(nonce, ref, digest, host, port, inputs, log)
    tools.ledger.record_spawned(nonce, identity)
    return next(row for row in tools.ledger.processes() if row.nonce == nonce)


def row_phase(row: ProcessRow, tools: Tools) -> Phase:
    """The phase of a process that the ledger knows, by looking at it now."""
    watched = tools.watched.get(row.nonce)
    return phase(
        Facts(
            alive=row.identity is not None and alive(row.identity),
            ready=row.ready is not None,
            retiring=row.retiring is not None,
            silences=watched.silences if watched else 0,
        )
    )


def row_silent(row: ProcessRow, tools: Tools) -> bool:
    """Whether it has stopped answering, as far as it is being watched."""
    watched = tools.watched.get(row.nonce)
    return watched is not None and watched.silences >= SILENCES
