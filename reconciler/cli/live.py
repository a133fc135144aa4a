"""What the controller does, as it does it: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from reconciler.cli.render import progress_words

Show = Callable[[dict[str, Any]], None]


@contextmanager
def display(quiet: bool = False) -> Iterator[Show]:
    """A function that takes the controller's messages and shows them."""
    if quiet:
        yield lambda message: None
    elif sys.stdout.isatty():
        with _terminal() as show:
            yield show
    else:
        yield _lines


def _lines(message: dict[str, Any]) -> None:
    if message["type"] == "event":
        event = message["event"]
        click.echo(f"  {event['ref']}: {event['type']}: {event['message']}")


@contextmanager
def _terminal() -> Iterator[Show]:
    from rich.live import Live

    with Live(refresh_per_second=12, transient=True) as live:

        def show(message: dict[str, Any]) -> None:
            if message["type"] == "status":
                live.update(_table(message))
            elif message["event"]["type"] in ("Failed", "Exited", "Quarantined", "Rejected"):
                event = message["event"]
                live.console.print(f"[red]{event['ref']}[/]: {event['message']}", highlight=False)

        yield show


def _table(snapshot: dict[str, Any]) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    for resource in snapshot["resources"]:
        ref, ready = resource["ref"], resource["conditions"][0]
        progress, work = snapshot["progress"].get(ref), snapshot["working"].get(ref)
        done = ready["status"] == "True"
        rest = Text("‖", "yellow") if ready["reason"] in ("Paused", "Suspended") else Text("·", "dim")
        mark: Any = Text("✓", "green") if done else Spinner("dots") if work else rest
        if progress and progress["total"]:
            bar: Any = ProgressBar(progress["total"], progress["done"], width=24)
        else:
            bar = Text(ready["reason"] if done or not work else "", "dim")
        table.add_row(mark, Text(ref, "bold"), bar, Text(_note(ready, progress, work)))
    return table


def _note(ready: dict[str, Any], progress: dict[str, Any] | None, work: str | None) -> str:
    if progress is None:
        return work or str(ready["message"])
    if not progress["done"]:
        return str(progress["what"])
    return f"{progress['what']} {progress_words(progress)}"
