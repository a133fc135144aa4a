"""Runs every benchmark, one after the other, and writes RESULTS.md with what the machine was."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import psutil

from benchmarks import (
    cold,
    cold_start,
    downloads,
    edit_to_route,
    estimate,
    gateway,
    header,
    kept_cache,
    memory,
    noop_apply,
    proxies,
    residency,
    scale,
    supervision,
)
from benchmarks.measure import CHECKOUT

RESULTS = Path(__file__).with_name("RESULTS.md")
SECTIONS: dict[str, Callable[[bool], str]] = {
    "Cold start": cold_start.run,
    "Apply with nothing to do": noop_apply.run,
    "Many resources": scale.run,
    "From a saved edit to the route": edit_to_route.run,
    "The gateway beside nginx": gateway.run,
    "Standing by": memory.run,
    "Watching over processes": supervision.run,
    "A model that is not loaded": cold.run,
    "Who is in memory": residency.run,
    "A cache that is kept": kept_cache.run,
    "Downloads beside other tools": downloads.run,
    "Reading a header": header.run,
    "Memory of a server, as estimated": estimate.run,
}


def main() -> int:
    quick = "--quick" in sys.argv[1:]
    begun, load = datetime.now().astimezone(), os.getloadavg()
    failed, parts = False, []
    for title, run in SECTIONS.items():
        print(f"… {title}", file=sys.stderr, flush=True)
        try:
            body = run(quick)
        except AssertionError as error:
            failed, body = True, f"Failed: {error}"
        parts.append(f"## {title}\n\n{(sys.modules[run.__module__].__doc__ or '').partition(chr(10) * 2)[0]}\n\n{body}")
    text = "\n\n".join([_heading(quick, begun, load), *parts]) + "\n"
    print(text)
    RESULTS.write_text(text, encoding="utf-8")
    return 1 if failed else 0


def _heading(quick: bool, begun: datetime, load: tuple[float, float, float]) -> str:
    command = "python -m benchmarks.run_all" + (" --quick" if quick else "")
    lines = [
        "# Results",
        "",
        f"Written by `{command}`, run from the checkout; `python -m benchmarks.NAME` repeats one part.",
        "It needs the `dev` extra, and nginx, wrk and taskset for the comparison. Figures of another machine, or of",
        "this one while it does other work, compare only as ratios within a table.",
        "",
        *(["**A quick run: too few samples to quote.**", ""] if quick else []),
        f"- {begun:%Y-%m-%d %H:%M %Z}, commit {_commit()}",
        f"- {_cpu()}, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory",
        f"- {platform.system()} {platform.release()}, {platform.python_implementation()} {platform.python_version()}",
        f"- {_version('nginx', proxies.NGINX)}, {_version('wrk', shutil.which('wrk'))}",
        f"- load before: {_load(load)}; after: {_load(os.getloadavg())} (1, 5, 15 minutes)",
    ]
    return "\n".join(lines)


def _cpu() -> str:
    cores = psutil.cpu_count()
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return f"{platform.processor()}, {cores} cores"
    model = re.search(r"model name\s*:\s*(.+)", known)
    virtual = " of a virtual machine" if re.search(r"^flags.*\bhypervisor\b", known, re.MULTILINE) else ""
    return f"{model[1] if model else platform.machine()}, {cores} cores{virtual}"


def _version(name: str, binary: str | None) -> str:
    if binary is None:
        return f"no {name}"
    said = subprocess.run([binary, "-v"], capture_output=True, text=True, check=False, timeout=10)
    number = re.search(r"\d+\.\d+(\.\d+)?", said.stderr + said.stdout)
    return f"{name} {number[0] if number else '(version not told)'}"


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = " with local changes" if git("status", "--porcelain", "--", "reconciler") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def _load(load: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.2f}" for value in load)


if __name__ == "__main__":
    sys.exit(main())
