"""The keeper outlives who started it, knows how its children ended, keeps their logs short, and goes with the last."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from reconciler.host import keeper
from reconciler.host.effects import Effects
from reconciler.host.process import NONCE, UNSEEN, Identity, Processes, alive, identify
from tests.support.processes import children_with_env, kill9, wait_until

# A controller: starts what it is told to, says who that is, and waits to be killed.
CONTROLLER = """
import sys, time
from pathlib import Path
from reconciler.host.effects import Effects
from reconciler.host.process import Processes
folder = Path(sys.argv[1])
identity = Processes(Effects(), folder / "ends").spawn(
    [sys.executable, "-c", sys.argv[2]], {"RECONCILER_NONCE": sys.argv[3]}, folder / "log", folder)
print(identity.pid, identity.start, identity.boot, flush=True)
time.sleep(100)
"""
WAITS = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n"


@pytest.fixture
def heir(tmp_path: Path) -> Iterator[Processes]:
    """The next controller on the same folder."""
    made = Processes(Effects(), tmp_path / "ends")
    yield made
    made.close()
    wait_until(lambda: not keepers(tmp_path), 10, "the keeper goes when nothing is left to keep")


def keepers(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder / "ends") in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def orphan(folder: Path, program: str, nonce: str = "n1") -> Identity:
    """A process whose controller was killed right after it had started it."""
    argv = [sys.executable, "-c", CONTROLLER, str(folder), program, nonce]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as controller:
        assert controller.stdout is not None
        pid, start, boot = controller.stdout.readline().split()
        controller.kill()
    return Identity(int(pid), start, boot)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("raise SystemExit(0)", 0),
        ("import os; os.kill(os.getpid(), 11)", -11),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 6)", -6),
    ],
)
def test_the_end_of_one_whose_controller_was_killed_is_known(
    tmp_path: Path, heir: Processes, end: str, code: int
) -> None:
    before = time.time()
    identity = orphan(tmp_path, "import resource; resource.setrlimit(4, (0, 0))\n" + WAITS + end)
    assert alive(identity)
    assert heir.end(identity) is None
    (tmp_path / "go").touch()
    wait_until(lambda: not alive(identity), 10, "it ends")
    found = heir.end(identity)
    assert found is not None
    assert found.code == code
    assert before < found.at <= time.time()
    assert 4 << 20 < found.peak < 1 << 30
    assert not found.oom
    heir.forget(identity)
    assert heir.end(identity) == UNSEEN
    assert list((tmp_path / "ends").iterdir()) == []


def test_who_was_started_is_known_by_the_nonce_even_after_its_end(tmp_path: Path, heir: Processes) -> None:
    identity = orphan(tmp_path, "raise SystemExit(3)", "aa11")
    assert heir.spawned("aa11") == identity
    assert heir.spawned("aa1") is None
    wait_until(lambda: not alive(identity), 10, "it ends")
    assert heir.spawned("aa11") == identity
    assert heir.exit_code(identity) == 3


def test_another_process_with_the_same_pid_is_not_taken_for_it(tmp_path: Path, heir: Processes) -> None:
    identity = orphan(tmp_path, "raise SystemExit(3)")
    wait_until(lambda: not alive(identity), 10, "it ends")
    assert heir.end(Identity(identity.pid, "1", identity.boot)) == UNSEEN
    assert heir.end(Identity(identity.pid, identity.start, "another boot")) == UNSEEN


def test_a_killed_keeper_costs_the_exit_code_and_no_more(tmp_path: Path, heir: Processes) -> None:
    identity = heir.spawn([sys.executable, "-c", WAITS + "raise SystemExit(3)"], {}, tmp_path / "log", tmp_path)
    (first,) = keepers(tmp_path)
    kill9(first.pid)
    assert alive(identity)
    other = heir.spawn([sys.executable, "-c", WAITS + "raise SystemExit(4)"], {}, tmp_path / "log", tmp_path)
    (second,) = keepers(tmp_path)
    assert second.pid != first.pid
    (tmp_path / "go").touch()
    wait_until(lambda: not alive(identity) and not alive(other), 10, "both end")
    assert heir.end(identity) == UNSEEN
    assert heir.exit_code(other) == 4


def test_a_keeper_that_dies_over_an_order_does_not_start_it_twice(tmp_path: Path, heir: Processes) -> None:
    """It is stopped while it is told, so that it is killed after the child was started, or before."""
    heir.spawn([sys.executable, "-c", "pass"], {}, tmp_path / "log", tmp_path)
    (first,) = keepers(tmp_path)
    first.send_signal(signal.SIGSTOP)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {first.pid}"])
    identity = heir.spawn([sys.executable, "-c", WAITS], {NONCE: "once"}, tmp_path / "log", tmp_path)
    killer.wait()
    assert [p.pid for p in children_with_env(NONCE, "once")] == [identity.pid]
    (tmp_path / "go").touch()
    wait_until(lambda: not alive(identity), 10, "it ends")


def test_a_keeper_is_small_knows_no_key_and_dies_with_nobody(tmp_path: Path, heir: Processes) -> None:
    env = {NONCE: "small", "LLAMA_API_KEY": "sk-canary-5150"}
    identity = heir.spawn([sys.executable, "-c", WAITS], env, tmp_path / "log", tmp_path)
    (kept,) = keepers(tmp_path)
    assert kept.memory_info().rss < 16 << 20
    assert "sk-canary-5150" not in " ".join(kept.cmdline()) + str(kept.environ())
    assert "sk-canary-5150" not in (tmp_path / "ends" / str(identity.pid)).read_text()
    assert os.getsid(kept.pid) not in (os.getsid(0), identity.pid)
    assert psutil.Process(identity.pid).ppid() == kept.pid
    (tmp_path / "go").touch()
    wait_until(lambda: not alive(identity), 10, "it ends")
    assert keepers(tmp_path) == [kept], "it waits for orders as long as its controller lives"


def test_a_flood_is_kept_within_bounds_while_no_controller_lives(tmp_path: Path, heir: Processes) -> None:
    """500 MB at 100 MB/s: what lies there never gets near what was written."""
    flood = "import os, time\npiece = (b'x' * 99 + b'\\n') * 10000\nbegan = time.monotonic()\nfor n in range(500):\n"
    flood += "    os.write(1, piece)\n    time.sleep(max(0, began + n / 100 - time.monotonic()))\n"
    identity = orphan(tmp_path, WAITS + flood + "os.write(1, b'last words')")
    (tmp_path / "go").touch()
    most = 0
    while alive(identity):
        with suppress(FileNotFoundError):  # they are renamed while we look
            most = max(most, sum(p.stat().st_size for p in tmp_path.glob("log*")))
        time.sleep(0.005)
    wait_until(lambda: not (tmp_path / "log.new").exists(), 20, "the last one set aside was not finished")
    assert 2 * keeper.LOG_LIMIT < most < 300 << 20
    assert ((tmp_path / "log").read_bytes() or (tmp_path / "log.1").read_bytes()).endswith(b"last words")
    kept = sorted(p.name for p in tmp_path.glob("log*"))
    assert set(kept) <= {"log", *(f"log.{n}" for n in range(1, keeper.LOGS_KEPT + 1))}
    assert heir.exit_code(identity) == 0


def test_a_log_that_has_outgrown_us_keeps_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a" * 5000 + b"b" * 1000)
    assert keeper.set_aside(str(path), 1000, 3)
    assert path.read_bytes() == b""
    assert (tmp_path / "log.1").read_bytes() == b"b" * 1000
    assert not keeper.set_aside(str(path), 1000, 3)


def test_a_keeper_is_nobodys_child(tmp_path: Path, heir: Processes) -> None:
    heir.spawn([sys.executable, "-c", "pass"], {}, tmp_path / "log", tmp_path)
    (kept,) = keepers(tmp_path)
    assert kept.ppid() != os.getpid()
    assert identify(kept.pid) is not None
