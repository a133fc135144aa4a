"""What is known of the past and of how things are: events, why, waiting for readiness, and a ledger that is lost."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from reconciler.host.effects import Effects
from reconciler.store.ledger import Ledger
from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.support.engines import wrapper
from tests.support.processes import kill9, wait_until

# -- events and why -------------------------------------------------------------------------------------------------


def test_events_are_listed_limited_and_followed(served: Stage) -> None:
    assert "manifest  Accepted: generation 1" in served.run("events").stdout
    told = served.run("status", "chat").stdout
    assert [line.split()[0] for line in told.splitlines()[2:]] == [
        "Ready", "Progressing", "Running", "Routed", "Drifted", "PolicyCompliant"
    ]  # fmt: skip
    one = json.loads(served.run("status", "model/chat", "-o", "json").stdout)
    assert (one["ref"], one["conditions"][0]["status"], one["conditions"][0]["generation"]) == ("model/chat", "True", 1)
    assert "resources are:" in served.run("status", "nobody", code=1).stderr
    only = json.loads(served.run("events", "server/chat", "-o", "json").stdout)["events"]
    assert [e["type"] for e in only] == ["Start"]
    assert len(served.run("events", "-n", "2").stdout.splitlines()) == 2

    follower = served.start("events", "-f", "-n", "0", "-o", "json")
    seen: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: seen.extend(json.loads(line) for line in lines(follower)))
    reader.start()
    try:
        wait_until(lambda: len(seen) >= 7, 15, "what happened so far is not shown")
        kill9(served.server())
        wait_until(lambda: any(e["type"] == "Exited" for e in seen), 10, "the exit is not told")
        wait_until(lambda: [e["type"] for e in seen].count("Start") == 3, 10, "the restart is not told")
    finally:
        follower.terminate()
        reader.join(10)
    numbers = [e["seq"] for e in seen]
    assert numbers == sorted(set(numbers)), "each once, in order"


def lines(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return iter(process.stdout.readline, "")


def test_why_tells_how_a_resource_came_to_be_as_it_is(fake: Stage) -> None:
    absent = entry("blocked", "nowhere.gguf")
    fake.write(manifest(fake, f"{entry()}\n{absent}"))
    fake.run("apply", "--timeout", "8s", code=6)
    told = fake.run("why", "chat").stdout.splitlines()
    assert told[0].startswith("server/chat Ready=True Answers: port ")
    assert told[1] == "declared in stack.yaml:5:3"
    assert told[2].endswith("manifest  Accepted: generation 1")
    assert any("model/chat  fetch, because not here yet: done after" in line for line in told)
    assert any("server/chat  start, because not running: done after" in line for line in told)

    blocked = fake.run("why", "server/blocked").stdout
    assert "waits for model/blocked" in blocked.splitlines()[0]
    assert "nowhere.gguf is not a file" in blocked, "the cause, not only what is waited for"

    old = fake.server()
    kill9(old)
    wait_until(lambda: fake.server() not in (0, old) and fake.told("server/chat")["Ready"]["status"] == "True", 15)
    again = json.loads(fake.run("why", "chat", "-o", "json").stdout)["chain"]
    texts = [link["text"] for link in again if link["ref"] == "server/chat"]
    assert [text.partition(":")[0].partition(",")[0] for text in texts[-2:]] == ["Exited", "start"]
    assert "ended by signal 9" in texts[-2]
    assert "because its process is gone" in texts[-1]
    assert "resources are: " in fake.run("why", "nobody", code=1).stderr


def test_why_names_the_cause_of_a_failure(fake: Stage) -> None:
    wrapper(fake.folder / "engine", {"FAKE_ENGINE": "oom"})
    fake.write(manifest(fake))
    fake.run("apply", code=1)
    told = fake.run("why", "chat").stdout
    assert told.startswith("server/chat Ready=False OutOfMemory: the process exited with code 1; its last words: ")
    assert "failed to allocate buffer" in told
    assert "lower context or parallel" in told
    assert "next: start a process" in told


def test_waiting_for_readiness_ends_with_what_is_so(fake: Stage) -> None:
    wrapper(fake.folder / "never", {"FAKE_ENGINE": "never-ready"})
    engines = "engines: {real: {type: llama.cpp, path: ./engine}, never: {type: llama.cpp, path: ./never}}"
    slow = entry("slow").replace("engine: real", "engine: never")
    text = manifest(fake, f"{entry()}\n{slow}").replace("engines: {real: {type: llama.cpp, path: ./engine}}", engines)
    fake.write(text)
    fake.run("apply", "--no-wait")
    begin = time.monotonic()
    fake.run("status", "--wait", "ready", "--timeout", "3s", code=6)
    assert time.monotonic() - begin < 8
    wrapper(fake.folder / "never")
    fake.write(text.replace(slow, slow.replace("1k", "2k")))  # gives up the one that loads for ever
    fake.run("status", "--wait", "ready", "--timeout", "30s")
    fake.end_controller()
    fake.run("status", "--wait", "ready", "--timeout", "1s")
    kill9(fake.server())
    kill9(fake.server("slow"))
    fake.run("status", "--wait", "ready", "--timeout", "1s", code=1)


# -- the ledger -----------------------------------------------------------------------------------------------------


class Asking(threading.Thread):
    """Somebody who asks the gateway all the time."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage, self.answers, self.failures = stage, 0, list[str]()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.02):
            try:
                self.stage.ask()
                self.answers += 1
            except Exception as error:  # noqa: BLE001  whatever goes wrong is what the test is about
                self.failures.append(repr(error))

    def end(self) -> None:
        self._over.set()
        self.join()


def lose(stage: Stage) -> None:
    for path in stage.root.glob("ledger.db*"):
        path.unlink()


@pytest.mark.parametrize("how", ["by a person", "by itself"])
def test_a_lost_ledger_is_no_outage(served: Stage, how: str) -> None:
    before = (served.server(), served.gateway())
    asking = Asking(served)
    asking.start()
    try:
        if how == "by itself":
            lose(served)  # under the controller that runs
            assert served.snapshot()["ready"]
        kill9(served.controller)
        if how == "by a person":
            lose(served)
            found = served.run("state", "rebuild").stdout
            assert "found again: 1 generations, 2 processes, 1 verified files" in found
            assert "1 to update, 3 to adopt · no downtime" in served.run("plan", code=2).stdout
        served.run("apply")
    finally:
        asking.end()
    assert asking.failures == []
    assert asking.answers > 10
    assert (served.server(), served.gateway()) == before
    assert not served.strays()
    assert served.generation() == 1
    owned = [o["ref"] for o in json.loads(served.run("state", "-o", "json").stdout)["owned"]]
    assert owned == ["engine/real", "gateway/main", "model/chat", "server/chat"]


def test_a_ledger_of_garbage_and_a_damaged_file_are_set_aside(served: Stage, models: Path) -> None:
    before = (served.server(), served.gateway())
    held = served.run("state", "rebuild", code=4)
    assert f"is held by the controller with pid {served.controller}" in held.stderr
    served.end_controller()
    lose(served)
    (served.root / "ledger.db").write_bytes(b"this is no database " * 500)
    refused = served.run("status", code=1)
    assert "cannot be read" in refused.stderr
    assert "`reconcile state rebuild`" in refused.stderr
    assert "`reconcile state rebuild`" in served.run("apply", code=1).stderr

    (blob,) = served.blobs()
    blob.chmod(0o644)
    with blob.open("r+b") as data:
        data.seek(5000)
        data.write(b"\xff" * 64)
    found = json.loads(served.run("state", "rebuild", "-o", "json").stdout)
    assert found == {"generations": 1, "processes": 2, "artifacts": 0, "damaged": 1}
    (lost,) = served.root.glob("ledger.db.lost-*")
    assert lost.read_bytes().startswith(b"this is no database")
    assert not blob.exists()
    assert len(list((served.root / "artifacts" / "quarantine").iterdir())) == 1
    served.run("apply")
    assert blob.read_bytes() == (models / "hello.gguf").read_bytes()
    assert served.gateway() == before[1]
    assert served.server() != before[0], "it ran on bytes that nobody vouches for"


def test_the_ledger_is_shown_and_exported(served: Stage) -> None:
    shown = served.run("state").stdout
    assert "serial 4" in shown
    assert str(served.server()) in shown
    exported = json.loads(served.run("state", "export").stdout)
    assert exported["format"] == "1.0"
    assert [row["ref"] for row in exported["owned"]] == ["engine/real", "gateway/main", "model/chat", "server/chat"]
    assert {"journal", "events", "generations", "processes", "pins", "artifacts", "meta"} <= set(exported)
    (generation,) = exported["generations"]
    assert "hello.gguf" not in json.dumps(generation), "manifests stay out of it"


def test_a_ledger_of_a_newer_version_is_refused_untouched_by_every_verb(fake: Stage) -> None:
    fake.write(manifest(fake))
    fake.root.mkdir()
    path = fake.root / "ledger.db"
    Ledger.write(path, Effects()).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 999")
    db.close()
    before = path.read_bytes()
    verbs = ["state export", "events", "history", "why chat", "rollback", "down", "lock"]
    for verb in verbs:
        done = fake.run(*verb.split(), code=1)
        assert "written by a newer version" in done.stderr, verb
    assert path.read_bytes() == before
