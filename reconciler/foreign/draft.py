"""A manifest in the making: what another tool's files say, entry by entry, and what could not be carried over.

An importer adds entries under the names that it finds; they are made fit here, and numbered where two are alike. A
secret never gets into an entry: it becomes a reference to an environment variable, whose name a person is told.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reconciler.core.diagnostics import Where
from reconciler.core.section import ALIAS, NAME
from reconciler.foreign.home import Home
from reconciler.foreign.secrets import holds_secret, says_secret, variable

Section = Literal["engines", "models", "providers", "routes", "mcp_servers"]
SECTIONS: tuple[Section, ...] = ("engines", "models", "providers", "routes", "mcp_servers")
_ONE = {"engines": "engine", "models": "model", "providers": "provider", "routes": "route", "mcp_servers": "server"}


PLAIN = 8  # characters from which on a text is looked for elsewhere: shorter ones are in every second word


@dataclass(frozen=True, slots=True)
class Left:
    """One thing that was not carried over: what, where it says so, why, and what a person can do."""

    what: str
    why: str
    remedy: str = ""
    where: Where | None = None


@dataclass(slots=True)
class Needed:
    """An environment variable that must be set, never with its value: what for, and where the value is now."""

    name: str
    purpose: str
    where: Where | None


@dataclass(slots=True)
class Draft:
    """`entries` are plain values of the manifest language; `notes` become comments above the entries."""

    tool: str
    home: Home
    read: list[str] = field(default_factory=list)
    entries: dict[Section, dict[str, dict[str, Any]]] = field(default_factory=lambda: {s: {} for s in SECTIONS})
    gateway: dict[str, Any] = field(default_factory=dict)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    needed: dict[str, Needed] = field(default_factory=dict)
    _hidden: dict[str, str] = field(default_factory=dict, repr=False)  # secret → the name of its variable
    _aliases: list[tuple[str, str, Where | None]] = field(default_factory=list)

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        return self.entries["models"]

    @property
    def empty(self) -> bool:
        return not any(self.entries.values()) and not self.gateway

    def add(self, section: Section, wanted: str, entry: dict[str, Any], note: str = "") -> str:
        """Add an entry under the name that is nearest to the wanted one → its name."""
        name = self.free(section, wanted)
        self.entries[section][name] = entry
        if note and not holds_secret(note):
            self.notes[section, name] = " ".join(note.split())[:200]
        return name

    def free(self, section: Section, wanted: str) -> str:
        """A name that nobody has yet: models and routes share one space, and `embedded` is an engine already."""
        taken = {"embedded"} if section == "engines" else set()
        taken |= set(self.entries[section])
        if section in ("models", "routes"):
            taken |= set(self.entries["models"]) | set(self.entries["routes"])
        base = fit(wanted) or _ONE[section]
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base[: 63 - len(str(number))]}-{number}"
        return name

    def alias(self, model: str, name: str, where: Where | None = None) -> None:
        """A further name for a model; whether it can have it is seen in the end."""
        self._aliases.append((model, name, where))

    def leave(self, what: str, why: str, remedy: str = "", where: Where | None = None) -> None:
        one = Left(self.veiled(what), self.veiled(why), self.veiled(remedy), where)
        if one not in self.left:
            self.left.append(one)

    def secret(self, value: str, wanted: str, purpose: str, where: Where | None = None) -> str:
        """Keep a secret out: the reference to the variable that a person will set. The same secret, the same name."""
        if known := self._hidden.get(value):
            return f"env:{known}"
        base = variable(wanted) or "SECRET"
        name, number = base, 1
        while name in self.needed:
            number += 1
            name = f"{base}_{number}"
        self.needed[name] = Needed(name, purpose, where)
        if value:
            self._hidden[value] = name
        for part in value.split():
            self.hide(part if holds_secret(part) else "")
        return f"env:{name}"

    def variable(self, name: str, purpose: str, where: Where | None = None) -> str:
        """A reference that the other tool had already."""
        self.needed.setdefault(name, Needed(name, purpose, where))
        return f"env:{name}"

    def hide(self, value: str) -> None:
        """Remember a secret that nothing refers to, so that it appears nowhere."""
        if value:
            self._hidden.setdefault(value, "")

    def file(self, path: Path) -> str | None:
        """A `file:` source; None for a path that no text can hold."""
        shown = self.home.shown(path)
        try:
            shown.encode()
        except UnicodeEncodeError:
            return None
        return f"file:{shown}" if shown.isprintable() else None

    def settle(self) -> None:
        """Give models their further names, and take out whatever repeats a secret."""
        taken = set(self.models) | set(self.entries["routes"])
        for model, name, where in self._aliases:
            if model not in self.models or name in taken:
                if model in self.models and name not in (model, *self.models[model].get("aliases", ())):
                    self.leave(f"the name {name!r} of {model}", "another model or route has it", "", where)
                continue
            if not re.fullmatch(ALIAS, name):
                self.leave(
                    f"the name {name!r} of {model}", "names here are of letters, digits and . _ : / @ -", "", where
                )
                continue
            taken.add(name)
            self.models[model].setdefault("aliases", []).append(name)
        self._aliases.clear()
        self._missing()
        self._purge()

    def _missing(self) -> None:
        """Say which files are not there, though the entries that name them are right."""
        for name, entry in self.models.items():
            loras = [one if isinstance(one, str) else one["source"] for one in entry.get("lora", [])]
            for source in [entry.get("source"), entry.get("mmproj"), entry.get("draft"), *loras]:
                if isinstance(source, str) and source.startswith("file:"):
                    path = self.home.path(source.removeprefix("file:"))
                    if not _there(path):
                        self.leave(f"the file {path} of {name}", "it is not there", "put it there, or name another")

    def veiled(self, text: str) -> str:
        """A text for people, without any secret that was met."""
        for secret in sorted(self._hidden, key=len, reverse=True):
            if len(secret) >= PLAIN:
                text = text.replace(secret, "…")
        return text

    def _purge(self) -> None:
        for section, entries in self.entries.items():
            for name in list(entries):
                for key in [k for k, v in entries[name].items() if self._tells(v)]:
                    del entries[name][key]
                    what = f"`{key}` of {_ONE[section]} {name}"
                    self.leave(what, "it holds a secret", "give it as a reference: env:NAME, file:PATH")
        for key in [k for k, v in self.gateway.items() if self._tells(v)]:
            del self.gateway[key]
        self.notes = {at: self.veiled(note) for at, note in self.notes.items()}

    def _tells(self, value: Any) -> bool:
        if isinstance(value, dict):
            return any(self._tells(k) or self._tells(v) for k, v in value.items())
        if isinstance(value, list):
            return any(self._tells(v) for v in value)
        return isinstance(value, str) and any(len(s) >= PLAIN and s in value for s in self._hidden)


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def fit(text: str) -> str:
    """A text as a name of the manifest: `host/a/B C:latest` → host-a-B-C-latest. Empty where nothing is left."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    name = re.sub(r"^[^A-Za-z0-9]+|[-.]+$", "", name)[:64]
    return name if re.fullmatch(NAME, name) else ""


def count(number: int) -> int | str:
    """8192 → `8k`, as people write contexts."""
    return f"{number // 1024}k" if number and number % 1024 == 0 else number


def seconds(number: float) -> str:
    """300.0 → `5m`; at least a second."""
    whole = max(1, round(number))
    for unit, size in (("h", 3600), ("m", 60)):
        if whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def is_secret(name: str, value: str) -> bool:
    """Whether a setting of this name and value is one."""
    return bool(value) and (says_secret(name) or holds_secret(value))


def no_key(value: str) -> bool:
    """Whether a key only stands there because a client wants one: `none`, `ollama`, `sk-no-key-required`."""
    words = "none|null|empty|dummy|fake|ollama|lm-?studio|vllm|na|n/a|x+|test|anything|unused|placeholder"
    return bool(re.fullmatch(rf"({words}|(sk-)?(no|not)[-_ ]?(key|needed|required|used)[-_a-z ]*)?", value.lower()))
