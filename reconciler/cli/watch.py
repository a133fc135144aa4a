"""`reconcile watch`: the controller in the foreground."""

from __future__ import annotations

import asyncio

from reconciler.app import control, log_to_stderr
from reconciler.cli.place import Place, verb
from reconciler.host.effects import Effects


@verb("watch")
def command(place: Place) -> None:
    layout = place.layout()
    log_to_stderr(verbose=False)
    asyncio.run(control(place.manifest, layout, Effects()))
