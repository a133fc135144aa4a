"""`reconcile attest`: make, sign and check statements of what is installed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from reconciler.app import looking
from reconciler.cli.place import Place, verb
from reconciler.cli.render import show_json
from reconciler.cli.verify import shown
from reconciler.controller import attest
from reconciler.core.diagnostics import Exit, Refused
from reconciler.host import secrets
from reconciler.host.effects import Effects
from reconciler.host.files import Files
from reconciler.store import signing

REFERENCES = ("env:", "file:", "keyring:", "command:")
MOST = 64 << 20  # bytes of a statement that is checked
SUFFIX = ".minisig"


@click.option("--new-key", metavar="FILE", help="Make a pair of keys: FILE, and FILE.pub to give away.")
@click.option("--public-key", metavar="KEY", help="For --check: a public key's file, or the key itself (RW…).")
@click.option("--check", metavar="FILE", help="Check a statement and FILE.minisig, and compare with this machine.")
@click.option("--deep", is_flag=True, help="Read all bytes of models again.")
@click.option(
    "--password", metavar="REF", help="The key's password: env:NAME, file:PATH, keyring:NAME or command:ARGV."
)
@click.option("--out", "to", metavar="FILE", help="Where the statement goes; its signature goes to FILE.minisig.")
@click.option("--key", metavar="KEY", help="Sign with this secret key of minisign: its file, or a reference.")
@verb("attest")
def command(
    place: Place,
    key: str | None,
    to: str | None,
    password: str | None,
    deep: bool,
    check: str | None,
    public_key: str | None,
    new_key: str | None,
) -> None:
    """Without options the statement is printed. Exit code 1 where something is damaged, or differs from FILE."""
    if new_key:
        if key or check or to:
            raise click.UsageError("--new-key goes with --password only")
        _new_key(place, Path(new_key), password)
    elif check:
        if key or to:
            raise click.UsageError("--check excludes --key and --out")
        if not public_key:
            raise click.UsageError("--check needs --public-key, without which anybody could have signed")
        _check(place, Path(check), public_key, deep)
    else:
        if key and not to:
            raise click.UsageError("--key needs --out, beside which the signature goes")
        _attest(place, key, to, password, deep)


def _attest(place: Place, key: str | None, to: str | None, password: str | None, deep: bool) -> None:
    layout, now = place.layout(), time.time()
    with looking(layout, place.manifest.parent) as tools, shown(quiet=place.json or not deep) as progress:
        if not tools.ledger.owned():
            raise Refused(f"nothing is installed in {layout.root}", hint="`reconcile apply` first")
        statement, faults = attest.gather(tools, deep, now, progress)
    if faults:
        raise Refused(faults)  # nobody should be able to say that this was attested
    data = attest.text(statement)
    if to is None:
        click.echo(data, nl=False)
        return
    path, files = Path(to).absolute(), Files(Effects())
    signature = b""
    if key:
        comment = f"timestamp:{int(now)}\tfile:{_plain(path.name)}\thashed"
        signature = signing.sign(data, _text(key, place), lambda: _password(password, place), comment)
    files.write(path, data, mode=0o644)
    if signature:
        files.write(_beside(path), signature, mode=0o644)
    else:
        files.remove(_beside(path))  # of an earlier statement: it would not fit
    said = {"statement": str(path), "signature": str(_beside(path)) if signature else None}
    if place.json:
        show_json(said)
    else:
        click.echo(
            f"{path}: {len(statement['resources'])} resources" + (f", signed in {_beside(path).name}" * bool(key))
        )


def _check(place: Place, path: Path, public_key: str, deep: bool) -> None:
    data, signature = _read(path), _read(_beside(path))
    comment = signing.check(data, signature, public_key if public_key.startswith("RW") else _text(public_key, place))
    then = attest.parse(data)
    layout = place.layout()
    with looking(layout, place.manifest.parent) as tools, shown(quiet=place.json or not deep) as progress:
        now, faults = attest.gather(tools, deep, time.time(), progress)
    found = [*attest.harm(faults), *attest.differences(then, now)]
    if place.json:
        show_json({"format": "1.0", "comment": comment, "at": then["at"], "same": not found, "differences": found})
    else:
        click.echo(f"the signature is right ({comment.expandtabs(2)})")
        for one in found:
            click.echo(f"  {one['path']}: {_short(one['then'])} → {_short(one['now'])}")
        click.echo("this machine differs from the statement" if found else f"this machine is as it was at {then['at']}")
    sys.exit(int(Exit.ERROR if found else Exit.DONE))


def _new_key(place: Place, path: Path, password: str | None) -> None:
    public = path.with_name(path.name + ".pub")
    for one in (path, public):
        if one.exists() or one.is_symlink():
            raise Refused(
                f"{one} is there already", hint="a key that was given away is hard to replace: choose another name"
            )
    secret, given = signing.new_pair(_password(password, place) if password else "")
    files = Files(Effects())
    files.write(path.absolute(), secret, mode=0o600)
    files.write(public.absolute(), given, mode=0o644)
    if place.json:
        show_json({"secret_key": str(path), "public_key": str(public), "encrypted": bool(password)})
    else:
        bare = "" if password else "; it is not encrypted (--password REF does that)"
        click.echo(f"{path}: keep it secret{bare}\n{public}: give it to who checks your statements")


def _text(key: str, place: Place) -> str:
    """The text of a key, by path or by reference. Raises Refused, Fault."""
    if key.startswith(REFERENCES):
        return secrets.resolve(key, place.manifest.parent)
    return _read(Path(key).expanduser()).decode(errors="replace")


def _password(reference: str | None, place: Place) -> str:
    if reference is not None:
        if not reference.startswith(REFERENCES):
            raise click.UsageError(
                "--password takes a reference such as env:NAME: a password here could be seen by others"
            )
        return secrets.resolve(reference, place.manifest.parent)
    if not sys.stdin.isatty():
        raise Refused("the secret key needs a password", hint="name it: --password env:NAME")
    password: str = click.prompt(
        "password of the secret key", hide_input=True, default="", show_default=False, err=True
    )
    return password


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as data:
            found = data.read(MOST + 1)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
    if len(found) > MOST:
        raise Refused(f"{path} is larger than any statement")
    return found


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _plain(name: str) -> str:
    """A name as a trusted comment can hold it."""
    return "".join(c if " " <= c < "\x7f" else "_" for c in name)[:200]


def _short(value: Any) -> str:
    return "nothing" if value is None else value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
