"""`reconcile pause [REF…]`."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from reconciler.cli.place import Place, verb
from reconciler.cli.render import moment, show_json
from reconciler.client import Client, NoController
from reconciler.controller.hands import EVERYTHING, Hold
from reconciler.store import lock


@click.argument("refs", nargs=-1, metavar="[REF]...")
@click.option("--discard", is_flag=True, help="Also throw away what has come of the download (cancel it).")
@verb("pause")
def command(place: Place, refs: tuple[str, ...], discard: bool) -> None:
    """REF is a resource such as model/chat; a plain name means the model of that name. Nothing is begun for it until
    `reconcile resume REF`, whatever is restarted meanwhile: a download stops and keeps what has come, a server is not
    started or replaced (one that runs goes on), the gateway's routes stay as they are. `reconcile down`, and taking it
    out of the manifest, still remove it.

    Without REF the controller is suspended: it takes over no file and corrects nothing, but keeps what serves serving.
    Saved plans and `apply --target` are still carried out.
    """
    answer = ask(place, Hold(refs, discard=discard))
    if place.json:
        show_json(answer)
        return
    if not refs:
        new = EVERYTHING in answer["changed"]
        since = f" since {moment(answer['suspended'])}"
        click.echo("suspended, until `reconcile resume`" if new else f"it is suspended already,{since}")
    for ref, at in answer["paused"].items():
        if ref in answer["changed"]:
            click.echo(f"{ref} is paused, until `reconcile resume {ref}`")
        elif refs and _named(ref, refs):
            click.echo(f"{ref} is paused already, since {moment(at)}")
    for ref in answer["stopping"]:
        click.echo(f"{ref}: stops once the step in hand is done")
    for ref in answer["discarded"]:
        click.echo(f"{ref}: what had come of it was thrown away")


def ask(place: Place, hold: Hold) -> dict[str, Any]:
    """Have the controller do it, or write it down for the next one."""
    layout = place.layout()
    try:
        with Client(layout) as client:
            return client.resume(hold.names) if hold.resume else client.pause(hold.names, discard=hold.discard)
    except NoController:
        if lock.owner(layout) is not None:
            raise
    from reconciler.app import hold_alone

    return asyncio.run(hold_alone(place.manifest, layout, hold))


def _named(ref: str, names: tuple[str, ...]) -> bool:
    return any(name in (ref, ref.partition("/")[2], ref.partition("/")[0]) for name in names)
