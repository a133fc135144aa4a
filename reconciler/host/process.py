"""Processes that outlive us: started detached, known by pid *and* start time *and* boot, found again by a nonce.

A pid alone proves nothing: it may be reused. Start time comes from /proc (clock ticks since boot) on Linux and from
psutil elsewhere; the boot id guards against a reboot that brings the same pair again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.effects import Effects
from reconciler.host.files import disk_faults

NONCE = "RECONCILER_NONCE"
ROOT = "RECONCILER_ROOT"
ABOUT = "RECONCILER_PROCESS"  # what the ledger knows of it (JSON), should the ledger ever be lost
LINUX = sys.platform == "linux"
LOOK_AGAIN = 2.0  # seconds after which a process is looked at, whatever the kernel told or did not tell

# What a workload may inherit: how to find programs, its home, locale, proxies' certificates and accelerators.
KEPT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
KEPT_PREFIXES = ("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "GGML_", "VK_", "OMP_")


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, never to be mistaken for another."""

    pid: int
    start: str
    boot: str


@lru_cache(maxsize=1)
def boot_id() -> str:
    if LINUX:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    import psutil

    return str(int(psutil.boot_time()))


def identify(pid: int) -> Identity | None:
    """Who has this pid now; None when nobody has, or only a zombie."""
    if LINUX:
        fields = _stat(pid)
        if fields is None or fields[0] in "ZX":
            return None
        return Identity(pid, fields[19], boot_id())
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return Identity(pid, str(process.create_time()), boot_id())
    except psutil.Error:
        return None


def alive(identity: Identity) -> bool:
    """Whether exactly this process still runs."""
    return identity.boot == boot_id() and identify(identity.pid) == identity


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command name: [0] is the state, [19] the start time in ticks."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)  # asked of every process in each turn: no file object for it
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
    except OSError:
        return None
    return text[text.rindex(b")") + 2 :].decode().split()


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far; 0 where it is gone."""
    if LINUX:
        fields = _stat(pid)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0
    import psutil

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def memory(pid: int) -> tuple[int, int]:
    """(bytes of memory that a process takes, those of them that are not of files); zeros where it is gone."""
    if LINUX:
        try:
            _, resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[:3]
        except (OSError, ValueError):
            return 0, 0
        page = os.sysconf("SC_PAGE_SIZE")
        return int(resident) * page, (int(resident) - int(shared)) * page
    import psutil

    try:
        found = int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0, 0
    return found, found


def workload_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The small environment that a workload gets, plus `extra`."""
    kept = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
    return kept | dict(extra)


class Processes:
    """Starts, watches and stops processes."""

    def __init__(self, effects: Effects) -> None:
        self.effects = effects
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def spawn(self, argv: list[str], env: Mapping[str, str], log: Path, cwd: Path) -> Identity:
        """Start `argv` in a session of its own, output appended to `log`. Raises Fault."""
        with self.effects("spawn", argv[0]):
            with disk_faults(log), log.open("ab") as out:
                try:
                    child = subprocess.Popen(
                        argv,
                        env=dict(env),
                        cwd=cwd,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                except FileNotFoundError as error:
                    raise Fault(
                        "BINARY_NOT_FOUND",
                        f"{error.filename or argv[0]} does not exist",
                        hint="check the engine's path",
                        kind=FaultClass.NEEDS_HUMAN,
                    ) from error
                except PermissionError as error:
                    raise Fault(
                        "BINARY_NOT_EXECUTABLE",
                        f"{argv[0]} may not be executed",
                        hint=f"chmod +x {argv[0]}",
                        kind=FaultClass.NEEDS_HUMAN,
                    ) from error
                except OSError as error:
                    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                        raise Fault(
                            "CANNOT_START",
                            f"{argv[0]} cannot be started: {error.strerror}",
                            hint="too many processes or open files, or no memory for one more",
                        ) from error
                    if error.errno != errno.ENOEXEC:
                        raise
                    raise Fault(
                        "BINARY_NOT_EXECUTABLE",
                        f"{argv[0]} is not a program for this machine",
                        hint="check that it is not a web page, an archive, or built for another system",
                        kind=FaultClass.NEEDS_HUMAN,
                    ) from error
            self._children[child.pid] = child
        identity = identify(child.pid)
        # Gone before we could look: what it was is known all the same, for we have not reaped it yet.
        return identity or Identity(child.pid, "", boot_id())

    def exit_code(self, identity: Identity) -> int | None:
        """The exit code of a child of ours that has ended (negative: killed by that signal), else None."""
        child = self._children.get(identity.pid)
        if child is None:
            return None
        code = child.poll()
        if code is None and identify(identity.pid) is None:
            # Its first thread is a zombie already, but it cannot be waited for until the last one is gone.
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(2.0)
        if code is not None:
            del self._children[identity.pid]
        return code

    def signal(self, identity: Identity, number: signal.Signals) -> None:
        """Signal the whole process group, if its leader is still who we think."""
        if not alive(identity):
            return
        with self.effects(f"signal-{number.name}", identity.pid), contextlib.suppress(ProcessLookupError):
            os.killpg(identity.pid, number)

    async def exited(self, identity: Identity) -> None:
        """Return once the process has ended; at once if it already has. Woken by the kernel where pidfd exists."""
        while alive(identity):
            fd = _pidfd(identity.pid)
            if fd is None:
                await asyncio.sleep(0.2)
                continue
            try:
                if alive(identity):  # else the pid was reused between the look and the open
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_AGAIN):
                            await _readable(fd)
            finally:
                os.close(fd)

    async def stop(self, identity: Identity, nonce: str, grace: float) -> None:
        """SIGTERM to the group, SIGKILL after `grace` seconds, then whatever still carries the nonce."""
        self.signal(identity, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self.exited(identity)
        except TimeoutError:
            self.signal(identity, signal.SIGKILL)
            await self.exited(identity)
        for left in find(NONCE, nonce):
            with self.effects("signal-SIGKILL", left.pid), contextlib.suppress(ProcessLookupError):
                os.kill(left.pid, signal.SIGKILL)
        self.exit_code(identity)


def find(name: str, value: str) -> list[Identity]:
    """Our user's processes whose environment has NAME=VALUE, group leaders first."""
    import psutil

    seen = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(name) == value and (identity := identify(process.pid)):
                seen.append(identity)
    return sorted(seen, key=lambda i: (not leads(i.pid), i.pid))


def environment_value(pid: int, name: str) -> str | None:
    """A variable of another process of ours, as it was at its start."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return psutil.Process(pid).environ().get(name)
    return None


def leads(pid: int) -> bool:
    """Whether a process is the first of its group, as all are that we start."""
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _pidfd(pid: int) -> int | None:
    opener = getattr(os, "pidfd_open", None)
    if opener is None:
        return None
    try:
        return int(opener(pid))
    except OSError:
        return None


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not done.done():
            done.set_result(None)

    loop.add_reader(fd, ready)
    try:
        await done
    finally:
        loop.remove_reader(fd)
