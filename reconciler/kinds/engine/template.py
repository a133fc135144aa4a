"""Command lines with places to fill in: which there are, and what they become. Pure.

A place is written {port}; a brace that stands for itself is written twice. Each word is filled in once, in one pass, so
that a path with braces in it is not filled in again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

PLACES = ("model_path", "model_name", "host", "port", "context")
NAMED = ", ".join(f"{{{name}}}" for name in PLACES)

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Template:
    """How to start a server that has flags of its own. `env` may hold references to secrets.

    It is ready once `http` answers 200, within `timeout` seconds. `calls` is what its requests call the model, with
    the same places.
    """

    argv: tuple[str, ...]
    http: str = "/health"
    timeout: float = 300.0
    env: tuple[tuple[str, str], ...] = ()
    calls: str = "{model_name}"

    def filled(self, values: Mapping[str, str]) -> list[str]:
        """The command line: `values` has a text for each of PLACES.

        >>> Template(("serve", "{model_path}", "--port={port}")).filled({"model_path": "/m", "port": "80"})
        ['serve', '/m', '--port=80']
        """
        return [fill(word, values) for word in self.argv]

    def called(self, values: Mapping[str, str]) -> str:
        """What requests call the model."""
        return fill(self.calls, values)


def fill(word: str, values: Mapping[str, str]) -> str:
    """A word with its places filled in.

    >>> fill('{{"name": "{model_name}"}}', {"model_name": "chat"})
    '{"name": "chat"}'
    """
    return _BRACES.sub(lambda m: values[m[1]] if m[1] is not None else m[0][0], word)


def places(words: tuple[str, ...]) -> frozenset[str]:
    """The places that a command line has."""
    return frozenset(m[1] for word in words for m in _BRACES.finditer(word) if m[1] is not None)


def escaped(word: str) -> str:
    """A word that is filled in with itself."""
    return word.replace("{", "{{").replace("}", "}}")


def checked(word: str) -> str:
    """The word; raises PydanticCustomError for a place that nobody knows how to fill in."""
    for found in _BRACES.finditer(word):
        if found[1] is None and len(found[0]) == 1:
            _unfit(f"has a lone {found[0]!r}", "write a brace that stands for itself twice: {{ or }}")
        if found[1] is not None and found[1] not in PLACES:
            hint = f"there are {NAMED}; a brace that stands for itself is written twice"
            _unfit(f"has an unknown place {found[0]}", hint)
    return word


def whole(words: tuple[str, ...]) -> tuple[str, ...]:
    """The command line; raises PydanticCustomError where no server could be started by it."""
    if places(words[:1]):
        _unfit("begins with a place", "begin with the program: it is looked for before anything is filled in")
    if "port" not in places(words):
        _unfit("does not say the port", "each server gets a loopback port of its own: pass {port} on")
    return words


def _unfit(problem: str, hint: str) -> Any:
    # The words of pydantic's messages are templates themselves.
    raise PydanticCustomError("malformed", "{problem}", {"problem": problem, "hint": hint})
