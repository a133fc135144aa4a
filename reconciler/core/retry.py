"""When to try again: a pure function of the failures so far and the clock.

Ordinary actions wait 0.5 s × 2 up to 120 s; processes that die wait 1 s × 2 up to 60 s, and the gateway, whose clients
are refused meanwhile, 0.25 s × 2. Jitter takes up to a fifth off, derived from the resource and the count so that the
same history always gives the same delay. A fault that only a changed spec can mend is never tried again with the old
one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from reconciler.core.diagnostics import FaultClass
from reconciler.core.ids import Ref
from reconciler.core.state import Trouble, World

READY_FORGIVES = 120.0  # seconds of readiness after which earlier failures are forgotten


@dataclass(frozen=True, slots=True)
class Backoff:
    first: float
    cap: float

    def delay(self, ref: Ref, count: int) -> float:
        """Seconds to wait after the `count`-th failure in a row (count ≥ 1)."""
        full = min(self.cap, self.first * 2.0 ** min(count - 1, 30))
        noise = hashlib.sha256(f"{ref}:{count}".encode()).digest()[0] / 255
        return full * (1 - 0.2 * noise)


ACTIONS = Backoff(first=0.5, cap=120.0)
PROCESSES = Backoff(first=1.0, cap=60.0)
GATEWAY = Backoff(first=0.25, cap=60.0)
PATIENT = Backoff(first=5.0, cap=120.0)  # a person has to act first; asking twice a second would only add noise


def wait_for(ref: Ref, world: World) -> float:
    """Seconds until `ref` may be tried again: 0 now, infinity not before its spec changes.

    To be wanted no longer is such a change, too: what could not be started can well be taken away.
    """
    trouble = world.troubles.get(ref)
    declared = world.desired.get(ref)
    if trouble is None or trouble.digest != (declared.attempt if declared is not None else ""):
        return 0.0
    if trouble.kind is FaultClass.PERMANENT:
        return math.inf
    if trouble.at > world.now:  # the clock was set back: how long ago it was is not known
        return 0.0
    return max(0.0, next_try(ref, trouble) - world.now)


def next_try(ref: Ref, trouble: Trouble) -> float:
    """The Unix time before which `ref` is left alone after its last failure."""
    if trouble.kind is FaultClass.NEEDS_HUMAN:
        backoff = PATIENT
    else:
        backoff = {"server": PROCESSES, "gateway": GATEWAY}.get(ref.kind, ACTIONS)
    return trouble.at + max(trouble.after, backoff.delay(ref, trouble.count))
