"""One controller for one data root: an OS lock that dies with its owner, and a note that says who that is."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import Any

from filelock import FileLock, Timeout

from reconciler.core.diagnostics import Diagnostic, Exit, Fault, Refused
from reconciler.host.files import Files, nearest_folder
from reconciler.host.layout import Layout
from reconciler.host.process import Identity, alive, identify


class RootLock:
    """Held for as long as a controller owns the data root. The kernel lets go when the owner dies."""

    def __init__(self, layout: Layout, files: Files) -> None:
        self._layout, self._files = layout, files
        self._lock = FileLock(layout.lock, mode=0o600)
        self._note = 0

    def acquire(self, manifest: str) -> None:
        """Take the lock and name its owner. Refused with exit code 4 when a living controller holds it."""
        try:
            self._files.folder(self._layout.root)
            self._files.folder(self._layout.run)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Refused([_held(self._layout)], exit_code=Exit.LOCKED) from None
        except Fault as fault:
            raise Refused(fault.message, hint=fault.hint) from fault
        except OSError as error:
            folder = nearest_folder(self._layout.root)
            raise Refused(
                f"the data root {self._layout.root} cannot be written: {error.strerror}",
                hint=f"give this user write access to {folder}, or choose another folder with --data-root",
            ) from error
        me = identify(os.getpid())
        assert me is not None
        note = {"pid": me.pid, "start": me.start, "boot": me.boot, "since": time.time(), "manifest": manifest}
        self._files.write(self._layout.owner, json.dumps(note).encode())
        self._note = self._layout.owner.stat().st_ino

    def held(self) -> bool:
        """Whether our note still lies there: somebody may have removed the data root, and the lock with it."""
        try:
            return self._layout.owner.stat().st_ino == self._note
        except OSError:
            return False

    def release(self) -> None:
        if self.held():  # else it is a successor's note by now
            with suppress(OSError):
                self._layout.owner.unlink(missing_ok=True)
        self._lock.release()


def owner(layout: Layout) -> dict[str, Any] | None:
    """The living controller of this data root ({pid, since, manifest, …}), or None."""
    try:
        note = json.loads(layout.owner.read_text())
        identity = Identity(int(note["pid"]), str(note["start"]), str(note["boot"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note if alive(identity) else None


def _held(layout: Layout) -> Diagnostic:
    note = owner(layout)
    if note is None:
        return Diagnostic(f"the data root {layout.root} is locked by another process", hint="try again in a moment")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note["since"]))
    return Diagnostic(
        f"the data root {layout.root} is held by the controller with pid {note['pid']}, running since {since} "
        f"for {note['manifest']}",
        hint="use that one (`reconcile status`), stop it (`reconcile down`), or give this one another --data-root",
    )
