"""Where everything stands in a JSON text, comments and trailing commas included where they may be. Pure, bounded.

Values are told with their offsets, so that members can be put in and taken out by cutting the text, not by writing it
anew.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from reconciler.core.diagnostics import Diagnostic, Refused, Where

MAX_DEPTH = 100

_SPACE = re.compile(r"[ \t\r\n]*")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_OTHER = re.compile(r"-?[0-9][-+.0-9eE]*|true|false|null")


@dataclass(frozen=True, slots=True)
class Node:
    """A value from `start` to `end`. Objects have `members`; `value` is what it says (of objects: of the last keys)."""

    start: int
    end: int
    value: Any
    members: tuple[Member, ...] = ()

    @property
    def is_object(self) -> bool:
        return isinstance(self.value, dict)

    def get(self, key: str) -> Member | None:
        """The last member of that name: the one that counts."""
        return next((m for m in reversed(self.members) if m.key == key), None)


@dataclass(frozen=True, slots=True)
class Member:
    """A key at `start`, and its value."""

    key: str
    start: int
    node: Node


@dataclass(slots=True)
class _Reader:
    text: str
    file: str
    comments: bool
    at: int = 0

    def read(self) -> Node:
        self.space()
        node = self.value(0)
        self.space()
        if self.at < len(self.text):
            raise self.fault("there is something behind the end of it")
        return node

    def space(self) -> None:
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            found = _COMMENT.match(self.text, self.at)
            if found is None:
                return
            if not self.comments:
                raise self.fault("a comment, which its own program does not take here")
            self.at = found.end()

    def value(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.fault(f"nested deeper than {MAX_DEPTH} levels")
        start, sign = self.at, self.text[self.at : self.at + 1]
        if sign == "{":
            return self.object(depth)
        if sign == "[":
            return self.array(depth)
        if sign == '"':
            value = self.string()
            return Node(start, self.at, value)
        if found := _OTHER.match(self.text, self.at):
            self.at = found.end()
            try:
                return Node(start, self.at, json.loads(found[0]))
            except ValueError:
                pass
        raise self.fault("a value is missing")

    def object(self, depth: int) -> Node:
        members: list[Member] = []
        start, values = self.at, {}
        self.at += 1
        while not self.closed("}", bool(members)):
            begin = self.at
            key = self.string()
            self.space()
            self.expect(":")
            self.space()
            node = self.value(depth + 1)
            members.append(Member(key, begin, node))
            values[key] = node.value
        return Node(start, self.at, values, tuple(members))

    def array(self, depth: int) -> Node:
        values: list[Any] = []
        start = self.at
        self.at += 1
        while not self.closed("]", bool(values)):
            values.append(self.value(depth + 1).value)
        return Node(start, self.at, values)

    def closed(self, bracket: str, later: bool) -> bool:
        """Whether the list ends here; otherwise the next entry begins, behind its comma."""
        self.space()
        if self.text.startswith(bracket, self.at):
            self.at += 1
            return True
        if later:
            self.expect(",")
            self.space()
            if self.comments and self.text.startswith(bracket, self.at):
                self.at += 1
                return True
        return False

    def expect(self, sign: str) -> None:
        if not self.text.startswith(sign, self.at):
            raise self.fault(f"a {sign!r} is missing")
        self.at += 1

    def string(self) -> str:
        found = _STRING.match(self.text, self.at)
        if found is None:
            raise self.fault('a text in "quotes" is missing')
        try:
            value: str = json.loads(found[0])
        except ValueError:
            raise self.fault("a backslash is wrong") from None
        self.at = found.end()
        return value

    def fault(self, what: str) -> Refused:
        line = self.text.count("\n", 0, self.at) + 1
        column = self.at - (self.text.rfind("\n", 0, self.at) + 1) + 1
        where = Where(self.file, line, column)
        return Refused([Diagnostic(f"not readable as JSON: {what}", where, "mend the file")])


def read(text: str, file: str, comments: bool) -> Node:
    """The one value of a text. Raises Refused with the place of what is wrong."""
    return _Reader(text, file, comments).read()
