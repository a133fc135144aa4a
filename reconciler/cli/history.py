"""`reconcile history`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from reconciler.app import looking
from reconciler.cli.place import Place, verb
from reconciler.cli.render import columns, moment, show_json
from reconciler.store.generations import Generation, Generations


@verb("history")
def command(place: Place) -> None:
    layout = place.layout()
    with looking(layout, Path.cwd()) as tools:
        generations = Generations(layout, tools.files, tools.ledger)
        found, current = generations.all(), generations.current
    if place.json:
        show_json({"format": "1.0", "current": current, "generations": [asdict(g) for g in found]})
    elif not found:
        click.echo("nothing was applied yet")
    else:
        head = ("GENERATION", "APPLIED", "STATE", "LOCK", "MANIFEST")
        click.echo("\n".join(columns(head, [_row(g, current) for g in found])))


def _row(generation: Generation, current: int) -> tuple[str, ...]:
    mark = "* " if generation.number == current else "  "
    only = f" ({', '.join(generation.targets)} only)" if generation.targets else ""
    manifest = f"{generation.digest[:12]}  {generation.manifest}{only}"
    return f"{mark}{generation.number}", moment(generation.at), generation.state, generation.locked[:12], manifest
