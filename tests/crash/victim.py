"""A controller in a process of its own, to which something happens: `Orders` say what.

It notes every effect that begins in `effects.txt` of its folder, its own log goes to `victim.log` there. Tests steer it
through files in that folder: while `broken` is there a lasting fault lasts, and `clock` holds the seconds by which its
wall clock is wrong.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# These are imported late by the product. Here they must be there before the fork, so that a controller starts at once.
import httpx2  # noqa: F401
import watchfiles  # noqa: F401

from reconciler.app import control, log_to_stderr
from reconciler.controller import control as control_api  # noqa: F401
from reconciler.controller import daemon  # noqa: F401
from reconciler.core.diagnostics import Fault, Refused
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from tests.crash import disk, world


@dataclass(frozen=True)
class Orders:
    """What happens to a controller; by default nothing.

    `at` is the number of an effect, or the name of one (its first occurrence).
    """

    at: str = ""
    what: str = ""  # before | after: it dies there; ENOSPC | EIO | short: its disk fails; a number: its clock jumps
    lasting: bool = False  # the disk fails from there on until it is mended, not only in that effect
    hasty: bool = False  # backoffs and forgiveness take tenths of seconds
    ports: tuple[int, ...] = ()  # the first ports that are found to be free
    robbed: int = 0  # a port that another process takes just before the gateway is spawned
    lose: tuple[str, ...] = ()  # edits: saved files are not noticed; exits: the end of a process is not
    double: bool = False  # every wake comes twice
    stale: int = 0  # every so many looks, one shows what the one before it had shown


class Disturbed(Effects):
    """Counts effects, and carries out what is ordered at one of them."""

    def __init__(self, orders: Orders, folder: Path) -> None:
        self.orders, self.folder = orders, folder
        self.out = (folder / "effects.txt").open("a", buffering=1)
        self.at, self.count = orders.at, 0
        self.mutex = threading.Lock()

    @contextmanager
    def __call__(self, name: str, subject: object = "") -> Iterator[None]:
        with self.mutex:
            self.count += 1
            number = str(self.count)
            self.out.write(f"{number} {name} {subject}\n")
            if self.at == name:
                self.at = number
        if number != self.at:
            yield
            return
        what = self.orders.what
        if what == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what.lstrip("-").isdigit():
            (self.folder / "clock").write_text(what)
        with disk.failing(what, self.orders.lasting, self.folder):
            yield
        if what == "after":
            os.kill(os.getpid(), signal.SIGKILL)


def main(manifest: str, root: str, folder: str, orders: Orders) -> None:
    """Be the controller, until told to stop or killed. Refusals are messages in the log, as on the command line."""
    log = os.open(Path(folder) / "victim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    log_to_stderr(verbose=False)
    world.disturb(orders, Path(folder))
    os.chdir(folder)
    tempfile.gettempdir()  # found by trying, which leaves files behind on a disk where nothing can be removed
    if orders.what in disk.FAULTS:
        disk.patch()
    try:
        asyncio.run(control(Path(manifest), Layout(Path(root)), Disturbed(orders, Path(folder))))
    except (Refused, Fault) as refusal:
        sys.exit(f"refused: {refusal}")
