"""`reconcile apply`: show the plan, have the controller carry it out, wait until it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from reconciler.app import preview
from reconciler.cli.background import ensure_controller
from reconciler.cli.place import Place, verb
from reconciler.cli.render import exit_for, plan_lines, show_diagnostic, show_json
from reconciler.client import Client
from reconciler.core.diagnostics import Diagnostic, Exit, Where
from reconciler.core.planner import refuse_emptying


@click.option("--allow-empty", is_flag=True, help="Allow a manifest that would remove all that is owned.")
@click.option("--no-wait", is_flag=True, help="Return once the controller has taken the manifest over.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Wait at most this long.  [default: until it is done]")
@verb("apply")
def command(place: Place, allow_empty: bool = False, no_wait: bool = False, timeout: float | None = None) -> None:
    manifest = place.load()
    layout = place.layout(manifest)
    view = preview(manifest, layout)
    if not allow_empty:
        refuse_emptying(view.plan, view.world)
    if not place.json:
        click.echo("\n".join(plan_lines(view.plan)))
    ensure_controller(place, layout)
    with Client(layout) as client:
        taken = client.apply(manifest.path, allow_empty=allow_empty)
        if no_wait or _rejected(taken) or taken["ready"]:
            last = taken
        else:
            deadline = time.monotonic() + timeout if timeout else None
            last = _wait(client, taken, place, deadline)
    if place.json:
        show_json({"plan": view.plan.to_json(), "status": last})
    sys.exit(int(_conclude(last, place, waited=not no_wait)))


def _wait(client: Client, taken: dict[str, Any], place: Place, deadline: float | None) -> dict[str, Any]:
    """Follow until all is ready, nothing more can be expected, or time is up → the last snapshot."""
    from reconciler.cli.live import display

    last = taken
    try:
        with display(quiet=place.json) as show:
            for last in _snapshots(client, taken["turn"], show):
                if last["ready"] or last["settled"] or _rejected(last):
                    break
                if deadline is not None and time.monotonic() > deadline:
                    break
    except KeyboardInterrupt:
        click.echo(
            "\ninterrupted: the controller goes on in the background\n"
            "    `reconcile status` shows how far it is, `reconcile apply` waits again, `reconcile down` stops it",
            err=True,
        )
        sys.exit(130)
    return last


def _snapshots(client: Client, turn: int, show: Any) -> Iterator[dict[str, Any]]:
    for message in client.follow():
        show(message)
        if message["type"] == "status" and message["controller"]["turn"] >= turn:
            yield message


def _rejected(snapshot: dict[str, Any]) -> bool:
    return bool(snapshot["manifest"]["faults"])


def _conclude(last: dict[str, Any], place: Place, waited: bool) -> Exit:
    for fault in last["manifest"]["faults"]:
        where = Where(**fault["where"]) if fault["where"] else None
        show_diagnostic(Diagnostic(fault["summary"], where, fault["hint"], fault["path"]))
    if _rejected(last):
        return Exit.ERROR
    if not waited:
        return Exit.DONE
    code = exit_for(last)
    if place.json:
        return code
    if code is Exit.DONE:
        gateway = next((r for r in last["resources"] if r["ref"].startswith("gateway/")), None)
        address = f": {gateway['conditions'][0]['message']}" if gateway else ""
        click.echo(click.style("ready", fg="green", bold=True) + address)
        return code
    for resource in last["resources"]:
        ready = resource["conditions"][0]
        if ready["status"] != "True":
            click.echo(f"{click.style(resource['ref'], bold=True)}: {ready['reason']}: {ready['message']}", err=True)
    click.echo("not everything is ready; the controller goes on trying (`reconcile status`)", err=True)
    return code
