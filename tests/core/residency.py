"""Replays traces of requests against the decision of who is in memory: loads, lets go, waits and answers, no clock.

What happens follows the controller: a model that is to go is closed to new requests at once, and its memory is free
only after those that it was answering have ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from reconciler.core.ids import Ref
from reconciler.core.residency import Amount, Resident, Standing, decide

TICK = 0.25  # seconds between two decisions: the controller's turns come at least so often while something waits
TAIL = 4000.0  # seconds after the last request in which all must come to rest

Request = tuple[float, str, float]  # when, of which model, and seconds that answering it takes
Policy = Callable[[Iterable[Resident], Amount, float], Mapping[Ref, Standing]]


@dataclass(frozen=True)
class Load:
    """A model: bytes that it takes, seconds that it loads for."""

    need: int
    reload: float
    priority: int = 0
    idle_timeout: float = 600.0


@dataclass(frozen=True)
class Report:
    """`waits` are seconds per request, by model; `cut` counts requests that were running when their model was stopped;
    `most` is the largest memory ever taken at once.
    """

    loads: int
    evictions: int
    answered: int
    cut: int
    most: int
    waits: Mapping[str, Sequence[float]]

    @property
    def longest_wait(self) -> float:
        return max((wait for waits in self.waits.values() for wait in waits), default=0.0)


@dataclass
class _Model:
    load: Load
    state: str = "out"  # out | loading | ready | leaving
    ready_at: float = 0.0  # when it is, or became
    used: float = 0.0
    queue: list[tuple[float, float]] = field(default_factory=list)  # (since, takes)
    running: list[float] = field(default_factory=list)  # until when

    def resident(self, name: str, now: float) -> Resident:
        return Resident(
            Ref("server", name),
            "on_demand",
            (self.load.need,),
            living=self.state != "out",
            ready=self.state in ("ready", "leaving"),
            leaving=self.state == "leaving",
            busy=len(self.running),
            waiting=len(self.queue),
            since=min((since for since, _ in self.queue), default=0.0),
            used=now if self.running else self.used,
            loaded=self.ready_at,
            idle_timeout=self.load.idle_timeout,
            priority=self.load.priority,
            reload=self.load.reload,
        )


def play(trace: Sequence[Request], models: Mapping[str, Load], budget: int, policy: Policy = decide) -> Report:
    """`trace` is (when, model, seconds that answering takes) in the order of time."""
    world = {name: _Model(load) for name, load in models.items()}
    waits: dict[str, list[float]] = {name: [] for name in models}
    loads = evictions = answered = cut = most = position = 0
    now, end = 0.0, (trace[-1][0] if trace else 0.0) + TAIL
    while now <= end and (position < len(trace) or any(m.state != "out" or m.queue for m in world.values())):
        while position < len(trace) and trace[position][0] <= now:
            at, name, takes = trace[position]
            world[name].queue.append((at, takes))
            position += 1
        for model in world.values():
            ended = [until for until in model.running if until <= now]
            model.running = [until for until in model.running if until > now]
            model.used = max([model.used, *ended])
            if model.state == "loading" and model.ready_at <= now:
                model.state, model.used = "ready", now
        standing = policy([m.resident(name, now) for name, m in world.items()], (budget,), now)
        for name, model in world.items():
            verdict = standing[Ref("server", name)]
            if model.state == "leaving" and not model.running:
                model.state = "out"
                evictions += 1
            elif model.state in ("ready", "leaving") and not verdict.wanted:
                model.state = "leaving"
            elif model.state == "ready":
                for since, takes in model.queue:
                    waits[name].append(now - since)
                    model.running.append(now + takes)
                    answered += 1
                model.queue.clear()
        taken = sum(m.load.need for m in world.values() if m.state != "out")
        for name, model in world.items():
            verdict = standing[Ref("server", name)]
            if model.state == "out" and verdict.wanted and not verdict.hold:
                model.state, model.ready_at = "loading", now + model.load.reload
                loads += 1
                taken += model.load.need
        most = max(most, taken)
        cut += sum(len(m.running) for m in world.values() if m.state in ("out", "loading"))
        now = _next(now, world, trace, position)
    return Report(loads, evictions, answered, cut, most, waits)


def _next(now: float, world: Mapping[str, _Model], trace: Sequence[Request], position: int) -> float:
    """The next tick, or, while nothing waits or works, the moment at which something happens."""
    if any(m.queue or m.running or m.state in ("loading", "leaving") for m in world.values()):
        return now + TICK
    coming = trace[position][0] if position < len(trace) else math.inf
    quiet = min((m.used + m.load.idle_timeout for m in world.values() if m.state == "ready"), default=math.inf)
    return max(now + TICK, min(coming, quiet))
