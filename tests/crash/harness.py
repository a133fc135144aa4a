"""Run a scenario with a controller that is killed at one effect; let another one converge; judge what is left."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.client import Client, NoController
from reconciler.host.layout import Layout
from reconciler.store.ledger import Ledger
from tests.e2e.stage import CHECKOUT, Stage
from tests.support.processes import wait_until


@dataclass
class Run:
    """One controller process on a stage."""

    stage: Stage
    at: str = "0"
    when: str = "before"
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def record(self) -> Path:
        return self.stage.folder / "effects.txt"

    def __enter__(self) -> Run:
        self.record.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "tests.crash.victim", str(self.stage.manifest), str(self.stage.root)]
        log = (self.stage.folder / "victim.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [*argv, str(self.record), self.at, self.when], cwd=CHECKOUT, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def effects(self) -> list[str]:
        return self.record.read_text().splitlines() if self.record.exists() else []

    def snapshot(self) -> dict[str, Any] | None:
        try:
            with Client(Layout(self.stage.root), timeout=5) as client:
                return client.status()
        except NoController:
            return None

    def until_ready_or_dead(self, timeout: float) -> bool:
        """True when everything is ready, False when the process is dead."""

        def over() -> str:
            if self.process.poll() is not None:
                return "dead"
            snapshot = self.snapshot()
            return "ready" if snapshot and snapshot["ready"] else ""

        said = (self.stage.folder / "victim.log").read_text()[-3000:] if self.process.poll() is not None else ""
        return wait_until(over, timeout, f"neither ready nor dead at {self.at} {self.when}\n{said}") == "ready"


@dataclass
class Tally:
    """What a crash campaign counted."""

    points: int = 0
    unreached: int = 0
    passes: list[int] = field(default_factory=list)
    leaks: int = 0
    duplicates: int = 0
    lost: int = 0
    by_effect: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(
            {"points": self.points, "unreached": self.unreached, "leaks": self.leaks, "duplicates": self.duplicates,
             "lost": self.lost, "by_effect": self.by_effect}
        )  # fmt: skip


def judge(stage: Stage, servers: int, tally: Tally, where: str) -> None:
    """What must be true once it has converged: one process for each thing, all of them known, nothing left open."""
    with Ledger.read(stage.root / "ledger.db") as ledger:
        owned, rows = {str(ref) for ref in ledger.owned()}, ledger.processes()
        interrupted = ledger.open_operations()
    strays = stage.strays()
    running = stage.workloads()
    wanted = {r["ref"] for r in (stage_snapshot(stage))["resources"]}
    tally.leaks += len(strays)
    tally.duplicates += max(0, len(running) - servers - 1)
    tally.lost += len(wanted - owned)
    assert not strays, f"{where}: leaked {strays}"
    assert len(running) == servers + 1, f"{where}: {[p.cmdline() for p in running]}"
    assert owned == wanted, f"{where}: lost {wanted - owned}, kept {owned - wanted}"
    assert not interrupted, f"{where}: an intent is still open"
    assert {row.identity.pid for row in rows if row.identity} == {p.pid for p in running}, where
    keys = {p.name for p in (stage.root / "run" / "keys").glob("*")}
    assert keys == {row.nonce for row in rows if row.ref.kind == "server"}, f"{where}: keys {keys}"
    partial = list((stage.root / "artifacts" / "partial").glob("*"))
    assert not partial, f"{where}: left {partial}"


def stage_snapshot(stage: Stage) -> dict[str, Any]:
    with Client(Layout(stage.root), timeout=5) as client:
        return client.status()


def settle(run: Run, timeout: float = 30) -> None:
    """Wait until everything is ready and stays so for a moment (a late stop or sweep would show)."""
    assert run.until_ready_or_dead(timeout), f"the controller after the crash died\n{run.stage.folder}"
    time.sleep(0.05)
    assert run.until_ready_or_dead(timeout)
