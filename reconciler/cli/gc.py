"""`reconcile gc [--yes]`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from reconciler.cli.place import Place, Seconds, verb
from reconciler.cli.render import columns, show_json
from reconciler.client import Client, NoController
from reconciler.core.diagnostics import Exit
from reconciler.core.plan import human_bytes
from reconciler.host.layout import Layout


class Age(Seconds):
    """As a time, with days: `7d`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        if text.endswith("d") and text[:-1].isdigit():
            return float(text[:-1]) * 86_400
        return super().convert(value, param, ctx)


@click.option("--keep-generations", type=click.IntRange(1), metavar="N", help="Let go of older generations first.")
@click.option(
    "--older", type=Age(), default="7d", metavar="TIME", help="How long quarantine and parts stay.  [default: 7d]"
)
@click.option(
    "--yes", is_flag=True, help="Do it. Without this, only say what would go; exit code 2 when something would."
)
@verb("gc")
def command(place: Place, yes: bool, older: float, keep_generations: int | None) -> None:
    layout = place.layout()
    found = _collect(place, layout, yes, older, keep_generations)
    if place.json:
        show_json(found)
    else:
        click.echo("\n".join(_lines(found)))
    sys.exit(int(Exit.PENDING if found["go"] and not found["done"] else Exit.DONE))


def _collect(place: Place, layout: Layout, yes: bool, older: float, keep: int | None) -> dict[str, Any]:
    try:
        with Client(layout) as client:
            return client.gc(yes=yes, older=older, keep_generations=keep)
    except NoController:
        from reconciler.store import lock

        if lock.owner(layout) is not None:
            raise
    from reconciler.app import collect

    return asyncio.run(collect(place.manifest, layout, older, keep, yes))


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    if found["stay"]:
        rows = [(i["what"], _name(i), human_bytes(i["size"]), i["why"]) for i in found["stay"]]
        lines += [*columns(("STAYS", "WHAT", "SIZE", "WHY"), rows), ""]
    if found["go"]:
        rows = [(i["what"], _name(i), human_bytes(i["size"]), i["why"]) for i in found["go"]]
        lines += [*columns(("GONE" if found["done"] else "GOES", "WHAT", "SIZE", "WHY"), rows), ""]
    lines += [click.style(f"note: {note}", fg="yellow") for note in found["notes"]]
    if found["done"]:
        lines.append(f"{human_bytes(found['freed'])} freed")
    elif found["go"]:
        lines.append(f"{human_bytes(found['size'])} would be freed: `reconcile gc --yes` does it")
    else:
        lines.append("nothing to remove")
    return lines


def _name(item: dict[str, Any]) -> str:
    """The last part of the path; of a sha256 its beginning."""
    name = str(item["path"]).rpartition("/")[2]
    return name[:12] + name[64:] if len(name) >= 64 else name
