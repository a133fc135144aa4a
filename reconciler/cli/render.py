"""Plans, status and errors as text for a terminal. Colours only there."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from reconciler.client import NoController
from reconciler.core.diagnostics import Diagnostic, Exit, Fault, Refused
from reconciler.core.pace import words
from reconciler.core.plan import Change, FieldChange, Op, Plan, summary
from reconciler.core.status import PRESSURE

COLOURS = {
    Op.CREATE: "green",
    Op.UPDATE: "yellow",
    Op.REPLACE: "magenta",
    Op.RESTART: "yellow",
    Op.DELETE: "red",
    Op.ADOPT: "cyan",
    Op.DENIED: "red",
}


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_error(error: Refused | Fault | NoController, output: str) -> int:
    """Print what was refused, on stderr (JSON on stdout when asked) → the exit code."""
    if isinstance(error, Fault):
        error = Refused([Diagnostic(error.message, hint=error.hint)])
    elif isinstance(error, NoController):
        hint = "`reconcile logs controller` may say why; `reconcile apply` starts another one"
        error = Refused(str(error), hint=hint)
    if output == "json":
        show_json({"errors": [d.to_json() for d in error.diagnostics]})
    for diagnostic in error.diagnostics:
        show_diagnostic(diagnostic)
    return int(error.exit_code)


def show_diagnostic(diagnostic: Diagnostic) -> None:
    place = click.style(f"{diagnostic.where}: ", bold=True) if diagnostic.where else ""
    colour = "red" if diagnostic.severity.value == "error" else "yellow"
    word = click.style(f"{diagnostic.severity.value}: ", fg=colour, bold=True)
    what = f"{diagnostic.path}: " if diagnostic.path else ""
    click.echo(f"{place}{word}{what}{diagnostic.summary}", err=True)
    if diagnostic.hint:
        click.echo(f"    {click.style('hint:', fg='cyan')} {diagnostic.hint}", err=True)


def plan_lines(plan: Plan, everything: bool = False, drift: bool = False) -> list[str]:
    """The plan as lines: a change with its reason, what differs, the steps; and the footer.

    With `everything` what stays as it is, too; with `drift` also what moved in the world and is left so by a mode.
    """
    lines = []
    for change in plan.changes:
        lines += _change_lines(change)
    for same in plan.same if everything else ():
        where = click.style(f"  {same.where}", dim=True) if same.where else ""
        lines.append(f"    {same.ref}  as it should be{where}")
    for left in plan.drift:
        if drift or left.left:
            lines.append(f"  ≠ {click.style(str(left.ref), bold=True)}  {left.reason}; it is left so")
    for warning in plan.warnings:
        lines.append(f"  ! {warning.path}: {warning.summary}")
    return [*lines, "", f"{summary(plan)}"]


def _change_lines(change: Change) -> list[str]:
    symbol = click.style(change.op.symbol, fg=COLOURS.get(change.op), bold=True)
    where = click.style(f"  {change.where}", dim=True) if change.where else ""
    lines = [f"  {symbol} {click.style(str(change.ref), bold=True)}  {change.reason}{where}"]
    lines += [f"      {field_line(f)}" for f in change.fields]
    lines += [f"      · {a.text}" + (f" ({a.hold})" if a.hold else "") for a in change.actions]
    if change.price.downtime:
        lines.append(f"      {click.style('downtime:', fg='yellow')} {change.price.downtime}")
    if change.price.clients:
        lines.append(f"      {click.style('no longer answered:', fg='yellow')} {', '.join(change.price.clients)}")
    return lines


def condition_lines(resource: dict[str, Any]) -> list[str]:
    """Every condition of a resource, with its time and the generation that it was observed of."""
    head = ("CONDITION", "STATUS", "REASON", "SINCE", "GENERATION", "MESSAGE")
    rows = [
        (
            c["type"],
            c["status"],
            c["reason"],
            moment(c["since"]) if c["since"] else "",
            str(c["generation"]),
            c["message"],
        )
        for c in resource["conditions"]
    ]
    return [click.style(resource["ref"], bold=True), *columns(head, rows)]


def field_line(field: FieldChange) -> str:
    return f"{field.path}: {_value(field.before)} → {_value(field.after)}"


def moment(at: float) -> str:
    """A Unix time as people here write it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def columns(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A plain table; the last column is not padded."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head) - 1)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in [head, *rows]]
    return [click.style(lines[0], dim=True), *lines[1:]]


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def status_lines(snapshot: dict[str, Any], controller: bool) -> list[str]:
    """A table of resources and, below it, what is wrong with the manifest or the controller."""
    rows: list[tuple[str, ...]] = []
    for resource in snapshot["resources"]:
        ready = resource["conditions"][0]
        note = ready["message"] or ""
        if work := snapshot["working"].get(resource["ref"]):
            if progress := snapshot["progress"].get(resource["ref"]):
                work = f"{work}: {progress_words(progress)}" if progress["done"] else work
            note = f"{note} [{work}]" if note else work
        rows.append((resource["ref"], ready["status"], ready["reason"], note))
    lines = _table(("RESOURCE", "READY", "REASON", "MESSAGE"), rows) if rows else ["nothing is declared or owned"]
    every = (c for resource in snapshot["resources"] for c in resource["conditions"])
    if pressed := next((c["message"] for c in every if c["type"] == PRESSURE), ""):
        lines.append(click.style(f"memory: {pressed}", fg="yellow"))
    for fault in snapshot["manifest"]["faults"]:
        where = fault["where"] or {}
        place = f"{where.get('file')}:{where.get('line')}:{where.get('column')}: " if where else ""
        text = f"manifest rejected, the last good one stays: {place}{fault['summary']}"
        lines.append(click.style(text, fg="red") + (f" ({fault['hint']})" if fault["hint"] else ""))
    manifest = snapshot["manifest"]
    generation = manifest["generation"]
    if snapshot["suspended"] is not None:
        since = moment(snapshot["suspended"])
        lines.append(f"suspended since {since}: files are not taken over, nothing is corrected; `reconcile resume`")
    for ref, at in snapshot["paused"].items():
        lines.append(f"{ref} is paused since {moment(at)}; `reconcile resume {ref}`")
    if manifest["held_back"]:
        lines.append(f"gone back to generation {generation}; it stays until the manifest changes or is applied again")
    if manifest["targets"]:
        names, more = ", ".join(manifest["targets"]), snapshot["outside_targets"]
        lines.append(f"only {names} was applied ({more} more changes wait for `reconcile apply` without --target)")
    if manifest["confirm_by"]:
        left = max(0, int(manifest["confirm_by"] - time.time()))
        lines.append(f"not confirmed: the generation before comes back in {left} s unless `reconcile confirm`")
    if controller:
        pid = snapshot["controller"]["pid"]
        lines.append(f"controller: pid {pid}, generation {generation} of {manifest['path']}")
        if fault := snapshot["controller"].get("fault"):
            lines.append(click.style(f"controller: cannot go on: {fault}", fg="red"))
    else:
        lines.append("controller: none is running; `reconcile apply` starts one")
    return lines


def progress_words(progress: dict[str, Any]) -> str:
    """How far something is, how fast it goes, and what is left."""
    return words(progress["done"], progress["total"], progress["rate"], progress["eta_seconds"])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head) - 1)]
    room = (
        shutil.get_terminal_size((200, 24)).columns - sum(widths) - 2 * len(widths) if sys.stdout.isatty() else 10_000
    )
    colours = {"True": "green", "False": "red", "Unknown": "yellow"}
    lines = [click.style("  ".join([*(h.ljust(w) for h, w in zip(head, widths, strict=False)), head[-1]]), dim=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        cells[1] = click.style(cells[1], fg=colours.get(row[1]))
        text = row[-1] if len(row[-1]) <= max(room, 30) else row[-1][: max(room, 30) - 1] + "…"
        lines.append("  ".join([*cells, text]).rstrip())
    return lines


def exit_for(snapshot: dict[str, Any]) -> Exit:
    """0 when all is ready, 6 when some of it is, 1 when nothing is."""
    if snapshot["ready"]:
        return Exit.DONE
    serving = [r for r in snapshot["resources"] if r["ref"].startswith("server/")]
    return Exit.PARTIAL if any(r["conditions"][0]["status"] == "True" for r in serving) else Exit.ERROR
