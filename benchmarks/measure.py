"""What the benchmarks share: figures of processes and samples, Markdown tables, a command line.

Children get an environment in which nothing of the caller's Python or Reconciler settings counts, and compiled
bytecode, as an installed program has it; it is kept in .cache, not beside the sources.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).resolve().parents[1]
RECONCILE = str(Path(sys.executable).parent / "reconcile")
BYTECODE = Path(__file__).with_name(".cache") / "bytecode"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RECONCILER_"))}
ENVIRONMENT["PYTHONPYCACHEPREFIX"] = str(BYTECODE)
ALL = (
    "import watchfiles, reconciler.app, reconciler.cli.apply, reconciler.controller.control, reconciler.gateway.server"
)


class Failed(AssertionError):
    """Something did not work, so there is nothing to measure; an AssertionError, as those of tests.support."""


def program(run: Callable[[bool], str]) -> None:
    """Print what `run(quick)` returns; exit 1 with one line when something did not work."""
    parser = argparse.ArgumentParser(description=sys.modules[run.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter samples, to see that it works")
    arguments = parser.parse_args()
    try:
        print(run(arguments.quick))
    except AssertionError as failed:
        sys.exit(f"failed: {failed}")


def compile_bytecode() -> None:
    """Have everything imported once, so that no measured process compiles or writes."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", "reconciler"], cwd=CHECKOUT, env=ENVIRONMENT, check=True)
    subprocess.run([sys.executable, "-c", ALL], cwd=CHECKOUT, env=ENVIRONMENT, check=True)


def call(argv: Sequence[str], expect: int = 0, cwd: Path = CHECKOUT) -> tuple[float, str]:
    """Run to the end → (wall seconds, stdout). Raises Failed on another exit code, or after a minute."""
    begin = time.perf_counter()
    try:
        done = subprocess.run(argv, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(argv)}: not done within a minute") from None
    seconds = time.perf_counter() - begin
    if done.returncode != expect:
        raise Failed(f"{' '.join(argv)}: exit code {done.returncode}, not {expect}\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


def percentile(samples: Iterable[float], percent: float) -> float:
    """The smallest sample that `percent` of all do not exceed (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def cpu_seconds(pid: int) -> float:
    """CPU time, user and system, that a process and its living children have used so far."""
    root = psutil.Process(pid)
    return sum(t.user + t.system for t in (p.cpu_times() for p in (root, *root.children(recursive=True))))


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its children, in MiB; pages that they share count in each."""
    root = psutil.Process(pid)
    return sum(p.memory_info().rss for p in (root, *root.children(recursive=True))) / 2**20


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}" if seconds < 1 else f"{seconds * 1000:.0f}"
