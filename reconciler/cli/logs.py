"""`reconcile logs REF [-f]`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from reconciler.cli.place import Place, verb
from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.host.layout import Layout
from reconciler.supervise.logs import tail


@click.argument("ref")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added.")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="How many; 0 for all.")
@verb("logs", file=("--file",))
def command(place: Place, ref: str, follow: bool, lines: int) -> None:
    path = _find(place.layout(), ref)
    for line in tail(path, lines):
        click.echo(line)
    if follow:
        _follow(path)


def _find(layout: Layout, ref: str) -> Path:
    """`server/chat`, `chat`, `gateway` or `controller` → its log file."""
    folder = layout.root / "logs"
    names = {str(p.relative_to(folder))[: -len(".log")]: p for p in sorted(folder.rglob("*.log"))}
    for name in (ref, f"server/{ref}", f"{ref}/main"):
        if name in names:
            return names[name]
    known = ", ".join(names) or "none yet"
    raise Refused([Diagnostic(f"there is no log of {ref!r}", hint=f"logs are: {known}")])


def _follow(path: Path) -> None:
    """Print what is added until interrupted; starts over when the file is cut or replaced."""
    data = path.open("rb")
    data.seek(0, os.SEEK_END)
    while True:
        piece = data.read()
        if piece:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            continue
        time.sleep(0.1)
        try:
            now = path.stat()
        except OSError:
            continue
        if now.st_ino != os.fstat(data.fileno()).st_ino or now.st_size < data.tell():
            data.close()
            data = path.open("rb")
