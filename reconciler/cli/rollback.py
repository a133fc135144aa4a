"""`reconcile rollback [N]`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from reconciler.app import looking
from reconciler.cli.apply import conclude, wait
from reconciler.cli.background import ensure_controller
from reconciler.cli.place import SECONDS, Place, verb
from reconciler.cli.render import show_json
from reconciler.client import Client
from reconciler.core.diagnostics import Refused
from reconciler.store.generations import Generations


@click.argument("number", type=click.IntRange(1), required=False)
@click.option("--no-wait", is_flag=True, help="Return once the earlier generation is in force.")
@click.option("--timeout", type=SECONDS, metavar="TIME", help="Wait at most this long.  [default: until it is done]")
@verb("rollback")
def command(place: Place, number: int | None, no_wait: bool, timeout: float | None) -> None:
    """Without NUMBER: to the last one before that became ready."""
    layout = place.layout()
    with looking(layout, Path.cwd()) as tools:
        if not Generations(layout, tools.files, tools.ledger).all():
            raise Refused("there is no earlier generation", hint="nothing was applied yet")
    ensure_controller(place, layout)
    with Client(layout) as client:
        taken = client.rollback(number)
        if not place.json:
            click.echo(f"generation {taken['manifest']['generation']} is in force")
        last = taken if no_wait else wait(client, taken, place, timeout)
    if place.json:
        show_json(last)
    shown = {**last, "manifest": {**last["manifest"], "faults": []}}  # those of the file that was gone back from
    sys.exit(int(conclude(shown, place, waited=not no_wait, going_back=True)))
