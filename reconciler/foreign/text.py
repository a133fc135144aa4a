"""Settings of other tools as plain values with the place of each: YAML with its anchors, JSON with comments.

They were written by others, so nothing in them is trusted: only ordinary files of a bounded size are read, nesting and
the number of values are bounded (counting what aliases stand for), and what is wrong is refused with file and line.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reconciler.core.diagnostics import Diagnostic, Refused, Where

MAX_BYTES = 8 << 20
MAX_VALUES = 200_000
MAX_DEPTH = 50

Form = Literal["yaml", "json"]
At = tuple[str | int, ...]


class NotThere(Exception):
    """A file that cannot be read as text; the message says why."""


@dataclass(slots=True)
class Text:
    """What a file says. `spots` are line and column of keys and values, by path."""

    file: str
    values: Any = None
    spots: dict[At, tuple[int, int]] = field(default_factory=dict)

    def where(self, *path: str | int) -> Where:
        """The place of a value, or of the nearest thing above it that has one."""
        while path and path not in self.spots:
            path = path[:-1]
        return Where(self.file, *self.spots.get(path, (1, 1)))

    def refused(self, summary: str, line: int, column: int, hint: str = "") -> Refused:
        return Refused([Diagnostic(summary, Where(self.file, line, column), hint)])


def read(path: Path, form: Form) -> Text:
    """Read a file of another tool. Raises Refused."""
    try:
        text = small_text(path)
    except NotThere as error:
        raise Refused(f"{path} cannot be read: {error}", hint="name the file, or its folder, as PATH") from error
    return parse(text, str(path), form)


def parse(text: str, file: str, form: Form) -> Text:
    """The values of a text. Raises Refused."""
    return _Yaml(text, file).read() if form == "yaml" else _Json(text, file).read()


def tolerant(path: Path) -> Any:
    """The values of a settings file, None where it cannot be read: for looking around only."""
    try:
        return read(path, "json" if path.suffix == ".json" else "yaml").values
    except Refused:
        return None


def small_text(path: Path, most: int = MAX_BYTES) -> str:
    """The text of an ordinary file. Raises NotThere."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise NotThere(getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotThere("it is not a file")
    with os.fdopen(fd, "rb") as data:
        try:
            content = data.read(most + 1)
        except OSError as error:
            raise NotThere(error.strerror or str(error)) from error
    if len(content) > most:
        raise NotThere(f"it has more than {most} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotThere(f"it is not UTF-8 (line {content[: error.start].count(10) + 1})") from error


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def word(value: Any) -> str:
    """A scalar as text; empty for everything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else ""


_UNFIT = re.compile(r"[\x00\ud800-\udfff]")  # what neither a path nor UTF-8 can hold
_UNFIT_WORDS = "it holds a character that no file name or setting can have"

# -- YAML ------------------------------------------------------------------------------------------------------------

_PLAIN = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]{1,18}|0x[0-9a-fA-F]{1,16}|0o[0-7]{1,20}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?")


def _meaning(text: str) -> Any:
    """What a word without quotes means: the core schema of YAML 1.2. Numbers that cannot be kept stay text."""
    if text in _PLAIN:
        return _PLAIN[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if len(text) < 40 and _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


class _Yaml:
    """Builds values from the parser's events, so that a hostile text ends at the first limit it passes."""

    def __init__(self, text: str, file: str) -> None:
        self.text, self.out = text, Text(file)
        self.count = 0
        self.anchors: dict[str, tuple[Any, int]] = {}  # value, and how many values it stands for

    def read(self) -> Text:
        from yaml.error import MarkedYAMLError, YAMLError

        if found := re.search(r"^%TAG\b", self.text, re.MULTILINE):  # libyaml's time grows with their square
            raise self.out.refused("%TAG is not read here", self.text.count("\n", 0, found.start()) + 1, 1)
        try:
            self.out.values = self._document()
        except MarkedYAMLError as error:
            mark: Any = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise self.out.refused(f"not readable as YAML: {error.problem or error.context}", line, column) from error
        except (YAMLError, ValueError, OverflowError) as error:
            words = (str(error).splitlines() or [type(error).__name__])[0]
            raise self.out.refused(f"not readable as YAML: {words}", 1, 1) from error
        return self.out

    def _document(self) -> Any:
        from yaml import events

        self.events = events
        self.take: Any = _parser(self.text).get_event
        self.take()  # the start of the stream
        if isinstance(self.take(), events.StreamEndEvent):
            return None
        value = self._value(self.take(), (), 0)
        self.take()  # the end of the document
        after = self.take()
        if not isinstance(after, events.StreamEndEvent):
            raise self._fault("there is another document in it", after, "keep one, and remove the `---`")
        return value

    def _value(self, event: Any, path: At, depth: int) -> Any:
        self._count(event, 1)
        if depth > MAX_DEPTH:
            raise self._fault(f"nested deeper than {MAX_DEPTH} levels", event)
        self.out.spots.setdefault(path, (event.start_mark.line + 1, event.start_mark.column + 1))
        if isinstance(event, self.events.AliasEvent):
            return self._alias(event)
        before, anchor = self.count, event.anchor
        if isinstance(event, self.events.ScalarEvent):
            value = self._scalar(event)
        elif isinstance(event, self.events.MappingStartEvent):
            value = self._mapping(path, depth)
        else:
            value = self._sequence(path, depth)
        if anchor:
            self.anchors[anchor] = value, self.count - before + 1
        return value

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self.anchors:
            raise self._fault("undefined alias", event)
        value, size = self.anchors[event.anchor]
        self._count(event, size)
        return value

    def _scalar(self, event: Any) -> Any:
        if _UNFIT.search(event.value):
            raise self._fault(_UNFIT_WORDS, event)
        return _meaning(event.value) if event.implicit[0] else event.value

    def _mapping(self, path: At, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := self.take(), self.events.MappingEndEvent):
            if not isinstance(event, self.events.ScalarEvent):
                raise self._fault("a key must be plain text", event)
            mark: Any = event.start_mark
            key = event.value
            if key in own:
                raise self._fault("a key is here twice", event)
            if _UNFIT.search(key):
                raise self._fault(_UNFIT_WORDS, event)
            below = (*path, key)
            self.out.spots[below] = (mark.line + 1, mark.column + 1)
            value = self._value(self.take(), below, depth + 1)
            if key == "<<" and event.implicit[0]:
                for other in value if isinstance(value, list) else [value]:
                    if not isinstance(other, dict):
                        raise self._fault("only a mapping can be merged", event)
                    merged = {**other, **merged}
            else:
                own[key] = value
        return {**merged, **own}

    def _sequence(self, path: At, depth: int) -> list[Any]:
        out: list[Any] = []
        while not isinstance(event := self.take(), self.events.SequenceEndEvent):
            out.append(self._value(event, (*path, len(out)), depth + 1))
        return out

    def _count(self, event: Any, size: int) -> None:
        self.count += size
        if self.count > MAX_VALUES:
            raise self._fault(f"it stands for more than {MAX_VALUES} values", event)

    def _fault(self, summary: str, event: Any, hint: str = "") -> Refused:
        return self.out.refused(summary, event.start_mark.line + 1, event.start_mark.column + 1, hint)


def _parser(text: str) -> Any:
    try:
        from yaml._yaml import CParser
    except ImportError:  # PyYAML was built without libyaml
        from yaml import SafeLoader

        return SafeLoader(text)
    return CParser(text)


# -- JSON ------------------------------------------------------------------------------------------------------------

_SPACE = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*[\s\S]*?\*/)*")  # editors' settings have comments
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_NUMBER = re.compile(r"-?[0-9]{1,300}(?:\.[0-9]{1,300})?(?:[eE][-+]?[0-9]{1,3})?")
_NAMES = {"true": True, "false": False, "null": None}


class _Json:
    """JSON as editors write it: with // and /* */ comments, and a comma after the last value."""

    def __init__(self, text: str, file: str) -> None:
        self.text, self.out, self.at, self.count = text, Text(file), 0, 0
        self.lines = [0, *(found.end() for found in re.finditer("\n", text))]

    def read(self) -> Text:
        self._space()
        if self.at == len(self.text):
            return self.out
        self.out.values = self._value((), 0)
        self._space()
        if self.at < len(self.text):
            raise self._fault("there is something behind the end of it")
        return self.out

    def _space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def _value(self, path: At, depth: int) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise self._fault(f"it has more than {MAX_VALUES} values")
        if depth > MAX_DEPTH:
            raise self._fault(f"nested deeper than {MAX_DEPTH} levels")
        self.out.spots.setdefault(path, self._spot())
        first = self.text[self.at : self.at + 1]
        if first == "{":
            return self._object(path, depth)
        if first == "[":
            return self._array(path, depth)
        if first == '"':
            return self._string()
        if found := _NUMBER.match(self.text, self.at):
            return self._number(found[0])
        for name, value in _NAMES.items():
            if self.text.startswith(name, self.at):
                self.at += len(name)
                return value
        raise self._fault("not readable as JSON: a value is missing")

    def _object(self, path: At, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        self.at += 1
        while not self._ends("}"):
            spot = self._spot()
            if self.text[self.at : self.at + 1] != '"':
                raise self._fault('not readable as JSON: a key in "quotes" is missing')
            key = self._string()
            self.out.spots[(*path, key)] = spot
            self._space()
            self._expect(":")
            self._space()
            out[key] = self._value((*path, key), depth + 1)
            self._comma("}")
        self.at += 1
        return out

    def _array(self, path: At, depth: int) -> list[Any]:
        out: list[Any] = []
        self.at += 1
        while not self._ends("]"):
            out.append(self._value((*path, len(out)), depth + 1))
            self._comma("]")
        self.at += 1
        return out

    def _ends(self, bracket: str) -> bool:
        self._space()
        return self.text.startswith(bracket, self.at)

    def _comma(self, bracket: str) -> None:
        if not self._ends(bracket):
            self._expect(",")

    def _expect(self, sign: str) -> None:
        if not self.text.startswith(sign, self.at):
            raise self._fault(f"not readable as JSON: a {sign!r} is missing")
        self.at += 1

    def _string(self) -> str:
        found = _STRING.match(self.text, self.at)
        try:
            value = json.loads(found[0]) if found else None
        except ValueError:
            value = None
        if not found or not isinstance(value, str):
            raise self._fault("not readable as JSON: this text does not end, or a backslash in it is wrong")
        if _UNFIT.search(value):
            raise self._fault(_UNFIT_WORDS)
        self.at = found.end()
        return value

    def _number(self, text: str) -> int | float:
        number = int(text) if text.lstrip("-").isdigit() else float(text)
        if isinstance(number, float) and not math.isfinite(number):
            raise self._fault("not a finite number")
        self.at += len(text)
        return number

    def _spot(self) -> tuple[int, int]:
        line = bisect_right(self.lines, self.at)
        return line, self.at - self.lines[line - 1] + 1

    def _fault(self, summary: str) -> Refused:
        return self.out.refused(summary, *self._spot())
