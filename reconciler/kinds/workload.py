"""Starting and stopping the processes of a kind, so that no crash of ours loses one.

The ledger learns of a process before it exists (intent with a nonce), then who it is, then that it is ready. A crash
in between is settled by looking for the nonce in the environments of living processes.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.core.diagnostics import Fault
from reconciler.core.ids import Ref, canonical
from reconciler.core.limits import NO_LIMITS, Limits
from reconciler.host.process import ABOUT, NONCE, ROOT, Identity, alive, workload_environment
from reconciler.kinds.base import Tools
from reconciler.kinds.carried import REDUCED
from reconciler.store.ledger import UNWRITABLE, ProcessRow
from reconciler.supervise import logs
from reconciler.supervise.exits import SHRINK_HINT, Ending, looping, within
from reconciler.supervise.machine import SILENCES, Facts, Phase, phase
from reconciler.supervise.readiness import TELLING

ENDINGS = 8  # so many ends in a row are remembered


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start. `ready` waits until it is; it gets the identity and where its part of the log begins.

    `hidden` are secrets in its environment, `folder` is where it runs (None: in the data root).
    """

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
    limits: Limits = NO_LIMITS
    hidden: tuple[str, ...] = field(default=(), repr=False)
    folder: Path | None = None


def new_nonce() -> str:
    return secrets.token_hex(8)


async def start(launch: Launch, tools: Tools) -> None:
    """Start a process and wait until it is ready. Raises Fault, leaving nothing behind."""
    log = tools.layout.log(str(launch.ref))
    tools.files.folder(log.parent)
    log_start = logs.begin(log, str(launch.ref), tools.files)
    tools.ledger.intend_process(launch.nonce, launch.ref, launch.digest, launch.host, launch.port, launch.inputs, log)
    if launch.key:
        tools.files.write(tools.layout.key(launch.nonce), launch.key.encode())
    about = {"ref": str(launch.ref), "digest": launch.digest, "host": launch.host, "port": launch.port}
    about |= {"inputs": launch.inputs, "log": str(log)}
    marks = {NONCE: launch.nonce, ROOT: str(tools.layout.root), ABOUT: canonical(about)}
    try:
        identity = tools.processes.spawn(
            launch.argv,
            workload_environment({**launch.env, **marks}),
            log,
            launch.folder or tools.layout.root,
            launch.limits,
        )
    except Fault:
        forget(launch.nonce, tools)
        raise
    tools.ledger.record_spawned(launch.nonce, identity)
    tools.hidden[launch.nonce] = (launch.key, *launch.hidden)
    try:
        await launch.ready(identity, log, log_start)
    except Fault as fault:
        end = tools.processes.end(identity)  # before it is stopped, if it still runs
        await tools.processes.stop(identity, launch.nonce, grace=3.0)
        forget(launch.nonce, tools)
        told = without_key(within(fault, launch.limits.memory), launch.key, *launch.hidden)
        if end is None:
            raise told from None
        told = tried(told, launch.inputs)
        raise note_ending(launch.ref, launch.digest, told, end.code, -1.0, tools) from None
    except asyncio.CancelledError:
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
    identity = next((row.identity for row in tools.ledger.processes() if row.nonce == nonce), None)
    tools.ledger.forget_process(nonce)
    if identity is not None:
        tools.processes.forget(identity)
    tools.watched.pop(nonce, None)
    tools.hidden.pop(nonce, None)


def note_ending(ref: Ref, digest: str, fault: Fault, code: int | None, after: float, tools: Tools) -> Fault:
    """Count an end of a process that should have gone on → its fault, as that of a loop where it is one.

    `after` is how many seconds it had been ready, -1 for never. Ends are in a row until their trouble is forgotten, or
    the spec is another one.
    """
    if fault.code == "OUT_OF_MEMORY":
        note_short(ref, digest, tools)
    key = f"ends {ref}"
    known = json.loads(tools.ledger.meta(key, "{}")) if tools.ledger.trouble(ref) is not None else {}
    earlier = known.get("ends", []) if known.get("digest") == digest else []
    endings = [*(Ending(*e) for e in earlier), Ending(fault.code, code, round(after, 1))][-ENDINGS:]
    ends = [[e.fault, e.code, e.after] for e in endings]
    try:
        tools.ledger.set_meta("ends", **{key: canonical({"digest": digest, "ends": ends})})
    except Fault as unwritten:
        if unwritten.code != UNWRITABLE:
            raise
    return looping(endings, fault)


def note_short(ref: Ref, digest: str, tools: Tools) -> None:
    """Remember that a server ended for want of memory, and what is free after that: its next start may need less."""
    _remember_short(ref, canonical({"digest": digest, "free": tools.host().free}), tools)


def shorts(tools: Tools) -> dict[Ref, str]:
    """What is remembered of that, of each (JSON); empty where its own settings are worth a try again."""
    return {Ref.parse(name): text for name, text in tools.ledger.metas("short ").items()}


def short_of(ref: Ref, tools: Tools) -> str:
    return tools.ledger.meta(f"short {ref}")


def forget_short(ref: Ref, tools: Tools) -> None:
    """Its own settings are worth a try again."""
    if short_of(ref, tools):
        _remember_short(ref, "", tools)


def _remember_short(ref: Ref, text: str, tools: Tools) -> None:
    try:
        tools.ledger.set_meta("short", **{f"short {ref}": text})
    except Fault as unwritten:
        if unwritten.code != UNWRITABLE:
            raise


def tried(fault: Fault, inputs: Mapping[str, str], shrinks: bool = False) -> Fault:
    """Out of memory once more, of a process that ran with less than its manifest says: that is told, too.

    `shrinks` says that it may; what is in force already is no remedy.
    """
    if fault.code != "OUT_OF_MEMORY" or not (shrinks or REDUCED in inputs):
        return fault
    hint = fault.hint.replace(SHRINK_HINT, "")
    if REDUCED not in inputs:
        return Fault(fault.code, fault.message, hint=hint, kind=fault.kind, after=fault.after)
    less = json.loads(inputs[REDUCED]).get("words", "less")
    message = f"it ended so with its own settings, and again with {less}: {fault.message}"
    return Fault(fault.code, message, hint=hint, kind=fault.kind, after=fault.after)


def without_key(fault: Fault, *keys: str) -> Fault:
    """What a process said last goes into the ledger and onto screens: never with its key."""
    message = fault.message
    for key in sorted(filter(None, keys), key=len, reverse=True):
        message = message.replace(key, "…")
    if message == fault.message:
        return fault
    return Fault(fault.code, message, hint=fault.hint, kind=fault.kind, after=fault.after)


def keys_of(nonce: str, tools: Tools) -> tuple[str, ...]:
    """What a process may not be quoted with: all that we gave it, of one that an earlier controller started its key."""
    return tools.hidden.get(nonce) or (key_of(nonce, tools),)


def key_of(nonce: str, tools: Tools) -> str:
    try:
        return tools.layout.key(nonce).read_text()
    except OSError:
        return ""


def memory_limit(ref: Ref, tools: Tools) -> int:
    """The bytes that a running server was allowed to allocate; 0 for no limit."""
    owned = tools.ledger.owned().get(ref)
    limits = owned.spec.get("limits") if owned is not None else None
    return int(limits.get("memory", 0)) if limits else 0


def may_shrink(ref: Ref, tools: Tools) -> bool:
    """Whether a running server may be started with less once it ran out of memory."""
    owned = tools.ledger.owned().get(ref)
    return owned is not None and owned.spec.get("shrink") is True


def loading_rate(tools: Tools) -> float:
    """Bytes a second at which a model was loaded here last; 0 where none was."""
    return float(tools.ledger.meta("loading rate", "0"))


def note_rate(size: int, seconds: float, tools: Tools) -> None:
    """Remember how fast a model was loaded, where that says something of the disk and differs from what is known."""
    rate, known = size / max(seconds, 0.001), loading_rate(tools)
    if size >= TELLING and not known / 2 < rate < known * 2:
        tools.ledger.set_meta("loading-rate", **{"loading rate": f"{rate:.0f}"})


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
    if REDUCED in inputs and not short_of(ref, tools):
        note_short(ref, digest, tools)
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
