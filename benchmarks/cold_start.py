"""How long a person waits for a plan: `reconcile --dry-run` on the quickstart, in a new process, nothing running."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.measure import CHECKOUT, RECONCILE, Failed, call, compile_bytecode, ms, percentile, program, table

MANIFEST = CHECKOUT / "examples" / "quickstart" / "stack.yaml"


def run(quick: bool) -> str:
    rounds = 3 if quick else 20
    compile_bytecode()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "state"
        commands = {
            "python -c pass": ([sys.executable, "-c", "pass"], 0),
            "reconcile --help": ([RECONCILE, "--help"], 0),
            "reconcile --dry-run": ([RECONCILE, "-f", str(MANIFEST), "--data-root", str(root), "--dry-run"], 2),
        }
        samples: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(rounds + 1):
            for name, (argv, code) in commands.items():
                seconds, _ = call(argv, code)
                if turn:  # the first one warms the disk cache
                    samples[name].append(seconds)
        if root.exists():
            raise Failed(f"a dry run made {root}")
    bare = median(samples["python -c pass"])
    rows = [
        [f"`{name}`", ms(min(s)), ms(median(s)), ms(percentile(s, 95)), f"{median(s) / bare:.1f}"]
        for name, s in samples.items()
    ]
    text = table(["cold process", "min ms", "median ms", "p95 ms", "× bare interpreter"], rows)
    return f"{text}\n\n{rounds} interleaved runs each; quickstart manifest, empty data root, exit code 2."


if __name__ == "__main__":
    program(run)
