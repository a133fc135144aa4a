"""Ready is who answers on its own port, and who does not get there is told apart by why."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.effects import Effects
from reconciler.host.process import NONCE, Identity, Processes, alive, workload_environment
from reconciler.supervise.actor import Watched, watch
from reconciler.supervise.machine import SILENCES
from reconciler.supervise.readiness import Health, healthy, wait_ready
from tests.support.engines import FAKE_ENGINE
from tests.support.processes import children_with_env, free_port, kill9, wait_until


@dataclass
class Stage:
    """One fake engine: its process, port and log."""

    processes: Processes
    folder: Path
    port: int
    nonce: str
    identity: Identity | None = None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self, switches: str = "", *argv: str) -> Identity:
        command = [sys.executable, str(FAKE_ENGINE), "--port", str(self.port), *argv]
        environment = workload_environment({"FAKE_ENGINE": switches, NONCE: self.nonce})
        self.identity = self.processes.spawn(command, environment, self.log, self.folder)
        return self.identity

    async def ready(self, budget: float = 30.0, log_start: int = 0, **more: Any) -> None:
        assert self.identity is not None
        await wait_ready(self.processes, self.identity, "127.0.0.1", self.port, budget, self.log, log_start, **more)

    async def fails(self, budget: float = 30.0, log_start: int = 0) -> Fault:
        with pytest.raises(Fault) as caught:
            await self.ready(budget, log_start)
        return caught.value

    def close(self) -> None:
        for process in children_with_env(NONCE, self.nonce):
            kill9(process.pid)
        if self.identity is not None:
            self.processes.exit_code(self.identity)  # reaps it


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(Processes(Effects()), tmp_path, free_port(), uuid.uuid4().hex)
    yield made
    made.close()


class Stranger(BaseHTTPRequestHandler):
    """Answers 200 to everything, as another llama-server would to /health."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stranger(stage: Stage) -> Iterator[int]:
    """Another server on the stage's port; gives its pid, which is ours."""
    with ThreadingHTTPServer(("127.0.0.1", stage.port), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield os.getpid()
        server.shutdown()
        thread.join()


async def test_an_engine_that_answers_is_ready(stage: Stage) -> None:
    identity = stage.start()
    await stage.ready()
    assert alive(identity)
    assert await healthy("127.0.0.1", stage.port)


async def test_a_slow_engine_is_ready_once_its_model_is_loaded(stage: Stage) -> None:
    stage.start("slow-ready=0.5")
    await stage.ready()
    assert "model loaded" in stage.log.read_text()


@pytest.mark.parametrize(
    ("switches", "argv", "code", "kind"),
    [
        ("exit-at-once=3", (), "PROCESS_ERROR", FaultClass.TRANSIENT),
        ("oom", (), "OUT_OF_MEMORY", FaultClass.NEEDS_HUMAN),
        ("exit-at-once=0", (), "PROCESS_EXITED", FaultClass.TRANSIENT),
        ("crash-after=0.2,never-ready", (), "PROCESS_ERROR", FaultClass.TRANSIENT),
        ("", ("--model", "/nowhere/m.gguf"), "MODEL_FILE_NOT_FOUND", FaultClass.TRANSIENT),
    ],
    ids=["exit", "as if done", "memory", "crash", "no model"],
)
async def test_an_engine_that_ends_says_why(
    stage: Stage, switches: str, argv: tuple[str, ...], code: str, kind: FaultClass
) -> None:
    stage.start(switches, *argv)
    fault = await stage.fails()
    assert (fault.code, fault.kind) == (code, kind)
    assert "its last words:" in fault.message


async def test_the_words_of_the_one_before_do_not_count(stage: Stage) -> None:
    stage.log.write_text("ggml: out of memory\n")
    stage.start("exit-at-once=3")
    fault = await stage.fails(log_start=len("ggml: out of memory\n"))
    assert fault.code == "PROCESS_ERROR"
    assert fault.message.startswith("the process exited with code 3")


async def test_an_engine_that_is_killed_while_it_loads_is_noticed(stage: Stage) -> None:
    identity = stage.start("never-ready")
    waiting = asyncio.create_task(stage.fails())
    await asyncio.to_thread(wait_until, lambda: "listening" in stage.log.read_text(), 20, "it listens")
    kill9(identity.pid)
    fault = await asyncio.wait_for(waiting, 20)
    assert (fault.code, "signal 9" in fault.message) == ("PROCESS_EXITED", True)


async def test_an_engine_that_never_gets_ready_is_given_up_with_its_last_words(stage: Stage) -> None:
    identity = stage.start("never-ready")
    fault = await stage.fails(budget=1.0)
    assert (fault.code, fault.kind) == ("MODEL_LOAD_TIMED_OUT", FaultClass.TRANSIENT)
    assert "not ready after 1 s" in fault.message
    assert fault.hint
    assert alive(identity)


async def test_an_engine_that_never_binds_its_port_is_given_up(stage: Stage) -> None:
    stage.start("wrong-owner")
    assert (await stage.fails(budget=0.5)).code == "MODEL_LOAD_TIMED_OUT"


async def test_somebody_else_on_the_port_is_not_our_engine(stage: Stage, stranger: int) -> None:
    stage.start("wrong-owner")
    fault = await stage.fails()
    assert (fault.code, fault.kind) == ("PORT_IN_USE", FaultClass.TRANSIENT)
    assert f"pid {stranger} " in fault.message
    assert str(stage.port) in fault.message


async def test_an_engine_whose_port_is_taken_is_never_ready(stage: Stage, stranger: int) -> None:
    stage.start()
    assert (await stage.fails()).code == "PORT_IN_USE"


async def test_waiting_can_be_given_up(stage: Stage) -> None:
    identity = stage.start("never-ready")
    waiting = asyncio.create_task(stage.ready())
    await asyncio.sleep(0.2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert alive(identity)


async def test_only_a_200_is_healthy(stage: Stage) -> None:
    assert not await healthy("127.0.0.1", stage.port)
    stage.start("never-ready")
    await asyncio.to_thread(wait_until, lambda: "listening" in stage.log.read_text(), 20, "it listens")
    assert not await healthy("127.0.0.1", stage.port)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert not await healthy("127.0.0.1", mute.getsockname()[1], timeout=0.05)


# -- watching -------------------------------------------------------------------------------------------------------


def answering(script: list[bool]) -> Callable[[], Awaitable[bool]]:
    """Answers as told, and with the last word for ever."""
    left = list(script)

    async def answers() -> bool:
        return left.pop(0) if len(left) > 1 else left[0]

    return answers


@pytest.mark.parametrize(("switches", "number", "code"), [("", 15, 0), ("ignore-sigterm", 9, -9), ("", 6, -6)])
async def test_watching_ends_with_the_exit_code(stage: Stage, switches: str, number: int, code: int) -> None:
    identity = stage.start(switches)
    await stage.ready()
    woken: list[bool] = []
    watching = asyncio.create_task(
        watch(stage.processes, identity, Watched(), answering([True]), lambda: woken.append(True))
    )
    await asyncio.sleep(0)
    os.kill(identity.pid, number)
    assert await asyncio.wait_for(watching, 20) == code
    assert woken == []


async def test_watching_one_that_has_ended_returns_at_once(stage: Stage) -> None:
    identity = stage.start("exit-at-once=5")
    await asyncio.to_thread(wait_until, lambda: not alive(identity), 20, "it ends")
    code = await asyncio.wait_for(watch(stage.processes, identity, Watched(), answering([True]), lambda: None), 20)
    assert code == 5


async def test_silence_is_counted_and_wakes_once_and_so_does_the_voice_after_it(stage: Stage) -> None:
    """Takes some ten seconds: the first look comes after five, the later ones each second."""
    identity, seen = stage.start(), Watched()
    await stage.ready()
    silent, again = asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    def wake() -> None:
        calls.append(seen.silences)
        (again if silent.is_set() else silent).set()

    watching = asyncio.create_task(
        watch(stage.processes, identity, seen, answering([False] * (SILENCES + 1) + [True]), wake)
    )
    await asyncio.wait_for(silent.wait(), 60)
    assert seen.silences == SILENCES
    await asyncio.wait_for(again.wait(), 60)
    assert seen.silences == 0
    assert calls == [SILENCES, 0]
    kill9(identity.pid)
    assert await asyncio.wait_for(watching, 20) == -9


async def test_watching_can_be_given_up_and_leaves_no_task(stage: Stage) -> None:
    identity = stage.start()
    await stage.ready()
    before = asyncio.all_tasks()
    watching = asyncio.create_task(watch(stage.processes, identity, Watched(), answering([True]), lambda: None))
    await asyncio.sleep(0.05)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert asyncio.all_tasks() == before
    assert alive(identity)


async def test_a_path_that_wants_the_key_is_asked_with_it(stage: Stage) -> None:
    stage.start("", "--api-key", "k1")
    await stage.ready(health=Health("/v1/models", "k1"))
    assert await healthy("127.0.0.1", stage.port, health=Health("/v1/models", "k1"))
    assert not await healthy("127.0.0.1", stage.port, health=Health("/v1/models", "k2"))


@pytest.mark.parametrize(
    ("path", "key", "status"), [("/v1/models", "", 401), ("/v1/models", "k2", 401), ("/up", "k1", 404)]
)
async def test_a_path_that_never_answers_200_is_told_with_what_it_answers(
    stage: Stage, path: str, key: str, status: int
) -> None:
    stage.start("", "--api-key", "k1")
    with pytest.raises(Fault) as caught:
        await stage.ready(2.0, health=Health(path, key))
    assert caught.value.code == "MODEL_LOAD_TIMED_OUT"
    assert f"GET {path} answers {status}" in caught.value.message
    assert "`ready.http`" in caught.value.hint
