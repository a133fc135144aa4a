"""Clocks that jump, ports and pids that are somebody else's, notices that never come: the end is the same."""

from __future__ import annotations

import contextlib
import http.server
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.store.ledger import Ledger
from tests.crash.harness import Hub, Run, Tally, chosen, effects_of, judge, staged, wait_until
from tests.crash.scenarios import SCENARIOS, Scenario
from tests.crash.victim import Orders
from tests.e2e.stage import Stage
from tests.support.engines import wrapper
from tests.support.processes import alive, kill9

HOUR, DECADE = 3600, 10 * 365 * 86400
JUMPS = (HOUR, -HOUR, DECADE)
FIRST, EDIT, *_ = SCENARIOS


# -- the clock ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize("jump", JUMPS)
def test_clock_jumps_in_an_edit(tmp_path: Path, hub: Hub, jump: int, record_property) -> None:
    tally = Tally()
    total = len(effects_of(tmp_path / "count", EDIT, hub))
    tally.counts["of"] = total
    for number in chosen(range(1, total + 1), 25):
        where = f"effect {number}, clock {jump:+} s"
        with (
            tally.trying(where),
            staged(tmp_path / str(number), EDIT, hub) as stage,
            Run(stage, Orders(str(number), str(jump))) as run,
        ):
            assert run.reached() or run.ready(), where
            run.settle(20)
            if number > len(run.effects()):  # how many there are differs a little from run to run
                tally.counts["unreached"] += 1
                continue
            tally.point(run.effects()[number - 1])
            judge(stage, EDIT, tally, where)
            begun = run.log().count("action=start")
            assert begun == 2 * EDIT.servers, f"{where}: started more than was needed\n{run.log()}"
    record_property("crash:clock jumps, edit", tally.to_json())
    tally.verdict()


@pytest.mark.parametrize("jump", JUMPS)
def test_clock_jumps_while_all_is_well(tmp_path: Path, hub: Hub, jump: int) -> None:
    with staged(tmp_path / "stage", FIRST, hub) as stage, Run(stage) as run:
        run.settle()
        before, turns = sorted(p.pid for p in stage.workloads()), turn(run)
        run.file("clock").write_text(str(jump))
        time.sleep(3)
        assert turn(run) - turns <= 4, "it runs hot"
        run.settle()
        assert sorted(p.pid for p in stage.workloads()) == before
        judge(stage, FIRST, Tally(), "after the jump")


@pytest.mark.parametrize("jump", JUMPS)
def test_clock_jumps_in_a_backoff(tmp_path: Path, hub: Hub, jump: int) -> None:
    with staged(tmp_path / "stage", FIRST, hub, engine="exit-at-once=3") as stage, Run(stage) as run:
        wait_until(lambda: run.log().count("failed ref=server/chat") >= 2, 20, "it does not fail")
        run.file("clock").write_text(str(jump))
        began = run.log().count("begin ref=server/chat")
        turns = turn(run)
        time.sleep(2)
        assert run.log().count("begin ref=server/chat") - began <= 2, "it is hammered"
        assert turn(run) - turns <= 40, "it runs hot"
        wrapper(stage.folder / "engine", {})
        run.settle(20)
        judge(stage, FIRST, Tally(), "after the jump")


@pytest.mark.parametrize("jump", JUMPS)
def test_clock_jumps_before_failures_are_forgiven(tmp_path: Path, hub: Hub, jump: int) -> None:
    with staged(tmp_path / "stage", FIRST, hub) as stage, Run(stage, Orders(hasty=True)) as run:
        run.settle()
        kill9(stage.servers()[0])
        wait_until(lambda: troubles(stage), 10, "its end is not noticed")
        run.settle()
        run.file("clock").write_text(str(jump))
        wait_until(lambda: not troubles(stage), 10, "it is not forgiven")
        judge(stage, FIRST, Tally(), "after the jump")


def turn(run: Run) -> int:
    snapshot = run.snapshot()
    assert snapshot is not None
    return int(snapshot["controller"]["turn"])


def troubles(stage: Stage) -> int:
    with Ledger.read(stage.root / "ledger.db") as ledger:
        return len(ledger.troubles())


# -- ports ----------------------------------------------------------------------------------------------------------


class Healthy(http.server.BaseHTTPRequestHandler):
    """A stranger that answers as a ready engine does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def stranger() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def test_ports_taken_before_the_engines_bind_them(tmp_path: Path, hub: Hub) -> None:
    with (
        stranger() as taken,
        staged(tmp_path / "stage", FIRST, hub) as stage,
        Run(stage, Orders(ports=(taken,))) as run,
    ):
        run.settle()
        assert "PORT_IN_USE" in run.log()
        with Ledger.read(stage.root / "ledger.db") as ledger:
            assert taken not in {row.port for row in ledger.processes()}
        judge(stage, FIRST, Tally(), "the port was taken")


def test_the_gateways_port_taken_just_before_it_starts(tmp_path: Path, hub: Hub) -> None:
    with staged(tmp_path / "stage", FIRST, hub) as stage, Run(stage, Orders(robbed=stage.port, hasty=True)) as run:
        wait_until(lambda: f"port {stage.port} is held by pid" in str(run.snapshot()), 15, f"{run.snapshot()}")
        run.settle()
        judge(stage, FIRST, Tally(), "the port was taken")


# -- pids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["its process is gone", "its process runs on"])
@pytest.mark.parametrize("retiring", [False, True])
def test_a_pid_that_is_somebody_elses_by_now(tmp_path: Path, hub: Hub, own: str, retiring: bool) -> None:
    with (
        subprocess.Popen(["sleep", "300"], start_new_session=True) as foreign,
        staged(tmp_path / "stage", FIRST, hub) as stage,
    ):
        try:
            with Run(stage) as run:
                run.settle()
            with contextlib.closing(sqlite3.connect(stage.root / "ledger.db")) as db:
                (pid,) = db.execute("SELECT pid FROM processes WHERE ref = 'server/chat'").fetchone()
                stamp = time.time() if retiring else None
                db.execute("UPDATE processes SET pid = ?, retiring = ? WHERE pid = ?", (foreign.pid, stamp, pid))
                db.commit()
            if own == "its process is gone":
                kill9(pid)
            with Run(stage) as heir:
                heir.settle()
                judge(stage, FIRST, Tally(), "the pid was reused")
                assert not alive(pid)
            assert foreign.poll() is None, "a process that is not ours was signalled"
        finally:
            foreign.kill()


# -- notices --------------------------------------------------------------------------------------------------------


def test_a_saved_file_that_nobody_tells_of(tmp_path: Path, hub: Hub) -> None:
    with staged(tmp_path / "stage", FIRST, hub) as stage, Run(stage, Orders(lose=("edits",))) as run:
        run.settle()
        edit(stage, hub, run)


def test_ends_of_processes_that_nobody_tells_of(tmp_path: Path, hub: Hub) -> None:
    with staged(tmp_path / "stage", FIRST, hub) as stage, Run(stage, Orders(lose=("exits",))) as run:
        run.settle()
        for pid in (stage.servers()[0], stage.gateway()):
            kill9(pid)
            wait_until(lambda: len(stage.workloads()) == FIRST.servers + 1 and run.ready(), 15, run.log())
        edit(stage, hub, run)  # which stops processes


@pytest.mark.parametrize("orders", [Orders(double=True), Orders(stale=3), Orders(stale=2, double=True)], ids=str)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_doubled_wakes_and_looks_that_are_out_of_date(
    tmp_path: Path, hub: Hub, scenario: Scenario, orders: Orders
) -> None:
    with staged(tmp_path / "stage", scenario, hub) as stage, Run(stage, orders, scenario.ask) as run:
        run.settle(20)
        judge(stage, scenario, Tally(), str(orders))
        if not orders.stale:
            fresh = len(stage.servers()) if scenario.name != "routes" else 0
            begun = sum(run.log().count(f"begin ref=server/{name} action=start") for name in ("chat", "code"))
            assert begun == fresh, run.log()


def edit(stage: Stage, hub: Hub, run: Run) -> None:
    """Save another manifest, and see it become true."""
    began = time.monotonic()
    stage.write(hub.fill(EDIT.step, stage))
    wait_until(lambda: contexts(stage) == {"2048", "3072"} and run.ready(), 15, "the edit is not carried out")
    assert time.monotonic() - began < 12
    run.settle()
    judge(stage, EDIT, Tally(), "after the edit")


def contexts(stage: Stage) -> set[str]:
    found = set()
    for process in stage.workloads():
        line = process.argv
        found |= {line[line.index("--ctx-size") + 1]} if "--ctx-size" in line else set()
    return found
