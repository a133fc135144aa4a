"""`reconcile import`: a manifest from another tool's files. What is there already is never written over unasked."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli import VERBS
from reconciler.cli.place import DEFAULT, Place, remember
from reconciler.cli.render import show_json
from reconciler.core.diagnostics import Refused

if TYPE_CHECKING:
    from reconciler.foreign.draft import Draft
    from reconciler.manifest.imported import Imported

FORMS = ("text", "json")


@click.command("import", help=VERBS["import"])
@click.option("--from", "tool", required=True, metavar="TOOL", help="jan, ollama, lmstudio, llama-swap, litellm, "
              "claude-desktop (and other files with mcpServers), or compose.")  # fmt: skip
@click.argument("path", required=False, metavar="[PATH]")
@click.option("--force", is_flag=True, help="Replace a manifest that is there.")
@click.option("-f", "--file", metavar="FILE", help=f"The manifest to write; - prints it.  [default: {DEFAULT}]")
@click.option("-o", "--output", metavar="FILE", help="The same; or `json` or `text`: how to print the report.")
@click.option("--data-root", metavar="DIR", hidden=True)
def command(tool: str, path: str | None, force: bool, **given: Any) -> None:
    if given["output"] not in (None, *FORMS):
        if given["file"]:
            raise click.UsageError("name the manifest with -f or with -o, not with both")
        given["file"], given["output"] = given["output"], None
    _import(remember(click.get_current_context(), given), tool, path, force)


def _import(place: Place, tool: str, path: str | None, force: bool) -> None:
    from reconciler import foreign
    from reconciler.core.diagnostics import nearest
    from reconciler.foreign.home import this_home
    from reconciler.manifest.imported import imported

    if tool not in foreign.TOOLS:
        raise Refused(f"{tool!r} is not a tool that is known here", hint=nearest(tool, foreign.TOOLS))
    printed = place.file == "-"
    target = Path(DEFAULT).absolute() if printed else place.manifest
    if not printed:
        _refuse_if_there(place, target, force)
    home = this_home()
    draft = foreign.gather(tool, home.path(path) if path else None, home)
    made = imported(draft, target)
    if not printed:
        _write(target, made.text)
    if place.json:
        show_json(_sayable(_report(draft, made, tool, target, printed)))
        return
    if printed:
        click.echo(made.text.decode(), nl=False)
    _tell(place, draft, made, printed)


def _refuse_if_there(place: Place, target: Path, force: bool) -> None:
    if target.is_dir():
        raise Refused(f"{target} is a folder", hint="name the manifest with -f FILE")
    if not force and (target.is_symlink() or target.exists()):
        hint = "print it with -f -, write another with -f FILE, or replace this one with --force"
        raise Refused(f"{place.file} is already there", hint=hint)


def _write(target: Path, text: bytes) -> None:
    from reconciler.host.effects import Effects
    from reconciler.host.files import Files

    Files(Effects()).write(target, text, 0o644)


def _tell(place: Place, draft: Draft, made: Imported, printed: bool) -> None:
    """The report; where the manifest itself is printed, beside it on stderr."""
    for line in _lines("the manifest" if printed else place.file, draft, made):
        click.echo(_sayable(line), err=printed)
    if not printed:
        option = "" if place.file == DEFAULT else f" -f {shlex.quote(place.file)}"
        click.echo(f"\nnext: `reconcile{option} --dry-run` shows what it would do")


def _lines(name: str, draft: Draft, made: Imported) -> Iterator[str]:
    from reconciler.foreign.write import told

    counts = [
        f"{len(entries)} {section.removesuffix('s') if len(entries) == 1 else section}".replace("_", " ")
        for section, entries in draft.entries.items()
        if entries
    ]
    yield f"{name}: {', '.join(counts) or 'settings'} from {draft.tool}"
    if draft.needed:
        yield "\nset these variables before `reconcile apply`; their values are not in the manifest:"
        for one in draft.needed.values():
            yield f"  {one.name}  {one.purpose}" + (f", now in {one.where}" if one.where else "")
    if draft.left:
        yield "\nnot carried over, or to be looked at:"
        yield from (f"  {told(left)}" for left in draft.left)
    if made.later:
        yield "\nvalid, but denied by a plan of this version:"
        yield from (f"  {at}: {said}" for at, said in made.later)


def _report(draft: Draft, made: Imported, tool: str, target: Path, printed: bool) -> dict[str, Any]:
    return {
        "from": tool,
        "manifest": "" if printed else str(target),
        "text": made.text.decode(),
        "read": draft.read,
        "needed": [
            {"name": one.name, "purpose": one.purpose, "where": _place(one.where)} for one in draft.needed.values()
        ],
        "left": [
            {"what": one.what, "why": one.why, "remedy": one.remedy, "where": _place(one.where)} for one in draft.left
        ],
        "later": [{"path": at, "summary": said} for at, said in made.later],
    }


def _sayable(value: Any) -> Any:
    """The same without the halves of characters that file names which are not UTF-8 become."""
    if isinstance(value, dict):
        return {key: _sayable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_sayable(inner) for inner in value]
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _place(where: Any) -> dict[str, Any] | None:
    return {"file": where.file, "line": where.line, "column": where.column} if where else None
