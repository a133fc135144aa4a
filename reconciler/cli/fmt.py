"""`reconcile fmt`."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import click

from reconciler.cli.place import Place, verb
from reconciler.cli.render import show_json
from reconciler.core.diagnostics import Diagnostic, Exit, Refused


@verb("fmt")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--check", is_flag=True, help="Change nothing; exit code 2 when a file would be changed.")
def command(place: Place, files: tuple[str, ...], check: bool) -> None:
    named = files or (place.file,)
    texts = _tidied(named)
    changed = [name for name, (before, after) in texts.items() if before != after]
    if not check:
        for name in changed:
            _write(Path(name).expanduser().resolve(), texts[name][1])
    if place.json:
        show_json({"files": [{"file": name, "changed": name in changed} for name in texts], "check": check})
    else:
        for name in changed:
            click.echo(f"{name} {'would be' if check else 'is now'} tidy")
    sys.exit(int(Exit.PENDING if check and changed else Exit.DONE))


def _tidied(names: tuple[str, ...]) -> dict[str, tuple[bytes, bytes]]:
    """Each file before and after. Raises Refused with the faults of all of them: then none is touched."""
    from reconciler.manifest.tidy import tidy

    out: dict[str, tuple[bytes, bytes]] = {}
    faults: list[Diagnostic] = []
    for name in names:
        path = Path(name).expanduser()
        try:
            if path.exists() and not path.is_file():
                raise Refused(f"{name} is not a file")
            text = path.read_bytes()
            out[name] = text, tidy(text, name)
        except OSError as error:
            faults.append(Diagnostic(f"{name} cannot be read: {error.strerror}"))
        except Refused as refused:
            faults += refused.diagnostics
    if faults:
        raise Refused(faults)
    return out


def _write(path: Path, text: bytes) -> None:
    from reconciler.host.effects import Effects
    from reconciler.host.files import Files

    Files(Effects()).write(path, text, stat.S_IMODE(path.stat().st_mode))
