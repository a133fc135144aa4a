"""`reconcile init`."""

from __future__ import annotations

import shlex

import click

from reconciler.cli.place import DEFAULT, Place, verb
from reconciler.cli.render import show_json
from reconciler.core.diagnostics import Refused


@verb("init")
@click.option("--force", is_flag=True, help="Replace a manifest that is there.")
def command(place: Place, force: bool) -> None:
    from reconciler.host import hardware
    from reconciler.host.effects import Effects
    from reconciler.host.files import Files
    from reconciler.manifest import schema
    from reconciler.manifest.parse import check
    from reconciler.manifest.starter import SCHEMA, starter

    path, beside = place.manifest, place.manifest.parent / SCHEMA
    if path.is_symlink() or path.exists():
        if path.is_dir():
            raise Refused(f"{path} is a folder", hint="name the manifest with -f FILE")
        if not force:
            hint = "edit it, choose another with -f FILE, or replace it with --force"
            raise Refused(f"{place.file} is already there", hint=hint)
    text = starter(hardware.facts()).encode()
    check(text, path)
    files = Files(Effects())
    files.write(beside, schema.text().encode(), 0o644)
    files.write(path, text, 0o644)
    then = "reconcile" if place.file == DEFAULT else f"reconcile -f {shlex.quote(place.file)}"
    if place.json:
        show_json({"manifest": str(path), "schema": str(beside), "next": then})
    else:
        click.echo(f"{place.file} is written, and {SCHEMA} beside it for editors")
        click.echo(f"next: `{then} --dry-run` shows what it would do, `{then}` does it")
