"""Who is in memory: which of the servers that need not always run are loaded, kept, and let go. A pure decision.

    nobody asks ──► somebody waits ──room──► loaded ──quiet for idle_timeout──► let go
                          │                    │  ▲                               ▲
                          └─no room─► the least useful idle ones are let go ──────┘
                                      none idle: after PATIENCE a busy one, loaded for as long, is closed
                                      to new requests, ends what it has, and is let go then

Nothing is stored: every turn decides anew from who waits, who works, and since when. What is busy is never stopped;
what waits is served in the order of its coming, so that it waits at most for PATIENCE and for requests that had begun.

Memory is an `Amount`: of the machine and of each of its GPUs, since there may be plenty of one and none of the other.
Where more is taken than there is, because servers have grown or other programs have, idle ones are let go though
nobody waits for it; where that is not enough it is said (`pressure`), and nothing busy or always running is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Literal

from reconciler.core.ids import Ref
from reconciler.core.plan import human_bytes

MIB, GIB = 1 << 20, 1 << 30
PATIENCE = 20.0  # seconds that a request waits before a busy model is closed to new requests for its sake
CALM = 16  # pressure is over once that part of the budget is free again: it does not come and go with every page

Start = Literal["always", "on_demand", "manual"]
Amount = tuple[int, ...]  # bytes: of main memory, then of each GPU in the order of the host's; what is left out is 0


def total(amounts: Iterable[Amount]) -> Amount:
    return tuple(map(sum, zip_longest(*amounts, fillvalue=0)))


def less(one: Amount, other: Amount) -> Amount:
    """What is left of the one without the other: never below 0."""
    return tuple(max(0, a - b) for a, b in zip_longest(one, other, fillvalue=0))


def only(one: Amount, where: Amount) -> Amount:
    """Of the one what lies where the other is not 0."""
    return tuple(a if b else 0 for a, b in zip_longest(one, where, fillvalue=0))


def larger(one: Amount, other: Amount) -> Amount:
    return tuple(max(pair) for pair in zip_longest(one, other, fillvalue=0))


def excess(taken: Amount, budget: Amount) -> Amount:
    """What is taken beyond a budget. Where that is 0 or left out, nothing is known, and there is room for all."""
    return only(less(taken, budget), budget)


def said(amount: Amount) -> str:
    """`2.1 GB of memory`, `8.0 GB on GPU 1`, or both: what is 0 is left out."""
    parts = [f"{human_bytes(size)} {f'on GPU {at}' if at else 'of memory'}" for at, size in enumerate(amount) if size]
    return " and ".join(parts) or human_bytes(0)


@dataclass(frozen=True, slots=True)
class Resident:
    """What is known of one server. Times are Unix seconds, `reload` is seconds.

    `need` is what it is estimated to take, or was measured to where that is more. `waiting` clients wait for it,
    the first of them since `since`. `loaded` is when it became ready, `used` when it last did anything. `kept` says
    that a person loaded it, `dropped` that one asked for it to be let go. `leaving` is one whose end was decided: its
    memory is not free yet.
    """

    ref: Ref
    start: Start = "always"
    need: Amount = ()
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


@dataclass(frozen=True, slots=True)
class Together:
    """What is true of the memory of all servers, and of none alone; in words, empty where there is nothing to say.

    `denied`: why there is no room for one beside those that always run. `tight`: those that are to start need more than
    is free now. `pressed`: what runs takes more than there is, and nothing of it may be let go.
    """

    denied: Mapping[Ref, str] = field(default_factory=dict)
    tight: str = ""
    pressed: str = ""


def decide(residents: Iterable[Resident], budget: Amount, now: float) -> dict[Ref, Standing]:
    """`budget` is what all servers together may take."""
    every = tuple(residents)
    out = {r.ref: _first(r, now) for r in every}
    taken = total(r.need for r in every if r.living)
    gone: dict[Ref, str] = {}
    for victim in _relief(every, out, budget, now):  # first: what it frees, nobody else has to leave for
        gone[victim.ref] = "it is let go: servers and other programs have taken more than there is"
    served: list[tuple[Resident, Amount]] = []
    for one in sorted(filter(_asks, every), key=_order(now)):
        if one.start != "always" and (no := _never(one, every, budget)):
            out[one.ref] = replace(out[one.ref], wanted=True, hold=no, never=True)
            continue
        taken = total((taken, one.need))  # what comes later must not count on it, whether there is room now or later
        short = only(excess(taken, budget), one.need)
        for victim in _victims(one, every, gone, short, now):
            verb = "is closed to new requests" if victim.busy else "is let go"
            gone[victim.ref] = f"it {verb}: {one.ref} needs the memory"
        served.append((one, short))
    for spared in _spared(every, gone, taken, budget, now):
        del gone[spared]
    out |= {ref: Standing(False, why) for ref, why in gone.items()}
    for one, short in served:
        out[one.ref] = replace(out[one.ref], wanted=True, hold=_hold(one, every, gone, short))
    return out


def _spared(every: Sequence[Resident], gone: Collection[Ref], taken: Amount, budget: Amount, now: float) -> list[Ref]:
    """Who of the chosen, the most useful first, can stay after all, since those chosen later free enough without it."""
    left = less(taken, total(r.need for r in every if r.living and (r.leaving or r.ref in gone)))
    spared: list[Ref] = []
    for r in sorted((r for r in every if r.ref in gone), key=lambda r: _worth(r, now), reverse=True):
        if not any(only(excess(total((left, r.need)), budget), r.need)):
            left = total((left, r.need))
            spared.append(r.ref)
    return spared


def _relief(every: Sequence[Resident], out: Mapping[Ref, Standing], budget: Amount, now: float) -> Sequence[Resident]:
    """Who goes, least useful first, where what stays is more than the budget although nobody asks for room.

    Only who had its turn: else one that is larger than was estimated would be loaded anew for every request.
    """
    stays = _staying(every, out)
    over = excess(total(r.need for r in stays), budget)
    idle = (r for r in stays if _may_go(r, ()) and not r.busy and not r.waiting and now - r.loaded > PATIENCE)
    return _least(sorted(idle, key=lambda r: _worth(r, now)), over) if any(over) else ()


def _staying(every: Iterable[Resident], standing: Mapping[Ref, Standing]) -> list[Resident]:
    """Who has memory and keeps it."""
    return [r for r in every if r.living and not r.leaving and (r.ref not in standing or standing[r.ref].wanted)]


def pressure(residents: Iterable[Resident], budget: Amount, standing: Mapping[Ref, Standing], before: bool) -> str:
    """That what stays takes more than there is, in words; empty where it does not. `before` says that it did so far."""
    stays = _staying(residents, standing)
    taken = total(r.need for r in stays)
    enough = tuple(size - size // CALM for size in budget) if before else budget
    if not any(over := excess(taken, enough)):
        return ""
    who = some((r.ref for r in stays if any(only(r.need, over))), "takes", "take")
    return f"{who} {said(only(taken, over))}, and there is room for {said(only(budget, over))}"


def some(refs: Iterable[Ref], one: str, several: str) -> str:
    """`server/a stays`, `server/a and server/b stay`; of many the first few."""
    names = [str(ref) for ref in sorted(refs)]
    if len(names) > 6:
        names = [*names[:5], f"{len(names) - 5} more"]
    return f"{' and '.join([', '.join(names[:-1]), names[-1]])} {several}" if len(names) > 1 else f"{names[0]} {one}"


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


def _victims(
    one: Resident, every: Sequence[Resident], gone: Collection[Ref], short: Amount, now: float
) -> tuple[Resident, ...]:
    """Who is let go for it: the least useful first, busy ones only once it waited long, none where all are too few."""
    coming = total(r.need for r in every if r.living and (r.leaving or r.ref in gone))  # that comes by itself
    short = less(short, coming)
    if not any(short):
        return ()
    may = sorted((r for r in every if _may_go(r, gone)), key=lambda r: _worth(r, now))
    idle = [r for r in may if not r.busy and not r.waiting]
    late = one.fixed or now - one.since > PATIENCE
    had_its_turn = [r for r in may if r not in idle and now - r.loaded > PATIENCE]  # else two would evict each other
    for order in (idle, [*idle, *had_its_turn] if late else []):
        chosen = _least(order, short)
        if not any(less(short, total(r.need for r in chosen))):
            return chosen
    return ()


def _may_go(r: Resident, gone: Collection[Ref]) -> bool:
    return r.living and r.ready and not r.leaving and not r.fixed and r.ref not in gone


def _worth(r: Resident, now: float) -> tuple[int, float, Ref]:
    """The lower, the sooner it goes: by priority, then by how long it was quiet for what loading it again costs."""
    return (r.priority, -(now - r.used) / max(r.reload, 0.1), r.ref)


def _least(order: Sequence[Resident], short: Amount) -> tuple[Resident, ...]:
    """The first of them that free enough of what is short, without those that turn out not to be needed; all that
    free some of it, where all are too few.
    """
    chosen: list[Resident] = []
    left = short
    for r in order:
        if any(only(left, r.need)):
            chosen.append(r)
            left = less(left, r.need)
    for r in tuple(chosen):
        if not any(less(less(short, left), total(other.need for other in chosen if other is not r))):
            chosen.remove(r)
    return tuple(chosen)


def _hold(one: Resident, every: Sequence[Resident], gone: Collection[Ref], short: Amount) -> str:
    if not any(short):
        return ""
    going = (r for r in every if r.living and (r.leaving or r.ref in gone) and any(only(short, r.need)))
    if names := sorted(str(r.ref) for r in going):
        return f"waits for the memory of {', '.join(names)}"
    if one.start == "always":
        return ""  # nobody can make room: whether it fits is judged for itself
    return f"waits for {said(short)}: what has it is busy or stays loaded"


def _never(one: Resident, every: Sequence[Resident], budget: Amount) -> str:
    """Why no room can be made for it while what stays loaded does; empty where it can."""
    if any(excess(one.need, budget)):
        return too_large(one, budget)
    stays = [r for r in every if r.living and r.fixed and r.ref != one.ref]
    if not any(lack := only(excess(total((one.need, *(r.need for r in stays))), budget), one.need)):
        return ""
    who = some((r.ref for r in stays if any(only(r.need, lack))), "stays", "stay")
    return f"it needs {said(only(one.need, lack))}, for which there is no room while {who} loaded"


def too_large(one: Resident, budget: Amount) -> str:
    """That no room can be made for it."""
    lack = excess(one.need, budget)
    return f"it needs {said(only(one.need, lack))}, and all servers together may take {said(only(budget, lack))}"


def reserve(total: int) -> int:
    """What of main memory is left to the system: a sixteenth, from 256 MiB to 2 GiB."""
    return min(max(total // 16, 256 * MIB), 2 * GIB)


def device_reserve(total: int) -> int:
    """What of a GPU is left to screens and other programs: a thirty-second, up to 512 MiB."""
    return min(total // 32, 512 * MIB)
