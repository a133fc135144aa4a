"""`reconcile schema`."""

from __future__ import annotations

import click

from reconciler.cli.place import Place, verb


@verb("schema")
def command(place: Place) -> None:
    from reconciler.manifest.schema import text

    click.echo(text(), nl=False)
