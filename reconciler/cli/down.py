"""`reconcile down [--purge]`."""

from __future__ import annotations

import asyncio

import click

from reconciler.app import control, looking
from reconciler.cli.place import Place, verb
from reconciler.cli.render import show_json
from reconciler.client import Client, NoController
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from reconciler.store import lock


@click.option("--purge", is_flag=True, help="Also remove what was downloaded and installed.")
@verb("down")
def command(place: Place, purge: bool) -> None:
    layout = place.layout()
    if not layout.ledger.exists():
        _say(place, f"nothing is owned in {layout.root}")
        return
    from reconciler.cli.live import display

    try:
        with Client(layout) as client, display(quiet=place.json) as show:
            for message in client.down(purge=purge):
                show(message)
    except NoController:
        if lock.owner(layout) is None:
            asyncio.run(control(place.manifest, layout, Effects(), "purge" if purge else "down"))
    if not purge:
        _say(place, "everything is stopped; downloads are kept (--purge removes them)")
        return
    _sweep(layout)
    with looking(layout, place.manifest.parent) as tools:
        kept = ", ".join(str(ref) for ref in tools.ledger.owned())
    _say(place, "everything is stopped and removed" + (f", except what is protected: {kept}" if kept else ""))


def _say(place: Place, text: str) -> None:
    if place.json:
        show_json({"done": text})
    else:
        click.echo(text)


def _sweep(layout: Layout) -> None:
    """What belongs to no resource: parts of downloads, files in quarantine."""
    from reconciler.host.files import Files

    files = Files(Effects())
    for folder in (layout.partial, layout.quarantine):
        files.remove_tree(folder)
