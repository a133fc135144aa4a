"""`reconcile bundle export|import FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from reconciler.cli.place import Place, verb
from reconciler.cli.render import show_json


@click.argument("archive", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("what", type=click.Choice(["export", "import"]))
@verb("bundle")
def command(place: Place, what: str, archive: Path) -> None:
    """FILE is a tar file, which `export` writes and `import` takes in: with the same manifest, and no controller."""
    from reconciler.app import bundle
    from reconciler.controller.bundle import told

    made = bundle(place.manifest, place.layout(place.load()), archive, taking=what == "import")
    if place.json:
        show_json(made.to_json())
        return
    new = f", {made.new} of them new here" if what == "import" else ""
    click.echo(f"{archive}: {told(made)}{new}")
    for note in made.notes:
        click.echo(click.style(f"note: {note}", fg="yellow"))
