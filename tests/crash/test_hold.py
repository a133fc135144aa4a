"""kill -9 around a pause: before it is written down nothing is paused, from then on everything is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from reconciler.client import Client, NoController
from reconciler.host.layout import Layout
from reconciler.store.ledger import Ledger
from tests.crash.harness import Hub, Run, Tally, judge, staged, wait_until, was_killed
from tests.crash.scenarios import SCENARIOS
from tests.crash.victim import Orders
from tests.e2e.stage import Stage

FIRST = SCENARIOS[0]
BIG = "/big.gguf"


def pause(client: Client) -> object:
    return client.pause(["model/chat"], discard=True)


def held(stage: Stage) -> set[str]:
    with Ledger.read(stage.root / "ledger.db") as ledger:
        return {str(ref) for ref in ledger.paused()}


@pytest.mark.parametrize(("at", "when", "paused"), [("hold", "before", False), ("hold", "after", True)])
def test_kill(tmp_path: Path, hub: Hub, at: str, when: str, paused: bool) -> None:
    tally = Tally()
    with staged(tmp_path / "stage", FIRST, hub) as stage:
        with Run(stage, Orders(at, when)) as run:
            wait_until(lambda: run.snapshot(), 20, "it does not answer")
            with suppress(NoController), Client(Layout(stage.root), timeout=20) as client:
                pause(client)
            wait_until(lambda: run.dead, 20, "it is not killed")
            assert was_killed(run)
        assert held(stage) == ({"model/chat"} if paused else set())
        asked = len(hub.server.requests(BIG))
        with Run(stage) as heir:
            if paused:
                wait_until(lambda: (heir.snapshot() or {}).get("settled"), 30, "not settled")
                assert len(hub.server.requests(BIG)) == asked, "what is paused is not fetched"
                with Client(Layout(stage.root), timeout=20) as client:
                    assert client.pause(["model/chat"], discard=True)["changed"] == []
                    assert list((stage.root / "artifacts" / "partial").glob("*")) == []
                    assert client.resume(["model/chat"])["changed"] == ["model/chat"]
            heir.settle()
            judge(stage, FIRST, tally, f"{at} ({when})")
    tally.verdict()
