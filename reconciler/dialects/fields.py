"""Fields: what becomes of each field of a request, and reading a request that may say anything.

PURE. Each reader returns a value of its type or raises `Unmappable` that names the field.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from reconciler.dialects.bridge import Unmappable

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")

Fate = Literal["mapped", "passed", "refused", "warned"]


class Field(NamedTuple):
    """mapped: said in the other dialect's way; passed: as it is; refused: 400; warned: left out, and named as such."""

    fate: Fate
    why: str


def string(value: object, where: str) -> str:
    """The text."""
    if not isinstance(value, str):
        raise Unmappable(where, "must be a string")
    return value


def mapping(value: object, where: str) -> dict[str, Any]:
    """The object."""
    if not isinstance(value, dict):
        raise Unmappable(where, "must be an object")
    return value


def sequence(value: object, where: str) -> list[Any]:
    """The array."""
    if not isinstance(value, list):
        raise Unmappable(where, "must be an array")
    return value


def integer(value: object, where: str, least: int) -> int:
    """The whole number, `least` or more."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise Unmappable(where, f"must be a whole number of at least {least}")
    return value


def number(value: object, where: str) -> float:
    """The number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unmappable(where, "must be a number")
    return value


def flag(value: object, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Unmappable(where, "must be true or false")
    return value


def clamped(value: float, lowest: float, highest: float) -> float:
    """The value itself where it lies between."""
    return max(lowest, min(highest, value))


def given(document: dict[str, Any]) -> dict[str, Any]:
    """The fields that say something: null is the same as absent in both dialects."""
    return {key: value for key, value in document.items() if value is not None}


def refuse(document: dict[str, Any], fields: dict[str, Field]) -> None:
    """Raises `Unmappable` for the first field that the table refuses."""
    for key in document:
        if key in fields and fields[key].fate == "refused":
            raise Unmappable(key, fields[key].why)


class Ignored:
    """Paths of harmless fields that were left out; safe in a header, whatever the caller wrote."""

    _MOST = 40

    def __init__(self) -> None:
        self._paths: set[str] = set()

    def add(self, path: str) -> None:
        """Remember a dotted path."""
        if len(self._paths) < self._MOST:
            self._paths.add(_UNSAFE.sub("?", path[:80]))

    def rest(self, value: dict[str, Any], known: frozenset[str], prefix: str) -> None:
        """Remember every field of the object that is not known and says something."""
        for key in value.keys() - known:
            if value[key] is not None:
                self.add(f"{prefix}.{key}")

    def paths(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(sorted(self._paths))
