"""`reconcile validate`."""

from __future__ import annotations

import click

from reconciler.cli.place import Place, verb
from reconciler.cli.render import show_json


@verb("validate")
def command(place: Place) -> None:
    stack = place.load().stack
    if place.json:
        show_json({"valid": True, "errors": []})
        return
    count = len(stack.models)
    click.echo(f"{place.file} is valid: {count} model{'' if count == 1 else 's'}")
