"""Processes that outlive us: started detached, known by pid *and* start time *and* boot, found again by a nonce.

A pid alone proves nothing: it may be reused. Start time comes from /proc (clock ticks since boot) on Linux and from
psutil elsewhere; the boot id guards against a reboot that brings the same pair again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import marshal
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from signal import Signals

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.limits import NO_LIMITS, Limits
from reconciler.host import keeper
from reconciler.host.effects import Effects
from reconciler.host.files import disk_faults

NONCE = "RECONCILER_NONCE"
ROOT = "RECONCILER_ROOT"
ABOUT = "RECONCILER_PROCESS"  # what the ledger knows of it (JSON), should the ledger ever be lost
LINUX = sys.platform == "linux"
ENVIRON = True  # whether the environments of other processes of ours can be read
PIDFD_GROUP = 4  # signal the group of a pidfd's process (Linux 6.9, pidfd_send_signal(2))
NOTED_WITHIN = 5.0  # seconds that a keeper may take to write down an end
STRAGGLE = 2.0  # seconds that what a process started may outlive it
LOOK_AGAIN = 2.0  # seconds after which a process is looked at, whatever the kernel told; up to thrice that later on

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


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended. `code` is negative for a signal and None where nobody knows; `at` Unix seconds, 0 where it
    is not known; `peak` the most memory that it held (bytes), 0 likewise; `oom` that the kernel was killing processes
    for want of memory while it ran.
    """

    code: int | None = None
    at: float = 0.0
    peak: int = 0
    oom: bool = False


UNSEEN = End()


class Processes:
    """Starts, watches and stops processes.

    With a folder for `ends` they are children of a keeper (host/keeper.py) that outlives us and writes down there how
    they ended. Without one, and on other systems than Linux, they are our own children: then an end that comes while
    no controller runs stays unknown.
    """

    def __init__(self, effects: Effects, ends: Path | None = None) -> None:
        self.effects = effects
        self.ends = ends
        self._keeper: tuple[int, int] | None = None  # file descriptors: orders, answers
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def close(self) -> None:
        """Let the keeper go; it stays as long as it has children."""
        if self._keeper is not None:
            for fd in self._keeper:
                os.close(fd)
            self._keeper = None

    __del__ = close

    def spawn(
        self, argv: list[str], env: Mapping[str, str], log: Path, cwd: Path, limits: Limits = NO_LIMITS
    ) -> Identity:
        """Start `argv` in a session of its own, output appended to `log`. Raises Fault."""
        if not LINUX and replace(limits, nice=0) != NO_LIMITS:
            raise Fault(
                "CANNOT_LIMIT",
                "memory, open files and cores of a process cannot be limited on this system",
                hint="remove `limits` of the model; `nice` works here",
                kind=FaultClass.PERMANENT,
            )
        with self.effects("spawn", argv[0]):
            with disk_faults(log), log.open("ab"):
                pass
            try:
                if self.ends is not None and LINUX and (kept := self._spawn_kept(argv, env, log, cwd, limits)):
                    return kept
                return self._spawn_own(argv, env, log, cwd, limits)
            except OSError as error:
                raise _unstartable(argv[0], error) from error

    def _spawn_own(self, argv: list[str], env: Mapping[str, str], log: Path, cwd: Path, limits: Limits) -> Identity:
        with log.open("ab") as out:
            child = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        try:
            _limit(child.pid, limits)
        except ProcessLookupError:
            pass  # it has ended already
        except OSError:
            child.kill()
            child.wait()
            del self._children[child.pid]
            raise
        # Gone before we could look: what it was is known all the same, for we have not reaped it yet.
        return identify(child.pid) or Identity(child.pid, "", boot_id())

    def _spawn_kept(
        self, argv: list[str], env: Mapping[str, str], log: Path, cwd: Path, limits: Limits
    ) -> Identity | None:
        """As a child of the keeper; None where there can be none. Raises OSError."""
        program = argv[0] if "/" in argv[0] else shutil.which(argv[0], path=env.get("PATH", os.defpath))
        if program is None:
            raise FileNotFoundError(errno.ENOENT, "No such file", argv[0])
        nonce = env.get(NONCE, "-")
        order: dict[str, object] = {"argv": [program, *argv[1:]], "env": dict(env), "log": str(log), "cwd": str(cwd)}
        order |= {"memory": limits.memory, "files": limits.open_files, "nice": limits.nice, "cpus": [*limits.cpus]}
        order["nonce"] = nonce
        for _ in range(2):
            if self._keeper is None:
                self._keeper = _start_keeper(self.ends) if self.ends is not None else None
                if self._keeper is None:
                    return None
            answer = _ask_keeper(self._keeper, marshal.dumps(order))
            if answer is not None:
                pid, start, number, name = answer
                if number:
                    raise OSError(number, os.strerror(number), name or program)
                return Identity(pid, start, boot_id())
            self.close()  # it was killed: perhaps only after it had done what it was told
            if nonce != "-" and (found := find(NONCE, nonce)):
                return found[0]
        return None

    def end(self, identity: Identity) -> End | None:
        """How a process of ours ended; None while it runs, and UNSEEN where nobody saw it."""
        child = self._children.get(identity.pid)
        if child is not None:
            code = child.poll()
            if code is None and identify(identity.pid) is None:
                # Its first thread is a zombie already, but it cannot be waited for until the last one is gone.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = child.wait(2.0)
            if code is None:
                return None
            del self._children[identity.pid]
            return End(code, time.time())
        if alive(identity):
            return None
        noted = self._noted(identity)
        deadline = time.monotonic() + NOTED_WITHIN
        while noted is not None and noted.end is None and noted.keeper_lives() and time.monotonic() < deadline:
            time.sleep(0.002)  # it has ended, and its keeper is about to write that down
            noted = self._noted(identity)
        return noted.end if noted is not None and noted.end is not None else UNSEEN

    def exit_code(self, identity: Identity) -> int | None:
        """The exit code of a process of ours that has ended (negative: killed by that signal), else None."""
        end = self.end(identity)
        return end.code if end is not None else None

    def spawned(self, nonce: str) -> Identity | None:
        """Who was started with a nonce, as far as a keeper wrote that down; it may have ended."""
        for file in sorted(self.ends.glob("[0-9]*")) if self.ends is not None else ():
            if (note := _read_note(file)) is not None and note.nonce == nonce:
                return note.identity
        return None

    def forget(self, identity: Identity) -> None:
        """How it ended is known and noted elsewhere."""
        if self._noted(identity) is not None and self.ends is not None:
            self._remove(self.ends / str(identity.pid))

    def tidy(self, known: Collection[Identity | None]) -> None:
        """Remove what was written of the ends of processes that nobody asks about any more."""
        for file in sorted(self.ends.glob("[0-9]*")) if self.ends is not None else ():
            note = _read_note(file)
            if note is None or (note.identity not in known and not alive(note.identity)):
                self._remove(file)

    def _remove(self, note: Path) -> None:
        with self.effects("remove", note), contextlib.suppress(OSError):  # what stays is tidied up later
            note.unlink(missing_ok=True)

    def _noted(self, identity: Identity) -> _Note | None:
        note = _read_note(self.ends / str(identity.pid)) if self.ends is not None else None
        return note if note is not None and note.identity == identity else None

    def signal(self, identity: Identity, number: Signals) -> None:
        """Signal the whole process group, if its leader is still who we think."""
        if not alive(identity):
            return
        with self.effects(f"signal-{number.name}", identity.pid), contextlib.suppress(ProcessLookupError):
            fd = _pidfd(identity.pid)
            try:
                if fd is not None and alive(identity):
                    try:
                        signal.pidfd_send_signal(fd, number, None, PIDFD_GROUP)
                        return
                    except OSError as error:
                        if error.errno != errno.EINVAL:  # a kernel before 6.9
                            raise
                os.killpg(identity.pid, number)
            finally:
                if fd is not None:
                    os.close(fd)

    def _signal_one(self, identity: Identity, number: Signals) -> None:
        if alive(identity):
            with self.effects(f"signal-{number.name}", identity.pid), contextlib.suppress(ProcessLookupError):
                os.kill(identity.pid, number)

    def end_left(self, identity: Identity, nonce: str) -> None:
        """End what a process that is gone had started."""
        for left in _others(identity, nonce):
            self._signal_one(left, Signals.SIGKILL)

    async def exited(self, identity: Identity) -> None:
        """Return once the process has ended; at once if it already has. Woken by the kernel where pidfd exists."""
        again = LOOK_AGAIN
        while alive(identity):
            fd = _pidfd(identity.pid)
            if fd is None:
                await asyncio.sleep(0.2)
                continue
            try:
                if alive(identity):  # else the pid was reused between the look and the open
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(again):
                            await _readable(fd)
            finally:
                os.close(fd)
            again = min(again * 1.5, 3 * LOOK_AGAIN)

    async def stop(self, identity: Identity, nonce: str, grace: float) -> None:
        """SIGTERM to it and all it started, also to those that left its group; SIGKILL after `grace` seconds.

        Who outlives the first process has STRAGGLE seconds more at most.
        """
        others = await asyncio.to_thread(_others, identity, nonce)
        deadline = time.monotonic() + grace
        self.signal(identity, signal.SIGTERM)
        for other in others:
            if not _in_group(other.pid, identity.pid):
                self._signal_one(other, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self.exited(identity)
        except TimeoutError:
            self.signal(identity, signal.SIGKILL)
            await self.exited(identity)
        deadline = min(deadline, time.monotonic() + STRAGGLE)
        # Nobody tells of the end of what is not our child.
        while any(alive(other) for other in others) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for left in {*others, *await asyncio.to_thread(_others, identity, nonce)}:
            self._signal_one(left, signal.SIGKILL)
        self.exit_code(identity)


@dataclass(frozen=True, slots=True)
class _Note:
    """What a keeper wrote of one child."""

    nonce: str
    identity: Identity
    keeper: int
    end: End | None

    def keeper_lives(self) -> bool:
        return identify(self.keeper) is not None


def _read_note(file: Path) -> _Note | None:
    try:
        words = file.read_text().split()
        nonce, boot, start, keeper = words[:4]
        end = End(int(words[4]), float(words[5]), int(words[6]), words[7] == "1") if len(words) > 4 else None
        return _Note(nonce, Identity(int(file.name), start, boot), int(keeper), end)
    except (OSError, ValueError, IndexError):
        return None


def _start_keeper(ends: Path) -> tuple[int, int] | None:
    """(where it takes orders, where it answers); None where it cannot be started."""
    orders, to_keeper = os.pipe()
    from_keeper, answers = os.pipe()
    try:
        ends.mkdir(mode=0o700, parents=True, exist_ok=True)
        first = subprocess.run(
            [sys.executable, "-I", "-S", keeper.__file__, str(ends)],
            stdin=orders,
            stdout=answers,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            check=False,
        )
    except OSError:
        first = None
    os.close(orders)
    os.close(answers)
    if first is None or first.returncode:
        os.close(to_keeper)
        os.close(from_keeper)
        return None
    return to_keeper, from_keeper


def _ask_keeper(fds: tuple[int, int], order: bytes) -> tuple[int, str, int, str] | None:
    """Its answer; None where it is gone."""
    try:
        rest = memoryview(len(order).to_bytes(4, "big") + order)
        while rest:
            rest = rest[os.write(fds[0], rest) :]
        size = int.from_bytes(_read_all(fds[1], 4), "big")
        pid, start, number, name = marshal.loads(_read_all(fds[1], size))  # noqa: S302 - from our own child
        return int(pid), str(start), int(number), str(name)
    except (OSError, EOFError):
        return None


def _read_all(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (piece := os.read(fd, size - len(data))):
            raise EOFError
        data += piece
    return data


def _limit(pid: int, limits: Limits) -> None:
    """Hold a process to its limits from outside, a moment after it began."""
    if limits.nice:
        os.setpriority(os.PRIO_PROCESS, pid, limits.nice)
    if limits.cpus:
        os.sched_setaffinity(pid, limits.cpus)
    if limits.memory or limits.open_files:
        import resource

        for kind, most in keeper.limits(limits.memory, limits.open_files):
            if most:
                hard = resource.prlimit(pid, kind)[1]
                soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
                resource.prlimit(pid, kind, (soft, hard))


def _unstartable(program: str, error: OSError) -> Fault:
    """The fault for a program that the system would not start."""
    name, human = str(error.filename or program), FaultClass.NEEDS_HUMAN
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if Path(name).exists():
            hint = "its first line, or its program header, names an interpreter that is not on this machine"
            return Fault("BINARY_NOT_FOUND", f"{name} needs a program that does not exist", hint=hint, kind=human)
        return Fault("BINARY_NOT_FOUND", f"{name} does not exist", hint="check the engine's path", kind=human)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Fault(
            "BINARY_NOT_EXECUTABLE",
            f"{program} may not be executed",
            hint=f"chmod +x {program}; a file system that is mounted with noexec runs nothing",
            kind=human,
        )
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return Fault(
            "CANNOT_START",
            f"{program} cannot be started: {error.strerror}",
            hint="too many processes or open files, or no memory for one more",
        )
    if error.errno == errno.ENOEXEC:
        return Fault(
            "BINARY_NOT_EXECUTABLE",
            f"{program} is not a program for this machine",
            hint="check that it is not a web page, an archive, or built for another system",
            kind=human,
        )
    if error.errno == errno.EINVAL:
        return Fault(
            "CANNOT_LIMIT",
            f"{program} cannot be started with its limits: {error.strerror}",
            hint="`limits.cpus` may name only cores that this machine has and gives us",
            kind=FaultClass.PERMANENT,
        )
    return Fault("CANNOT_START", f"{program} cannot be started: {error.strerror or error}", hint="see what lies there")


def _others(identity: Identity, nonce: str) -> set[Identity]:
    """All that a process started and that still runs: by the nonce, and by descent where that cannot be read."""
    found = set(find(NONCE, nonce)) | _descendants(identity)
    return found - {identity}


def _descendants(identity: Identity) -> set[Identity]:
    import psutil

    if not alive(identity):
        return set()
    with contextlib.suppress(psutil.Error, OSError):
        children = psutil.Process(identity.pid).children(recursive=True)
        return {found for child in children if (found := identify(child.pid)) is not None}
    return set()


def _in_group(pid: int, group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid) == group
    return True


def find(name: str, value: str) -> list[Identity]:
    """Our user's processes whose environment has NAME=VALUE, group leaders first."""
    seen = []
    for pid in _pids():
        if pid != os.getpid() and environment_value(pid, name) == value and (identity := identify(pid)):
            seen.append(identity)
    return sorted(seen, key=lambda i: (not leads(i.pid), i.pid))


def environment_value(pid: int, name: str) -> str | None:
    """A variable of another process of ours, as it was at its start; None where it may not be read."""
    if not ENVIRON:
        return None
    if LINUX:
        try:
            text = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return None
        for entry in text.split(b"\0") if name.encode() in text else ():
            key, _, value = entry.partition(b"=")
            if key == name.encode():
                return value.decode(errors="surrogateescape")
        return None
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return psutil.Process(pid).environ().get(name)
    return None


def _pids() -> list[int]:
    if LINUX:
        return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())  # noqa: PTH208 - names only
    import psutil

    return psutil.pids()


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
