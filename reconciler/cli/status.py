"""`reconcile status`."""

from __future__ import annotations

from typing import Any

import click

from reconciler.app import preview
from reconciler.cli.place import Place, verb
from reconciler.cli.render import show_json, status_lines
from reconciler.client import Client, NoController
from reconciler.core import status
from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.host.layout import Layout


@verb("status")
def command(place: Place) -> None:
    layout = place.layout()
    try:
        with Client(layout) as client:
            snapshot, controller = client.status(), True
    except NoController:
        snapshot, controller = _offline(place, layout), False
    if place.json:
        show_json(snapshot)
    else:
        click.echo("\n".join(status_lines(snapshot, controller)))


def _offline(place: Place, layout: Layout) -> dict[str, Any]:
    """The same snapshot from disk and process table, when no controller runs."""
    faults: tuple[Diagnostic, ...] = ()
    manifest = None
    try:
        manifest = place.load()
    except Refused as refused:
        faults = refused.diagnostics
    view = preview(manifest, layout)
    return {
        "format": "1.0",
        "controller": None,
        "manifest": {"path": str(place.manifest), "generation": 0, "faults": [d.to_json() for d in faults]},
        "ready": view.ready and not faults,
        "settled": True,
        "resources": status.to_json(view.conditions),
        "working": {},
        "progress": {},
    }
