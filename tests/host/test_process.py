"""One process is never mistaken for another, is noticed when it ends, and leaves nothing behind when it is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.limits import Limits
from reconciler.host.effects import Effects
from reconciler.host.process import (
    NONCE,
    Identity,
    Processes,
    alive,
    boot_id,
    environment_value,
    find,
    identify,
    workload_environment,
)
from tests.support.engines import FAKE_ENGINE
from tests.support.processes import alive as running
from tests.support.processes import children_with_env, free_port, kill9, wait_until

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(100)"]

# Starts a child in a session of its own that is deaf to SIGTERM, and ends politely itself.
PARENT_OF_A_DEAF_ONE = """
import signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(100)"
subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
time.sleep(100)
"""


@pytest.fixture
def nonce() -> Iterator[str]:
    """A mark for everything that a test starts; what is left of it at the end is killed, one by one."""
    mark = uuid.uuid4().hex
    yield mark
    for process in children_with_env(NONCE, mark):
        kill9(process.pid)


@pytest.fixture(params=["kept", "own", "no pidfd", "older kernel", "no environ", "psutil only"])
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Processes]:
    """On every kind of machine: what it does not have is taken away."""
    boot_id.cache_clear()
    if request.param == "no pidfd":
        monkeypatch.delattr(os, "pidfd_open")
    elif request.param == "older kernel":
        monkeypatch.setattr("reconciler.host.process.PIDFD_GROUP", 1 << 20)
    elif request.param == "no environ":
        monkeypatch.setattr("reconciler.host.process.ENVIRON", False)
    elif request.param == "psutil only":
        monkeypatch.delattr(os, "pidfd_open")
        monkeypatch.setattr("reconciler.host.process.LINUX", False)
    made = Processes(Effects(), tmp_path / "ends" if request.param != "own" else None)
    yield made
    made.close()
    boot_id.cache_clear()


# For what needs the environments of other processes to be readable.
BY_MARK = pytest.mark.parametrize(
    "processes", ["kept", "own", "no pidfd", "older kernel", "psutil only"], indirect=True
)

Start = Callable[..., Identity]


@pytest.fixture
def start(processes: Processes, nonce: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a program with the mark, and waits until it has said `said`."""

    started: list[Identity] = []

    def run(argv: list[str], said: str = "up", **env: str) -> Identity:
        log = tmp_path / f"log{len(started)}"
        identity = processes.spawn(argv, workload_environment({**env, NONCE: nonce}), log, tmp_path)
        started.append(identity)
        wait_until(lambda: said in log.read_text(), 20, f"it says {said!r}")
        return identity

    yield run
    for identity in started:
        if alive(identity):
            kill9(identity.pid)
        processes.exit_code(identity)  # reaps it


async def test_a_process_is_alive_until_it_is_killed(start: Start, processes: Processes) -> None:
    identity = start(SLEEPER)
    assert alive(identity)
    assert identify(identity.pid) == identity
    kill9(identity.pid)
    assert not alive(identity)
    assert processes.exit_code(identity) == -9
    assert identify(identity.pid) is None


def test_a_zombie_is_not_alive(nonce: str) -> None:
    child = subprocess.Popen(SLEEPER, env={**os.environ, NONCE: nonce}, stdout=subprocess.DEVNULL)
    identity = identify(child.pid)
    assert identity is not None
    child.kill()
    wait_until(lambda: not running(child.pid), 10, "it is a zombie")
    assert Path(f"/proc/{child.pid}").exists()
    assert identify(child.pid) is None
    assert not alive(identity)
    assert find(NONCE, nonce) == []
    assert child.wait() == -9


def test_a_pid_alone_is_nobody(start: Start) -> None:
    identity = start(SLEEPER)
    assert not alive(Identity(identity.pid, "1", identity.boot))
    assert not alive(Identity(identity.pid, identity.start, "another boot"))
    assert not alive(Identity(identity.pid, "", identity.boot))
    assert boot_id() == identity.boot


def test_we_know_ourselves_and_nobody_has_the_highest_pid() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert alive(me)
    assert identify(2**22 + 1) is None


def test_a_name_with_brackets_does_not_confuse_the_reading(tmp_path: Path, start: Start) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sleep")
    log_said = ["/bin/sh", "-c", 'echo up; exec "$0" 100', str(odd)]
    identity = start(log_said)
    wait_until(lambda: b"sleep" in Path(f"/proc/{identity.pid}/cmdline").read_bytes() or "a)" in command(identity), 10)
    assert alive(identity)
    assert identify(identity.pid) == identity


def command(identity: Identity) -> str:
    return Path(f"/proc/{identity.pid}/comm").read_text()


async def test_the_end_of_a_process_wakes_who_waits_for_it(start: Start, processes: Processes) -> None:
    identity = start(SLEEPER)
    waiting = asyncio.create_task(processes.exited(identity))
    await asyncio.sleep(0)
    assert not waiting.done()
    os.kill(identity.pid, signal.SIGKILL)
    await asyncio.wait_for(waiting, 10)
    assert processes.exit_code(identity) == -9
    await asyncio.wait_for(processes.exited(identity), 10)


async def test_an_end_that_the_kernel_does_not_tell_of_is_seen_all_the_same(
    start: Start, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, writer = os.pipe()
    monkeypatch.setattr("reconciler.host.process._pidfd", lambda pid: os.dup(silent))
    monkeypatch.setattr("reconciler.host.process.LOOK_AGAIN", 0.1)
    identity = start(SLEEPER)
    waiting = asyncio.create_task(processes.exited(identity))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    os.kill(identity.pid, signal.SIGKILL)
    await asyncio.wait_for(waiting, 5)
    os.close(silent)
    os.close(writer)


async def test_many_wait_for_one_process_and_one_may_give_up(start: Start, processes: Processes) -> None:
    identity = start(SLEEPER)
    waiting = [asyncio.create_task(processes.exited(identity)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    os.kill(identity.pid, signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*waiting[1:]), 10)
    assert processes.exit_code(identity) == -9


def test_the_exit_code_is_known_once_it_has_ended(processes: Processes, tmp_path: Path) -> None:
    identity = processes.spawn([sys.executable, "-c", "raise SystemExit(7)"], {}, tmp_path / "log", tmp_path)
    codes = []
    wait_until(lambda: codes.append(processes.exit_code(identity)) or codes[-1] is not None, 20, "it ends")
    assert codes[-1] == 7
    assert codes[:-1] == [None] * (len(codes) - 1)
    assert processes.exit_code(Identity(os.getpid(), "", "")) is None


THREADS = """
import threading, time
for _ in range(60):
    threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
print("up", flush=True)
time.sleep(100)
"""


def test_the_exit_code_is_known_as_soon_as_it_is_not_alive(start: Start, processes: Processes) -> None:
    """The first thread of a killed process is a zombie a moment before the others are gone and it can be waited for."""
    codes = []
    for _ in range(15):
        identity = start([sys.executable, "-c", THREADS])
        os.kill(identity.pid, signal.SIGKILL)
        while alive(identity):
            pass
        codes.append(processes.exit_code(identity))
        processes.exit_code(identity)
    assert codes == [-9] * 15


def test_a_process_leads_a_session_has_no_input_and_logs_both_streams(processes: Processes, tmp_path: Path) -> None:
    script = "import os, sys; print(os.getsid(0) == os.getpid(), repr(sys.stdin.read())); sys.stderr.write('err')"
    (tmp_path / "log").write_text("before\n")
    identity = processes.spawn([sys.executable, "-c", script], {"A": "b"}, tmp_path / "log", tmp_path)
    wait_until(lambda: processes.exit_code(identity) == 0, 20, "it ends")
    assert (tmp_path / "log").read_text() == "before\nTrue ''\nerr"


@pytest.mark.parametrize(
    ("make", "code", "hint"),
    [
        ("missing", "BINARY_NOT_FOUND", "path"),
        ("plain", "BINARY_NOT_EXECUTABLE", "chmod +x"),
        ("folder", "BINARY_NOT_EXECUTABLE", "chmod"),
    ],
)
def test_a_program_that_cannot_be_started_is_a_fault(
    processes: Processes, tmp_path: Path, make: str, code: str, hint: str
) -> None:
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Fault) as caught:
        processes.spawn([str(tmp_path / make)], {}, tmp_path / "log", tmp_path)
    assert (caught.value.code, caught.value.kind) == (code, FaultClass.NEEDS_HUMAN)
    assert hint in caught.value.hint
    assert str(tmp_path / make) in caught.value.message


def test_a_file_that_is_no_program_is_a_fault(processes: Processes, tmp_path: Path) -> None:
    """A download page saved as a program, or a program for another machine: the kernel says Exec format error."""
    (tmp_path / "page").write_text("<html>")
    (tmp_path / "page").chmod(0o755)
    with pytest.raises(Fault) as caught:
        processes.spawn([str(tmp_path / "page")], {}, tmp_path / "log", tmp_path)
    assert caught.value.kind is not FaultClass.TRANSIENT


async def test_stop_is_polite_first(start: Start, processes: Processes, nonce: str) -> None:
    script = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\nprint('up', flush=True)\ntime.sleep(100)"
    )
    identity = start([sys.executable, "-c", script + "\n"])
    await processes.stop(identity, nonce, grace=20)
    assert not alive(identity)
    assert children_with_env(NONCE, nonce) == []


async def test_stop_kills_a_deaf_process_with_its_group(start: Start, processes: Processes, nonce: str) -> None:
    argv = [sys.executable, str(FAKE_ENGINE), "--port", str(free_port())]
    identity = start(argv, "listening", FAKE_ENGINE="ignore-sigterm,fork-grandchildren")
    assert len(wait_until(lambda: len(children_with_env(NONCE, nonce)) == 3 and children_with_env(NONCE, nonce))) == 3
    await processes.stop(identity, nonce, grace=0.2)
    assert not alive(identity)
    wait_until(lambda: children_with_env(NONCE, nonce) == [], 10, "nobody is left")


@BY_MARK
async def test_stop_finds_those_that_left_the_group_by_their_mark(
    start: Start, processes: Processes, nonce: str
) -> None:
    identity = start([sys.executable, "-c", PARENT_OF_A_DEAF_ONE], "deaf")
    assert [i.pid for i in find(NONCE, nonce)][0:1]
    assert len(find(NONCE, nonce)) == 2
    await processes.stop(identity, nonce, grace=20)
    wait_until(lambda: children_with_env(NONCE, nonce) == [], 10, "nobody is left")


@BY_MARK
async def test_stop_of_one_that_is_gone_still_ends_what_it_left(start: Start, processes: Processes, nonce: str) -> None:
    identity = start([sys.executable, "-c", PARENT_OF_A_DEAF_ONE], "deaf")
    kill9(identity.pid)
    assert len(find(NONCE, nonce)) == 1
    await processes.stop(identity, nonce, grace=20)
    wait_until(lambda: children_with_env(NONCE, nonce) == [], 10, "nobody is left")
    assert processes.exit_code(identity) in (None, -9)  # reaped already; or it was written down


async def test_a_signal_for_a_process_that_is_gone_reaches_nobody_else(start: Start, processes: Processes) -> None:
    """The pid lives, but it is not the one that was meant."""
    identity = start(SLEEPER)
    processes.signal(Identity(identity.pid, "1", identity.boot), signal.SIGKILL)
    await processes.stop(Identity(identity.pid, "1", identity.boot), "no such mark", grace=5)
    assert alive(identity)
    processes.signal(identity, signal.SIGKILL)
    await asyncio.wait_for(processes.exited(identity), 10)
    assert processes.exit_code(identity) == -9


@BY_MARK
def test_find_goes_by_the_whole_value_and_names_the_leader_first(start: Start, nonce: str) -> None:
    argv = [sys.executable, str(FAKE_ENGINE), "--port", str(free_port())]
    identity = start(argv, "listening", FAKE_ENGINE="fork-grandchildren")
    wait_until(lambda: len(find(NONCE, nonce)) == 3, 10, "all three are there")
    assert find(NONCE, nonce)[0] == identity
    assert find(NONCE, nonce[:-1]) == []
    assert find("X" + NONCE, nonce) == []
    assert environment_value(identity.pid, NONCE) == nonce
    assert environment_value(identity.pid, "NOT_SET") is None
    assert environment_value(2**22 + 1, NONCE) is None


def test_a_workload_inherits_little(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LLAMA_API_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("HOME", "/home/me")
    environment = workload_environment({"A": "b", "HOME": "/other"})
    assert "secret" not in environment.values()
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["HOME"] == "/other"
    assert environment["A"] == "b"
    assert environment["PATH"] == os.environ["PATH"]


PARENT_OF_ONE_THAT_LEFT = """
import signal, subprocess, sys, time
polite = (
    "import pathlib, signal, sys, time;"
    "signal.signal(15, lambda *_: (pathlib.Path(sys.argv[1]).write_text('bye'), sys.exit(0)));"
    "print('there', flush=True); time.sleep(100)"
)
subprocess.Popen([sys.executable, "-c", polite, sys.argv[1]], start_new_session=True)
signal.signal(15, lambda *_: (time.sleep(0.2), sys.exit(0)))
time.sleep(100)
"""


async def test_stop_is_polite_to_those_that_left_the_group_too(
    start: Start, processes: Processes, nonce: str, tmp_path: Path
) -> None:
    identity = start([sys.executable, "-c", PARENT_OF_ONE_THAT_LEFT, str(tmp_path / "word")], "there")
    assert len(children_with_env(NONCE, nonce)) == 2
    await processes.stop(identity, nonce, grace=20)
    assert (tmp_path / "word").read_text() == "bye"
    assert children_with_env(NONCE, nonce) == []


CPU_AND_LIMITS = """
import os, resource
print(os.getpriority(os.PRIO_PROCESS, 0), resource.getrlimit(resource.RLIMIT_DATA)[0],
      resource.getrlimit(resource.RLIMIT_NOFILE)[0], sorted(os.sched_getaffinity(0)), flush=True)
import time
time.sleep(0.5)
try:
    taken = bytearray(400 << 20)
except MemoryError:
    print("no more", flush=True)
print("up", flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("processes", ["kept"], indirect=True)
def test_a_process_is_held_to_its_limits_from_its_first_instruction(
    processes: Processes, start: Start, tmp_path: Path
) -> None:
    core = min(os.sched_getaffinity(0))
    limits = Limits(nice=7, memory=300 << 20, open_files=77, cpus=(core,))
    identity = processes.spawn([sys.executable, "-c", CPU_AND_LIMITS], {}, tmp_path / "log", tmp_path, limits)
    wait_until(lambda: "up" in (tmp_path / "log").read_text(), 20, "it is up")
    assert os.getpriority(os.PRIO_PROCESS, identity.pid) == 7
    first, second, _ = (tmp_path / "log").read_text().splitlines()
    assert first.split(maxsplit=1)[1] == f"{300 << 20} 77 [{core}]"
    assert second == "no more"
    kill9(identity.pid)
    free = start([sys.executable, "-c", CPU_AND_LIMITS])  # the next one is as free as before
    assert "no more" not in (tmp_path / "log0").read_text()
    assert os.getpriority(os.PRIO_PROCESS, free.pid) == os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.parametrize("processes", ["own"], indirect=True)
def test_limits_hold_without_a_keeper_too(processes: Processes, tmp_path: Path) -> None:
    identity = processes.spawn(
        [sys.executable, "-c", CPU_AND_LIMITS], {}, tmp_path / "log", tmp_path, Limits(nice=7, memory=300 << 20)
    )
    wait_until(lambda: "up" in (tmp_path / "log").read_text(), 20, "it is up")
    assert "no more" in (tmp_path / "log").read_text()
    assert os.getpriority(os.PRIO_PROCESS, identity.pid) == 7
    kill9(identity.pid)
    processes.exit_code(identity)


@pytest.mark.parametrize("processes", ["psutil only"], indirect=True)
def test_limits_that_cannot_be_had_are_refused(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        processes.spawn(SLEEPER, {}, tmp_path / "log", tmp_path, Limits(memory=1 << 30))
    assert (caught.value.code, caught.value.kind) == ("CANNOT_LIMIT", FaultClass.PERMANENT)


@pytest.mark.parametrize("processes", ["kept", "own"], indirect=True)
def test_a_core_that_is_not_there_is_a_fault(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        processes.spawn(SLEEPER, {}, tmp_path / "log", tmp_path, Limits(cpus=(900,)))
    assert caught.value.code == "CANNOT_LIMIT"
    assert "limits.cpus" in caught.value.hint
