"""`reconcile apply`: show the plan, have the controller carry it out, wait until it is done."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from reconciler.app import looking, preview
from reconciler.cli.background import ensure_controller
from reconciler.cli.place import SECONDS, Place, targets, verb
from reconciler.cli.render import exit_for, plan_lines, show_diagnostic, show_json
from reconciler.client import Client
from reconciler.core import planner
from reconciler.core.diagnostics import Diagnostic, Exit, Refused


@click.argument("saved", required=False, type=click.Path(path_type=Path))
@click.option("--allow-empty", is_flag=True, help="Allow a manifest that would remove all that is owned.")
@click.option("--locked", is_flag=True, help="Resolve nothing: refuse what the lock does not pin.")
@click.option(
    "--confirm-within", type=SECONDS, metavar="TIME", help="Go back unless `reconcile confirm` comes in time."
)
@click.option("--no-wait", is_flag=True, help="Return once the controller has taken the manifest over.")
@click.option("--timeout", type=SECONDS, metavar="TIME", help="Wait at most this long.  [default: until it is done]")
@click.option("-y", "--yes", is_flag=True, hidden=True, help="Accepted for scripts: nothing is ever asked.")
@targets
@verb("apply")
def command(
    place: Place,
    saved: Path | None = None,
    target: tuple[str, ...] = (),
    allow_empty: bool = False,
    locked: bool = False,
    confirm_within: float | None = None,
    no_wait: bool = False,
    timeout: float | None = None,
    yes: bool = False,
) -> None:
    """SAVED is a plan of `reconcile plan --out`."""
    binding = None
    if saved is not None:
        kept = _read_saved(saved)
        place.file, place.data_root, target, binding = (
            kept["manifest"],
            kept["data_root"],
            kept["targets"],
            kept["binding"],
        )
    reading = place.read()
    layout = place.layout(reading.manifest)
    made = preview(reading, layout, place.refs(target), ahead=not locked)
    planner.refuse_denied(made.view.plan)
    if not allow_empty:
        planner.refuse_emptying(made.view.plan, made.view.world)
    planner.refuse_halted(place.refs(target), binding is not None, made.view.world)
    if binding is not None:
        made.refuse_stale(binding)
    if locked:
        made.refuse_gaps()
    if not place.json:
        click.echo("\n".join(plan_lines(made.view.plan)))
    ensure_controller(place, layout)
    with Client(layout) as client:
        taken = client.apply(
            place.manifest,
            allow_empty=allow_empty,
            targets=target,
            locked=locked,
            confirm_within=confirm_within or 0.0,
            binding=binding,
        )
        last = taken if no_wait else wait(client, taken, place, timeout)
    if place.json:
        show_json({"plan": made.view.plan.to_json(), "status": last})
    sys.exit(int(conclude(last, place, waited=not no_wait)))


def _read_saved(path: Path) -> dict[str, Any]:
    hint = "make one with `reconcile plan --out FILE`; the manifest is named with -f"
    try:
        kept = json.loads(path.read_text())
        found = {key: kept[key] for key in ("manifest", "data_root", "targets", "binding")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{path} is not a saved plan", hint=hint) from error
    if str(kept.get("format", "")).partition(".")[0] != "1":
        raise Refused(f"{path} has format {kept.get('format')!r}, which is not known here", hint=hint)
    return found


def wait(client: Client, taken: dict[str, Any], place: Place, timeout: float | None) -> dict[str, Any]:
    """Follow until all is ready, nothing more can be expected, or time is up → the last snapshot."""
    from reconciler.cli.live import display

    last = taken
    if _over(last):
        return last
    deadline = time.monotonic() + timeout if timeout else None
    try:
        with display(quiet=place.json) as show:
            for last in _snapshots(client, taken["turn"], show):
                if _over(last) or (deadline is not None and time.monotonic() > deadline):
                    break
        with Client(place.layout()) as another:  # it may have gone back since that turn
            now = another.status()
            last = now if now["manifest"]["held_back"] else last
    except KeyboardInterrupt:
        click.echo(
            "\ninterrupted: the controller goes on in the background\n"
            "    `reconcile status` shows how far it is, `reconcile apply` waits again, `reconcile down` stops it",
            err=True,
        )
        sys.exit(130)
    return last


def _over(snapshot: dict[str, Any]) -> bool:
    return bool(snapshot["ready"] or snapshot["settled"] or snapshot["manifest"]["faults"])


def _snapshots(client: Client, turn: int, show: Any) -> Iterator[dict[str, Any]]:
    for message in client.follow():
        show(message)
        if message["type"] == "status" and message["controller"]["turn"] >= turn:
            yield message


def conclude(last: dict[str, Any], place: Place, waited: bool, going_back: bool = False) -> Exit:
    """Say how it ended → the exit code. `going_back` is what a person asked for, not what came of an apply."""
    for fault in last["manifest"]["faults"]:
        show_diagnostic(Diagnostic.from_json(fault))
    if last["manifest"]["faults"]:
        return Exit.ERROR
    if not waited:
        return Exit.DONE
    if last["manifest"]["held_back"] and not going_back:
        click.echo(f"gone back: {_why_back(place)} (`reconcile history`)", err=True)
        return Exit.ERROR
    code = exit_for(last)
    if place.json:
        return code
    if code is Exit.DONE:
        gateway = next((r for r in last["resources"] if r["ref"].startswith("gateway/")), None)
        address = f": {gateway['conditions'][0]['message']}" if gateway else ""
        click.echo(click.style("ready", fg="green", bold=True) + address)
        for line in _reminders(last):
            click.echo(line)
        return code
    for resource in last["resources"]:
        ready = resource["conditions"][0]
        if ready["status"] != "True" or ready["reason"] == "Outdated":
            click.echo(f"{click.style(resource['ref'], bold=True)}: {ready['reason']}: {ready['message']}", err=True)
    if last["suspended"] is not None or last["paused"]:
        click.echo("what is paused waits for `reconcile resume` (`reconcile status`)", err=True)
    else:
        click.echo("not everything is ready; the controller goes on trying (`reconcile status`)", err=True)
    return code


def _why_back(place: Place) -> str:
    """From which generation to which, and why, as the controller noted it."""
    with looking(place.layout(), place.manifest.parent) as tools:
        return str([e["message"] for e in tools.ledger.events() if e["type"] == "RolledBack"][-1])


def _reminders(last: dict[str, Any]) -> Iterator[str]:
    if last["manifest"]["targets"]:
        names = ", ".join(last["manifest"]["targets"])
        yield f"only {names} was applied; `reconcile apply` without --target does the rest"
    if last["manifest"]["confirm_by"]:
        left = max(0, int(last["manifest"]["confirm_by"] - time.time()))
        yield f"keep it with `reconcile confirm` within {left} s; otherwise the generation before comes back"
