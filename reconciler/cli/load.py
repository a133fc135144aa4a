"""`reconcile load MODEL`."""

from __future__ import annotations

import sys
from typing import Any

import click

from reconciler.cli.place import SECONDS, Place, verb
from reconciler.cli.render import show_json
from reconciler.client import Client
from reconciler.core.diagnostics import Exit

TIMEOUT = 600.0  # seconds


@click.argument("model")
@click.option("--timeout", type=SECONDS, metavar="TIME", help="Wait at most this long.  [default: 10m]")
@verb("load")
def command(place: Place, model: str, timeout: float | None) -> None:
    """MODEL is a name that clients use. It is loaded now, if it is not, and stays loaded, over restarts too, until
    `reconcile unload MODEL`. Exit code 6 when it cannot be loaded.
    """
    with Client(place.layout()) as client:
        answer = client.load(model, timeout if timeout is not None else TIMEOUT)
    end(place, answer, answer["ready"], f"{answer['ref']} is loaded, until `reconcile unload {model}`")


def end(place: Place, answer: dict[str, Any], done: bool, told: str) -> None:
    """Tell how it went, and exit."""
    if place.json:
        show_json(answer)
    elif done:
        click.echo(told)
    else:
        ready = next(c for c in answer["conditions"] if c["type"] == "Ready")
        why = answer.get("why") or ready["message"] or ready["reason"]
        click.echo(f"{answer['ref']}: not yet: {why}", err=True)
    sys.exit(int(Exit.DONE if done else Exit.PARTIAL))
