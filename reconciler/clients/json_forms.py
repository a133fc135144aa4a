"""The forms for JSON: a marked block where comments may stand, members with a mark among them where they may not.

Everything is put in right behind an opening brace: there no comma of a person's has to come or go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.clients import blocks, jsonc
from reconciler.clients.blocks import BOM, MADE, SECRET, Mark
from reconciler.clients.forms import by_hand, note, still_readable, taken
from reconciler.clients.jsonc import Member, Node
from reconciler.core.diagnostics import Diagnostic, Refused, Where

EMPTY = b"{\n}\n"  # what a new file begins as
BLANK = "blank"  # the flag of a file that was there, with nothing in it
_REST = re.compile(r"[ \t]*(?:/\*[^\n]*?\*/[ \t]*)?(?://[^\n]*)?\r?\n")


@dataclass(frozen=True, slots=True)
class Commented:
    """One member in a JSON file that may have comments (`//`), below `path`: the objects that lead there.

    A new file begins as `skeleton`.
    """

    mark: Mark
    path: tuple[str, ...]
    key: str
    value: Any = None
    holds_secret: bool = False
    skeleton: bytes = EMPTY

    @property
    def snippet(self) -> str:
        return json.dumps(_nested((*self.path, self.key), self.value), indent=2)

    def put(self, text: bytes | None) -> bytes:
        flags = frozenset([*_fresh(text), *([SECRET] if self.holds_secret else [])])
        text = self.skeleton if text is None else text or EMPTY
        _parsed(text, self.mark.file, comments=True)
        block = self.mark.find(text)
        old = blocks.cut(text, block, inline=True) if block else text
        flags |= block.flags & {MADE, BLANK} if block else frozenset()
        root = _parsed(old, self.mark.file, comments=True)
        wanted = _merged(root.value, _nested(self.path, self._member))
        if block is not None:
            # Where it is, it stays: programs that write their own settings put lines before it.
            new = blocks.replace(text, block, self.mark, self._body(old, root, block.indent)[1], flags)
            if self._says(new, wanted):
                return new
        new = self._inserted(old, root, flags)
        if not self._says(new, wanted):
            raise by_hand(self, "the file is written in a way in which another member would change what it says")
        return new

    def take(self, text: bytes) -> bytes | None:
        block = self.mark.find(text)
        if block is None:
            return text
        rest = blocks.cut(text, block, inline=True)
        line = text.count(b"\n", 0, block.start) + 1
        still_readable(self.mark, line, lambda: _parsed(rest, self.mark.file, comments=True))
        return _left(rest, block.flags, self.skeleton)

    def secret(self, text: bytes) -> bool:
        block = self.mark.find(text)
        return block is not None and SECRET in block.flags

    @property
    def _member(self) -> dict[str, Any]:
        return {self.key: self.value}

    def _says(self, text: bytes, wanted: Any) -> bool:
        try:
            return bool(_parsed(text, self.mark.file, comments=True).value == wanted)
        except Refused:
            return False

    def _body(self, raw: bytes, root: Node, indent: str) -> tuple[Node, tuple[str, ...]]:
        """(the object that it goes into, its lines). Raises Refused where the name is taken."""
        text = blocks.decoded(raw, self.mark.file)
        node, missing = _deepest(root, self.path, self, text)
        if not missing and (there := node.get(self.key)):
            raise taken(self.mark, ".".join((*self.path, self.key)), _line(text, there.start))
        lines = _lines(_nested((*missing, self.key), self.value), indent)
        lines[-1] += ","  # also where nothing follows: what a person adds behind it then leaves it as it is
        return node, (f"{indent}{note(self.mark)}", *lines)

    def _inserted(self, raw: bytes, root: Node, flags: frozenset[str]) -> bytes:
        text = blocks.decoded(raw, self.mark.file)
        at, indent = _room(text, self._body(raw, root, "")[0])
        shift = len(raw) - len(raw.removeprefix(BOM)) + len(text[:at].encode())
        return blocks.insert(raw, shift, self.mark, self._body(raw, root, indent)[1], flags, indent)


@dataclass(frozen=True, slots=True)
class Members:
    """Members of a JSON file that may have no comments: `values` by dotted path, of one level or two.

    One more, named `sign` in the object `within`, says which they are, and holds a digest of them.
    """

    mark: Mark
    within: str
    sign: str
    values: Mapping[str, Any] = field(default_factory=dict)
    holds_secret: bool = False

    @property
    def snippet(self) -> str:
        return json.dumps(self._document(self.values), indent=2)

    def put(self, text: bytes | None) -> bytes:
        fresh = _fresh(text)
        text = text or EMPTY
        if (ours := self._ours(text)) is not None:
            fresh, text = [*(ours.flags & {MADE, BLANK})], self._without(text, ours)
        plain = blocks.decoded(text, self.mark.file)
        root = self._root(plain)
        for path in self.values:
            above, _, key = path.rpartition(".")
            holder = root.get(above).node if above and root.get(above) else root  # type: ignore[union-attr]
            if above and holder is root:
                continue
            if not holder.is_object:
                raise by_hand(self, f"`{above}` is no object", _line(plain, holder.start))
            if there := holder.get(key):
                raise taken(self.mark, path, _line(plain, there.start))
        flags = fresh + ["within"] * (root.get(self.within) is None) + [SECRET] * self.holds_secret
        words = " ".join([_digest(self.values), *flags])
        sign = f"{self.mark.client} [{words}] {' '.join(self.values)}"
        new = self._inserted(plain, {f"{self.within}.{self.sign}": sign, **self.values})
        if self._root(new).value != _merged(root.value, self._document({f"{self.within}.{self.sign}": sign,
                                                                         **self.values})):  # fmt: skip
            raise by_hand(self, "the file is written in a way in which more members would change what it says")
        return (BOM if text.startswith(BOM) else b"") + new.encode()

    def take(self, text: bytes) -> bytes | None:
        blocks.readable(text, self.mark.file)
        ours = self._ours(text) if text else None
        return text if ours is None else _left(self._without(text, ours), ours.flags)

    def secret(self, text: bytes) -> bool:
        ours = self._ours(text) if text else None
        return ours is not None and SECRET in ours.flags

    def _document(self, values: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for path, value in values.items():
            out = _merged(out, _nested(tuple(path.split(".")), value))
        return out

    def _root(self, plain: str) -> Node:
        root = jsonc.read(plain, self.mark.file, comments=False)
        if not root.is_object:
            raise Refused([Diagnostic("it is not an object", Where(self.mark.file, 1, 1), "mend the file")])
        return root

    def _ours(self, text: bytes) -> _Ours | None:
        """What is ours in a file, unchanged. Raises Refused where a person changed it."""
        root = self._root(plain := blocks.decoded(text, self.mark.file))
        holder = root.get(self.within)
        sign = holder.node.get(self.sign) if holder and holder.node.is_object else None
        if sign is None:
            return None
        found = re.fullmatch(rf"{re.escape(self.mark.client)} \[([0-9a-f]{{8}})((?: [a-z]+)*)\] (.+)",
                             str(sign.node.value))  # fmt: skip
        paths = tuple(found[3].split(" ")) if found else ()
        values = {path: node.value for path in paths if (node := _at(root, path)) is not None}
        if found is None or len(values) < len(paths) or _digest(values) != found[1]:
            what = f"what is listed in {self.within}.{self.sign} was changed by hand"
            hint = f"take {self.sign} out together with what it lists; then say the same again"
            raise Refused([Diagnostic(what, Where(self.mark.file, _line(plain, sign.start), 1), hint)])
        return _Ours((f"{self.within}.{self.sign}", *paths), frozenset(found[2].split()))

    def _without(self, text: bytes, ours: _Ours) -> bytes:
        plain = blocks.decoded(text, self.mark.file)
        for path in ours.paths:
            plain = _dropped(plain, self._root(plain), path)
        root = self._root(plain)
        holder = root.get(self.within)
        if "within" in ours.flags and holder and holder.node.value == {}:
            plain = _dropped(plain, root, self.within)
        return (BOM if text.startswith(BOM) else b"") + plain.encode()

    def _inserted(self, plain: str, values: Mapping[str, Any]) -> str:
        """Members of the top level first, then those within their object, which may have to be made."""
        inner = {p.partition(".")[2]: v for p, v in values.items() if "." in p}
        outer = {p: v for p, v in values.items() if "." not in p}
        holder = self._root(plain).get(self.within)
        if holder is None:
            outer[self.within] = inner
        else:
            plain = _added(plain, holder.node, inner)
        return _added(plain, self._root(plain), outer) if outer else plain


def _fresh(text: bytes | None) -> list[str]:
    """How a file came to have an object in it."""
    return [MADE] if text is None else [] if text else [BLANK]


def _left(rest: bytes, flags: frozenset[str], skeleton: bytes = EMPTY) -> bytes | None:
    """What remains of a file; None where that is nothing but what came with us."""
    if not flags & {MADE, BLANK} or rest.removeprefix(BOM).split() not in ([b"{", b"}"], [b"{}"], skeleton.split()):
        return rest
    return None if MADE in flags else b""


@dataclass(frozen=True, slots=True)
class _Ours:
    paths: tuple[str, ...]
    flags: frozenset[str]


def _lines(members: Mapping[str, Any], indent: str) -> list[str]:
    """Members as lines, without the braces around them."""
    return [indent + line[2:] for line in json.dumps(dict(members), indent=2).split("\n")[1:-1]]


def _parsed(text: bytes, file: str, comments: bool) -> Node:
    root = jsonc.read(blocks.decoded(text, file), file, comments)
    if not root.is_object:
        raise Refused([Diagnostic("it is not an object", Where(file, 1, 1), "mend the file")])
    return root


def _nested(path: tuple[str, ...], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _merged(one: Any, other: Any) -> Any:
    out = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if both else value
    return out


def _digest(values: Mapping[str, Any]) -> str:
    return blocks.digest([json.dumps(sorted(values.items()))])


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _at(root: Node, path: str) -> Node | None:
    node: Node | None = root
    for key in path.split("."):
        found = node.get(key) if node is not None and node.is_object else None
        node = found.node if found else None
    return node


def _deepest(root: Node, path: tuple[str, ...], form: Commented, text: str) -> tuple[Node, tuple[str, ...]]:
    """The innermost object of a path that is there, and the keys that are not."""
    node = root
    for depth, key in enumerate(path):
        member = node.get(key)
        if member is None:
            return node, path[depth:]
        if not member.node.is_object:
            raise by_hand(form, f"`{'.'.join(path[: depth + 1])}` is no object", _line(text, member.start))
        node = member.node
    return node, ()


def _room(text: str, node: Node) -> tuple[int, str]:
    """(where new lines go in an object, how they are indented)."""
    line = text.rfind("\n", 0, node.start) + 1
    indent = re.match(r"[ \t]*", text[line:])[0] + "  "  # type: ignore[index]
    if node.members:
        first = node.members[0].start
        begin = text.rfind("\n", 0, first) + 1
        if begin > node.start and not text[begin:first].strip():
            indent = text[begin:first]
    rest = _REST.match(text, node.start + 1)
    return (rest.end() if rest else node.start + 1), indent


def _added(text: str, node: Node, values: Mapping[str, Any]) -> str:
    """Members put in at the beginning of an object: as lines where it is written in lines, else in its line."""
    comma = "," if node.members else ""
    at, indent = _room(text, node)
    eol = "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"
    if text[at - 1 : at] == "\n":
        lines = _lines(values, indent)
        lines[-1] += comma
        return text[:at] + "".join(line + eol for line in lines) + text[at:]
    inline = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    return text[:at] + inline + (", " if comma else "") + text[at:]


def _dropped(text: str, root: Node, path: str) -> str:
    """The text without a member: its lines where it has lines of its own, else what it and its comma take."""
    above, _, key = path.rpartition(".")
    holder = _at(root, above) if above else root
    member = holder.get(key) if holder is not None else None
    if holder is None or member is None:
        return text
    start, end = member.start, member.node.end
    if comma := re.compile(r"\s*,").match(text, end):
        end = comma.end()
    elif before := _before(holder, member):
        return text[: before.node.end] + text[end:]
    line = text.rfind("\n", 0, start) + 1
    rest = re.compile(r"[ \t]*\r?\n").match(text, end)
    if not text[line:start].strip() and line and rest:
        return text[:line] + text[rest.end() :]
    space = re.compile(r" ?").match(text, end) if comma else None
    return text[:start] + text[space.end() if space else end :]


def _before(holder: Node, member: Member) -> Member | None:
    at = holder.members.index(member)
    return holder.members[at - 1] if at else None
