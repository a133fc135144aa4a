"""Processes outlive their controller, and the next one knows of each how it ended, what it left and what it said."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from reconciler.host.process import NONCE, ROOT
from reconciler.supervise.logs import LIMIT
from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.support.processes import alive, children_with_env, kill9, wait_until


def with_faults(stage: Stage, switches: str, more: str = "") -> None:
    stage.write(manifest(stage, entry(more=f", env: {{FAKE_ENGINE: '{switches}'}}{more}")))
    stage.run("apply")


# (what ends it, what event and condition say, the remedy)
ENDS = [
    (signal.SIGUSR1, "the process exited with code 3", "see its log"),
    (signal.SIGSEGV, "the process was ended by signal 11 (SIGSEGV)", "another version or variant"),
    (signal.SIGKILL, "the process was ended by signal 9 (SIGKILL)", "for want of memory"),
]


@pytest.mark.parametrize(("number", "words", "remedy"), ENDS, ids=["code 3", "crash", "killed"])
def test_how_a_server_ended_while_no_controller_ran_is_known(fake: Stage, number: int, words: str, remedy: str) -> None:
    with_faults(fake, "exit-on-usr1=3")
    pid = fake.server()
    kill9(fake.controller)
    assert alive(pid)
    os.kill(pid, number)
    wait_until(lambda: not alive(pid), 10, "it ends")
    fake.run("plan", code=2)  # only looks: what is known is still there for the controller
    (fake.folder / "engine").rename(fake.folder / "gone")  # so that it stays down long enough to be looked at
    fake.start("watch")
    wait_until(lambda: fake.happened("server/chat", "Exited"), 20, "nobody noticed")
    (told,) = fake.happened("server/chat", "Exited")
    assert told.startswith(words), remedy
    (fake.folder / "gone").rename(fake.folder / "engine")
    fake.until_ready(40)
    assert fake.server() not in (0, pid)
    assert fake.ask()["choices"]
    assert not list((fake.root / "run" / "ends").glob(str(pid))), "what was noted elsewhere is not kept"


@pytest.mark.parametrize(("number", "words", "remedy"), ENDS, ids=["code 3", "crash", "killed"])
def test_the_condition_says_it_too(fake: Stage, number: int, words: str, remedy: str) -> None:
    with_faults(fake, "exit-on-usr1=3")
    pid = fake.server()
    fake.run("pause", "server/chat")  # a paused one is not started again: it shows what became of it
    kill9(fake.controller)
    os.kill(pid, number)
    wait_until(lambda: not alive(pid), 10, "it ends")
    fake.start("watch")
    wait_until(lambda: words in fake.told("server/chat").get("Ready", {}).get("message", ""), 20, "not told")
    ready = fake.told("server/chat")["Ready"]
    assert ready["status"] == "False"
    assert remedy in ready["message"]
    fake.run("resume", "server/chat")
    fake.until_ready(40)


def test_one_that_ended_between_its_spawn_and_the_record_of_it_is_known_by_its_nonce(fake: Stage) -> None:
    """Killed right after the spawn: the ledger has the intent only, the keeper's note the rest."""
    from reconciler.store.ledger import Ledger
    from tests.crash.harness import NOTHING, Run
    from tests.crash.victim import Orders

    fake.write(manifest(fake))
    fake.run("apply")
    fake.end_controller()
    kill9(fake.server())
    fake.write(manifest(fake, entry(more=", env: {FAKE_ENGINE: 'exit-at-once=3'}")))
    with Run(fake, Orders("spawn", "after")) as run:
        wait_until(lambda: run.dead, 30, "it is not killed")
    with Ledger.read(fake.root / "ledger.db") as ledger:
        rows = list(ledger.processes())
    assert [row.identity for row in rows if row.ref.kind == "server"] == [None]
    with Run(fake, NOTHING):
        wait_until(lambda: len(fake.happened("server/chat", "Exited")) == 2, 20, "nobody noticed")
        assert fake.happened("server/chat", "Exited")[-1].startswith("the process exited with code 3")


def test_grandchildren_of_a_lost_ledger_are_found_by_their_mark_and_ended(fake: Stage) -> None:
    with_faults(fake, "leaves-the-group,fork-grandchildren")
    first = next(p for p in fake.workloads() if "fake_engine.py" in " ".join(p.argv))
    nonce = first.environ[NONCE]
    family = children_with_env(NONCE, nonce)
    assert len(family) == 4
    kill9(fake.controller)
    kill9(first.pid)  # what it left has no parent of ours any more, and part of it a group of its own
    for part in fake.root.glob("ledger.db*"):
        part.unlink()
    fake.run("apply")
    wait_until(lambda: not children_with_env(NONCE, nonce), 20, "grandchildren are left")
    assert not fake.strays()
    assert fake.ask()["choices"]
    fake.run("down")
    wait_until(lambda: not children_with_env(ROOT, str(fake.root)), 20, "something is left")


def keepers(stage: Stage) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(stage.root / "run" / "ends") in process.cmdline() and alive(process.pid):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_the_keeper_goes_with_the_last_process(fake: Stage) -> None:
    with_faults(fake, "chunks=5")
    assert len(keepers(fake)) == 1
    kill9(fake.controller)
    assert len(keepers(fake)) == 1
    fake.run("apply")  # the next controller needs one of its own once it starts something
    fake.run("down")
    wait_until(lambda: not keepers(fake), 20, "a keeper without children is left")


def test_a_server_is_held_to_its_limits(fake: Stage) -> None:
    core = min(os.sched_getaffinity(0))
    limits = f", nice: 7, limits: {{memory: 2GiB, open_files: 512, cpus: [{core}]}}"
    fake.write(manifest(fake, entry()))
    fake.run("apply")
    before = fake.server()
    fake.write(manifest(fake, entry(more=limits)))
    fake.run("apply")
    process = psutil.Process(fake.server())
    assert process.pid != before
    assert process.nice() == 7
    assert process.cpu_affinity() == [core]
    assert process.rlimit(psutil.RLIMIT_DATA)[0] == 2 << 30
    assert process.rlimit(psutil.RLIMIT_NOFILE)[0] == 512
    fake.run("plan", code=0)


# -- logs -------------------------------------------------------------------------------------------------------------


class Followed:
    """`reconcile logs … -f`, whose output goes to a file."""

    def __init__(self, stage: Stage, *arguments: str) -> None:
        self.path = stage.folder / f"followed{len(stage.started)}"
        argv = [sys.executable, "-m", "reconciler", "logs", *arguments, "-f"]
        with self.path.open("wb") as out:
            self.process = subprocess.Popen(argv, cwd=stage.folder, stdout=out, stderr=subprocess.PIPE, text=True)
        stage.started.append(self.process)

    @property
    def text(self) -> str:
        return self.path.read_text()

    def until(self, words: str, times: int = 1) -> None:
        wait_until(lambda: self.text.count(words) >= times, 20, f"{words!r} is not shown {times}×")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=20)
        assert self.process.returncode in (0, 130)
        assert err == ""


def test_a_log_is_followed_through_a_restart_and_a_replacement(served: Stage) -> None:
    shown = Followed(served, "chat", "-n", "0")
    shown.until("server/chat starts ──")
    os.kill(served.server(), signal.SIGKILL)
    shown.until("server/chat starts ──", 2)
    served.until_ready()
    served.write(manifest(served, entry(context="2k")))
    shown.until("server/chat starts ──", 3)
    served.until_ready()
    shown.until("main: model loaded", 3)
    shown.interrupt()
    lines = shown.text.splitlines()
    mark = re.compile(r"── \d{4}-\d\d-\d\d \d\d:\d\d:\d\d server/chat starts ──")
    starts = [i for i, line in enumerate(lines) if mark.fullmatch(line)]
    assert len(starts) == 3
    assert all("listening" in lines[i + 1] for i in starts)


def test_a_log_is_followed_across_rotation(served: Stage) -> None:
    log = served.root / "logs" / "server" / "chat.log"
    shown = Followed(served, "chat", "-n", "1")
    shown.until("\n")
    with log.open("ab") as out:
        for number in range(LIMIT // 100 + 50_000):
            out.write(b"%098d\n\n" % number)
    last = LIMIT // 100 + 50_000 - 1
    wait_until(lambda: log.with_name("chat.log.1").exists(), 20, "it is not set aside")
    shown.until(f"{last:098d}")
    with log.open("ab") as out:
        out.write(b"after\n")
    shown.until("after")
    shown.interrupt()
    numbers = [int(line) for line in shown.text.splitlines() if line.isdigit()]
    assert numbers == sorted(numbers)
    assert numbers[-1] == last
    assert len(set(numbers)) == len(numbers), "no line twice"
    tail = served.run("logs", "chat", "-n", "3").stdout.splitlines()
    assert tail[-1] == "after"
    assert len(served.run("logs", "chat", "-n", "1000").stdout.splitlines()) == 1000, "older files are read, too"


def test_several_logs_at_once_are_told_apart_and_the_others_are_there_too(served: Stage) -> None:
    shown = Followed(served, "chat", "gateway", "controller")
    shown.until("controller ")
    os.kill(served.server(), signal.SIGKILL)
    shown.until("server/chat starts ──", 2)
    shown.interrupt()
    heads = {line.partition(" | ")[0] for line in shown.text.splitlines()}
    assert heads == {"server/chat ", "gateway/main", "controller  "}
    assert served.run("logs", "nope", code=1).stderr.count("logs are: ") == 1


def test_since_shows_what_is_newer_and_nothing_else(served: Stage) -> None:
    log = served.root / "logs" / "server" / "chat.log"
    old = "── 2001-01-01 00:00:00 server/chat starts ──\n0.00.010.000 I ancient\n"
    log.write_text(old + log.read_text())
    assert "ancient" in served.run("logs", "chat").stdout
    shown = served.run("logs", "chat", "--since", "1h").stdout
    assert "ancient" not in shown
    assert "model loaded" in shown
    assert served.run("logs", "chat", "--since", "1ms").stdout == ""
    assert "begin ref=" in served.run("logs", "controller", "--since", "1h").stdout


def test_no_log_ever_shows_a_key(fake: Stage) -> None:
    engine = fake.folder / "engine"
    text = engine.read_text().splitlines()
    engine.write_text("\n".join([text[0], 'echo "my key is $LLAMA_API_KEY"', "sleep 1; exit 3", ""]))
    fake.write(manifest(fake, entry()))
    fake.run("apply", code=1)
    keys = re.findall(r"my key is (\S+)", (fake.root / "logs" / "server" / "chat.log").read_text())
    told = "".join((*fake.happened("server/chat", "Failed"), fake.log(), str(fake.snapshot())))
    assert "my key is …" in told
    assert not [key for key in keys if key in told]
