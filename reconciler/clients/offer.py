"""What the gateway offers to a client, how its key is given, and where a person's files lie. Pure.

Nothing here reads the environment or the disk: callers hand both in.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconciler.core.diagnostics import Refused

DUMMY = "reconciler"  # clients insist on a key where the gateway wants none
VARIABLE = "RECONCILER_API_KEY"  # what holds the key for clients that read it from a variable which we may name

System = Literal["linux", "darwin", "windows"]


@dataclass(frozen=True, slots=True)
class Key:
    """How the gateway's key is given. Without a `reference` it wants none; `value` is set only where it may be shown.

    `file` is the absolute path of a `file:` reference; commands run in `base`; `python` can ask the keyring.
    """

    reference: str = ""
    base: str = ""
    value: str = ""
    file: str = ""
    python: str = "python3"

    @property
    def literal(self) -> str:
        """The text itself where that may be written; empty where only a reference may."""
        return self.value if self.reference else DUMMY

    @property
    def variable(self) -> str:
        """The environment variable that holds it; empty where it is elsewhere."""
        return self._rest("env")

    @property
    def argv(self) -> list[str]:
        """The command that prints it, in its first line; empty where it is a variable or a file."""
        if entry := self._rest("keyring"):
            service, _, name = entry.rpartition("/")
            return [self.python, "-m", "keyring", "get", service or "reconciler", name]
        return shlex.split(self._rest("command"))

    @property
    def from_command(self) -> bool:
        return bool(self._rest("command"))

    def _rest(self, scheme: str) -> str:
        found, _, rest = self.reference.partition(":")
        return rest if found == scheme else ""


@dataclass(frozen=True, slots=True)
class Model:
    """`name` is what clients ask for; `context` in tokens, 0 where nobody knows."""

    name: str
    task: str = "chat"
    context: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """`url` is the base of the OpenAI API (with its prefix), `model` the one to use, `models` all that have a name."""

    url: str
    model: Model
    models: tuple[Model, ...]
    key: Key

    @property
    def root(self) -> str:
        """The base of the Anthropic API, whose clients add /v1/messages themselves. Raises Refused."""
        if not self.url.endswith("/v1"):
            raise Refused(
                f"clients of the Anthropic API ask below /v1, and the gateway answers at {self.url}",
                hint="let gateway.prefix end in /v1",
            )
        return self.url.removesuffix("/v1")

    def of(self, task: str) -> tuple[Model, ...]:
        """Models of a task, the one to use first."""
        named = [model for model in self.models if model.task == task and model.name != self.model.name]
        return (*([self.model] if self.model.task == task else []), *named)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a person's files lie: `home` is absolute."""

    environ: Mapping[str, str]
    home: Path
    system: System

    def named(self, variable: str, otherwise: Path) -> Path:
        """The folder that a variable names, if it is absolute; otherwise the usual one."""
        text = self.environ.get(variable, "")
        if text.startswith("~/"):
            return self.home / text[2:]
        return Path(text) if Path(text).is_absolute() else otherwise

    @property
    def settings(self) -> Path:
        """XDG_CONFIG_HOME, or ~/.config: many tools keep to it on every system."""
        return self.named("XDG_CONFIG_HOME", self.home / ".config")

    def shown(self, path: Path) -> str:
        """A path as a person would write it."""
        return f"~/{path.relative_to(self.home)}" if path.is_relative_to(self.home) else str(path)
