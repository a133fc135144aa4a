"""`reconcile lock [--check | --upgrade [REF …]]`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from reconciler.app import lock_alone, preview
from reconciler.cli.place import Place, verb
from reconciler.cli.render import show_diagnostic, show_json
from reconciler.client import Client, NoController
from reconciler.core.diagnostics import Diagnostic, Exit
from reconciler.host.layout import Layout
from reconciler.manifest import lock as locks
from reconciler.store import lock as root_lock


@click.argument("refs", nargs=-1)
@click.option("--check", is_flag=True, help="Only say what is not pinned; exit code 2 when something is not.")
@click.option("--upgrade", is_flag=True, help="Look anew at what sources are now: REFS only, or everything.")
@verb("lock")
def command(place: Place, refs: tuple[str, ...], check: bool, upgrade: bool) -> None:
    """REFS are resources such as model/chat."""
    layout = place.layout(place.load())
    if refs and not upgrade:
        raise click.UsageError("REFS go with --upgrade")
    if check and upgrade:
        raise click.UsageError("--check and --upgrade exclude each other")
    if check:
        _check(place, layout)
        return
    named = [str(ref) for ref in sorted(place.refs(refs))] if upgrade else None
    answer = _renew(place, layout, named)
    if place.json:
        show_json(answer)
    else:
        path = locks.beside(place.manifest)
        what = f"changed: {', '.join(answer['changed'])}" if answer["changed"] else "nothing changed"
        click.echo(f"{path.name}: {answer['pins']} pins; {what}")
    for fault in answer["faults"]:
        show_diagnostic(Diagnostic(fault["message"], hint=fault["hint"], path=fault["ref"]))
    sys.exit(int(Exit.ERROR if answer["faults"] else Exit.DONE))


def _check(place: Place, layout: Layout) -> None:
    made = preview(place.read(), layout)
    missing = made.reading.gaps(made.view.world.desired)
    if place.json:
        show_json({"complete": not missing, "missing": [d.to_json() for d in missing]})
    else:
        for diagnostic in missing:
            show_diagnostic(diagnostic)
        if not missing:
            click.echo(f"{locks.beside(place.manifest).name} pins everything that is wanted here")
    sys.exit(int(Exit.PENDING if missing else Exit.DONE))


def _renew(place: Place, layout: Layout, refs: list[str] | None) -> dict[str, Any]:
    try:
        with Client(layout) as client:
            hello = client.hello()
            if hello["path"] != str(place.manifest):
                click.echo(f"the controller has {hello['path']} in force; its lock is meant", err=True)
            return client.lock(refs)
    except NoController:
        if root_lock.owner(layout) is not None:
            raise
        return asyncio.run(lock_alone(place.manifest, layout, sorted(place.refs(refs)) if refs is not None else None))
