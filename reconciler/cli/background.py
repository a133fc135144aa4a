"""Starting the controller in the background."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time

from reconciler import __version__
from reconciler.cli.place import Place
from reconciler.client import Client, NoController
from reconciler.core.diagnostics import Diagnostic, Exit, Refused
from reconciler.host.effects import Effects
from reconciler.host.files import Files, disk_faults, disk_full
from reconciler.host.layout import Layout

PATIENCE = 20.0  # seconds for a controller to answer


def ensure_controller(place: Place, layout: Layout) -> None:
    """Return once a controller of our version answers on this data root, started by us if need be.

    One of another version is asked to go: what runs is handed from the one to the other. Raises Refused, Fault.
    """
    found = version(layout)
    if found == __version__:
        return
    if found:
        _retire(layout)
    log = layout.log("controller")
    with disk_faults(log):
        Files(Effects()).folder(log.parent)
        out = log.open("ab")
    argv = [sys.executable, "-P", "-m", "reconciler", "watch", "--when-asked", "-f", str(place.manifest)]
    with out:
        start = out.tell()
        child = subprocess.Popen(
            [*argv, "--data-root", str(layout.root)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd=layout.root,
        )
    deadline = time.monotonic() + PATIENCE
    while version(layout) != __version__:
        code = child.poll()
        # Somebody else may have started one in the same moment: theirs will do.
        if code is not None and code != Exit.LOCKED:
            with log.open("rb") as text:
                text.seek(start)
                said = text.read().decode(errors="replace").strip()
            if not said and shutil.disk_usage(layout.root).free < 1 << 20:
                raise disk_full(log, 0)  # not even its last words could be written
            hint = f"its log: {log}"
            raise Refused([Diagnostic(f"the controller did not start (exit code {code}):\n{said}", hint=hint)])
        if time.monotonic() > deadline:
            raise Refused(
                f"no controller answers on {layout.control_socket} after {PATIENCE:.0f} s",
                hint=f"see {log}",
                exit_code=Exit.LOCKED if code == Exit.LOCKED else Exit.ERROR,
            )
        time.sleep(0.02)


def version(layout: Layout) -> str:
    """The version of the controller that answers on this data root; empty where none does."""
    try:
        with Client(layout, timeout=5.0) as client:
            return str(client.hello()["version"])
    except NoController:
        return ""


def _retire(layout: Layout) -> None:
    from reconciler.store.lock import owner

    with contextlib.suppress(NoController), Client(layout) as client:
        client.shutdown()
    deadline = time.monotonic() + PATIENCE
    while owner(layout) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
