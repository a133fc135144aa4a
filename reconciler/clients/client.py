"""What a client is to us: the variables that it reads, the file that it reads, and what a person should know besides.

Pure; one file a client beside this one, and its line in `CLIENTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reconciler.clients.blocks import Mark
from reconciler.clients.forms import Form, Lines
from reconciler.clients.offer import VARIABLE, Key, Offer, Places
from reconciler.clients.shells import SHELLS, Shell, Variable, exports, profile
from reconciler.core.diagnostics import Refused

Variables = Callable[[Offer], tuple[Variable, ...]]


@dataclass(frozen=True, slots=True)
class Target:
    """A file, and what a client wants in it."""

    path: Path
    form: Form


@dataclass(frozen=True, slots=True)
class Client:
    """`variables` are what it reads from the environment. `config` is its own file, without an offer only as far as
    is needed to take out what is in it. `unwritten` says why a client without either is set up by hand; `steps` are
    then what a person does.

    `notes` are what a person should know besides, given the offer and whether the file was meant.
    """

    name: str
    summary: str
    variables: Variables | None = None
    config: Callable[[Offer | None, Places], Target] | None = None
    steps: Callable[[Offer], str] | None = None
    unwritten: str = ""
    notes: Callable[[Offer, bool], tuple[str, ...]] = lambda offer, in_file: ()


def in_profile(client: Client, offer: Offer | None, shell: Shell, places: Places) -> Target:
    """The file that a shell reads when it starts, with the client's variables. Raises Refused where it has none."""
    if client.variables is None:
        raise Refused(
            f"{client.name} is not set up by environment variables", hint="leave out --shell to write its own file"
        )
    path = profile(shell, places)
    mark = Mark(client.name, str(path))
    if offer is None:
        return Target(path, Lines(mark, "shell"))
    variables = client.variables(offer)
    names = tuple(v.name for v in variables)
    lines = tuple(exports(variables, offer.key, shell))
    return Target(path, Lines(mark, "shell", lines, names, holds_secret=bool(offer.key.value)))


def everywhere(client: Client, places: Places) -> list[Target]:
    """Every file that something for this client may have been written to."""
    found = [client.config(None, places)] if client.config else []
    return [*found, *(in_profile(client, None, shell, places) for shell in SHELLS if client.variables)]


def named_key(key: Key) -> str:
    """The variable that a client is told to read the key from."""
    return key.variable or VARIABLE


def export_note(key: Key, shell: Shell = "sh") -> tuple[str, ...]:
    """How the variable of `named_key` gets its value, where that is not there by itself."""
    if not key.reference or key.value or key.variable:
        return ()
    line = exports((Variable(VARIABLE, secret=True),), key, shell)[0]
    return (f"it reads the key from {VARIABLE}; put this into your shell's profile: {line}",)
