"""`reconcile watch`: the controller in the foreground."""

from __future__ import annotations

import asyncio

import click

from reconciler.app import control, log_to_stderr
from reconciler.cli.place import Place, verb
from reconciler.host.effects import Effects


@click.option("--when-asked", is_flag=True, hidden=True, help="Do nothing before the first request to apply.")
@verb("watch")
def command(place: Place, when_asked: bool) -> None:
    layout = place.layout()
    log_to_stderr(verbose=False)
    asyncio.run(control(place.manifest, layout, Effects(), "wait" if when_asked else "run"))
