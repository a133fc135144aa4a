"""YAML text → plain values and the position of each, with every fault of the text in one run.

The values are built straight from the parser's events: there is no tree of nodes, and a hostile file ends at the first
limit that it passes. What a plain word means is decided here, because the parser's own idea of it is YAML 1.1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import TYPE_CHECKING, Any

from reconciler.core.diagnostics import Diagnostic, Where

if TYPE_CHECKING:
    from yaml._yaml import CParser
    from yaml.error import MarkedYAMLError
    from yaml.parser import Parser

MAX_BYTES = 8 << 20
MAX_NODES = 500_000
MAX_DEPTH = 50

Path = tuple[str | int, ...]


class Places(Mapping[Path, Where]):
    """Positions by path, in one file or several. Each is kept as one number, and becomes a `Where` when asked for."""

    __slots__ = ("files", "spots")

    def __init__(self, file: str) -> None:
        self.files = [file]
        self.spots: dict[Path, int] = {}

    def __getitem__(self, path: Path) -> Where:
        spot = self.spots[path]
        return Where(self.files[spot >> 64], spot >> 32 & 0xFFFF_FFFF, spot & 0xFFFF_FFFF)

    def take(self, path: Path, other: Places, its: Path) -> None:
        """Put a path where another one is in the other's file; nothing where that has no place."""
        if (spot := other.spots.get(its)) is not None:
            file = other.files[spot >> 64]
            if file not in self.files:
                self.files.append(file)
            self.spots[path] = self.files.index(file) << 64 | spot & 0xFFFF_FFFF_FFFF_FFFF

    def __iter__(self) -> Iterator[Path]:
        return iter(self.spots)

    def __len__(self) -> int:
        return len(self.spots)


@dataclass(slots=True)
class Document:
    """`values` is None where the text has no usable content. Positions are by path: of the key, and of the value."""

    file: str
    values: Any = None
    keys: Places = field(init=False)
    places: Places = field(init=False)
    faults: list[Diagnostic] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys, self.places = Places(self.file), Places(self.file)

    def where(self, path: Path, key: bool = False) -> Where:
        """The position of a path, or of the nearest thing above it that has one."""
        while path:
            found = (self.keys.get(path) if key else None) or self.places.get(path) or self.keys.get(path)
            if found:
                return found
            path = path[:-1]
        return Where(self.file, 1, 1)

    def fault(self, summary: str, where: Where, hint: str = "") -> None:
        self.faults.append(Diagnostic(summary, where, hint))


def read(text: bytes, file: str) -> Document:
    """Never raises for a fault of the text: the faults are in the document."""
    document = Document(file)
    if len(text) > MAX_BYTES:
        document.fault(f"the file has more than {MAX_BYTES} bytes", Where(file, 1, 1))
        return document
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        wide = "it is UTF-16 or UTF-32; " if text.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
        document.fault("the text is not UTF-8", Where(file, line, 1), wide + "save the file with UTF-8 encoding")
        return document
    if not _foreign(decoded, document):
        _build(decoded, document)
    return document


# -- before the parser ----------------------------------------------------------------------------------------------

# Three line ends of YAML 1.1 are among them: a 1.1 parser would end a comment there, which no editor shows.
_FOREIGN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_TAG_DIRECTIVE = re.compile(r"(?:\A|(?<=[\r\n]))%TAG\b")  # libyaml's time grows with the square of their number
_LINE_END = re.compile(r"\r\n|\r|\n")


def _foreign(text: str, document: Document) -> bool:
    """Whether the text holds something that keeps it from the parser; the fault is in the document."""
    if found := _FOREIGN.search(text):
        lines = _LINE_END.split(text[: found.start()])
        name = f"U+{ord(found[0]):04X}"
        hint = "is it a text file?" if found[0] == "\0" else f'remove it, or write it as "\\u{ord(found[0]):04x}"'
        summary = f"not readable as YAML: the character {name} in column {len(lines[-1]) + 1}"
        document.fault(summary, Where(document.file, len(lines), 1), hint)
    elif found := _TAG_DIRECTIVE.search(text):
        line = len(_LINE_END.split(text[: found.start()]))
        document.fault("tags are not used here, and %TAG neither", Where(document.file, line, 1), "remove the line")
    return found is not None


# -- from events to values ------------------------------------------------------------------------------------------

_UNFIT = re.compile(r"[\x00\ud800-\udfff]")  # what neither a path, an environment nor UTF-8 can hold


class _Enough(Exception):
    """Reading ends here; the fault is in the document."""


def _build(text: str, document: Document) -> None:
    from yaml.error import MarkedYAMLError

    try:
        document.values = _Builder(document, _parser(text)).root()
    except _Enough:
        pass
    except MarkedYAMLError as error:
        document.faults.append(_explained(error, text, document.file))


def _parser(text: str) -> CParser | Parser:
    try:
        from yaml._yaml import CParser
    except ImportError:  # PyYAML was built without libyaml: the same events, but many times slower
        return _pure_parser(text)
    return CParser(text)


def _pure_parser(text: str) -> Parser:
    from yaml.parser import Parser
    from yaml.reader import Reader
    from yaml.scanner import Scanner, ScannerError

    class Pure(Reader, Scanner, Parser):
        def __init__(self) -> None:
            Reader.__init__(self, text)
            Scanner.__init__(self)
            Parser.__init__(self)

        def get_event(self) -> Any:
            try:
                return super().get_event()  # type: ignore[no-untyped-call]
            except (ValueError, OverflowError) as error:  # from chr()
                problem = "found invalid Unicode character escape code"
                raise ScannerError(None, None, problem, self.get_mark()) from error

    return Pure()


def _spot(mark: Any) -> int:
    spot: int = (mark.line + 1) << 32 | (mark.column + 1)
    return spot


class _Builder:
    """Builds the value of one document from its events. It calls itself at most MAX_DEPTH times over."""

    def __init__(self, document: Document, parser: CParser | Parser) -> None:
        from yaml import events

        self.events = events
        self.take: Any = parser.get_event
        self.document = document
        self.keys, self.places = document.keys.spots, document.places.spots
        self.count = 0
        self.anchors: set[str] = set()

    def root(self) -> Any:
        self.take()  # the start of the stream
        start = self.take()
        if isinstance(start, self.events.StreamEndEvent):
            hint = "start with `version: 1` and a `models:` section"
            self.document.fault("the file is empty", Where(self.document.file, 1, 1), hint)
            return None
        if start.version and tuple(start.version) > (1, 2):  # libyaml has refused it already
            self._fault("not readable as YAML: found incompatible YAML document", start)
        value = self.value(self.take(), (), 0)
        self.take()  # the end of the document
        after = self.take()
        if not isinstance(after, self.events.StreamEndEvent):
            self._fault("there is another document in it", after, "one file holds one document; remove the `---`")
        return value

    def value(self, event: Any, path: Path, depth: int) -> Any:
        """The value that this event begins. The events that belong to it have been taken afterwards."""
        self._count(event, depth)
        start = event.start_mark
        self.places[path] = _spot(start)
        kind = type(event)
        if kind is self.events.AliasEvent:
            return self._aliased(event)
        if event.anchor or event.tag:
            self._decorated(event)
        if kind is self.events.ScalarEvent:
            if not event.value and start.index == event.end_mark.index and path in self.keys:
                self.places[path] = self.keys[path]  # nothing was written: the parser is at the next line already
            return self._scalar(event)
        return self._mapping(path, depth) if kind is self.events.MappingStartEvent else self._sequence(path, depth)

    def _mapping(self, path: Path, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        take, end = self.take, self.events.MappingEndEvent
        while type(event := take()) is not end:
            key = self._key(event, path, out, depth)
            if key is None:
                self._skip(take(), depth + 1)
            else:
                below = (*path, key)
                self.keys[below] = _spot(event.start_mark)
                out[key] = self.value(take(), below, depth + 1)
        return out

    def _key(self, event: Any, path: Path, before: dict[str, Any], depth: int) -> str | None:
        """None for what cannot be a key here; why is in the document."""
        if type(event) is not self.events.ScalarEvent:
            self._fault("a key must be plain text", event, "text that begins with { or [ needs quotes")
            self._skip(event, depth + 1)
            return None
        if event.anchor or event.tag:
            self._decorated(event)
        key = intern(event.value)
        if key == "<<":
            self._fault("merge keys (<<) are not used here", event, "write the values out")
        elif key in before:
            first = self.document.keys[(*path, key)]
            self._fault(f"the key {key!r} is here twice", event, f"the first one is in line {first.line}")
        elif event.style == '"' and _UNFIT.search(key):
            self._unfit(event)
        else:
            return key
        return None

    def _sequence(self, path: Path, depth: int) -> list[Any]:
        out: list[Any] = []
        take, end = self.take, self.events.SequenceEndEvent
        while type(event := take()) is not end:
            out.append(self.value(event, (*path, len(out)), depth + 1))
        return out

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if event.implicit[0]:
            try:
                return meaning(text)
            except ValueError as error:
                return self._fault(str(error), event)
        if event.style == '"' and _UNFIT.search(text):  # only there are escapes
            return self._unfit(event)
        return text

    def _skip(self, event: Any, depth: int) -> None:
        """Take the events of a value that is not wanted."""
        starts = (self.events.MappingStartEvent, self.events.SequenceStartEvent)
        ends = (self.events.MappingEndEvent, self.events.SequenceEndEvent)
        opened = 0
        while True:
            if isinstance(event, ends):
                opened -= 1
            else:
                self._count(event, depth + opened)
                self.anchors.add(event.anchor)
                opened += isinstance(event, starts)
            if not opened:
                return
            event = self.take()

    def _count(self, event: Any, depth: int) -> None:
        """Ends the reading at the limits. Behind them it would take time: for brackets, the square of their number."""
        self.count += 1
        if self.count > MAX_NODES:
            self._fault(f"more than {MAX_NODES} values in one file", event)
            raise _Enough
        if depth > MAX_DEPTH:
            self._fault(f"nested deeper than {MAX_DEPTH} levels", event)
            raise _Enough

    def _aliased(self, event: Any) -> str:
        """The alias as text, so that what a checker finds wrong with it has the place of this fault."""
        if event.anchor in self.anchors:
            self._fault("anchors and aliases (& and *) are not used here", event, "write the value out again")
        else:
            self._fault(f"undefined alias {event.anchor!r}", event, "text that begins with * needs quotes")
        return f"*{event.anchor}"

    def _decorated(self, event: Any) -> None:
        if event.anchor:
            self.anchors.add(event.anchor)
            self._fault("anchors and aliases (& and *) are not used here", event, "write the value out again")
        if event.tag:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._fault(f"the tag {tag} is not used here", event, "remove it; text that begins with ! needs quotes")

    def _unfit(self, event: Any) -> None:
        self._fault("it holds a character that no file name or setting can have", event)

    def _fault(self, summary: str, event: Any, hint: str = "") -> None:
        mark = event.start_mark
        self.document.fault(summary, Where(self.document.file, mark.line + 1, mark.column + 1), hint)


# -- what a plain word means ----------------------------------------------------------------------------------------

_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?(?:0x_*[0-9a-fA-F][0-9a-fA-F_]*|0o[0-7][0-7_]*|[0-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def meaning(text: str) -> Any:
    """What a word without quotes means: the core schema of YAML 1.2, and `_` between digits.

    Raises ValueError for a number that cannot be kept.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if _INT.fullmatch(text):
        digits = text.replace("_", "")
        if len(digits) > 64:
            raise ValueError("a number of more than 64 digits")
        return int(digits, 0) if digits.lstrip("+-")[:2] in ("0x", "0o") else int(digits)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text.replace("_", ""))):
        return number
    if _FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        raise ValueError("not a finite number")
    return text


# -- the parser's findings in our words -----------------------------------------------------------------------------

_CONFLICT = re.compile(r"^(?:<{7} .*|\|{7} .*|={7}|>{7} .*)\r?$", re.MULTILINE)
_HINTS = (
    (r"'\\t'|a tab ", "indent with spaces; YAML does not allow tabs there"),
    ("cannot start any token", "text that begins with this character needs quotes"),
    (
        "mapping values are not allowed",
        "is a line above missing its indentation, or a value with a colon its quotes?",
    ),
    ("could not find expected ':'", "a key needs a colon and a space after it"),
    ("scanning an (alias|anchor)", "text that begins with * or & needs quotes"),
    ("escape code", "write the character itself"),
    ("escape|hexdecimal", "a backslash in double quotes begins an escape: use single quotes, or write it twice"),
    ("quoted scalar", "is the closing quote missing?"),
    ("expected.* node content", "is a value missing? Text that begins with : , ] or } needs quotes"),
    ("block sequence entries", "a list begins in the line below its key"),
    ("flow (mapping|sequence)", "is a comma missing, or a closing bracket?"),
    (
        "block (mapping|collection|sequence)",
        "is this line indented like its neighbours? Quotes go around a whole value",
    ),
)


def _explained(error: MarkedYAMLError, text: str, file: str) -> Diagnostic:
    if conflict := _CONFLICT.search(text):
        line = text.count("\n", 0, conflict.start()) + 1
        hint = "keep one side, and remove the lines with <<<<<<<, ======= and >>>>>>>"
        return Diagnostic("not readable as YAML: a merge conflict is left in it", Where(file, line, 1), hint)
    problem, mark = error.problem or "", error.problem_mark or error.context_mark
    if "escape code" in problem:  # libyaml points into the escape; what is wrong is the value
        mark = error.context_mark or mark
    if "cannot start any token" in problem and mark:
        problem = f"found character {text[mark.index]!r} that cannot start any token"
    context = f"{error.context}: " if error.context else ""
    if error.context and error.context_mark and mark and error.context_mark.line != mark.line:
        context = f"{error.context} that begins in line {error.context_mark.line + 1}: "
    summary = f"{context}{problem}"
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, summary)), "")
    where = Where(file, mark.line + 1, mark.column + 1) if mark else Where(file, 1, 1)
    return Diagnostic(f"not readable as YAML: {summary}", where, hint)
