"""`reconcile status`."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from reconciler.app import conditions, looking
from reconciler.cli.place import SECONDS, Place, find, verb
from reconciler.cli.render import condition_lines, exit_for, show_json, status_lines
from reconciler.client import Client, NoController
from reconciler.controller import hands
from reconciler.core import status
from reconciler.core.diagnostics import Exit
from reconciler.core.ids import Ref
from reconciler.host.layout import Layout
from reconciler.store.generations import Generations


@click.argument("ref", required=False)
@click.option("--wait", "until", type=click.Choice(["ready"]), help="Wait for that, and exit with 0 once it is so.")
@click.option("--timeout", type=SECONDS, metavar="TIME", help="With --wait: at most this long.  [default: for ever]")
@verb("status")
def command(place: Place, ref: str | None, until: str | None, timeout: float | None) -> None:
    """With REF: every condition of that resource."""
    layout = place.layout()
    deadline = time.monotonic() + timeout if timeout is not None else None
    try:
        with Client(layout) as client:
            snapshot, controller = client.status(), True
            if until and not snapshot["ready"]:
                snapshot = _await(client, deadline)
    except NoController:
        snapshot, controller = _offline(place, layout), False
    one = _resource(snapshot, ref) if ref else None
    if place.json:
        show_json(snapshot if one is None else one)
    elif one is not None:
        click.echo("\n".join(condition_lines(one)))
    else:
        click.echo("\n".join(status_lines(snapshot, controller)))
    sys.exit(int(exit_for(snapshot) if until else Exit.DONE))


def _resource(snapshot: dict[str, Any], name: str) -> dict[str, Any]:
    found = {Ref.parse(resource["ref"]): resource for resource in snapshot["resources"]}
    resource: dict[str, Any] = found[find(name, list(found))]
    return resource


def _await(client: Client, deadline: float | None) -> dict[str, Any]:
    """Follow until everything is ready or time is up → the last snapshot."""
    last: dict[str, Any] = {}
    for message in client.follow():
        if message["type"] == "status":
            last = message
        if last["ready"] or (deadline is not None and time.monotonic() >= deadline):
            break
    return last


def _offline(place: Place, layout: Layout) -> dict[str, Any]:
    """The same snapshot from disk and process table, when no controller runs."""
    view, now, faults = conditions(place.manifest, layout)
    with looking(layout, place.manifest.parent) as tools:
        generations, by_hand = Generations(layout, tools.files, tools.ledger), hands.held(tools.ledger)
        held, promise = generations.held, generations.promise
    return {
        "format": "1.0",
        "controller": None,
        "manifest": {
            "path": str(place.manifest),
            "generation": now.number if now is not None else 0,
            "state": now.state if now is not None else "",
            "targets": list(now.targets) if now is not None else [],
            "held_back": bool(held),
            "confirm_by": promise.deadline if promise is not None else None,
            "faults": [d.to_json() for d in faults],
        },
        "ready": view.ready and not faults,
        "settled": True,
        "outside_targets": view.plan.outside,
        "resources": status.to_json(view.conditions),
        "working": {},
        "progress": {},
        **by_hand,
    }
