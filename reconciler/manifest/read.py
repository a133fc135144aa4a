"""YAML text → plain values and the position of each, with every fault of the text in one run.

The text is composed into nodes and turned into values here, because the ordinary constructors stop at the first
duplicate key and follow aliases, which lets a small file grow without bound.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reconciler.core.diagnostics import Diagnostic, Where

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node

MAX_BYTES = 4 << 20
MAX_NODES = 200_000
MAX_DEPTH = 50

Path = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
_UNFIT = re.compile(r"[\x00\ud800-\udfff]")  # what neither a path, an environment nor UTF-8 can hold
_INT = re.compile(r"[-+]?(0x[0-9a-fA-F]+|0o[0-7]+|[0-9]+)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(slots=True)
class Document:
    """`values` is None where the text has no usable content. Positions are by path: of the key, and of the value."""

    file: str
    values: Any = None
    keys: dict[Path, Where] = field(default_factory=dict)
    places: dict[Path, Where] = field(default_factory=dict)
    faults: list[Diagnostic] = field(default_factory=list)

    def where(self, path: Path, key: bool = False) -> Where:
        """The position of a path, or of the nearest thing above it that has one."""
        while path:
            found = (self.keys.get(path) if key else None) or self.places.get(path) or self.keys.get(path)
            if found:
                return found
            path = path[:-1]
        return Where(self.file, 1, 1)


def read(text: bytes, file: str) -> Document:
    """Never raises for a fault of the text: the faults are in the document."""
    document = Document(file)
    if len(text) > MAX_BYTES:
        document.faults.append(
            Diagnostic(f"the file has {len(text)} bytes; {MAX_BYTES} are the limit", Where(file, 1, 1))
        )
        return document
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        document.faults.append(
            Diagnostic("the text is not UTF-8", Where(file, line, 1), hint="save the file with UTF-8 encoding")
        )
        return document
    root = _compose(decoded, document)
    if root is not None:
        document.values = _Builder(document).value(root, (), 0)
    elif not document.faults:
        document.faults.append(
            Diagnostic("the file is empty", Where(file, 1, 1), hint="start with `version: 1` and a `models:` section")
        )
    return document


def _compose(text: str, document: Document) -> Node | None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        node: Node | None = YAML(typ="rt", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Where(document.file, mark.line + 1, mark.column + 1) if mark else Where(document.file, 1, 1)
        document.faults.append(Diagnostic(_problem(error), where, hint=_hint(_problem(error))))
        return None
    except (YAMLError, ValueError, AssertionError, RecursionError) as error:
        line = _line_of(error, text)
        document.faults.append(Diagnostic(f"not readable as YAML: {_first_line(error)}", Where(document.file, line, 1)))
        return None
    return node


def _problem(error: Any) -> str:
    context = f"{error.context}: " if error.context else ""
    return f"not readable as YAML: {context}{error.problem}"


def _hint(problem: str) -> str:
    if "\\t" in problem or "'\t'" in problem:
        return "indent with spaces; YAML does not allow tabs there"
    if "mapping values are not allowed" in problem:
        return "is a line above missing its indentation, or a value with a colon its quotes?"
    if "expected a single document" in problem:
        return "one file holds one document; remove the `---`"
    if "could not find expected ':'" in problem:
        return "a key needs a colon and a space after it"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["nested too deeply"])[0]


def _line_of(error: Exception, text: str) -> int:
    position = getattr(error, "position", None)
    return text[:position].count("\n") + 1 if isinstance(position, int) else 1


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document, self.count = document, 0
        self.seen: set[int] = set()

    def value(self, node: Node, path: Path, depth: int) -> Any:
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        where = Where(self.document.file, node.start_mark.line + 1, node.start_mark.column + 1)
        if node.start_mark.index == node.end_mark.index and not node.value and path in self.document.keys:
            where = self.document.keys[path]  # nothing was written: the parser is at the next line already
        self.document.places[path] = where
        self.count += 1
        if id(node) in self.seen:
            return self._aliased(where)
        self.seen.add(id(node))
        if self.count == MAX_NODES:
            self._fault(f"more than {MAX_NODES} values in one file", where)
        if self.count >= MAX_NODES:
            return None
        if depth > MAX_DEPTH:
            return self._fault(f"nested deeper than {MAX_DEPTH} levels", where)
        if node.anchor is not None:
            self._aliased(where)
        if isinstance(node, MappingNode | SequenceNode) and str(node.tag) not in (f"{_TAG}map", f"{_TAG}seq"):
            self._fault(f"the tag {node.tag} is not used here", where)
        if isinstance(node, MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return self._scalar(node, where)

    def _mapping(self, node: Any, path: Path, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = Where(self.document.file, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node.value, str):
                self._fault("a key must be plain text", where)
                continue
            key = key_node.value
            if key == "<<":
                self._fault("merge keys (<<) are not used here", where, "write the values out")
            elif key in out:
                first = self.document.keys[(*path, key)]
                self._fault(f"the key {key!r} is here twice", where, f"the first one is in line {first.line}")
            else:
                self.document.keys[(*path, key)] = where
                out[key] = self.value(value_node, (*path, key), depth + 1)
        return out

    def _scalar(self, node: Any, where: Where) -> Any:
        text, tag = str(node.value), str(node.tag).removeprefix(_TAG)
        if _UNFIT.search(text):
            return self._fault("it holds a character that no file name or setting can have", where)
        if tag == "null":
            return None
        if tag == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if tag == "int" and _INT.fullmatch(text.replace("_", "")):
            plain = text.replace("_", "")
            if len(plain) > 64:
                return self._fault("a number of more than 64 digits", where)
            return int(plain, 0) if plain.lstrip("+-")[:2] in ("0x", "0o") else int(plain)
        if tag == "float" and _FLOAT.fullmatch(text.replace("_", "")):
            number = float(text.replace("_", ""))
            return number if math.isfinite(number) else self._fault("not a finite number", where)
        if tag == "float" and _NOT_FINITE.fullmatch(text):
            return self._fault("not a finite number", where)
        if tag in ("str", "timestamp", "bool", "int", "float"):
            return text
        return self._fault(f"the tag {node.tag} is not used here", where)

    def _aliased(self, where: Where) -> None:
        self._fault("anchors and aliases (& and *) are not used here", where, "write the value out again")

    def _fault(self, summary: str, where: Where, hint: str = "") -> None:
        self.document.faults.append(Diagnostic(summary, where, hint=hint))
