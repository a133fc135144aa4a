"""Who is in memory, replayed: traces of requests against policies that decide what is loaded and what is let go.

Time is virtual, so that an hour takes seconds, and each run gives the same numbers. Models load for as long as their
size says; a request waits until its model is loaded. Beside our own policy stand two plain ones: `LRU` lets the least
recently used idle models go and never closes a busy one; `first come` lets nobody go before its idle timeout.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.measure import program, table
from reconciler.core.ids import Ref
from reconciler.core.residency import GIB, Amount, Resident, Standing, decide, excess, less, total
from tests.core.residency import Load, Policy, Request, play

LOADING = 2.0  # seconds for each GiB


@dataclass(frozen=True, slots=True)
class Case:
    """A trace, the models that it asks for, and the bytes that they may take together."""

    name: str
    trace: Sequence[Request]
    models: Mapping[str, Load]
    budget: int


def run(quick: bool) -> str:
    rows = []
    for case in cases(0.1 if quick else 1.0):
        for name, policy in POLICIES.items():
            report = play(case.trace, case.models, case.budget, policy)
            waits = sorted(wait for each in report.waits.values() for wait in each)
            unserved = len(case.trace) - report.answered
            rows.append(
                [
                    case.name,
                    name,
                    str(len(case.trace)),
                    *(f"{_quantile(waits, share):.1f}" for share in (0.5, 0.95, 1.0)),
                    str(report.loads),
                    str(report.evictions),
                    str(unserved),
                    str(report.cut),
                ]
            )
    head = ["trace", "policy", "requests", "wait p50, s", "p95, s", "most, s", "loads", "let go", "unserved", "cut off"]
    return f"{table(head, rows)}\n\n`let go` counts idle timeouts, too; what was never served has no wait in the table."


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


# --- traces ---------------------------------------------------------------------------------------------------------


def cases(part: float) -> list[Case]:
    """`part` of an hour, always the same requests."""
    seconds = 3600 * part
    return [_hot(seconds), _zipf(seconds), _bursts(seconds), _huge(seconds)]


def _model(gib: int) -> Load:
    return Load(gib * GIB, gib * LOADING)


def _hot(seconds: float) -> Case:
    """Both are asked for every second, and each answer takes longer than that."""
    trace = [(float(at), name, 1.5) for at in range(int(seconds)) for name in ("left", "right")]
    return Case("two hot, room for one", trace, {"left": _model(4), "right": _model(4)}, 4 * GIB)


def _zipf(seconds: float) -> Case:
    """Ten models, the second half as popular as the first, the third a third; room for about four of them."""
    dice = random.Random(1)
    models = {f"m{rank}": _model(2 + rank % 4 * 2) for rank in range(1, 11)}
    trace = _poisson(dice, seconds, 4.0, list(models), [1 / rank for rank in range(1, 11)], 3.0)
    return Case("Zipf over ten", trace, models, 24 * GIB)


def _bursts(seconds: float) -> Case:
    """Twenty requests within five seconds, each minute and a half for another of five; a trickle for the first."""
    dice = random.Random(2)
    models = {f"m{at}": _model(4) for at in range(5)}
    trace = _poisson(dice, seconds, 10.0, ["m0"], [1.0], 2.0)
    for begin in range(0, int(seconds), 90):
        name = dice.choice(list(models))
        trace += [(begin + dice.uniform(0, 5), name, dice.uniform(1, 4)) for _ in range(20)]
    return Case("bursts, room for two", sorted(trace), models, 8 * GIB)


def _huge(seconds: float) -> Case:
    """A model that leaves room for two others, and eight small ones that are asked for all the time."""
    dice = random.Random(3)
    small = {f"s{at}": _model(2) for at in range(8)}
    trace = _poisson(dice, seconds, 2.0, list(small), [1.0] * 8, 2.0)
    trace += [(float(at), "huge", 20.0) for at in range(60, int(seconds), 180)]
    return Case("one huge, eight small", sorted(trace), {**small, "huge": replace(_model(20), priority=0)}, 24 * GIB)


def _poisson(
    dice: random.Random, seconds: float, apart: float, names: Sequence[str], weights: Sequence[float], takes: float
) -> list[Request]:
    at, out = 0.0, []
    while (at := at + dice.expovariate(1 / apart)) < seconds:
        out.append((at, dice.choices(names, weights)[0], 0.2 + dice.expovariate(1 / takes)))
    return out


# --- policies -------------------------------------------------------------------------------------------------------


def least_recently_used(residents: Iterable[Resident], budget: Amount, now: float) -> Mapping[Ref, Standing]:
    """Idle ones go, the longest unused first, for who came first; a busy one is never closed."""
    return _served_in_turn(tuple(residents), budget, now, lambda idle: sorted(idle, key=lambda r: (r.used, r.ref)))


def first_come(residents: Iterable[Resident], budget: Amount, now: float) -> Mapping[Ref, Standing]:
    """Nobody goes for anybody."""
    return _served_in_turn(tuple(residents), budget, now, lambda idle: [])


def _served_in_turn(
    every: Sequence[Resident], budget: Amount, now: float, victims: Callable[[list[Resident]], list[Resident]]
) -> Mapping[Ref, Standing]:
    out = dict(decide(every, (), now))  # what is true of each by itself: asked for, in use, quiet for long
    taken = total(r.need for r in every if r.living)
    leaving = total(r.need for r in every if r.living and (r.leaving or not out[r.ref].wanted))
    for one in sorted((r for r in every if r.waiting and not r.living), key=lambda r: (r.since, r.ref)):
        taken = total((taken, one.need))
        short = excess(taken, budget)
        left = less(short, leaving)
        idle = [r for r in every if r.ready and not r.leaving and not r.busy and not r.waiting and out[r.ref].wanted]
        gone = []
        for victim in victims(idle):
            if any(left):
                gone.append(victim)
                left = less(left, victim.need)
        if not any(left):
            out |= {victim.ref: Standing(False, "it is let go") for victim in gone}
            leaving = total((leaving, *(victim.need for victim in gone)))
        out[one.ref] = Standing(True, "it is asked for", "waits for memory" if any(short) else "")
    return out


POLICIES: dict[str, Policy] = {"ours": decide, "LRU": least_recently_used, "first come": first_come}


if __name__ == "__main__":
    program(run)
