"""kill -9 before and after every effect; whoever comes next must converge, leaking and losing nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.crash.harness import Hub, Run, Tally, chosen, effects_of, fetching_once, judge, staged, was_killed
from tests.crash.scenarios import SCENARIOS, Scenario
from tests.crash.victim import Orders
from tests.e2e.stage import CHECKOUT, Stage

SHARDS = 4
STRIDE = 5


@pytest.mark.timeout(900)
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_kill(tmp_path: Path, hub: Hub, scenario: Scenario, shard: int, record_property) -> None:
    tally = Tally()
    total = len(effects_of(tmp_path / "count", scenario, hub))
    points = [(number, when) for number in range(1, total + 1) for when in ("before", "after")]
    tally.counts["of"] = len(points[shard::SHARDS])
    for number, when in chosen(points, STRIDE)[shard::SHARDS]:
        where = f"effect {number} ({when})"
        folder = tmp_path / f"{number}-{when}"
        with tally.trying(where), staged(folder, scenario, hub) as stage, fetching_once(hub, where):
            where = kill(stage, Orders(str(number), when), tally, scenario)
            with Run(stage, ask=scenario.ask) as heir:
                heir.settle()
                judge(stage, scenario, tally, where)
    record_property(f"crash:kill -9, {scenario.name}", tally.to_json())
    tally.verdict()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("effect", ["venv", "pip-install", "extract"])
def test_kill_in_the_quickstart_itself(tmp_path: Path, effect: str, record_property) -> None:
    """The effects that only the real engine and the real model have."""
    tally = Tally()
    example = (CHECKOUT / "examples" / "quickstart" / "stack.yaml").read_text()
    quickstart = Scenario("quickstart", (), "", ("chat",), servers=1)
    for when in ("before", "after"):
        stage = Stage(tmp_path / when)
        stage.folder.mkdir()
        stage.write(example.replace("1337", str(stage.port)).replace("../../state", "state"))
        try:
            where = kill(stage, Orders(effect, when), tally, quickstart, patience=200)
            with Run(stage) as heir:
                heir.settle(200)
                judge(stage, quickstart, tally, where)
        finally:
            stage.close()
        shutil.rmtree(stage.folder)
    record_property("crash:kill -9, quickstart", tally.to_json())
    assert tally.counts["points"] == 2


def kill(stage: Stage, orders: Orders, tally: Tally, scenario: Scenario, patience: float = 30) -> str:
    """Run a controller until it is killed as ordered → what to call this point."""
    with Run(stage, orders, scenario.ask) as run:
        if run.until_ready_or_dead(patience):
            assert orders.at.isdigit(), f"{orders}: it never came to that\n{run.snapshot()}\n{run.log()}"
            tally.counts["unreached"] += 1  # effects run side by side: a run may have one less than the one counted
            return f"effect {orders.at} ({orders.what}), unreached"
        assert was_killed(run), f"{orders}: it ended by itself\n{run.log()}"
        effect = run.effects()[int(orders.at) - 1] if orders.at.isdigit() else orders.at
        tally.point(effect)
        return f"effect {orders.at} ({orders.what}) {effect}"
