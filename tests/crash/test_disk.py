"""A disk that is full, fails, or takes half a write, at every effect: the controller lives, says so, and goes on."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest

from tests.crash import disk
from tests.crash.harness import Hub, Run, Tally, chosen, effects_of, fetching_once, judge, staged, wait_until
from tests.crash.scenarios import SCENARIOS, Scenario
from tests.crash.victim import Orders
from tests.e2e.stage import Stage

SHARDS = 4
STRIDE = 23  # prime to the 6 ways to fail, so that every way is met
TOLD = re.compile(
    r"no room on the disk|the disk failed|ledger cannot be|disk is full|disk I/O error|cannot start a process"
)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_disk(tmp_path: Path, hub: Hub, scenario: Scenario, shard: int, record_property) -> None:
    tally = Tally()
    total = len(effects_of(tmp_path / "count", scenario, hub))
    points = list(product(range(1, total + 1), disk.FAULTS, (False, True)))
    tally.counts["of"] = len(points[shard::SHARDS])
    for number, fault, lasting in chosen(points, STRIDE)[shard::SHARDS]:
        orders = Orders(str(number), fault, lasting, hasty=True)
        where = f"effect {number}, {fault}, {'lasting' if lasting else 'once'}"
        folder = tmp_path / f"{number}-{fault}-{lasting}"
        with tally.trying(where), staged(folder, scenario, hub) as stage, fetching_once(hub, where):
            fail(stage, scenario, orders, where, tally)
    record_property(f"crash:failing disk, {scenario.name}", tally.to_json())
    tally.verdict()


def fail(stage: Stage, scenario: Scenario, orders: Orders, where: str, tally: Tally) -> None:
    """Run a controller on a disk that fails as ordered, and judge what it says and where it ends up."""
    with Run(stage, orders, scenario.ask) as run:
        if not run.reached():
            tally.counts["unreached"] += 1
            return
        effect = run.effects()[int(orders.at) - 1]
        where += f" {effect}"
        if orders.lasting:
            wait_until(lambda: run.dead or told(run), 15, f"{where}: it does not say so\n{run.snapshot()}\n{run.log()}")
            run.file("broken").unlink()
        if not run.failed:
            tally.counts["without a fault"] += 1  # a signal needs no disk
            return
        tally.point(effect)
        converged = run.until_ready_or_dead()
        assert "Traceback" not in run.log(), f"{where}: {run.log()}"
        if converged:
            run.settle()
            judge(stage, scenario, tally, where, interrupted=True)
            return
        # Before its first turn it has nothing to live for: it may end, with a message.
        tally.counts["refused to start"] += 1
        assert run.log().count("refused: "), f"{where}: it died\n{run.log()}"
        assert " begin ref=" not in run.log(), f"{where}: it died at work\n{run.log()}"
        assert TOLD.search(run.log()), f"{where}: {run.log()}"
    with Run(stage, ask=scenario.ask) as heir:
        heir.settle()
        judge(stage, scenario, tally, where)


def told(run: Run) -> bool:
    """Whether it says what is wrong; it need not, where nothing has to be written any more."""
    snapshot = run.snapshot()
    return bool(snapshot and (snapshot["ready"] or TOLD.search(json.dumps(snapshot))))
