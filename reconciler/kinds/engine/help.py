"""Asks an engine's program for its flags and its version, by running it with --help and --version.

Promises: what the program does is bounded (5 s, 1 MiB of output, a process group that is ended with all its members,
no input, the small environment of a server); nothing that it prints raises; it is asked once as long as the file is the
same. Neither call loads a model or changes anything, so that plans may make it as well.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from reconciler.host.process import workload_environment
from reconciler.kinds.engine.flags import called, parse
from reconciler.kinds.flags import FlagSet

PATIENCE = 5.0  # seconds; a real one answers in a hundredth of one
MOST = 1 << 20  # bytes; a real help has 60 kB
AGAIN = 600.0  # seconds until one that gave no answer is asked again
LOOK = 0.02  # seconds between two looks at whether it has ended

Identity = tuple[str, int, int, int]  # path, bytes, modification time (ns), inode


@dataclass(frozen=True, slots=True)
class _Asked:
    identity: Identity
    flags: FlagSet
    until: float  # on the monotonic clock


_asked: dict[str, _Asked] = {}


def flags_of(path: Path) -> FlagSet:
    """What the program at `path` says of itself; without flags, and with `why`, where it says nothing of use."""
    try:
        identity = _identity(path)
    except OSError as error:
        return FlagSet(why=f"it cannot be read: {error.strerror}")
    known = _asked.get(str(path))
    if known is None or known.identity != identity or time.monotonic() > known.until:
        flags = _ask(path)
        known = _Asked(identity, flags, time.monotonic() + AGAIN if not flags.known else float("inf"))
        _asked[str(path)] = known
    return known.flags


def _identity(path: Path) -> Identity:
    found = path.stat()
    return str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ino


def _ask(path: Path) -> FlagSet:
    with contextlib.ExitStack() as running:
        try:
            asked = [running.enter_context(_Question(path, word)) for word in ("--help", "--version")]
        except OSError as error:
            return FlagSet(why=f"it cannot be run: {error.strerror or error}")
        deadline = time.monotonic() + PATIENCE
        told, versioned = (question.answer(deadline) for question in asked)
    version = called(versioned.text) if not versioned.why else ""
    if told.why:
        return FlagSet(version=version, why=f"its --help {told.why}")
    return parse(told.text, version)


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    why: str = ""  # it counts for nothing


class _Question:
    """One run of the program, in a process group of its own that does not outlive the `with`."""

    def __init__(self, path: Path, word: str) -> None:
        self._process = subprocess.Popen(
            [str(path), word],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # --version goes there
            cwd="/",
            env=workload_environment({}),
            start_new_session=True,
        )

    def __enter__(self) -> _Question:
        return self

    def __exit__(self, *_: object) -> None:
        # Before it is waited for, while the group's number cannot be another's yet.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def answer(self, deadline: float) -> _Answer:
        """What it prints until it ends: a child of its that holds the pipe open is not waited for."""
        assert self._process.stdout is not None
        pipe, out, ended, closed = self._process.stdout.fileno(), bytearray(), False, False
        os.set_blocking(pipe, False)
        with selectors.DefaultSelector() as waiting:
            waiting.register(pipe, selectors.EVENT_READ)
            while not (ended and closed):
                if time.monotonic() > deadline:
                    return _Answer("", f"did not end within {PATIENCE:g} s")
                ended = ended or self._over()
                if closed:
                    time.sleep(LOOK)
                    continue
                got = _read(pipe) if waiting.select(0 if ended else LOOK) else b"" if ended else None
                closed = got == b""
                out += got or b""
                if len(out) > MOST:
                    return _Answer("", f"prints more than {MOST >> 20} MiB")
        code = self._code()
        if code:
            return _Answer("", f"exited with code {code}" if code > 0 else f"was ended by signal {-code}")
        return _Answer(out.decode("utf-8", "replace"))

    def _over(self) -> bool:
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def _code(self) -> int:
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _read(pipe: int) -> bytes | None:
    """b"" at its end, None where there is nothing yet."""
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return None
