"""The parent of workloads: it outlives the controller, writes down how they ended, and keeps their logs short.

One small program a controller (`python -I -S keeper.py FOLDER`), on Linux. It takes orders on its standard input and
answers on its standard output; once the controller is gone it goes on until its last child has ended, and ends then.
Only a parent learns an exit code: this one leaves it in FOLDER/PID for whoever comes next. If it is killed itself, its
children go on, and their codes are not known.

It decides nothing, holds no key for longer than a spawn takes, and imports only what is built into the interpreter:
that keeps it at a third of what a bare `python` with its usual modules takes. `set_aside` is all that others use of it.
"""

from __future__ import annotations

import fcntl
import marshal
import posix
import resource
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LOG_LIMIT = 16 << 20  # bytes in a log before it is set aside
LOGS_KEPT = 3  # older logs beside it
LOOK_MOST, LOOK_LEAST = 0.5, 0.05  # seconds between two looks at the logs: as fast as the fastest of them grows
IGNORED = (13, 25)  # SIGPIPE and SIGXFSZ, which Python ignores, and which a workload is to find as they were
PIECE = 1 << 18
START, CURRENT, END = 0, 1, 2  # as lseek counts


def set_aside(
    path: str, limit: int = LOG_LIMIT, kept: int = LOGS_KEPT, between: Callable[[], None] = lambda: None
) -> bool:
    """Move what is in a log that is longer than `limit` bytes to PATH.1, and that to PATH.2, up to `kept`.

    Its writers have it open for appending and know nothing of it: it is copied and cut, not moved. Of one that has
    outgrown us only the last `limit` bytes are kept. `between` is called while it is copied, which may take seconds on
    a busy machine. Whether there was anything to do; raises OSError.
    """
    fd = posix.open(path, posix.O_RDWR | posix.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # two of us at once would set an empty one aside
        size = posix.fstat(fd).st_size
        if size < limit:
            return False
        for number in range(kept - 1, 0, -1):
            _rename(f"{path}.{number}", f"{path}.{number + 1}")
        fresh = posix.open(f"{path}.new", posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o600)
        try:
            if size > 2 * limit:
                posix.lseek(fd, size - limit, START)
            copied = _copy(fd, fresh, 2 * limit, between)
            posix.rename(f"{path}.new", f"{path}.1")
            _copy(fd, fresh, 2 * limit - copied, between)
            # One that writes faster than we copy loses what lies between, and never its last words.
            if posix.fstat(fd).st_size - posix.lseek(fd, 0, CURRENT) > PIECE:
                posix.lseek(fd, -PIECE, END)
            _copy(fd, fresh, limit, lambda: None)
            posix.ftruncate(fd, 0)  # right after the last read: what is written between the two is lost
        finally:
            posix.close(fresh)
        return True
    finally:
        posix.close(fd)


def _copy(source: int, target: int, most: int, between: Callable[[], None]) -> int:
    """Copy what is left of a file → bytes."""
    copied = 0
    while copied < most and (piece := posix.read(source, PIECE)):
        copied += posix.write(target, piece)
        between()
    return copied


def _rename(old: str, new: str) -> None:
    try:  # noqa: SIM105 - contextlib is not built in
        posix.rename(old, new)
    except FileNotFoundError:
        pass


class Child:
    """A running workload."""

    def __init__(self, nonce: str, start: str, log: str, pidfd: int) -> None:
        self.nonce, self.start, self.log, self.pidfd = nonce, start, log, pidfd
        self.ooms = out_of_memory()
        self.size = 0


class Keeper:
    """`folder` is where the ends of children are written down."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.children: dict[int, Child] = {}
        self.orders = 0  # the file descriptor that orders come by; -1 once the controller is gone
        self.buffer = b""
        self.poll = select.poll()
        self.poll.register(0, select.POLLIN)
        self.pause = LOOK_MOST
        with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123
            self.boot = file.read().strip()

    def run(self) -> None:
        due = time.monotonic() + self.pause
        while self.orders == 0 or self.children:
            wait = max(0.0, due - time.monotonic()) if self.children else None
            if any(child.pidfd < 0 for child in self.children.values()):
                wait = LOOK_LEAST
            for fd, _ in self.poll.poll(None if wait is None else wait * 1000 + 1):
                if fd == self.orders:
                    self.listen()
            self.reap()
            if time.monotonic() >= due:
                self.tend(time.monotonic() - due + self.pause)
                due = time.monotonic() + self.pause

    def listen(self) -> None:
        piece = posix.read(0, 1 << 16)
        if not piece:
            self.orders = -1
            self.poll.unregister(0)
            return
        self.buffer += piece
        while len(self.buffer) >= 4 and len(self.buffer) >= (end := 4 + int.from_bytes(self.buffer[:4], "big")):
            order, self.buffer = marshal.loads(self.buffer[4:end]), self.buffer[end:]  # noqa: S302
            try:
                answer: tuple[Any, ...] = self.spawn(**order)
            except OSError as error:
                answer = (0, "", error.errno or 0, str(error.filename or ""))
            data = marshal.dumps(answer)
            try:  # noqa: SIM105 - as above
                posix.write(1, len(data).to_bytes(4, "big") + data)
            except OSError:
                pass  # the controller has gone meanwhile; the next one finds the child by its nonce

    def spawn(
        self, argv: list[str], env: dict[str, str], nonce: str, log: str, cwd: str, memory: int, files: int,
        nice: int, cpus: list[int],
    ) -> tuple[int, str, int, str]:  # fmt: skip
        """(pid, start time, 0, ""). Raises OSError."""
        posix.chdir(cwd)
        out = posix.open(log, posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_CLOEXEC, 0o666)
        ours = posix.sched_getaffinity(0)
        bounds = [(kind, most, resource.getrlimit(kind)) for kind, most in limits(memory, files) if most]
        try:
            # A child inherits what holds for us: so they hold for it before its first instruction.
            for kind, most, (_, hard) in bounds:
                resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
            if cpus:
                posix.sched_setaffinity(0, cpus)
            pid = posix.posix_spawn(
                argv[0],
                argv,
                env,
                file_actions=[
                    (posix.POSIX_SPAWN_OPEN, 0, "/dev/null", posix.O_RDONLY, 0),
                    (posix.POSIX_SPAWN_DUP2, out, 1),
                    (posix.POSIX_SPAWN_DUP2, out, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=list(IGNORED),
            )
        finally:
            posix.close(out)
            posix.sched_setaffinity(0, ours)
            for kind, _, before in bounds:
                resource.setrlimit(kind, before)
        if nice:
            posix.setpriority(posix.PRIO_PROCESS, pid, nice)
        child = self.children[pid] = Child(nonce, start_time(pid), log, pidfd(pid))
        if child.pidfd >= 0:
            self.poll.register(child.pidfd, select.POLLIN)
        self.note(pid, f"{nonce} {self.boot} {child.start} {posix.getpid()}")
        return pid, child.start, 0, ""

    def reap(self) -> None:
        while self.children:
            try:
                pid, status, usage = posix.wait4(-1, posix.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.children.pop(pid, None)
            if child is None:
                continue
            if child.pidfd >= 0:
                self.poll.unregister(child.pidfd)
                posix.close(child.pidfd)
            code, oom = posix.waitstatus_to_exitcode(status), int(out_of_memory() > child.ooms)
            about = f"{child.nonce} {self.boot} {child.start} {posix.getpid()}"
            self.note(pid, f"{about} {code} {time.time():.3f} {usage.ru_maxrss * 1024} {oom}")

    def note(self, pid: int, text: str) -> None:
        """Whole or not at all; a full disk costs the exit code."""
        try:
            fd = posix.open(f"{self.folder}/.{pid}", posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC, 0o600)
            try:
                posix.write(fd, text.encode())
            finally:
                posix.close(fd)
            posix.rename(f"{self.folder}/.{pid}", f"{self.folder}/{pid}")
        except OSError:
            pass

    def tend(self, seconds: float) -> None:
        """Keep the logs short, and come back before the fastest of them is long again."""
        rate = 0.0
        for child in list(self.children.values()):
            try:
                size = posix.stat(child.log).st_size
                rate = max(rate, (size - child.size) / seconds)
                child.size = 0 if size >= LOG_LIMIT and set_aside(child.log, between=self.reap) else size
            except OSError:
                continue
        self.pause = min(LOOK_MOST, max(LOOK_LEAST, LOG_LIMIT / 4 / rate)) if rate > 0 else LOOK_MOST


def limits(memory: int, files: int) -> tuple[tuple[int, int], ...]:
    """Memory by RLIMIT_DATA: what is allocated, not the address space, of which engines reserve much more."""
    return (resource.RLIMIT_DATA, memory), (resource.RLIMIT_NOFILE, files)


def pidfd(pid: int) -> int:
    try:
        return posix.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1  # a kernel before 5.3


def start_time(pid: int) -> str:
    """Clock ticks between boot and the start of a child, which is there until it is waited for."""
    try:
        fd = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY)
        try:
            text = posix.read(fd, 4096)
        finally:
            posix.close(fd)
    except OSError:
        return ""
    return text[text.rindex(b")") + 2 :].split()[19].decode()


def out_of_memory() -> int:
    """How often the kernel has killed a process for want of memory."""
    try:
        with open("/proc/vmstat", "rb") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return 0
    at = text.find(b"\noom_kill ")
    return int(text[at + 10 :].split(b"\n", 1)[0]) if at >= 0 else 0


def main() -> int:
    if posix.fork():  # nobody has to wait for us
        return 0
    posix.setsid()
    Keeper(sys.argv[1]).run()
    return 0


if __name__ == "__main__":
    posix._exit(main())
