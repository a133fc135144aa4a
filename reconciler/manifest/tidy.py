"""The same manifest, tidily written: comments, order, quotes and block texts stay, only the white space changes.

What comes out says exactly what went in, and tidying it again changes nothing; where the writer of YAML cannot promise
both, the text is refused instead.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reconciler.core.diagnostics import Diagnostic, Refused, Where
from reconciler.manifest.read import Document, read

ROUNDS = 4  # comments may move a little more than once until they stay


def tidy(text: bytes, file: str) -> bytes:
    """Two spaces a level, lists indented under their key, no blanks at line ends, LF, one last newline.

    Raises Refused for a text that cannot be read, with everything that is wrong with it."""
    before = read(text, file)
    if before.faults:
        raise Refused(before.faults)
    was = source = text.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    for _ in range(ROUNDS):
        now = _rewritten(was, before)
        for changed in (_aligned(now, was), _trimmed(_aligned(now, was))):
            now = changed if _same(changed, before) else now
        if now == was and _same(now, before) and _words(now) == _words(source):
            return now.encode()
        was = now
    hint = "it is right as it is; a comment inside brackets is the usual reason"
    raise Refused([Diagnostic("the file cannot be tidied without changing it", Where(file, 1, 1), hint)])


def _rewritten(text: str, before: Document) -> str:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML(typ="rt", pure=True)
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.preserve_quotes = True
    yaml.allow_unicode = True
    yaml.width = 1 << 30
    out = io.StringIO()
    try:
        yaml.serialize(yaml.compose(text), out)  # not load and dump: those write some numbers anew, and wrongly
    except (YAMLError, ValueError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise Refused(
            [Diagnostic("the file cannot be tidied", Where(before.file, 1, 1), _first_line(error))]
        ) from error
    return out.getvalue()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip(" \t") for line in text.rstrip().split("\n")) + "\n"


def _same(text: str, before: Document) -> bool:
    after = read(text.encode(errors="replace"), before.file)
    return not after.faults and _typed(after.values) == _typed(before.values)


def _typed(value: Any) -> Any:
    """Values that are equal only where their types and their order are: 1, 1.0 and true are three."""
    if isinstance(value, dict):
        return [(key, _typed(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return (type(value), value)


# -- comments -------------------------------------------------------------------------------------------------------
#
# The writer of YAML leaves a comment in the column that it had, wherever the lines around it have gone. So each is put
# back: behind a value with as many blanks as before, and on a line of its own beside the lines that it stood beside.


@dataclass(frozen=True, slots=True)
class _Comment:
    """`alone` on its line or behind something; then `column` and `words` of the comment itself. `levels` are the
    columns in which the open blocks began, `following` the one of the next line with content."""

    line: int
    column: int
    words: str
    blanks: int
    alone: bool
    levels: tuple[int, ...]
    following: int

    @property
    def level(self) -> int:
        """Which open block it ends, counted from the innermost as 1; 0 where it ends none."""
        open_ = [c for c in self.levels if c > self.following]
        return len(open_) - open_.index(self.column) if self.column in open_ else 0


def _comments(text: str) -> list[_Comment]:
    lines, places = text.split("\n"), _signs(text)
    alone = {line for line, column in places if not lines[line][:column].strip()}
    below, following = [0] * len(lines), 0
    for i in reversed(range(len(lines))):
        below[i] = following
        following = _column(lines[i]) if lines[i].strip() and i not in alone else following
    above: list[tuple[int, ...]] = []
    levels: tuple[int, ...] = ()
    for i, line in enumerate(lines):
        if line.strip() and i not in alone:
            levels = (*(c for c in levels if c < _column(line)), _column(line))
        above.append(levels)
    out = []
    for i, column in places:
        blanks = column - len(lines[i][:column].rstrip())
        out.append(_Comment(i, column, lines[i][column:].strip(), blanks, i in alone, above[i], below[i]))
    return out


def _signs(text: str) -> list[tuple[int, int]]:
    """(line, column) of the # of each comment: the first one between two tokens."""
    import yaml

    out: list[tuple[int, int]] = []
    position = 0
    try:
        for token in yaml.scan(text):
            out += _signs_between(text, position, token.start_mark.index)
            position = max(position, token.end_mark.index)
    except yaml.YAMLError:
        return []
    return [*out, *_signs_between(text, position, len(text))]


def _signs_between(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    if "#" not in text[start:end]:
        return
    line, begin = text.count("\n", 0, start), text.rfind("\n", 0, start) + 1
    for i, part in enumerate(text[start:end].split("\n")):
        if "#" in part:
            yield line + i, part.index("#") + (start - begin if i == 0 else 0)


def _words(text: str) -> list[str]:
    return [comment.words for comment in _comments(text)]


def _aligned(text: str, source: str) -> str:
    lines, was, now = text.split("\n"), _comments(source), _comments(text)
    if [c.words for c in was] != [c.words for c in now]:
        return text
    column = 0
    for i, (old, new) in enumerate(zip(was, now, strict=True)):
        before = lines[new.line][: new.column].rstrip()
        if not (old.alone and new.alone):
            lines[new.line] = before + " " * max(1, old.blanks) + new.words
            continue
        if old.level:
            column = new.levels[-old.level] if old.level <= len(new.levels) else new.following
        elif i and was[i - 1].alone and old.line == was[i - 1].line + 1 and old.column != old.following:
            column = max(0, column + old.column - was[i - 1].column)  # drawn or indented below the one above it
        else:
            column = new.following
        lines[new.line] = " " * column + new.words
    return "\n".join(lines)


def _column(line: str) -> int:
    return len(line) - len(line.lstrip())
