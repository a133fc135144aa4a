"""`reconcile unload MODEL`."""

from __future__ import annotations

import click

from reconciler.cli.load import TIMEOUT, end
from reconciler.cli.place import SECONDS, Place, verb
from reconciler.client import Client


@click.argument("model")
@click.option("--timeout", type=SECONDS, metavar="TIME", help="Wait at most this long.  [default: 10m]")
@verb("unload")
def command(place: Place, model: str, timeout: float | None) -> None:
    """MODEL is a name that clients use. It ends what it is answering, and its memory is freed; one with
    `start: on_demand` is loaded again when it is next asked for.
    """
    with Client(place.layout()) as client:
        answer = client.unload(model, timeout if timeout is not None else TIMEOUT)
    end(place, answer, answer["unloaded"], f"{answer['ref']} is unloaded")
