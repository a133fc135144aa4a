"""Run a scenario with a controller to which something happens; let it, or another one, converge; judge what is left."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, TypeVar

from reconciler.client import Client, NoController
from reconciler.host.fetch import SYNC_EVERY
from reconciler.host.layout import Layout
from reconciler.store.ledger import Ledger
from tests.crash import victim
from tests.crash.scenarios import Scenario
from tests.crash.victim import Orders
from tests.e2e.stage import Stage
from tests.support.engines import wrapper
from tests.support.fileserver import FileServer

NIGHTLY = bool(os.environ.get("RECONCILER_NIGHTLY"))  # every point, not only every so manieth
SEED = int(os.environ.get("RECONCILER_SEED", "1"))  # which ones; every one in the nightly profile
BUFFERED = 8 << 20  # bytes that the file server may count as sent while they wait in the kernel

# Controllers are forked off a process that has everything imported: half a second less for each of hundreds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.crash.victim"])

NOTHING = Orders()
T = TypeVar("T")


def chosen(points: Sequence[T], stride: int) -> Sequence[T]:
    """The points that are tried in this run."""
    return points if NIGHTLY else points[SEED % stride :: stride]


def wait_until(fn: Callable[[], T], timeout: float, message: str) -> T:
    """The first true result of `fn`, asked fifty times a second; AssertionError with `message` after `timeout` s."""
    deadline = time.monotonic() + timeout
    while not (result := fn()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {message}"
        time.sleep(0.02)
    return result


class Hub:
    """Where models come from: a file server and a small file."""

    def __init__(self, server: FileServer, small: Path) -> None:
        self.server, self.small = server, small

    def fill(self, template: str, stage: Stage) -> str:
        return Template(template).substitute(hub=self.server.url(""), small=self.small, port=stage.port)


class Run:
    """One controller process on a stage."""

    def __init__(
        self, stage: Stage, orders: Orders | None = None, ask: Callable[[Client], object] | None = None
    ) -> None:
        self.stage, self.orders, self.ask = stage, orders or Orders(), ask

    def __enter__(self) -> Run:
        for name in ("effects.txt", "broken", "failed", "clock", "victim.log"):
            self.file(name).unlink(missing_ok=True)
        given = (str(self.stage.manifest), str(self.stage.root), str(self.stage.folder), self.orders)
        self.process = FORKS.Process(target=victim.main, args=given)
        self.process.start()
        if self.ask is not None:
            wait_until(lambda: self.dead or self._asked(), 20, "it does not answer")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def _asked(self) -> bool:
        assert self.ask is not None
        with suppress(NoController), Client(Layout(self.stage.root), timeout=5) as client:
            self.ask(client)
            return True
        return False

    def file(self, name: str) -> Path:
        return self.stage.folder / name

    @property
    def dead(self) -> bool:
        return self.process.exitcode is not None

    @property
    def failed(self) -> bool:
        """Whether something failed as ordered."""
        return self.file("failed").exists()

    def log(self) -> str:
        path = self.file("victim.log")
        return path.read_text() if path.exists() else ""

    def effects(self) -> list[str]:
        """Every effect that began, in order: `write /path/of/it`."""
        path = self.file("effects.txt")
        return [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []

    def reached(self) -> bool:
        """Wait until the effect of the orders has begun, or can no longer."""
        number = int(self.orders.at)
        wait_until(lambda: len(self.effects()) >= number or self.dead or self.ready(), 30, f"{self.orders}")
        return len(self.effects()) >= number

    def snapshot(self) -> dict[str, Any] | None:
        try:
            with Client(Layout(self.stage.root), timeout=5) as client:
                return client.status()
        except NoController:
            return None

    def ready(self) -> bool:
        snapshot = self.snapshot()
        return bool(snapshot and snapshot["ready"])

    def until_ready_or_dead(self, timeout: float = 30) -> bool:
        """True when everything is ready, False when the process is dead."""

        def over() -> str:
            return "dead" if self.dead else "ready" if self.ready() else ""

        try:
            return wait_until(over, timeout, f"neither ready nor dead: {self.orders}") == "ready"
        except AssertionError as error:
            raise AssertionError(f"{error}\n{json.dumps(self.snapshot())}\n{self.log()[-4000:]}") from None

    def settle(self, timeout: float = 30) -> None:
        """Wait until everything is ready and stays so for a moment (a late stop or sweep would show)."""
        for pause in (0.05, 0):
            assert self.until_ready_or_dead(timeout), f"the controller died\n{self.log()[-4000:]}"
            time.sleep(pause)


@dataclass
class Tally:
    """What a campaign counted."""

    counts: Counter[str] = field(default_factory=lambda: Counter(points=0, of=0, leaks=0, duplicates=0, lost=0))
    by_effect: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def trying(self, where: str) -> Iterator[None]:
        """A point that fails is a problem of the campaign; the others are tried all the same."""
        try:
            yield
        except AssertionError as error:
            self.problems.append(f"{where}: {error}")

    def point(self, effect: str) -> None:
        self.counts["points"] += 1
        self.by_effect[effect.split()[0]] += 1

    def verdict(self) -> None:
        """Fail with every problem that was met."""
        assert not self.problems, f"{len(self.problems)} problems\n" + "\n\n".join(self.problems)
        assert self.counts["points"] >= self.counts["unreached"], "hardly any point was reached"

    def to_json(self) -> str:
        return json.dumps({**self.counts, "by_effect": self.by_effect})


@contextmanager
def staged(folder: Path, scenario: Scenario, hub: Hub, engine: str = "") -> Iterator[Stage]:
    """A stage where the scenario's set-up is done and its step is saved, but nobody has seen it yet."""
    folder.mkdir()
    stage = Stage(folder)
    wrapper(folder / "engine", {"FAKE_ENGINE": engine} if engine else {})
    try:
        if scenario.setup:
            stage.write(hub.fill(scenario.setup[0], stage))
            with Run(stage) as run:
                run.settle()
                for manifest in scenario.setup[1:]:
                    stage.write(hub.fill(manifest, stage))
                    with Client(Layout(stage.root)) as client:
                        client.apply(stage.manifest)
                    run.settle()
        stage.write(hub.fill(scenario.step, stage))
        yield stage
    finally:
        stage.close()
    shutil.rmtree(folder)


@cache
def effects_of(folder: Path, scenario: Scenario, hub: Hub) -> list[str]:
    """The effects of a scenario's step when nothing happens. Some run side by side: another run's order may differ."""
    with staged(folder, scenario, hub) as stage, Run(stage, ask=scenario.ask) as run:
        run.settle()
        return run.effects()


@contextmanager
def fetching_once(hub: Hub, where: str) -> Iterator[None]:
    """Judge that no byte which was safe on disk is fetched twice inside of the block."""
    server, path = hub.server, "/big.gguf"
    size = len(server.find(path, {}).content)  # type: ignore[union-attr, arg-type]
    sent, requests = server.sent[path], len(server.requests(path))
    yield
    fetched, tries = server.sent[path] - sent, len(server.requests(path)) - requests
    most = size + max(0, tries - 1) * (SYNC_EVERY + BUFFERED)
    assert fetched <= most, f"{where}: fetched {fetched} bytes of {size} in {tries} tries"


def judge(stage: Stage, scenario: Scenario, tally: Tally, where: str, interrupted: bool = False) -> None:
    """What must be true once it has converged: one process for each thing, all of them known, nothing left open.

    `interrupted` allows intents without an outcome: the ledger could not be written.
    """
    with Client(Layout(stage.root), timeout=5) as client:
        snapshot = client.status()
    if interrupted:
        # A row that a failing disk kept from being forgotten goes with the next look, two seconds later at most.
        wait_until(
            lambda: _pids(stage) == {p.pid for p in stage.workloads()}, 6, f"{where}: {_pids(stage)} in the ledger"
        )
    with Ledger.read(stage.root / "ledger.db") as ledger:
        owned, rows, unended = {str(ref) for ref in ledger.owned()}, ledger.processes(), ledger.open_operations()
    wanted = {resource["ref"] for resource in snapshot["resources"]}
    strays, running = stage.strays(), stage.workloads()
    surplus = len(running) - scenario.servers - 1
    tally.counts.update(leaks=len(strays), duplicates=max(0, surplus), lost=len(wanted - owned))
    assert not strays, f"{where}: leaked {strays}"
    assert surplus == 0, f"{where}: {[p.argv for p in running]}"
    assert {row.identity.pid for row in rows if row.identity} == {p.pid for p in running}, where
    assert owned == wanted, f"{where}: lost {wanted - owned}, kept {owned - wanted}"
    assert interrupted or not unended, f"{where}: still open: {unended}"
    keys = {p.name for p in (stage.root / "run" / "keys").glob("[!.]*")}
    assert keys == {row.nonce for row in rows if row.ref.kind == "server"}, f"{where}: keys {keys}"
    partial = list((stage.root / "artifacts" / "partial").glob("*"))
    assert not partial, f"{where}: left {partial}"
    assert snapshot["manifest"]["generation"], f"{where}: the manifest has no generation"
    for name in scenario.names:
        assert stage.ask(name)["choices"], f"{where}: {name} does not answer"


def _pids(stage: Stage) -> set[int]:
    with Ledger.read(stage.root / "ledger.db") as ledger:
        return {row.identity.pid for row in ledger.processes() if row.identity}


def was_killed(run: Run) -> bool:
    return run.process.exitcode == -signal.SIGKILL
