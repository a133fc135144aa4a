"""`reconcile confirm`."""

from __future__ import annotations

import click

from reconciler.cli.place import Place, verb
from reconciler.cli.render import show_json
from reconciler.client import Client


@verb("confirm")
def command(place: Place) -> None:
    with Client(place.layout()) as client:
        number = client.confirm()
    if place.json:
        show_json({"confirmed": number})
    else:
        click.echo(f"generation {number} stays")
