"""`reconcile validate`."""

from __future__ import annotations

import click

from reconciler.cli.place import Place, verb
from reconciler.cli.render import show_diagnostic, show_json


@verb("validate")
def command(place: Place) -> None:
    from reconciler.host import hardware
    from reconciler.manifest.when import dropped

    manifest = place.load()
    labels, faults = hardware.labels(place.layout(manifest).labels)
    for fault in faults:
        show_diagnostic(fault)
    left_out = sorted(".".join(entry) for entry in dropped(manifest.stack, hardware.facts(labels), manifest.document))
    if place.json:
        show_json({"valid": True, "errors": [], "left_out": left_out})
        return
    count = len(manifest.stack.models)
    note = f"; `when` leaves out {', '.join(left_out)} here" if left_out else ""
    click.echo(f"{place.file} is valid: {count} model{'' if count == 1 else 's'}{note}")
