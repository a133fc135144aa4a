"""Every fault of an engine, on the first apply and while it serves: what is said of it, who goes on, how it heals.

A controller in this process, a real gateway, fake engines that fail as they are told; all budgets are short.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reconciler.app import tools_for
from reconciler.controller import recovery
from reconciler.controller.daemon import Controller
from reconciler.controller.source import Ask
from reconciler.core import retry
from reconciler.core.ids import Ref
from reconciler.core.retry import Backoff
from reconciler.core.status import Condition
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from reconciler.host.process import ABOUT, NONCE, ROOT
from reconciler.kinds.base import Tools
from reconciler.kinds.registry import KINDS
from reconciler.store.ledger import Ledger
from reconciler.supervise.readiness import healthy
from tests.support.engines import wrapper
from tests.support.processes import children_with_env, free_port, kill9
from tests.support.tiny_gguf import tiny_gguf

WELL, ILL = Ref("server", "well"), Ref("server", "ill")


@dataclass
class Stage:
    """A controller at work on a folder."""

    folder: Path
    tools: Tools
    controller: Controller
    port: int = field(default_factory=free_port)
    seen: list[Condition] = field(default_factory=list)  # Ready conditions of the ill one, as they changed

    def write(self, fault: str, more: str = "") -> None:
        env = f"env: {{FAKE_ENGINE: '{fault}'}}" if fault else "env: {}"
        text = f"""\
version: 1
engines: {{fake: {{type: llama.cpp, path: ./engine}}}}
models:
  well: {{source: "file:tiny.gguf", engine: fake}}
  ill: {{source: "file:tiny.gguf", engine: fake, {env}{more}}}
gateway: {{port: {self.port}}}
"""
        (self.folder / "new.yaml").write_text(text)
        (self.folder / "new.yaml").replace(self.folder / "stack.yaml")

    async def apply(self, fault: str, more: str = "") -> None:
        self.write(fault, more)
        await self.controller.apply(self.folder / "stack.yaml", Ask())

    def ready(self, ref: Ref) -> Condition | None:
        return next(iter(self.controller.told.get(ref, ())), None)

    def note(self) -> None:
        now = self.ready(ILL)
        if now is not None and (
            not self.seen or (now.reason, now.message) != (self.seen[-1].reason, self.seen[-1].message)
        ):
            self.seen.append(now)

    async def until(self, what: Callable[[], Any], why: str, timeout: float = 30) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not what():
                    self.note()
                    await asyncio.sleep(0.01)
                return
        raise AssertionError(f"{why}: {self.seen}\n{self.events(ILL)}")

    def all_ready(self) -> bool:
        view = self.controller.view
        return bool(view and view.ready and not self.controller.work and self.controller.snapshot()["ready"])

    def events(self, ref: Ref) -> str:
        return "\n".join(f"{e['type']}: {e['message']}" for e in self.tools.ledger.events() if e["ref"] == str(ref))

    def pid(self, ref: Ref) -> int:
        (row,) = [r for r in self.tools.ledger.processes() if r.ref == ref]
        assert row.identity is not None
        return row.identity.pid

    async def answers(self, ref: Ref) -> bool:
        (row,) = [r for r in self.tools.ledger.processes() if r.ref == ref]
        return await healthy(row.host, row.port)

    def strays(self) -> list[str]:
        """What runs for this data root although the ledger does not know its nonce, grandchildren too."""
        known = {row.nonce for row in self.tools.ledger.processes()}
        ours = children_with_env(ROOT, str(self.tools.layout.root))
        return [json.loads(p.environ[ABOUT])["ref"] for p in ours if p.environ.get(NONCE) not in known]


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    wrapper(tmp_path / "engine")
    tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr("reconciler.supervise.readiness.LEAST", 3.0)
    monkeypatch.setattr("reconciler.supervise.actor.PROBE_EVERY", 0.1)
    monkeypatch.setattr("reconciler.supervise.actor.PROBE_MOST", 0.1)
    monkeypatch.setattr("reconciler.supervise.actor.PROBE_AGAIN", 0.1)
    monkeypatch.setattr("reconciler.kinds.server.io.PATIENCE", 1.0)
    monkeypatch.setattr("reconciler.kinds.server.io.GRACE", 0.5)
    for name in ("ACTIONS", "PROCESSES", "PATIENT"):
        monkeypatch.setattr(retry, name, Backoff(first=0.2, cap=0.5))
    layout = Layout(tmp_path / "state")
    layout.root.mkdir()
    with Ledger.write(layout.ledger, Effects()) as ledger:
        tools = tools_for(layout, tmp_path, Effects(), ledger, KINDS)
        controller = Controller(tmp_path / "stack.yaml", tools, KINDS, lambda: True)
        tools.desired = controller.desired
        stage = Stage(tmp_path, tools, controller)

        async def serve(_: Controller) -> None:
            await asyncio.Event().wait()

        stage.write("")
        running = asyncio.create_task(controller.run(serve))
        try:
            yield stage
            controller.take_down(purge=False)
            await asyncio.wait_for(running, 30)
            assert not children_with_env(ROOT, str(layout.root)), "nothing is left behind"
        finally:
            controller.stop()
            running.cancel()
            await asyncio.wait([running])
            for process in children_with_env(ROOT, str(layout.root)):
                kill9(process.pid)
            tools.processes.close()


# (switches, more of the model's entry, the reasons that its condition may give, words of condition or event)
FAULTS = {
    "it exits with 3": ("exit-at-once=3", "", "ProcessError|CrashLoop", "exited with code 3; its last words"),
    "it exits with 0": ("exit-at-once=0", "", "ProcessExited|CrashLoop", "an engine stays in the foreground"),
    "it finds no memory": ("oom", "", "OutOfMemory", "lower context or parallel"),
    "it never binds": ("wrong-owner", "", "ModelLoadTimedOut", "not ready after 3 s"),
    "it never gets ready": ("never-ready", "", "ModelLoadTimedOut", "not ready after 3 s"),
    "it crashes": ("crash-after=1", "", "ProcessError|CrashLoop", r"ended by signal 6 \(SIGABRT\); its last words"),
    "it hangs": ("hang-after=0.3", "", "Unresponsive", "it runs, but does not answer"),
    "it closes its port": ("closes-port-but-lives=0.3", "", "Unresponsive", "it runs, but does not answer"),
    "its device is lost": ("ready-then-503=0.3", "", "Unresponsive", "it runs, but does not answer"),
    "it leaks": ("leaks-memory=400000000", ", limits: {memory: 300MiB}", "OutOfMemory", "its limit of 315 MB"),
}
HARMLESS = {
    "it is slow": "slow-ready=0.5",
    "it is deaf to SIGTERM": "ignore-sigterm",
    "it has grandchildren": "fork-grandchildren,ignore-sigterm",
    "it has some that left the group": "leaves-the-group,ignore-sigterm",
    "it floods its log": "flood-log=20000000",
}
WHEN = pytest.mark.parametrize("when", ["first apply", "while serving"])


async def begin(stage: Stage, when: str) -> int:
    """Everything is ready → the pid of the one that stays well; on a first apply only that one is."""
    if when == "while serving":
        await stage.until(stage.all_ready, "not ready")
        return stage.pid(WELL)
    return 0


@WHEN
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_told_harms_nobody_else_and_heals(stage: Stage, when: str, fault: str) -> None:
    switches, more, reasons, words = FAULTS[fault]
    if when == "first apply":
        stage.write(switches, more)
    well = await begin(stage, when)
    if when == "while serving":
        await stage.apply(switches, more)

    def told() -> bool:
        said = [c for c in stage.seen if re.fullmatch(reasons, c.reason) or re.search(words, c.message)]
        texts = "\n".join(c.message for c in stage.seen) + stage.events(ILL)
        return bool(said) and re.search(words, texts + progressing(stage)) is not None

    await stage.until(told, f"{reasons} with {words!r} was never told")
    await stage.until(lambda: (c := stage.ready(WELL)) is not None and c.status == "True", "the other one serves")
    assert not well or stage.pid(WELL) == well, "the other one was left alone"
    assert await stage.answers(WELL)
    await stage.apply("")
    await stage.until(stage.all_ready, "it does not heal")
    assert await stage.answers(ILL)
    assert not well or stage.pid(WELL) == well
    await stage.until(lambda: not stage.strays(), "something is left behind")


def progressing(stage: Stage) -> str:
    return " ".join(c.message for c in stage.controller.told.get(ILL, ()))


@WHEN
@pytest.mark.parametrize("odd", HARMLESS)
async def test_what_is_only_odd_serves_and_leaves_nothing_behind(stage: Stage, when: str, odd: str) -> None:
    if when == "first apply":
        stage.write(HARMLESS[odd])
    well = await begin(stage, when)
    if when == "while serving":
        await stage.apply(HARMLESS[odd])
    await stage.until(stage.all_ready, "not ready")
    assert await stage.answers(ILL)
    assert not well or stage.pid(WELL) == well
    await stage.apply("")
    await stage.until(stage.all_ready, "it does not heal")
    await stage.until(lambda: not stage.strays(), "something is left behind")
    assert "Failed" not in stage.events(ILL)


async def test_what_a_crashed_server_had_started_ends_with_it(stage: Stage) -> None:
    await stage.until(stage.all_ready, "not ready")
    await stage.apply("crash-after=1.5,leaves-the-group,fork-grandchildren")
    await stage.until(lambda: "Exited" in stage.events(ILL), "it does not crash")
    await stage.until(lambda: not stage.strays(), "grandchildren are left")


async def test_a_loop_is_told_with_what_its_ends_have_in_common(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "READY_FORGIVES", 1e9)
    stage.write("exit-at-once=3")
    await stage.until(lambda: stage.seen and stage.seen[-1].reason == "CrashLoop", "no loop is told")
    said = stage.seen[-1].message
    assert re.search(r"it has ended \d times in a row, each time with code 3, always before it was ready", said)
    await stage.apply("crash-after=1")
    await stage.until(lambda: "after it was ready" in stage.seen[-1].message, "another spec begins another count")
    assert "code 3" not in stage.seen[-1].message
    assert "each time with signal 6 (SIGABRT), at most" in stage.seen[-1].message
