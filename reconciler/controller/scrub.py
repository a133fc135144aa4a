"""Reads every file of the store again, slowly, all the time: what a disk has spoilt is found before it is needed.

One file at a time, the one that was checked longest ago first, at most once a week. It gives way to everything else,
and what it has done outlives it (`checked` in the ledger). Damage makes the file suspect, which is all: the plan of
the next turn says what to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler.controller import holdings
from reconciler.core.diagnostics import Fault
from reconciler.core.plan import human_bytes
from reconciler.host.bulk import in_bulk
from reconciler.host.digest import BLOCK
from reconciler.kinds.base import Tools
from reconciler.store.blobs import Proof, Proving, token
from reconciler.store.ledger import Artifact

if TYPE_CHECKING:
    from reconciler.controller.daemon import Controller

log = logging.getLogger(__name__)

WEEK = 7 * 86_400.0  # seconds between two passes over the same file
LOOK = 5.0  # seconds between two looks for a file that is due
GIVE_WAY = 1.0  # seconds to wait while something else is being done
STRIDE = 4 << 20  # bytes read at a time
AGAIN = 3_600.0  # seconds after which a file that could not be read is tried again


@dataclass(frozen=True, slots=True)
class Pace:
    """`rate` in bytes a second; None to leave it for now. `busy` says that something else is being done."""

    rate: int | None
    busy: bool


async def scrub(controller: Controller) -> None:
    """Run until cancelled; the last read of a few MiB may outlast that in its thread."""

    def pace() -> Pace:
        held = controller.source.held
        limit = held.reading.manifest.stack.limits.scrub if held is not None else "none"
        rate = limit if isinstance(limit, int) else None
        return Pace(rate if controller.mode == "run" else None, bool(controller.work) or controller.view is None)

    await rounds(controller.tools, pace, controller.wake)


async def rounds(tools: Tools, pace: Callable[[], Pace], wake: Callable[[], None]) -> None:
    """Check one file after the other, as long as nobody cancels it. `wake` is called when one is found damaged."""
    unreadable: dict[str, float] = {}
    while True:
        try:
            checked = await one(tools, pace, wake, unreadable)
        except Fault as fault:
            if fault.code == "LOCK_LOST":
                return  # the loop finds out, and says so
            log.warning("scrub: %s", fault)  # the ledger cannot be written: told in the troubles of what needs it
            checked = False
        except Exception:
            log.exception("bug in scrub")
            checked = False
        await asyncio.sleep(0 if checked else LOOK)


async def one(
    tools: Tools, pace: Callable[[], Pace], wake: Callable[[], None], unreadable: dict[str, float] | None = None
) -> bool:
    """Check the file that is due first → whether there was one. `unreadable` remembers what was told, and when."""
    skipped = unreadable if unreadable is not None else {}
    now = time.time()
    if pace().rate is None or (artifact := due(tools, now, skipped)) is None:
        return False
    try:
        proof = await _read(tools, artifact, pace)
    except Fault as fault:
        skipped[artifact.digest] = now
        if token(tools.layout.blob(artifact.digest)) == artifact.token:  # else it is being replaced, or gone
            _unreadable(tools, artifact, fault)
            wake()
        return True
    if proof is not None and _judge(tools, artifact, proof):
        wake()
    return proof is not None


def due(tools: Tools, now: float, skipped: dict[str, float]) -> Artifact | None:
    """What was checked longest ago, and long enough. What does not look as it did is the business of the next turn."""
    left = [a for a in tools.ledger.artifacts() if not 0 <= now - a.checked < WEEK]  # below 0 the clock was set back
    left = [a for a in left if not 0 <= now - skipped.get(a.digest, -AGAIN) < AGAIN]
    left = [a for a in left if a.token and a.token == token(tools.layout.blob(a.digest))]
    return min(left, key=lambda a: (a.checked, a.digest), default=None)


async def _read(tools: Tools, artifact: Artifact, pace: Callable[[], Pace]) -> Proof | None:
    """Read a file at its pace; None where it changed meanwhile, or nothing is to be read any more. Raises Fault."""
    path = tools.layout.blob(artifact.digest)
    with Proving(path) as proving:
        while True:
            now = pace()
            if now.rate is None or token(path) != artifact.token:
                return None
            if now.busy:
                await asyncio.sleep(GIVE_WAY)
                continue
            begun = time.monotonic()
            got = await _shielded(proving, min(STRIDE, now.rate))
            if not got:
                return proving.proof()
            await asyncio.sleep(max(0.0, got / now.rate - (time.monotonic() - begun)))


async def _shielded(proving: Proving, most: int) -> int:
    """Read in a thread; one that is cancelled waits for it, since the file must not be closed under a read."""
    reading = asyncio.ensure_future(in_bulk(proving.read, most))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        await asyncio.wait([reading])
        raise


def _judge(tools: Tools, artifact: Artifact, proof: Proof) -> bool:
    """Write down what was found → whether the file is damaged."""
    digest = artifact.digest
    if token(tools.layout.blob(digest)) != artifact.token:
        return False
    if proof.sha256 == digest:
        tools.blobs.record(digest, proof.blocks)
        return False
    known = tools.ledger.blocks(digest)
    bad = [n for n, (was, found) in enumerate(zip(known, proof.blocks, strict=False)) if was != found]
    where = f"{len(bad)} of {len(known)} blocks of {human_bytes(BLOCK)}" if known else human_bytes(proof.size)
    return _doubt(tools, artifact, f"{where} changed on disk, though size and time did not")


def _unreadable(tools: Tools, artifact: Artifact, fault: Fault) -> None:
    _doubt(tools, artifact, fault.message + (f" ({fault.hint})" if fault.hint else ""))


def _doubt(tools: Tools, artifact: Artifact, what: str) -> bool:
    """Make a file suspect where a resource needs it, so that its plan mends it; set it aside where none does."""
    digest = artifact.digest
    held = holdings.models(tools.desired(), tools.ledger.owned(), tools.ledger.pins())
    users = [ref for ref, pieces in held.items() if digest in {piece.digest for piece in pieces}]
    if users:
        tools.blobs.doubt(digest, artifact.token)
    else:
        tools.blobs.set_aside(digest)
    for name in [str(ref) for ref in users] or ["store"]:
        tools.ledger.event(name, "BitRot", f"{digest[:12]}: {what}")
    log.warning("bitrot digest=%s %s", digest, what)
    return True
