"""`reconcile resume [REF…]`."""

from __future__ import annotations

import click

from reconciler.cli.pause import ask
from reconciler.cli.place import Place, verb
from reconciler.cli.render import show_json
from reconciler.controller.hands import EVERYTHING, Hold


@click.argument("refs", nargs=-1, metavar="[REF]...")
@verb("resume")
def command(place: Place, refs: tuple[str, ...]) -> None:
    """REF is a resource such as model/chat; a plain name means all that is paused of that name. Without REF: end the
    suspension, and take over what the files say.
    """
    answer = ask(place, Hold(refs, resume=True))
    if place.json:
        show_json(answer)
        return
    for ref in answer["changed"]:
        click.echo("the controller goes on" if ref == EVERYTHING else f"{ref} goes on")
    if not answer["changed"]:
        click.echo(f"{', '.join(refs)}: not paused" if refs else "it is not suspended")
    if not refs and answer["paused"]:
        click.echo(f"still paused: {', '.join(answer['paused'])} (`reconcile resume REF`)")
