"""`reconcile plan`, `reconcile --dry-run`."""

from __future__ import annotations

import sys

import click

from reconciler.app import preview
from reconciler.cli.place import Place, verb
from reconciler.cli.render import plan_lines, show_json
from reconciler.core.diagnostics import Exit


@verb("plan")
def command(place: Place) -> None:
    manifest = place.load()
    view = preview(manifest, place.layout(manifest))
    if place.json:
        show_json({**view.plan.to_json(), "manifest": str(manifest.path)})
    else:
        click.echo("\n".join(plan_lines(view.plan)))
    sys.exit(int(Exit.DONE if view.plan.empty else Exit.PENDING))
