"""`reconcile logs REF… [-f] [-n N] [--since 5m]`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from reconciler.cli.place import SECONDS, Place, verb
from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.host.layout import Layout
from reconciler.supervise.logs import Follower, history

EVERY = 0.1  # seconds between two looks at what was added


@click.argument("ref", nargs=-1, required=True)
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added.")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="How many; 0 for all.")
@click.option("--since", type=SECONDS, default=0.0, metavar="TIME", help="Only what is not older: 5m, 1h.")
@verb("logs", file=("--file",))
def command(place: Place, ref: tuple[str, ...], follow: bool, lines: int, since: float) -> None:
    found = dict(_find(place.layout(), name) for name in ref)
    wide = max(map(len, found))
    heads = {name: f"{name:{wide}} | ".encode() if len(found) > 1 else b"" for name in found}
    followers = {name: Follower(path) for name, path in found.items()}
    for name, path in found.items():
        for line in history(path, lines, time.time() - since if since else 0.0):
            _print(heads[name], line.encode() + b"\n")
    if not follow and "gateway/main" in found and place.layout().access.exists():
        click.echo("requests, one JSON line each: `reconcile logs gateway/access`", err=True)
    if follow:
        _follow(heads, followers)


def _find(layout: Layout, ref: str) -> tuple[str, Path]:
    """`server/chat`, `chat`, `gateway`, `gateway/access` or `controller` → its name and log file."""
    folder = layout.root / "logs"
    found = sorted([*folder.rglob("*.log"), *folder.rglob("*.jsonl")])
    names = {str(p.relative_to(folder).with_suffix("")): p for p in found}
    for name in (ref, f"server/{ref}", f"{ref}/main"):
        if name in names:
            return name, names[name]
    known = ", ".join(names) or "none yet"
    raise Refused([Diagnostic(f"there is no log of {ref!r}", hint=f"logs are: {known}")])


def _follow(heads: dict[str, bytes], followers: dict[str, Follower]) -> None:
    """Print what is added until interrupted; whole lines only where there are several logs."""
    begun = dict.fromkeys(followers, b"")
    while True:
        quiet = True
        for name, follower in followers.items():
            piece = begun[name] + follower.more()
            cut = piece.rfind(b"\n") + 1 if heads[name] else len(piece)
            begun[name], whole = piece[cut:], piece[:cut]
            if whole:
                quiet = False
                _print(heads[name], whole)
        if quiet:
            time.sleep(EVERY)


def _print(head: bytes, text: bytes) -> None:
    out = sys.stdout.buffer
    if head:
        text = b"".join(head + line for line in text.splitlines(keepends=True))
    out.write(text)
    out.flush()
