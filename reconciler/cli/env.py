"""`reconcile env`: what other programs need to use the gateway, printed, or written into their own files."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.place import Place, verb
from reconciler.cli.render import columns, show_json
from reconciler.core.diagnostics import Exit, Refused

if TYPE_CHECKING:
    from reconciler.clients.client import Client, Target
    from reconciler.clients.offer import Key, Offer, Places
    from reconciler.clients.shells import Shell
    from reconciler.kinds.gateway.spec import ApiKey
    from reconciler.manifest.parse import Manifest

_SHELLS = ("sh", "bash", "zsh", "fish", "powershell")


@verb("env")
@click.argument("client", required=False)
@click.option("--model", default="", metavar="NAME", help="The model to use.  [default: the first for chat]")
@click.option("--key", default="", metavar="NAME", help="Which of gateway.api_keys.  [default: the first]")
@click.option("--shell", type=click.Choice(_SHELLS), help="Variables, in the language of this shell.")
@click.option("--write", is_flag=True, help="Put it into the client's own file, or the shell's profile (--shell).")
@click.option("--remove", is_flag=True, help="Take out what --write put in, and nothing else.")
@click.option("--dry-run", is_flag=True, help="Only show what would change; exit code 2 when something would.")
@click.option("--print-path", is_flag=True, help="Print the name of the file that --write would write.")
@click.option("--show-key", is_flag=True, help="Give the key itself, not a reference to it.")
def command(place: Place, client: str | None, **given: Any) -> None:
    """CLIENT is one of those that are listed without it.

    What is printed for a client with variables can be evaluated: eval "$(reconcile env openai)".
    """
    asked = _Asked(place, **given)
    if client is None:
        if given["write"] or given["remove"] or given["print_path"] or given["dry_run"]:
            raise click.UsageError("name the client")
        _list(place)
        return
    chosen = _client(client)
    if asked.remove:
        _remove(chosen, asked)
    elif asked.print_path:
        _print_path(chosen, asked)
    elif asked.write:
        _write(chosen, asked)
    elif asked.dry_run:
        raise click.UsageError("--dry-run goes with --write or --remove")
    else:
        _print(chosen, asked)


@dataclass(slots=True)
class _Asked:
    """What was asked for besides the client."""

    place: Place
    model: str
    key: str
    shell: Shell | None
    write: bool
    remove: bool
    dry_run: bool
    print_path: bool
    show_key: bool

    def __post_init__(self) -> None:
        if self.write + self.remove + self.print_path > 1:
            raise click.UsageError("--write, --remove and --print-path exclude each other")


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of one file; None is no file."""

    name: str
    seen: Any
    new: bytes | None
    hidden: bool

    @property
    def changed(self) -> bool:
        return bool(self.new != self.seen.data)

    @property
    def diff(self) -> list[str]:
        from reconciler.clients.writer import diff

        if not self.hidden:
            return diff(self.name, self.seen.data, self.new)
        return [
            f"--- {self.name}",
            f"+++ {self.name}",
            "(what it holds now was written with the key, and is not shown)",
        ]


# -- the verbs within the verb -----------------------------------------------------------------------------------------


def _list(place: Place) -> None:
    from reconciler.clients import CLIENTS, described

    places = _places()
    rows = []
    for name in CLIENTS:
        one = described(name)
        target = one.config(None, places) if one.config else None
        rows.append((one, "" if target is None else str(target.path)))
    if place.json:
        found = [{"client": c.name, "summary": c.summary, "variables": c.variables is not None, "file": f or None}
                 for c, f in rows]  # fmt: skip
        show_json({"clients": found})
        return
    lines = [(c.name, c.summary, places.shown(Path(f)) if f else _without_file(c)) for c, f in rows]
    click.echo("\n".join(columns(("CLIENT", "WHAT", "WRITTEN BY --write"), lines)))


def _without_file(client: Client) -> str:
    return "the profile of your shell" if client.variables else "nothing: it is set up by hand"


def _print(client: Client, asked: _Asked) -> None:
    from reconciler.clients.client import in_profile

    places = _places()
    offer, more = _offer(client, asked)
    target = None
    if client.config and not asked.shell:
        target = client.config(offer, places)
    elif asked.shell or (client.variables and not _unknown_shell(places, asked)):
        target = in_profile(client, offer, asked.shell or _shell(places), places)
    notes = (*more, *client.notes(offer, client.variables is None))
    if asked.place.json:
        show_json(_told(client, asked, offer, target, notes))
        return
    if client.variables:
        click.echo(in_profile(client, offer, asked.shell or _shell(places), places).form.snippet)
    elif asked.shell:
        raise AssertionError("in_profile refuses")
    elif target is not None:
        click.echo(f"{places.shown(target.path)}:", err=True)
        click.echo(target.form.snippet)
    elif client.steps:
        click.echo(client.steps(offer))
    _tell(notes)


def _print_path(client: Client, asked: _Asked) -> None:
    path = _target(client, None, asked).path
    if asked.place.json:
        show_json({"client": client.name, "file": str(path)})
    else:
        click.echo(path)


def _write(client: Client, asked: _Asked) -> None:
    from reconciler.clients.writer import look

    offer, more = _offer(client, asked)
    target = _target(client, offer, asked)
    if not (home := _places().home).is_dir():
        raise Refused(f"there is no home folder: {home} is not there", hint="set HOME")
    seen = look(target.path)
    hidden = not asked.show_key and seen.data is not None and target.form.secret(seen.data)
    change = _Change(str(target.path), seen, target.form.put(seen.data), hidden)
    in_file = client.config is not None and asked.shell is None
    more += () if in_file else (f"shells that are open already do not know of it: `. {shlex.quote(str(target.path))}`",)
    _carry_out(client, asked, [change], offer, (*more, *client.notes(offer, in_file)))


def _remove(client: Client, asked: _Asked) -> None:
    """From everywhere that it may have been written to, or from the shell's profile alone."""
    from reconciler.clients.client import everywhere
    from reconciler.clients.writer import look

    targets = [_target(client, None, asked)] if asked.shell else everywhere(client, _places())
    changes, notes = [], []
    for target in {target.path: target for target in targets}.values():
        try:
            seen = look(target.path)
        except Refused as refused:
            if target is targets[0]:
                raise
            notes.append(f"not looked into: {refused.diagnostics[0].summary}")
            continue
        if seen.data is not None:
            hidden = not asked.show_key and target.form.secret(seen.data)
            changes.append(_Change(str(target.path), seen, target.form.take(seen.data), hidden))
    _carry_out(client, asked, changes, None, tuple(notes))


def _carry_out(
    client: Client, asked: _Asked, changes: list[_Change], offer: Offer | None, notes: tuple[str, ...]
) -> None:
    from reconciler.clients.writer import write
    from reconciler.host.effects import Effects

    changed = [change for change in changes if change.changed]
    if not asked.dry_run:
        for change in changed:
            private = offer is not None and bool(offer.key.value)
            write(change.seen, change.new, Effects(), private)
    if asked.place.json:
        files = [{"file": c.name, "changed": c.changed, "removed": c.changed and c.new is None, "diff": c.diff}
                 for c in changes]  # fmt: skip
        show_json({"client": client.name, "dry_run": asked.dry_run, "files": files, "notes": list(notes)})
    else:
        _tell_changes(client, asked, changes)
        _tell(notes)
    sys.exit(int(Exit.PENDING if asked.dry_run and changed else Exit.DONE))


def _tell_changes(client: Client, asked: _Asked, changes: list[_Change]) -> None:
    changed = [change for change in changes if change.changed]
    for change in changed:
        if asked.dry_run:
            click.echo("\n".join(change.diff))
        elif change.new is None:
            click.echo(f"{change.name} is removed: nothing else was in it")
        else:
            click.echo(f"{change.name} {'is without it again' if asked.remove else 'is written'}")
    if not changed and asked.remove:
        click.echo(f"nothing of `reconcile env {client.name} --write` is anywhere")
    elif not changed:
        click.echo(f"{changes[0].name} says so already")


def _tell(notes: tuple[str, ...]) -> None:
    for line in notes:
        click.echo(f"# {line}", err=True)


def _told(client: Client, asked: _Asked, offer: Offer, target: Target | None, notes: tuple[str, ...]) -> dict[str, Any]:
    variables = client.variables(offer) if client.variables else ()
    return {
        "client": client.name,
        "url": offer.url,
        "model": offer.model.name,
        "key": {"reference": offer.key.reference or None, "value": offer.key.literal or None},
        "variables": [
            {"name": v.name, "value": (offer.key.literal or None) if v.secret else v.value} for v in variables
        ],
        "file": str(target.path) if target else None,
        "text": target.form.snippet if target else client.steps(offer) if client.steps else "",
        "notes": list(notes),
    }


# -- what it is about --------------------------------------------------------------------------------------------------


def _client(name: str) -> Client:
    from reconciler.clients import CLIENTS, described
    from reconciler.core.diagnostics import nearest

    if name not in CLIENTS:
        raise Refused(f"{name!r} is not a client that is known here", hint=nearest(name, CLIENTS))
    return described(name)


def _target(client: Client, offer: Offer | None, asked: _Asked) -> Target:
    """The file to write. Raises Refused for a client that is set up by hand."""
    from reconciler.clients.client import in_profile

    places = _places()
    if client.config and asked.shell is None:
        return client.config(offer, places)
    if client.variables or client.unwritten == "":
        return in_profile(client, offer, asked.shell or _shell(places), places)
    steps = (
        f"do this instead:\n{client.steps(offer)}" if client.steps and offer else f"see `reconcile env {client.name}`"
    )
    raise Refused(client.unwritten, hint=steps)


def _shell(places: Places) -> Shell:
    from reconciler.clients.shells import shell_of

    return shell_of(places)


def _unknown_shell(places: Places, asked: _Asked) -> bool:
    """Whether nothing can be said in the language of the person's shell; as data, it can be said all the same."""
    try:
        _shell(places)
    except Refused:
        if not asked.place.json:
            raise
        return True
    return False


def _places() -> Places:
    """This person's files. Raises Refused where there is no home folder."""
    import os
    import platform

    from reconciler.clients.offer import Places

    system = platform.system().lower()
    try:
        home = Path.home()
    except RuntimeError:
        home = Path()
    if not home.is_absolute() or ("HOME" in os.environ and not Path(os.environ["HOME"]).is_absolute()):
        raise Refused("there is no home folder: HOME is empty, or no absolute path", hint="set HOME")
    return Places(os.environ, home, system if system in ("darwin", "windows") else "linux")  # type: ignore[arg-type]


def _offer(client: Client, asked: _Asked) -> tuple[Offer, tuple[str, ...]]:
    """What the gateway offers by the manifest in force, and what is to be said of that. Raises Refused."""
    from reconciler.clients.offer import Offer
    from reconciler.manifest import offered

    manifest, said = _in_force(asked.place)
    stack, left_out = manifest.stack, _left_out(manifest, asked.place)
    key = offered.choose_key(stack.gateway, asked.key)
    model = offered.choose(stack, left_out, asked.model, key)
    if model.task != "chat" and client.config is not None:
        raise Refused(f"{model.name!r} is for {model.task}, and {client.name} needs a model for chat",
                      hint="choose another with --model")  # fmt: skip
    allowed = key.allow if key is not None else None
    models = [m for m in offered.own(stack, left_out) if allowed is None or m.name in allowed]
    notes = tuple(filter(None, (said, offered.distrusted(stack.gateway))))
    return Offer(offered.url(stack.gateway), model, tuple(models), _key(key, manifest, asked.show_key)), notes


def _key(section: ApiKey | None, manifest: Manifest, shown: bool) -> Key:
    import os

    from reconciler.clients.offer import Key

    if section is None:
        return Key()
    base, value = manifest.path.parent, ""
    if shown:
        from reconciler.host.secrets import resolve

        value = resolve(section.key, base)
    scheme, _, rest = section.key.partition(":")
    file = str(base / os.path.expanduser(rest)) if scheme == "file" else ""  # noqa: PTH111  (as the gateway does)
    return Key(section.key, str(base), value, file, sys.executable)


def _in_force(place: Place) -> tuple[Manifest, str]:
    """The manifest that was applied last, or where nothing was applied the one on disk; and what differs."""
    layout = place.layout()
    if not layout.ledger.exists():
        return place.load(), ""
    from reconciler.app import looking
    from reconciler.manifest.reading import kept
    from reconciler.store.generations import Generations

    with looking(layout, Path.cwd()) as tools:
        generations = Generations(layout, tools.files, tools.ledger)
        now = generations.get(generations.current)
        if now is None:
            return place.load(), ""
        texts = generations.texts(now.number)
    made = kept(texts.root, texts.files, texts.lock)
    try:
        same = not place.manifest.exists() or place.read().digest == made.digest
    except Refused:
        same = False
    said = f"this is of generation {now.number}, which is in force; {place.file} says something else now"
    return made.manifest, "" if same else said


def _left_out(manifest: Manifest, place: Place) -> set[tuple[str, str]]:
    """The entries that are not for this machine."""
    stack = manifest.stack
    entries = (*stack.models.values(), *stack.providers.values(), *stack.routes.values())
    if not any(entry.when for entry in entries):
        return set()  # to look at the machine takes its time
    from reconciler.host import hardware
    from reconciler.manifest.when import dropped

    labels, faults = hardware.labels(place.layout(manifest).labels)
    if faults:
        raise Refused(faults)
    return dropped(stack, hardware.facts(labels), manifest.document)
