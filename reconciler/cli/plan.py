"""`reconcile plan`, `reconcile --dry-run`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from reconciler.app import preview
from reconciler.cli.place import Place, targets, verb
from reconciler.cli.render import plan_lines, show_json
from reconciler.core.diagnostics import Exit, Refused


@click.option("--all", "everything", is_flag=True, help="Show what stays as it is, too.")
@click.option("--all-drift", is_flag=True, help="Show drift that is left so, too.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Save the plan, for `apply FILE`.")
@click.option("--offline", is_flag=True, help="Ask no source what it holds, where that is not known yet.")
@targets
@verb("plan")
def command(
    place: Place,
    target: tuple[str, ...] = (),
    everything: bool = False,
    all_drift: bool = False,
    out: Path | None = None,
    offline: bool = False,
) -> None:
    reading = place.read()
    layout = place.layout(reading.manifest)
    made = preview(reading, layout, place.refs(target), ahead=not offline)
    plan = made.view.plan
    if out is not None:
        try:
            out.write_text(json.dumps({**made.to_json(), "data_root": str(layout.root)}, indent=2) + "\n")
        except OSError as error:
            raise Refused(f"{out} cannot be written: {error.strerror}") from error
    if place.json:
        show_json(made.to_json())
    else:
        click.echo("\n".join(plan_lines(plan, everything=everything, drift=all_drift)))
        if out is not None:
            click.echo(f"saved: `reconcile apply {out}` carries it out while nothing has moved")
    denied = Exit.ERROR if all(change.wrong for change in plan.denied) else Exit.DENIED
    sys.exit(int(denied if plan.denied else Exit.DONE if plan.empty else Exit.PENDING))
