"""How soon a saved edit counts: from the rename of a new stack.yaml until the gateway answers for the new alias."""

from __future__ import annotations

import random
import time
from http.client import HTTPConnection
from statistics import median

from benchmarks.measure import Failed, ms, percentile, program, table
from benchmarks.stack import Stack

POLL = 0.002
PATIENCE = 10.0


def run(quick: bool) -> str:
    rounds = 5 if quick else 50
    pauses = random.Random(1)  # so that edits fall at any moment of the controller's own rhythm
    samples = []
    with Stack() as stack:
        connection = stack.connect()
        for number in range(rounds):
            time.sleep(pauses.uniform(0.2, 0.8))
            alias = f"alias-{number}"
            stack.name_first(alias)
            samples.append(_until_routed(connection, alias))
        connection.close()
    figures = [ms(f) for f in (min(samples), median(samples), percentile(samples, 99), max(samples))]
    text = table(["from rename to", "min ms", "p50 ms", "p99 ms", "max ms"], [["200 for the new alias", *figures]])
    return f"{text}\n\n{rounds} edits 0.2 to 0.8 s apart, asked every {POLL * 1000:.0f} ms over one connection."


def _until_routed(connection: HTTPConnection, alias: str) -> float:
    begin = time.perf_counter()
    while (waited := time.perf_counter() - begin) < PATIENCE:
        connection.request("GET", f"/v1/models/{alias}")
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            return time.perf_counter() - begin
        if answer.status != 404:
            raise Failed(f"the gateway answered {answer.status} for {alias}")
        time.sleep(POLL)
    raise Failed(f"{alias} is not routed after {waited:.0f} s")


if __name__ == "__main__":
    program(run)
