"""What standing by costs: memory and CPU of the controller and the gateway while nobody asks for anything."""

from __future__ import annotations

import time

import psutil

from benchmarks.measure import program, table
from benchmarks.stack import Stack


def run(quick: bool) -> str:
    settle, window = (1, 3) if quick else (5, 20)
    with Stack() as stack:
        time.sleep(settle)
        rows = []
        pids = {"controller": stack.controller, "gateway": stack.gateway}
        before = {name: _own_cpu(pid) for name, pid in pids.items()}
        begin = time.perf_counter()
        time.sleep(window)
        seconds = time.perf_counter() - begin
        for name, pid in pids.items():
            memory = psutil.Process(pid).memory_full_info()
            share = (_own_cpu(pid) - before[name]) / seconds
            rows.append([name, f"{memory.rss / 2**20:.1f}", f"{memory.uss / 2**20:.1f}", f"{share:.2%}"])
    text = table(["process", "RSS MiB", "of which its own", "CPU, of one core"], rows)
    return f"{text}\n\n{settle} s after two models and the gateway were ready, CPU over {window} s."


def _own_cpu(pid: int) -> float:
    """Without its children: the engines are the controller's."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    program(run)
