"""A controller whose effects are counted, and that dies by SIGKILL at the one it was told.

    python -m tests.crash.victim MANIFEST ROOT RECORD AT before|after

AT is the number of an effect, or the name of one (its first occurrence); 0 never dies. RECORD gets a line for every
effect that began.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

from reconciler.app import control, log_to_stderr
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout


class Deadly(Effects):
    def __init__(self, record: Path, at: str, when: str) -> None:
        self.out = record.open("a", buffering=1)
        self.at, self.when, self.count = at, when, 0
        self.mutex = threading.Lock()
        self.mine = threading.local()

    def before(self, name: str, subject: str) -> None:
        with self.mutex:
            self.count += 1
            # Effects nest (a write makes its folder first): each thread remembers the numbers of its open ones.
            self.mine.open = [*getattr(self.mine, "open", []), self.count]
            self.out.write(f"{self.count} {name} {subject}\n")
            if self.at == name:
                self.at = str(self.count)
            if self.at == str(self.count) and self.when == "before":
                os.kill(os.getpid(), signal.SIGKILL)

    def after(self, name: str, subject: str) -> None:
        if str(self.mine.open.pop()) == self.at and self.when == "after":
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    manifest, root, record, at, when = sys.argv[1:]
    log_to_stderr(verbose=False)
    effects = Deadly(Path(record), at, when)
    asyncio.run(control(Path(manifest), Layout(Path(root)), effects))


if __name__ == "__main__":
    main()
