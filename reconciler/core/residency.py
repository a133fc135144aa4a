"""Who is in memory: which of the servers that need not always run are loaded, kept, and let go. A pure decision.

    nobody asks ──► somebody waits ──room──► loaded ──quiet for idle_timeout──► let go
                          │                    │  ▲                               ▲
                          └─no room─► the least useful idle ones are let go ──────┘
                                      none idle: after PATIENCE a busy one, loaded for as long, is closed
                                      to new requests, ends what it has, and is let go then

Nothing is stored: every turn decides anew from who waits, who works, and since when. What is busy is never stopped;
what waits is served in the order of its coming, so that it waits at most for PATIENCE and for requests that had begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from reconciler.core.ids import Ref
from reconciler.core.plan import human_bytes

MIB, GIB = 1 << 20, 1 << 30
PATIENCE = 20.0  # seconds that a request waits before a busy model is closed to new requests for its sake

Start = Literal["always", "on_demand", "manual"]


@dataclass(frozen=True, slots=True)
class Resident:
    """What is known of one server. Times are Unix seconds; `need` is bytes of memory, `reload` seconds.

    `need` is what it is estimated to take, or what it was measured to if that is more. `waiting` clients wait for it,
    the first of them since `since`. `loaded` is when it became ready, `used` when it last did anything. `kept` says
    that a person loaded it, `dropped` that one asked for it to be let go. `leaving` is one whose end was decided: its
    memory is not free yet.
    """

    ref: Ref
    start: Start = "always"
    need: int = 0
    living: bool = False
    ready: bool = False
    leaving: bool = False
    busy: int = 0
    waiting: int = 0
    since: float = 0.0
    used: float = 0.0
    loaded: float = 0.0
    idle_timeout: float = 600.0
    priority: int = 0
    reload: float = 1.0
    kept: bool = False
    dropped: bool = False

    @property
    def fixed(self) -> bool:
        """Whether it stays however little it is used."""
        return self.start == "always" or self.kept


@dataclass(frozen=True, slots=True)
class Asked:
    """Who wants one server: how many clients wait for it, since when the first of them does (Unix seconds), and
    whether a person has loaded it, or asked for it to be let go.
    """

    waiting: int = 0
    since: float = 0.0
    kept: bool = False
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """What is decided of one server: whether it is to be in memory, why, and what its start still waits for.

    `never`: it waits for more than there is to be had, as things are.
    """

    wanted: bool
    why: str = ""
    hold: str = ""
    never: bool = False


def decide(residents: Iterable[Resident], budget: int, now: float) -> dict[Ref, Standing]:
    """`budget` is bytes for all servers together; 0 where nothing is known of the memory: then all have room."""
    every = tuple(residents)
    out = {r.ref: _first(r, now) for r in every}
    taken = sum(r.need for r in every if r.living)
    gone: set[Ref] = set()
    for one in sorted(filter(_asks, every), key=_order(now)):
        short = taken + one.need - budget if budget else 0
        taken += one.need  # what comes later must not count on it, whether there is room now or later
        if one.start != "always" and (no := _never(one, every, budget)):
            out[one.ref] = replace(out[one.ref], wanted=True, hold=no, never=True)
            continue
        victims = _victims(one, every, gone, short, now)
        gone |= {v.ref for v in victims}
        for victim in victims:
            verb = "is closed to new requests" if victim.busy else "is let go"
            out[victim.ref] = Standing(False, f"it {verb}: {one.ref} needs the memory")
        out[one.ref] = replace(out[one.ref], wanted=True, hold=_hold(one, every, gone, short))
    return out


def _first(r: Resident, now: float) -> Standing:
    """What is decided of one by itself, without regard to the others."""
    if r.start == "always":
        return Standing(True, "it always runs")
    if r.kept:
        return Standing(True, "a person loaded it")
    if r.dropped:
        return Standing(False, "a person unloaded it")
    if r.waiting and r.start == "on_demand":
        return Standing(True, "it is asked for")
    if not r.living or r.leaving:
        return Standing(False)
    if r.busy or not r.ready:
        return Standing(True, "it is in use")
    if r.start == "manual":
        return Standing(False, "nobody keeps it loaded")
    quiet = now - r.used
    if quiet >= r.idle_timeout:
        return Standing(False, f"nobody has asked for it for {quiet:.0f} s")
    return Standing(True, "it was in use a short time ago")


def _asks(r: Resident) -> bool:
    """Whether it is to be started. What always runs starts by itself, and has others leave for it."""
    if r.living and not r.leaving:
        return False
    return r.fixed or (r.start == "on_demand" and r.waiting > 0 and not r.dropped)


def _order(now: float) -> Callable[[Resident], tuple[bool, bool, int, float, Ref]]:
    """What is fixed first, then who has waited beyond PATIENCE, then the more important, then who came first."""

    def key(r: Resident) -> tuple[bool, bool, int, float, Ref]:
        late = now - r.since > PATIENCE
        return (not r.fixed, not late, 0 if late else -r.priority, r.since, r.ref)

    return key


def _victims(one: Resident, every: Sequence[Resident], gone: set[Ref], short: int, now: float) -> tuple[Resident, ...]:
    """Who is let go for it: the least useful first, busy ones only once it waited long, none where all are too few."""
    short -= sum(r.need for r in every if r.living and (r.leaving or r.ref in gone))  # that memory comes by itself
    if short <= 0:
        return ()
    may = sorted((r for r in every if _may_go(r, gone)), key=lambda r: _worth(r, now))
    idle = [r for r in may if not r.busy and not r.waiting]
    late = one.fixed or now - one.since > PATIENCE
    had_its_turn = [r for r in may if r not in idle and now - r.loaded > PATIENCE]  # else two would evict each other
    for order in (idle, [*idle, *had_its_turn] if late else []):
        chosen = _least(order, short)
        if sum(r.need for r in chosen) >= short:
            return chosen
    return ()


def _may_go(r: Resident, gone: set[Ref]) -> bool:
    return r.living and r.ready and not r.leaving and not r.fixed and r.ref not in gone


def _worth(r: Resident, now: float) -> tuple[int, float, Ref]:
    """The lower, the sooner it goes: by priority, then by how long it was quiet for what loading it again costs."""
    return (r.priority, -(now - r.used) / max(r.reload, 0.1), r.ref)


def _least(order: Sequence[Resident], short: int) -> tuple[Resident, ...]:
    """The first of them that free enough, without those that turn out not to be needed; all, where all are too few."""
    chosen: list[Resident] = []
    freed = 0
    for r in order:
        if freed >= short:
            break
        chosen.append(r)
        freed += r.need
    for r in tuple(chosen):
        if freed - r.need >= short:
            chosen.remove(r)
            freed -= r.need
    return tuple(chosen)


def _hold(one: Resident, every: Sequence[Resident], gone: set[Ref], short: int) -> str:
    if short <= 0:
        return ""
    if names := sorted(str(r.ref) for r in every if r.living and (r.leaving or r.ref in gone)):
        return f"waits for the memory of {', '.join(names)}"
    if one.start == "always":
        return ""  # nobody can make room: whether it fits is judged for itself
    return f"waits for {human_bytes(short)} of memory: what has it is busy or stays loaded"


def _never(one: Resident, every: Sequence[Resident], budget: int) -> str:
    """Why no room can be made for it while what stays loaded does; empty where it can."""
    if not budget or one.need > budget:
        return too_large(one, budget) if budget else ""
    stays = [r for r in every if r.living and r.fixed and r.ref != one.ref]
    if one.need + sum(r.need for r in stays) <= budget:
        return ""
    names = ", ".join(sorted(str(r.ref) for r in stays))
    return f"it needs {human_bytes(one.need)}, for which there is no room while {names} stays loaded"


def too_large(one: Resident, budget: int) -> str:
    """That no room can be made for it."""
    return f"it needs {human_bytes(one.need)}, and all servers together may take {human_bytes(budget)}"


def reserve(total: int) -> int:
    """What of main memory is left to the system: a sixteenth, from 256 MiB to 2 GiB."""
    return min(max(total // 16, 256 * MIB), 2 * GIB)
