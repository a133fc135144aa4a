"""What a plan costs at 10, 100, 1,000 and 10,000 resources, from nothing and with everything in place.

Half of the resources are models, half their servers; two engines and the gateway come on top. See `crowd.py` for what
is real in it. Growth is the cost at ten times as many resources; ten is linear.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import psutil
import yaml

from benchmarks.crowd import Crowd, crowd
from benchmarks.measure import CHECKOUT, ENVIRONMENT, RECONCILE, Failed, call, compile_bytecode, ms, program, table
from reconciler.app import looking, tools_for
from reconciler.client import Client, NoController
from reconciler.controller.binding import Planned, bound
from reconciler.controller.daemon import Controller
from reconciler.controller.turn import View, observe, wanted_of
from reconciler.core import planner, status
from reconciler.host.effects import Effects
from reconciler.kinds.registry import KINDS
from reconciler.manifest.include import Disk, gather
from reconciler.manifest.lock import Lock
from reconciler.manifest.parse import Manifest, understand
from reconciler.manifest.reading import Reading
from reconciler.store.ledger import Ledger
from reconciler.supervise import actor
from tests.support.processes import wait_until

PENDING = 2
RULES = {name: kind.rules for name, kind in KINDS.items()}
T = TypeVar("T")


def run(quick: bool) -> str:
    sizes, rounds = ((10, 100, 1000), 3) if quick else ((10, 100, 1000, 10_000), 5)
    compile_bytecode()
    commands: dict[str, list[float]] = {}
    parts: dict[str, list[float]] = {}
    turns: dict[str, list[float]] = {}

    def note(into: dict[str, list[float]], found: dict[str, float]) -> None:
        for name, seconds in found.items():
            into.setdefault(name, []).append(seconds)

    for size in sizes:
        with crowd(size // 2) as made:
            note(commands, {"`python -c pass`": _command([sys.executable, "-c", "pass"], 0, rounds)})
            note(commands, {"`reconcile --dry-run`, from nothing": _dry_run(made, PENDING, rounds)})
            note(parts, {f"{name}, from nothing": s for name, s in _parts(made, rounds, PENDING).items()})
            with made.filled():
                note(commands, {"`reconcile --dry-run`, nothing to do": _dry_run(made, 0, rounds)})
                note(parts, {f"{name}, nothing to do": s for name, s in _parts(made, rounds, 0).items()})
                note(turns, {"turn of the controller": _turn(made, rounds)})
    return "\n\n".join(
        [
            _table("CPU ms of a whole process", commands, sizes),
            f"Medians of {rounds} runs, user and system time.",
            _table("CPU ms in one process", {**_common(parts), **turns}, sizes),
            f"Medians of {rounds} rounds; the last is a turn of a controller that has watched all servers before. "
            "What its probes cost is in the next table.",
            _standing_by((4,) if quick else (4, 1000), 4 if quick else 20),
        ]
    )


def _common(parts: dict[str, list[float]]) -> dict[str, list[float]]:
    """Parts that do not depend on what is in place, once."""
    out = {}
    for name, figures in parts.items():
        part, _, world = name.partition(", ")
        if part not in ("yaml.CSafeLoader", "read", "check", "resolve"):
            out[name] = figures
        elif world == "from nothing":
            out[part] = figures
    return out


def _table(what: str, rows: dict[str, list[float]], sizes: tuple[int, ...]) -> str:
    head = [what, *(f"{size:,}" for size in sizes), f"growth from {sizes[-2]:,}"]
    lines = [[name, *map(ms, found), f"{found[-1] / found[-2]:.1f}"] for name, found in rows.items()]
    return table(head, lines)


# -- whole commands ---------------------------------------------------------------------------------------------------


def _dry_run(made: Crowd, code: int, rounds: int) -> float:
    return _command([RECONCILE, "-f", str(made.manifest), "--dry-run", "-o", "json"], code, rounds)


def _command(argv: list[str], code: int, rounds: int) -> float:
    """CPU seconds of a command: the machine may do other work meanwhile."""
    samples = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        call(argv, code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        samples.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return median(samples)


# -- parts ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Clock:
    """CPU seconds of each named part."""

    parts: dict[str, float]

    def time(self, name: str, function: Callable[..., T], *arguments: Any) -> T:
        begin = time.process_time()
        value = function(*arguments)
        self.parts[name] = time.process_time() - begin
        return value


def _parts(made: Crowd, rounds: int, code: int) -> dict[str, float]:
    taken = [_one(made, code) for _ in range(rounds)]
    return {name: median(t[name] for t in taken) for name in taken[0]}


def _one(made: Crowd, code: int) -> dict[str, float]:
    """What `reconcile --dry-run -o json` does, step by step."""
    clock = Clock({})
    clock.time("yaml.CSafeLoader", lambda: yaml.load(made.manifest.read_bytes(), yaml.CSafeLoader))
    gathered = clock.time("read", gather, made.manifest, Disk())
    stack, faults = clock.time("check", understand, gathered.document)
    if stack is None or faults:
        raise Failed(f"the manifest is not right: {faults[:1]}")
    reading = Reading(Manifest(made.manifest, gathered.texts, stack, gathered.document), Lock())
    wanted = clock.time("resolve", wanted_of, reading, made.layout)
    with looking(made.layout, made.folder) as tools:
        world = clock.time("observe", observe, wanted, tools, KINDS)
        plan = clock.time("plan", planner.plan, world, RULES)
        if plan.empty == bool(code):
            raise Failed(f"this was to be planned otherwise: {plan.changes[:1]}")
        conditions = clock.time("conditions", status.conditions, world, RULES, plan)
        clock.time("conditions with their times", status.stamp, conditions, conditions, 0.0, 1)
        planned: Planned = clock.time("bind", bound, reading, View(world, plan, conditions), tools.ledger)
    clock.time("print", lambda: json.dumps(planned.to_json(), indent=2, ensure_ascii=False))
    return clock.parts


# -- the controller ---------------------------------------------------------------------------------------------------


class _Enough(Exception):
    """Ends a task group with all its tasks."""


def _turn(made: Crowd, rounds: int) -> float:
    """CPU seconds of a controller's turn that finds nothing to do, without the probes, which go on beside it."""
    samples: list[float] = []
    actor.PROBE_EVERY = actor.PROBE_MOST = 3600.0

    async def turns(controller: Controller) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(rounds + 2):  # the first takes the manifest over, the second settles what is told
                begin = time.process_time()
                await controller.turn(group)
                samples.append(time.process_time() - begin)
            if controller.view is None or not controller.view.plan.empty:
                raise Failed("the controller found something to do")
            raise _Enough

    with Ledger.write(made.layout.ledger, Effects()) as ledger:
        tools = tools_for(made.layout, made.folder, Effects(), ledger, KINDS)
        controller = Controller(made.manifest, tools, KINDS, lambda: True)
        tools.desired = controller.desired
        try:
            asyncio.run(turns(controller))
        except* _Enough:
            pass
    return median(samples[2:])


def _standing_by(models: tuple[int, ...], window: float) -> str:
    """Memory and CPU of `reconcile watch` with so many models in place, while nothing happens."""
    rows = []
    for count in models:
        with crowd(count) as made, made.filled():
            rows.append(idle(made, count, window))
    head = ["models, all ready", "RSS MiB", "of which its own", "CPU, of one core", f"turns in {window:.0f} s"]
    return f"{table(head, rows)}\n\nThe controller alone; every server is asked whether it answers, every 5 to 15 s."


def idle(made: Crowd, count: int, window: float) -> list[str]:
    """A row of `_standing_by`: a controller of its own with everything in place."""
    with ExitStack() as stack:
        log = stack.enter_context((made.folder / "watch.log").open("wb"))
        argv = [RECONCILE, "-f", str(made.manifest), "watch"]
        controller = subprocess.Popen(argv, cwd=CHECKOUT, env=ENVIRONMENT, stdout=log, stderr=log)
        stack.callback(controller.wait)
        stack.callback(controller.terminate)
        wait_until(lambda: _ready(made), 60, "the controller says that all is ready")
        time.sleep(window / 4)
        process = psutil.Process(controller.pid)
        before, begun, begin = _cpu(process), _turns(made), time.perf_counter()
        time.sleep(window)
        used, taken, seconds = _cpu(process) - before, _turns(made) - begun, time.perf_counter() - begin
        memory = process.memory_full_info()
        return [
            f"{count:,}",
            f"{memory.rss / 2**20:.1f}",
            f"{memory.uss / 2**20:.1f}",
            f"{used / seconds:.2%}",
            f"{taken}",
        ]


def _ready(made: Crowd) -> bool:
    try:
        with Client(made.layout) as client:
            return bool(client.status()["ready"])
    except NoController:
        return False


def _turns(made: Crowd) -> int:
    with Client(made.layout) as client:
        return int(client.status()["controller"]["turn"])


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    os.environ.pop("RECONCILER_DATA_ROOT", None)
    program(run)
