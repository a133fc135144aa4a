"""The composition root: the only file that knows every room. The command line calls it, and nobody else."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.controller.turn import View, look
from reconciler.core.ids import Ref
from reconciler.core.state import Declared
from reconciler.host.effects import Denied, Effects
from reconciler.host.fetch import Fetch
from reconciler.host.files import Files
from reconciler.host.layout import Layout
from reconciler.host.process import Processes
from reconciler.kinds.base import Kind, Tools
from reconciler.kinds.engine.io import python_tag
from reconciler.kinds.registry import KINDS
from reconciler.manifest.parse import Manifest
from reconciler.manifest.resolve import resolve
from reconciler.store.blobs import Blobs
from reconciler.store.ledger import Ledger


def tools_for(layout: Layout, base: Path, effects: Effects, ledger: Ledger, kinds: Mapping[str, Kind]) -> Tools:
    """Every tool of one data root, sharing one choke-point for effects."""
    files = Files(effects)

    def found(ref: Ref) -> Any:
        owned = tools.ledger.owned().get(ref)
        declared = tools.desired().get(ref)
        if owned is None and declared is None:
            return None
        desired = {ref: declared} if declared is not None else {}
        return getattr(kinds[ref.kind].observe([ref], desired, tools)[ref], "state", None)

    tools = Tools(
        layout=layout,
        base=base,
        effects=effects,
        files=files,
        processes=Processes(effects),
        fetch=Fetch(files, effects),
        ledger=ledger,
        blobs=Blobs(layout, files, ledger, effects),
        look=found,
    )
    return tools


def preview(manifest: Manifest | None, layout: Layout, purge: bool = False) -> View:
    """Look and plan without any effect, with or without a controller running."""
    base = manifest.path.parent if manifest else Path.cwd()
    desired: Mapping[Ref, Declared] = resolve(manifest, python_tag()) if manifest else {}
    with Ledger.read(layout.ledger) as ledger:
        return look(desired, tools_for(layout, base, Denied(), ledger, KINDS), KINDS, purge)


async def control(path: Path, layout: Layout, effects: Effects, down: str = "") -> None:
    """Be the controller: take the lock, open the ledger, run. `down` (`down` or `purge`) only takes things down."""
    from reconciler.controller.control import serve
    from reconciler.controller.daemon import Controller
    from reconciler.store.lock import RootLock

    lock = RootLock(layout, Files(effects))
    lock.acquire(str(path))
    try:
        ledger = Ledger.write(layout.ledger, effects)
        try:
            tools = tools_for(layout, path.parent, effects, ledger, KINDS)
            controller = Controller(path, tools, KINDS, lock.held)
            tools.desired = controller.desired
            if down:
                controller.take_down(purge=down == "purge")
            await controller.run(serve)
        finally:
            ledger.close()
    finally:
        lock.release()


def log_to_stderr(verbose: bool) -> None:
    """The controller's own log: an event and its pairs, one a line."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose or os.environ.get("RECONCILER_DEBUG") else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("httpcore2").setLevel(logging.WARNING)
