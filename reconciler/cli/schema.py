"""`reconcile schema [NAME]`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from reconciler.cli.place import Place, verb

NAMES = ("stack", "plan", "status", "control", "output")


@click.argument("name", type=click.Choice(NAMES), default="stack")
@verb("schema")
def command(place: Place, name: str) -> None:
    """NAME is the manifest (stack), what `plan` and `status` print, the control API, or what other verbs print."""
    click.echo(_text(name), nl=False)


def _text(name: str) -> str:
    if name == "stack":
        from reconciler.manifest.schema import text

        return text()
    root = files("reconciler")
    file = f"{name}.schema.json"
    shipped = root / "_data" / "schemas" / file
    checkout = Path(str(root)).parent / "schemas" / file  # as it is in an editable install
    return (shipped if shipped.is_file() else checkout).read_text(encoding="utf-8")
