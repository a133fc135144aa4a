"""`reconcile diff [A] [B]`: what differs between two generations, or between one and the files as they are now."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from reconciler.app import looking
from reconciler.cli.place import Place, verb
from reconciler.cli.render import field_line, show_json
from reconciler.core.diagnostics import Exit
from reconciler.manifest.compare import differences
from reconciler.manifest.reading import Reading, kept, reading
from reconciler.store.generations import Generations


@verb("diff")
@click.argument("a", type=click.IntRange(1), required=False)
@click.argument("b", type=click.IntRange(1), required=False)
def command(place: Place, a: int | None, b: int | None) -> None:
    """A and B are generations. Without B: the manifest as it is now; without A: the generation in force."""
    layout = place.layout()
    with looking(layout, Path.cwd()) as tools:
        generations = Generations(layout, tools.files, tools.ledger)

        def generation(number: int) -> Reading:
            texts = generations.texts(number)
            return kept(texts.root, texts.files, texts.lock)

        left = generation(a if a is not None else generations.current)
        right = generation(b) if b is not None else reading(place.manifest)
    found = differences(left, right)
    if place.json:
        show_json({"format": "1.0", "fields": [{"path": f.path, "before": f.before, "after": f.after} for f in found]})
    else:
        click.echo("\n".join(field_line(f) for f in found) or "no difference")
    sys.exit(int(Exit.PENDING if found else Exit.DONE))
