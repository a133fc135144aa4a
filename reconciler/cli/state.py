"""`reconcile state show | export | rebuild`: the ledger, for people."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from reconciler.app import looking, rebuild
from reconciler.cli.place import Place, verb
from reconciler.cli.render import columns, moment, show_json
from reconciler.kinds.base import Tools
from reconciler.store.generations import Generations


@click.argument("what", type=click.Choice(["show", "export", "rebuild"]), default="show")
@verb("state")
def command(place: Place, what: str) -> None:
    """`show` is for reading, `export` prints every table as JSON, `rebuild` makes a ledger that was lost again."""
    layout = place.layout()
    if what == "rebuild":
        found = asyncio.run(rebuild(place.manifest, layout))
        aside = f"; {found.damaged} damaged files were set aside" if found.damaged else ""
        if place.json:
            show_json(asdict(found))
        else:
            click.echo(
                f"found again: {found.generations} generations, {found.processes} processes, "
                f"{found.artifacts} verified files{aside}\n`reconcile apply` takes over what is as declared"
            )
        return
    with looking(layout, Path.cwd()) as tools:
        if what == "export":
            show_json({"format": "1.0", **tools.ledger.export()})
            return
        shown = _summary(tools)
    if place.json:
        show_json(shown)
        return
    click.echo(f"{layout.ledger}  lineage {shown['lineage'] or 'none yet'}, serial {shown['serial']}")
    rows = [(o["ref"], o["digest"][:12], "protected" if o["protect"] else "") for o in shown["owned"]]
    click.echo("\n".join(columns(("OWNED", "SPEC", ""), rows)) if rows else "nothing is owned")
    processes = [(p["ref"], str(p["pid"]), f"{p['host']}:{p['port']}", p["started"]) for p in shown["processes"]]
    if processes:
        click.echo("\n" + "\n".join(columns(("PROCESS", "PID", "ADDRESS", "STARTED"), processes)))


def _summary(tools: Tools) -> dict[str, Any]:
    ledger = tools.ledger
    return {
        "format": "1.0",
        "lineage": ledger.lineage,
        "serial": ledger.serial,
        "epoch": int(ledger.meta("epoch", "0")),
        "generation": Generations(tools.layout, tools.files, ledger).current,
        "owned": [{"ref": str(o.ref), "digest": o.digest, "protect": o.protect} for o in ledger.owned().values()],
        "processes": [
            {
                "ref": str(row.ref),
                "pid": row.identity.pid if row.identity is not None else None,
                "host": row.host,
                "port": row.port,
                "started": moment(row.created),
                "ready": row.ready is not None,
            }
            for row in ledger.processes()
        ],
        "pins": ledger.pins(),
        "artifacts": [asdict(a) for a in ledger.artifacts()],
    }
