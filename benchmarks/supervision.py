"""What watching over processes costs, and how soon what was killed serves again.

The controller with so many servers, the keeper with so many children, and kill -9 of a server, the gateway and the
controller. One fake engine stands for many servers, as in `crowd.py`; the keeper's children are real ones that sleep;
what is killed is a real stack on the fake engine.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from benchmarks.crowd import crowd
from benchmarks.measure import ENVIRONMENT, RECONCILE, ms, program, table
from benchmarks.scale import idle
from benchmarks.stack import Stack
from reconciler.client import Client, NoController
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from reconciler.host.process import Processes
from reconciler.store.ledger import Ledger
from tests.support.processes import kill9, wait_until


def run(quick: bool) -> str:
    counts, window = ((1, 10), 4.0) if quick else ((1, 10, 100), 20.0)
    rows, taking = zip(*(_controller(count, window) for count in counts), strict=True)
    head = ["servers, all ready", "RSS MiB", "of which its own", "CPU, of one core", f"turns in {window:.0f} s"]
    head += ["taken over in s"]
    kept = [_keeper(count, window / 2) for count in counts]
    below = ["children", "RSS MiB", "of which its own", "CPU, of one core", "spawn ms, with it", "spawn ms, without"]
    back = ["killed with -9", "min ms", "median ms", "max ms"]
    parts = [
        table(head, [[*row, f"{seconds:.2f}"] for row, seconds in zip(rows, taking, strict=True)]),
        f"The controller; for each server more: {_each(rows[0], rows[-1])}. Taken over: from the start of the next "
        "controller's process until it says that all is ready; no process is started for it.",
        table(below, kept),
        "The keeper, of which there is one.",
        table(back, _returns(3 if quick else 12)),
        "From the kill: a server until the gateway answers for it again, the gateway until its port is open again; a "
        "server waits for a second first, the gateway for a quarter. The controller: from the start of the next one "
        "until it says that all is ready. What failed earlier is forgotten before each kill, as by `reconcile apply`.",
    ]
    return "\n\n".join(parts)


def _each(least: list[str], most: list[str]) -> str:
    """Memory and CPU of one more server, from the first row and the last."""
    more = int(most[0].replace(",", "")) - int(least[0])
    own = (float(most[2]) - float(least[2])) * 1024 / more
    share = (float(most[3].rstrip("%")) - float(least[3].rstrip("%"))) / more
    return f"{own:.0f} KiB of its own and {share:.3f}% of a core"


def _controller(count: int, window: float) -> tuple[list[str], float]:
    with crowd(count) as made, made.filled():
        return idle(made, count, window), _takes_over(made.manifest, made.layout)


def _takes_over(manifest: Path, layout: Layout) -> float:
    """Seconds from the start of a controller until it says that all is ready. It is stopped then."""
    with ExitStack() as stack:
        begin = time.perf_counter()
        argv, void = [RECONCILE, "-f", str(manifest), "watch"], subprocess.DEVNULL
        controller = subprocess.Popen(argv, cwd=manifest.parent, env=ENVIRONMENT, stdout=void, stderr=void)
        stack.callback(controller.wait)
        stack.callback(controller.terminate)
        wait_until(lambda: _ready(layout), 60, "the next controller says that all is ready")
        return time.perf_counter() - begin


def _ready(layout: Layout) -> bool:
    try:
        with Client(layout) as client:
            return bool(client.status()["ready"])
    except NoController:
        return False


def _returns(rounds: int) -> list[list[str]]:
    samples: dict[str, list[float]] = {"server": [], "gateway": [], "controller": []}
    with Stack() as stack:
        for _ in range(rounds):
            for what, taken in samples.items():
                stack.reconcile("apply")
                if what == "controller":
                    kill9(_controller_of(stack))
                    taken.append(_takes_over(stack.folder / "stack.yaml", stack.layout))
                    continue
                pid = _process(stack, "server/first" if what == "server" else "gateway/main")
                answers = _served if what == "server" else _listens
                begin = time.perf_counter()
                kill9(pid)
                wait_until(partial(answers, stack), 30, f"the {what} is back")
                taken.append(time.perf_counter() - begin)
        stack.reconcile("apply")
        stack.controller = _controller_of(stack)
    return [[what, ms(min(s)), ms(median(s)), ms(max(s))] for what, s in samples.items()]


def _controller_of(stack: Stack) -> int:
    with Client(stack.layout) as client:
        return int(client.hello()["pid"])


def _process(stack: Stack, ref: str) -> int:
    with Ledger.read(stack.layout.ledger) as ledger:
        return next(r.identity.pid for r in ledger.processes() if str(r.ref) == ref and r.identity is not None)


def _served(stack: Stack) -> bool:
    body = {"model": "first", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    connection = stack.connect()
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _listens(stack: Stack) -> bool:
    try:
        socket.create_connection(("127.0.0.1", stack.port), 1).close()
    except OSError:
        return False
    return True


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
