"""After a crash: settle what was interrupted by looking, take over what still runs, reap what nobody knows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.core.diagnostics import Fault
from reconciler.core.ids import Ref
from reconciler.core.retry import READY_FORGIVES
from reconciler.core.state import Trouble
from reconciler.host.process import ABOUT, NONCE, ROOT, UNSEEN, alive, boot_id, environment_value, find, leads
from reconciler.kinds import workload
from reconciler.kinds.base import Kind, Supervised, Tools
from reconciler.store.blobs import prove
from reconciler.store.generations import Generations
from reconciler.store.ledger import ProcessRow
from reconciler.supervise.exits import FROM_OUTSIDE, WORDS, meaning
from reconciler.supervise.logs import last_words, rotate

UNWATCHED = 3.0  # seconds after an end that is only seen now: nobody was there to see it


async def recover(tools: Tools, kinds: Mapping[str, Kind], generations: Generations) -> None:
    """Bring the ledger and the world together. Runs once, before the first turn."""
    rotate(tools.layout.log("controller"), tools.files)
    if tools.ledger.epoch == 1 and not tools.ledger.processes():
        await rebuild(tools, kinds, generations)
    for operation in tools.ledger.open_operations():
        tools.ledger.event(str(operation.ref), "Interrupted", f"{operation.verb} was cut off; what is there decides")
        tools.ledger.end(operation.seq, "interrupted")
    for row in tools.ledger.processes():
        settle(row, tools)
    await _reap(tools)
    known = {tools.layout.key(row.nonce) for row in tools.ledger.processes()}
    tools.processes.tidy({row.identity for row in tools.ledger.processes()})
    for key in tools.layout.key("").glob("*"):
        if key not in known:
            tools.files.remove(key)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """How many of each were found again."""

    generations: int
    processes: int
    artifacts: int = 0
    damaged: int = 0


async def rebuild(tools: Tools, kinds: Mapping[str, Kind], generations: Generations) -> Rebuilt:
    """Fill a new ledger with what the disk and the process table still know: a lost database is no outage.

    What is owned follows by itself: the plan takes over what is there as wanted.
    """
    numbered = generations.recall()
    taken = 0
    for identity in find(ROOT, str(tools.layout.root)):
        nonce, about = environment_value(identity.pid, NONCE), environment_value(identity.pid, ABOUT)
        if not (nonce and about and leads(identity.pid)) or any(r.nonce == nonce for r in tools.ledger.processes()):
            continue
        started = tools.processes.spawned(nonce)
        if started is not None and started != identity:
            continue  # something that the process started, with its environment
        row = workload.remember(identity, nonce, about, tools)
        kind = kinds.get(row.ref.kind) if row is not None else None
        if row is None or not isinstance(kind, Supervised):
            continue
        if await kind.answers(row, tools):
            tools.ledger.record_ready(nonce)
        elif started is None:  # nobody noted whom we started: who answers is it
            tools.ledger.forget_process(nonce)
            continue
        taken += 1
    if numbered or taken:
        text = f"{numbered} generations and {taken} processes were found again"
        tools.ledger.event("controller", "LedgerRebuilt", text)
    return Rebuilt(numbered, taken)


def prove_artifacts(tools: Tools) -> tuple[int, int]:
    """Hash every file of the store: the good ones are noted, the others set aside → (good, damaged). Takes long."""
    good = damaged = 0
    for digest in tools.blobs.digests():
        try:
            proof = prove(tools.layout.blob(digest))
        except Fault:  # the disk fails, or it may not be read: as good as damaged
            proof = None
        if proof is not None and proof.sha256 == digest:
            tools.blobs.record(digest, proof.blocks)
            good += 1
        else:
            tools.blobs.set_aside(digest)
            damaged += 1
    return good, damaged


def settle(row: ProcessRow, tools: Tools, code: int | None = None, digest: str = "") -> None:
    """Bring one row and its process together. `digest` is the wanted spec's, where it is not the process's own."""
    if row.identity is None:
        # The crash came between the intent and the record of the spawn: the nonce tells whether it happened.
        started = tools.processes.spawned(row.nonce)
        found = [started] if started is not None else find(NONCE, row.nonce)
        if not found:
            workload.forget(row.nonce, tools)
            return
        tools.ledger.record_spawned(row.nonce, found[0])
        if alive(found[0]):
            tools.ledger.event(str(row.ref), "Adopted", f"pid {found[0].pid}, found by its nonce")
        else:
            settle(replace(row, identity=found[0]), tools, code, digest)
    elif alive(row.identity):
        tools.ledger.event(str(row.ref), "Adopted", f"pid {row.identity.pid} runs on, by start time and boot the same")
    elif row.retiring is not None or row.identity.boot != boot_id():
        workload.forget(row.nonce, tools)  # stopped on purpose, or by a reboot: no fault of its own
    else:
        note_exit(row, code, digest or row.digest, tools)


async def _reap(tools: Tools) -> None:
    """Stop processes that were started for this data root and that the ledger knows nothing of."""
    known = {row.nonce for row in tools.ledger.processes()}
    for identity in find(ROOT, str(tools.layout.root)):
        nonce = environment_value(identity.pid, NONCE)
        if nonce is None or nonce in known or not alive(identity):
            continue
        await tools.processes.stop(identity, nonce, grace=3.0)
        tools.ledger.event("controller", "Reaped", f"pid {identity.pid} was ours, but no longer in the ledger")


def note_exit(row: ProcessRow, code: int | None, digest: str, tools: Tools) -> None:
    """A process ended that should not have: write down what that means, for the backoff and for people."""
    end = (tools.processes.end(row.identity) if row.identity is not None else None) or UNSEEN
    code = end.code if code is None else code
    limit = workload.memory_limit(row.ref, tools)
    fault = meaning(code, last_words(Path(row.log), WORDS), oom=end.oom, peak=end.peak, limit=limit)
    fault = workload.without_key(fault, *workload.keys_of(row.nonce, tools))
    fault = workload.tried(fault, row.inputs, workload.may_shrink(row.ref, tools))
    now = time.time()
    at = end.at if row.created <= end.at <= now else now
    when = (
        f", at {time.strftime('%H:%M:%S', time.localtime(at))}, while no controller ran" if now - at > UNWATCHED else ""
    )
    if code is not None and -code in FROM_OUTSIDE and row.ready is not None:
        tools.ledger.note_restored(row.ref, fault.message)
    long_ready = row.ready is not None and _long_since(row.ready, at)
    earlier = tools.ledger.trouble(row.ref)
    count = 1 if earlier is None or earlier.digest != digest or long_ready else earlier.count + 1
    if long_ready:
        tools.ledger.set_trouble(row.ref, None)
    tools.ledger.event(str(row.ref), "Exited", fault.message + when)
    after = at - row.ready if row.ready is not None else -1.0
    fault = workload.note_ending(row.ref, row.digest, fault, code, after, tools)
    trouble = Trouble(digest, count, at, fault.code, fault.message, fault.hint, fault.kind)
    tools.ledger.set_trouble(row.ref, trouble)
    if row.identity is not None:
        tools.processes.end_left(row.identity, row.nonce)
    workload.forget(row.nonce, tools)


def forgive(ref: Ref, tools: Tools, ready_since: float | None) -> None:
    """Forget a process's earlier failures once it has been ready for long enough."""
    if ready_since is not None and _long_since(ready_since, time.time()):
        tools.ledger.set_trouble(ref, None)


def _long_since(ready: float, now: float) -> bool:
    return not 0 <= now - ready < READY_FORGIVES  # below 0 the clock was set back: better now than in an hour
