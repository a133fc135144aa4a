"""What it costs to watch over processes: the controller with so many servers, and the keeper with so many children.

One fake engine stands for all servers, as in `crowd.py`; the keeper's children are real ones that sleep.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.crowd import crowd
from benchmarks.measure import ENVIRONMENT, program, table
from benchmarks.scale import idle
from reconciler.host.effects import Effects
from reconciler.host.process import Processes
from tests.support.processes import kill9, wait_until


def run(quick: bool) -> str:
    counts, window = ((1, 10), 4.0) if quick else ((1, 10, 100, 1000), 20.0)
    rows = [_controller(count, window) for count in counts]
    head = ["servers, all ready", "RSS MiB", "of which its own", "CPU, of one core", f"turns in {window:.0f} s"]
    kept = [_keeper(count, window / 2) for count in counts if count <= 100]
    below = ["children", "RSS MiB", "of which its own", "CPU, of one core", "spawn ms, with it", "spawn ms, without"]
    return f"{table(head, rows)}\n\nThe controller.\n\n{table(below, kept)}\n\nThe keeper, of which there is one."


def _controller(count: int, window: float) -> list[str]:
    with crowd(count) as made, made.filled():
        return idle(made, count, window)


def _keeper(count: int, window: float) -> list[str]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        spawns = []
        for ends in (folder / "ends", None):
            processes = Processes(Effects(), ends)
            stack.callback(processes.close)
            first = processes.spawn(["sleep", "300"], ENVIRONMENT, folder / "log", folder)
            stack.callback(kill9, first.pid)
            if ends is not None:
                keeper = psutil.Process(psutil.Process(first.pid).ppid())
            begin = time.perf_counter()
            for _ in range(count - 1 if ends is not None else 20):
                child = processes.spawn(["sleep", "300"], ENVIRONMENT, folder / "log", folder)
                stack.callback(processes.exit_code, child)
                stack.callback(kill9, child.pid)
            spawns.append((time.perf_counter() - begin) / max(1, count - 1 if ends is not None else 20))
        before, begin = keeper.cpu_times(), time.perf_counter()
        time.sleep(window)
        after = keeper.cpu_times()
        used = after.user + after.system - before.user - before.system
        memory = keeper.memory_full_info()
        figures = [
            f"{memory.rss / 2**20:.1f}",
            f"{memory.uss / 2**20:.1f}",
            f"{used / (time.perf_counter() - begin):.2%}",
        ]
        stack.pop_all().close()
        wait_until(lambda: not keeper.is_running(), 10, "the keeper goes with its last child")
        return [str(count), *figures, f"{spawns[0] * 1000:.2f}" if count > 1 else "–", f"{spawns[1] * 1000:.2f}"]


if __name__ == "__main__":
    program(run)
