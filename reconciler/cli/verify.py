"""`reconcile verify [REF …] [--deep]`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from reconciler.app import looking
from reconciler.cli.place import Place, find, verb
from reconciler.cli.render import columns, moment, show_json
from reconciler.client import Client, NoController
from reconciler.controller import holdings, proving
from reconciler.controller.proving import Check, Progress
from reconciler.core.diagnostics import Exit
from reconciler.core.ids import Ref
from reconciler.core.plan import human_bytes
from reconciler.host.layout import Layout
from reconciler.kinds.base import Tools

COLOURS = {"good": "green", "suspect": "yellow"}


@click.argument("refs", nargs=-1)
@click.option("--deep", is_flag=True, help="Read all bytes, and compare their sha256.")
@verb("verify")
def command(place: Place, refs: tuple[str, ...], deep: bool) -> None:
    """REFS are models such as model/chat. Exit code 1 where a file is not as it should be."""
    layout = place.layout()
    begun = time.monotonic()
    with looking(layout, place.manifest.parent) as tools, shown(quiet=place.json or not deep) as progress:
        desired = proving.wanted(place.manifest, layout)
        held = list(holdings.models(desired, tools.ledger.owned(), tools.ledger.pins()))
        checks = proving.check(tools, desired, _only(refs, held), deep, progress)
    told = _tell(layout, tools, [c for c in checks if c.state != "good"])
    seconds = time.monotonic() - begun
    made = proving.to_json(checks, deep, seconds, told or ())
    if place.json:
        show_json(made)
    else:
        click.echo("\n".join(_lines(checks, deep, seconds, told)))
    sys.exit(int(Exit.DONE if made["good"] else Exit.ERROR))


def _only(names: tuple[str, ...], held: list[Ref]) -> set[Ref]:
    """A server's name means its model."""
    return {find(name.replace("server/", "model/", 1), held) for name in names}


def _tell(layout: Layout, tools: Tools, bad: list[Check]) -> list[str] | None:
    """Have the controller see to what is not good → the sha256 of what it sees to; None where none runs."""
    try:
        with Client(layout) as client:
            return client.suspect({c.piece.digest for c in bad if c.piece.digest}) if bad else []
    except NoController:
        return None


@contextmanager
def shown(quiet: bool) -> Iterator[Progress]:
    """Progress of long reading on a terminal: rate and time left."""
    if quiet or not sys.stdout.isatty():
        yield lambda name, done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    parts = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*parts, TimeRemainingColumn(), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda name, done, total: bars.update(task, description=name, completed=done, total=total)


def _lines(checks: list[Check], deep: bool, seconds: float, told: list[str] | None) -> list[str]:
    if not checks:
        return ["no model is declared or owned"]
    rows = [
        (
            ", ".join(map(str, c.refs)),
            c.name,
            human_bytes(c.size),
            c.state,
            moment(c.checked) if c.checked else "never",
            click.style(c.problem, fg=COLOURS.get(c.state, "red")) if c.problem else "",
        )
        for c in checks
    ]
    lines = columns(("RESOURCE", "FILE", "SIZE", "STATE", "LAST HASHED", ""), rows)
    bad = [c for c in checks if c.state != "good"]
    read = sum(c.proof.size for c in checks if c.proof is not None)
    if deep:
        rate = human_bytes(int(read / seconds)) if seconds > 0 else "0 B"
        lines.append(f"{human_bytes(read)} read in {seconds:.1f} s ({rate}/s)")
    if not bad:
        lines.append("all is as it should be" + ("" if deep else ", as far as can be seen without reading (--deep)"))
    elif told:
        lines.append("the controller was told: it proves these files now, and brings anew what is damaged")
    elif told is None:
        lines.append("`reconcile apply` proves these files, and brings anew what is damaged or missing")
    return lines
