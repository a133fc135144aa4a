"""`reconcile events [-f]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from reconciler.app import looking
from reconciler.cli.place import Place, verb
from reconciler.cli.render import moment, show_json
from reconciler.client import Client


@click.argument("ref", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on printing what happens.")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="How many; 0 for all.")
@verb("events", file=("--file",))
def command(place: Place, ref: str | None, follow: bool, lines: int) -> None:
    """REF limits them to one resource, such as server/chat; JSON is one event a line with -f."""
    layout = place.layout()
    with looking(layout, Path.cwd()) as tools:
        found = [e for e in tools.ledger.events(limit=1_000_000) if ref in (None, e["ref"])]
    shown = found[-lines:] if lines else found
    if not follow:
        if place.json:
            show_json({"format": "1.0", "events": shown})
        else:
            click.echo("\n".join(_line(e) for e in shown) or "nothing has happened yet")
        return
    for event in shown:
        click.echo(json.dumps(event) if place.json else _line(event))
    with Client(layout) as client:
        for message in client.events(after=found[-1]["seq"] if found else 0):
            if ref in (None, message["event"]["ref"]):
                click.echo(json.dumps(message["event"]) if place.json else _line(message["event"]))


def _line(event: dict[str, Any]) -> str:
    return f"{moment(event['at'])}  {event['ref']}  {event['type']}: {event['message']}"
