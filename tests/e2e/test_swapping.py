"""Faults that other programs which swap models are known to have, each as a test that this one passes.

Each docstring says what was seen to happen elsewhere. Real processes, and real requests through the gateway.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from openai import OpenAI, OpenAIError

from reconciler.host.process import NONCE, ROOT
from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.support.processes import alive, children_with_env, kill9, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = ", start: on_demand, idle_timeout: 1h"
STARTS = pytest.mark.parametrize("start", ["", LONG], ids=["always", "on demand"])


def engine(switches: str) -> str:
    return f", env: {{FAKE_ENGINE: '{switches}'}}"


def words(stage: Stage, model: str = "chat") -> int:
    """How many words a whole answer has; raises OpenAIError, also where none came within a minute."""
    with OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        done = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
    return len((done.choices[0].message.content or "").split())


class Hammer:
    """Clients that ask without a pause: what they were answered, and what they were refused, in the order of asking."""

    def __init__(self, call: Callable[[], int]) -> None:
        self.call, self.stop = call, threading.Event()
        self.answers: list[tuple[int, int]] = []  # (answers that had come when it was asked, the answer)
        self.refused: list[OpenAIError] = []

    def run(self) -> None:
        while not self.stop.is_set():
            before = len(self.answers)
            try:
                self.answers.append((before, self.call()))
            except OpenAIError as error:
                self.refused.append(error)

    def until_more(self, number: int, timeout: float = 60) -> None:
        """Wait until that many more answers have come."""
        wanted = len(self.answers) + number
        wait_until(lambda: len(self.answers) >= wanted or self.refused, timeout, "it is not answered any more")


@contextmanager
def hammered(call: Callable[[], int], clients: int = 3) -> Iterator[Hammer]:
    """Ask with so many clients at once; at the end nobody must have been refused."""
    hammer = Hammer(call)
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(hammer.run) for _ in range(clients)]
        try:
            yield hammer
        finally:
            hammer.stop.set()
        for one in running:
            one.result()
    assert hammer.refused == []


# -- starvation -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_is_always_busy_does_not_keep_another_one_from_being_loaded(fake: Stage) -> None:
    """Elsewhere a loaded model is served without a look at who waits: with three overlapping clients on one, a request
    for another was not served within 60 s, in which the first one served 222. Here it has its turn, no answer of the
    first is cut, and the first has its turn again.
    """
    busy = LONG + engine("chunk-ms=20")
    models = f"{entry('hot', more=busy)}\n{entry('cold', more=LONG)}"
    fake.write(manifest(fake, models, more="limits: {memory: 40MiB}\n"))
    fake.run("apply")
    with hammered(lambda: words(fake, "hot")) as hammer, ThreadPoolExecutor(1) as pool:
        hammer.until_more(3)
        cold: Future[int] = pool.submit(words, fake, "cold")
        assert cold.result() == 20
        served = len(hammer.answers)
        assert fake.happened("server/cold", "Start")
        hammer.until_more(3)
        assert served > 3, "the first one was not busy: nothing was tested"
    assert {answer for _, answer in hammer.answers} == {20}
    assert len(fake.servers()) == 1
    assert not fake.strays()


# -- a reload while the old process still holds its port ---------------------------------------------------------------


@STARTS
def test_after_a_reload_nobody_is_answered_by_the_process_that_is_on_its_way_out(fake: Stage, start: str) -> None:
    """Elsewhere the new process gets the port of the dying one: it fails with a 500, or, as health is whoever answers
    there, a 200 comes from the old process with the old settings. Here the old one ignores SIGTERM and keeps its port
    for ten seconds; its answers have 20 words, those of its successor 7.
    """
    fake.write(manifest(fake, entry(more=start + engine("ignore-sigterm"))))
    fake.run("apply")
    with hammered(lambda: words(fake)) as hammer:
        hammer.until_more(5)
        old = fake.server()
        assert old
        fake.write(manifest(fake, entry(more=start + engine("chunks=7"))))
        wait_until(lambda: any(answer == 7 for _, answer in hammer.answers), 30, "the reload is not served")
        assert alive(old), "the old one has gone already: nothing was tested"
        hammer.until_more(20)
    first = next(n for n, (_, answer) in enumerate(hammer.answers) if answer == 7)
    assert {answer for _, answer in hammer.answers} == {20, 7}
    assert {answer for asked, answer in hammer.answers if asked > first} == {7}, "answered by the old one"
    wait_until(lambda: not alive(old), 30, "the old one stays")
    fake.until_ready()
    assert len(fake.servers()) == 1
    assert not fake.strays()


@STARTS
def test_a_reload_that_changes_nothing_of_a_model_leaves_its_process_alone(fake: Stage, start: str) -> None:
    """Elsewhere every running model is stopped when a comment has changed."""
    fake.write(manifest(fake, entry(more=start)))
    fake.run("apply")
    with hammered(lambda: words(fake)) as hammer:
        hammer.until_more(5)
        before, generation = fake.server(), fake.generation()
        fake.write("# a comment\n" + manifest(fake, entry(more=start) + "\n" + entry("other", more=LONG)))
        wait_until(lambda: fake.generation() > generation, 20, "it is not taken over")
        hammer.until_more(20)
    assert fake.server() == before != 0


# -- orphans ----------------------------------------------------------------------------------------------------------


def kill_all_that_watches(stage: Stage) -> None:
    """SIGKILL at one moment to the controller, the keeper and the gateway: only servers are left."""
    server = next(p for p in stage.workloads() if "reconciler.gateway" not in p.argv)
    watching = [stage.controller, stage.gateway(), server.parent]
    assert os.getpid() not in watching
    assert 1 not in watching, "there is no keeper"
    for pid in watching:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, watching)), 10, "they do not die")


@pytest.fixture(params=["", LONG], ids=["always", "on demand"])
def orphaned(request: pytest.FixtureRequest, fake: Stage) -> Stage:
    """One server with children of its own, loaded and answering, and nobody left who watches it."""
    fake.write(manifest(fake, entry(more=request.param + engine("fork-grandchildren"))))
    fake.run("apply")
    assert words(fake) == 20
    kill_all_that_watches(fake)
    return fake


def test_what_outlives_a_kill_of_everything_else_is_ended_once_it_is_not_wanted(orphaned: Stage) -> None:
    """Elsewhere a kill -9 of the supervisor leaves the engine running for ever, its memory taken. Here it runs on, too,
    so that nobody has to load it again; but it is known, and goes with its line in the manifest.
    """
    server = orphaned.server()
    nonce = next(p.environ[NONCE] for p in orphaned.workloads() if p.pid == server)
    family = {p.pid for p in children_with_env(NONCE, nonce)}
    assert len(family) == 3
    orphaned.write(manifest(orphaned, entry("other", more=LONG)))
    orphaned.run("apply")
    wait_until(lambda: not any(map(alive, family)), 20, "it is left")
    assert words(orphaned, "other") == 20
    assert not orphaned.strays()


def test_it_is_ended_by_down_without_anybody_who_watches(orphaned: Stage) -> None:
    """As above, for a person who wants all of it gone."""
    orphaned.run("down")
    wait_until(lambda: not children_with_env(ROOT, str(orphaned.root)), 20, "something is left")


@pytest.mark.parametrize("lost", ["nothing", "the ledger", "the settings"])
def test_a_model_whose_process_outlived_everything_else_is_served_at_once(orphaned: Stage, lost: str) -> None:
    """Elsewhere the next supervisor cannot start the model, since the orphan has its port: every request is a 500 until
    a person finds and kills it. Here the process is taken over as it is, also where nothing but the process itself
    still knows of it, or replaced where it should be another by now.
    """
    server = orphaned.server()
    if lost == "the ledger":
        for part in orphaned.root.glob("ledger.db*"):
            part.unlink()
    elif lost == "the settings":
        orphaned.write(orphaned.manifest.read_text().replace("context: 1k", "context: 2k"))
    orphaned.run("apply")
    assert words(orphaned) == 20
    orphaned.until_ready()
    wait_until(lambda: orphaned.server(), 20, "not exactly one serves")
    assert (orphaned.server() == server) == (lost != "the settings")
    assert alive(server) == (lost != "the settings")
    assert not orphaned.strays()
    kill9(orphaned.server())
    wait_until(lambda: orphaned.happened("server/chat", "Exited"), 20, "nobody watches it")
    orphaned.run("apply")
    assert words(orphaned) == 20


@pytest.mark.parametrize("how", ["watch", "apply"])
def test_who_waits_while_the_next_controller_starts_is_not_told_that_there_is_no_such_model(
    fake: Stage, how: str
) -> None:
    """A controller that a command has started knows no model before that command's request, and is asked before."""
    fake.write(manifest(fake, entry(more=LONG)))
    fake.run("apply")
    kill9(fake.controller)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(words, fake)
        fake.start("watch", *(["--when-asked"] if how == "apply" else []))
        wait_until(lambda: fake.snapshot(), 20, "it does not answer")
        if how == "apply":
            time.sleep(2)  # a gateway asks twice a second
            assert not asked.done(), asked.result()
            fake.run("apply")
        assert asked.result() == 20
