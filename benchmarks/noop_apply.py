"""What `reconcile apply` costs when there is nothing to do: the whole command, with a controller already running."""

from __future__ import annotations

from statistics import median

from benchmarks.measure import Failed, ms, percentile, program, table
from benchmarks.stack import Stack


def run(quick: bool) -> str:
    rounds = 3 if quick else 15
    samples = []
    with Stack() as stack:
        for _ in range(rounds):
            seconds, said = stack.reconcile("apply")
            if "nothing to do" not in said:
                raise Failed(f"apply found something to do:\n{said}")
            samples.append(seconds)
    figures = [ms(min(samples)), ms(median(samples)), ms(percentile(samples, 95))]
    text = table(["command", "min ms", "median ms", "p95 ms"], [["`reconcile apply`, nothing to do", *figures]])
    return f"{text}\n\n{rounds} runs; two models on a fake engine, one gateway."


if __name__ == "__main__":
    program(run)
