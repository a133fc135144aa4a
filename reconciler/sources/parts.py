"""Which models the members of packages make up: a whole file each, or one joined from numbered parts. Pure.

An index has a limit on the size of a file, so a large model comes as parts that only make sense once they are joined:
members `m.gguf.part1`, `m.gguf.part-00001`, `m.gguf.part2of5`, `m.gguf.00` or `m.gguf.aa`, in one wheel or several.
A model that llama.cpp has split, `m-00001-of-00003.gguf`, is not joined: each of its parts is a model file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.sources.names import printable

MOST_PARTS = 1000
_NUMBERED = re.compile(
    r"(?P<stem>.+\.gguf)[._-](?:part|p|chunk|split|shard)?[._-]?(?P<number>\d{1,5})(?:[._-]?of[._-]?(?P<count>\d{1,5}))?",
    re.IGNORECASE,
)
_LETTERED = re.compile(r"(?P<stem>.+\.gguf)[._-](?:part[._-]?)?(?P<letters>[a-z]{2})", re.IGNORECASE)
_NOT_LETTERS = frozenset({"br", "bz", "gz", "js", "lz", "md", "py", "sh", "xz"})  # endings that say something else
_PACKAGE = re.compile(r"(?:part|p|chunk|split|shard|data)?-?(?P<number>\d{1,5})(?:-?of-?\d{1,5})?")


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of a package: its path in there, what it takes unpacked and packed (bytes), where its header begins.

    `method` is the archive's number for how it is packed, `sha256` (hex) what the package itself says of it.
    """

    path: str
    size: int
    packed: int = 0
    offset: int = 0
    method: int = 0
    sha256: str = ""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True)
class Model:
    """A model and what it is joined from, in order: the number of the package, and the member."""

    name: str
    pieces: tuple[tuple[int, Entry], ...]

    @property
    def size(self) -> int:
        return sum(entry.size for _, entry in self.pieces)

    @property
    def sha256(self) -> str:
        """What the package says of it; empty for one that is joined."""
        return self.pieces[0][1].sha256 if len(self.pieces) == 1 else ""


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    count: int  # 0 where the name does not say
    lettered: bool
    piece: tuple[int, Entry]


def models(packages: Sequence[Sequence[Entry]]) -> tuple[Model, ...]:
    """The models of some packages, in order of their names. Raises Fault PARTS_MISSING where one is not complete."""
    whole: list[Model] = []
    parts: dict[tuple[str, bool], list[_Part]] = {}
    for number, members in enumerate(packages):
        for entry in members:
            if entry.name.lower().endswith(".gguf"):
                whole.append(Model(printable(entry.name), ((number, entry),)))
            elif found := _part(number, entry):
                parts.setdefault((found[0], found[1].lettered), []).append(found[1])
    taken = {model.name for model in whole}
    open_ = [(stem, of) for (stem, _), of in sorted(parts.items()) if stem not in taken]
    joined = [model for stem, of in open_ if (model := _joined(stem, of))]
    return tuple(sorted(_apart([*whole, *joined]), key=lambda model: model.name))


def part_number(package: str, required: str) -> int | None:
    """Which part of `package` the package `required` is by its name (both normalised); None where it is none."""
    if not required.startswith(f"{package}-"):
        return None
    match = _PACKAGE.fullmatch(required.removeprefix(f"{package}-"))
    return int(match["number"]) if match else None


def _part(package: int, entry: Entry) -> tuple[str, _Part] | None:
    if match := _NUMBERED.fullmatch(entry.name):
        found = _Part(int(match["number"]), int(match["count"] or 0), False, (package, entry))
    elif (match := _LETTERED.fullmatch(entry.name)) and match["letters"].lower() not in _NOT_LETTERS:
        first, second = (ord(letter) - ord("a") for letter in match["letters"].lower())
        found = _Part(first * 26 + second, 0, True, (package, entry))
    else:
        return None
    return printable(match["stem"]), found


def _joined(stem: str, parts: list[_Part]) -> Model | None:
    """The model that some parts make; None where they are not parts after all (a lone `m.gguf.de`)."""
    parts = sorted(parts, key=lambda part: part.number)
    numbers = [part.number for part in parts]
    if any(part.lettered for part in parts) and (0 not in numbers or len(parts) == 1):
        return None
    first = min(numbers[0], 1)
    count = max([part.count for part in parts]) or max(numbers[-1] + 1 - first, 2)
    wanted = range(first, first + min(count, MOST_PARTS + 1))
    if missing := [number for number in wanted if number not in numbers]:
        shown = ", ".join(str(number) for number in missing[:8]) + (", …" if len(missing) > 8 else "")
        raise Fault(
            "PARTS_MISSING",
            f"{stem} comes in parts, of which {shown} {'is' if len(missing) == 1 else 'are'} not there "
            f"({', '.join(printable(part.piece[1].name) for part in parts[:8])} {'is' if len(parts) == 1 else 'are'})",
            hint="name the package that requires the packages of all parts",
            kind=FaultClass.PERMANENT,
        )
    if len(numbers) != len(wanted) or len(numbers) > MOST_PARTS:
        raise Fault(
            "BAD_PARTS",
            f"{stem} comes in parts whose numbers do not fit together: {', '.join(map(str, numbers[:20]))}",
            hint="the package is broken; tell its author",
            kind=FaultClass.PERMANENT,
        )
    return Model(stem, tuple(part.piece for part in parts))


def _apart(found: list[Model]) -> list[Model]:
    """Models of one name are told apart by their folders in the package."""
    names = [model.name for model in found]
    return [
        model if names.count(model.name) == 1 else Model(printable(model.pieces[0][1].path), model.pieces)
        for model in found
    ]
