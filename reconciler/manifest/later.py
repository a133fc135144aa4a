"""What a manifest asks for that is part of the language but has yet to be built. Pure.

Nothing is known here of any key: each is marked with `Later` where it is declared, and taking the mark away is all
that whoever builds it has to do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from reconciler.core.section import Later, Section
from reconciler.manifest.stack import Stack

Path = tuple[str | int, ...]


def unsupported(stack: Stack) -> Iterator[tuple[Path, str]]:
    """The path of each such key or entry, in the order of the language, and a sentence about it."""
    return _within(stack, ())


def _within(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, Section):
        said = value.model_fields_set
        for name, mark, default, always in _fields(type(value)):
            if name not in said and not always:
                continue
            inner, here = getattr(value, name), (*path, name)
            if mark is None or not mark.refuses(inner, default):
                yield from _within(inner, here)
            elif isinstance(inner, Mapping):
                yield from (((*here, key), f"{name} are not yet supported here") for key in inner)
            else:
                key = f"`{name}: {inner}`" if inner in mark.refused else f"`{name}`"
                yield here, f"{mark.says or key} is not yet supported here"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _within(inner, (*path, key))
    elif isinstance(value, tuple):
        for i, inner in enumerate(value):
            yield from _within(inner, (*path, i))


@functools.cache
def _fields(section: type[Section]) -> tuple[tuple[str, Later | None, Any, bool], ...]:
    """The fields of a section with their marks and defaults, and whether the mark may refuse even the default."""
    marks = {
        name: next((m for m in field.metadata if isinstance(m, Later)), None)
        for name, field in section.model_fields.items()
    }
    return tuple(
        (name, mark, section.model_fields[name].get_default(), mark is not None and any(map(callable, mark.refused)))
        for name, mark in marks.items()
    )
