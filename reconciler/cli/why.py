"""`reconcile why REF`: the chain of events that led to how a resource is now."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from reconciler.app import conditions, looking
from reconciler.cli.place import Place, find, verb
from reconciler.cli.render import moment, show_json
from reconciler.client import Client, NoController
from reconciler.core import status
from reconciler.core.chain import chain
from reconciler.core.ids import Ref
from reconciler.core.plan import Change


@click.argument("ref")
@verb("why")
def command(place: Place, ref: str) -> None:
    layout = place.layout()
    view, _, _ = conditions(place.manifest, layout)
    found = find(ref, list(view.conditions))
    group = next(r for r in status.to_json(view.conditions) if r["ref"] == str(found))["conditions"]
    try:
        with Client(layout) as client:  # it knows what it watches, such as a server that does not answer
            told = {r["ref"]: r["conditions"] for r in client.status()["resources"]}
            group = told.get(str(found), group)
    except NoController:
        pass
    declared, change = view.world.desired.get(found), view.plan.change(found)
    with looking(layout, place.manifest.parent) as tools:
        needs = [str(need) for need in declared.needs] if declared is not None else []
        links = chain(str(found), needs, tools.ledger.operations(10_000), tools.ledger.events(limit=10_000))
    if place.json:
        where = str(declared.where) if declared is not None and declared.where else None
        show_json({"format": "1.0", "ref": str(found), "conditions": group, "where": where,
                   "chain": [asdict(link) for link in links], "next": _next(change)})  # fmt: skip
        return
    click.echo("\n".join(_head(found, group, declared)))
    for link in links:
        click.echo(f"  {moment(link.at)}  {link.ref}  {link.text}")
    if change is not None:
        click.echo(f"next: {_next(change)}")


def _head(ref: Ref, group: list[dict[str, Any]], declared: Any) -> list[str]:
    ready = group[0]
    since = f" since {moment(ready['since'])}" if ready["since"] else ""
    note = f": {ready['message']}" if ready["message"] else ""
    lines = [f"{click.style(str(ref), bold=True)} Ready={ready['status']} {ready['reason']}{note}{since}"]
    if declared is not None and declared.where:
        lines.append(f"declared in {declared.where}")
    return lines


def _next(change: Change | None) -> str:
    if change is None:
        return ""
    first = change.actions[0] if change.actions else None
    if first is None:
        return change.reason
    return f"{first.text}, because {change.reason}" + (f" ({first.hold})" if first.hold else "")
