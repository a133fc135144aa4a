"""Ways to put something into a file that belongs to a person, and to take it out again. Pure: bytes in, bytes out.

Every form keeps three promises, and refuses (with the text to paste) where it cannot: no byte that a person wrote is
changed; what was put in is found again by the file alone; and taking it out gives back the file as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from reconciler.clients import blocks
from reconciler.clients.blocks import BOM, MADE, SECRET, Mark
from reconciler.clients.shells import sets
from reconciler.core.diagnostics import Diagnostic, Refused, Where

Language = Literal["shell", "toml", "yaml"]


class Form(Protocol):
    """What one client wants in one file."""

    @property
    def mark(self) -> Mark:
        """Whose it is, and where."""

    @property
    def snippet(self) -> str:
        """What a person would paste."""

    def put(self, text: bytes | None) -> bytes:
        """The file with it; None where there is no file yet. Saying it twice changes nothing. Raises Refused."""

    def take(self, text: bytes) -> bytes | None:
        """The file without it; None where nothing else was ever in it. Raises Refused."""

    def secret(self, text: bytes) -> bool:
        """Whether what is in the file now was written with the key itself."""


@dataclass(frozen=True, slots=True)
class Lines:
    """A block of lines at the beginning or the end of a file: variables of a shell, keys of TOML or YAML.

    `names` are the variables that a shell would get; of TOML and YAML the keys are read from the text itself.
    """

    mark: Mark
    language: Language
    body: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    top: bool = False
    holds_secret: bool = False

    @property
    def snippet(self) -> str:
        return "\n".join(self.body)

    def put(self, text: bytes | None) -> bytes:
        flags = frozenset([MADE] if text is None or blocks.only_ours(text) else [])
        flags |= frozenset([SECRET] if self.holds_secret else [])
        text = text or b""
        _whole(self.language, text, self.mark.file)
        block = self.mark.find(text)
        without = blocks.cut(text, block) if block else text
        self._free(without)
        if block:
            new = blocks.replace(text, block, self.mark, self._noted, flags)
        else:
            at = (len(BOM) if text.startswith(BOM) else 0) if self.top else len(text)
            new = blocks.insert(text, at, self.mark, self._noted, flags)
        if self.language != "shell":
            _same_but_for(self.language, without, new, self)
        return new

    def take(self, text: bytes) -> bytes | None:
        block = self.mark.find(text)
        if block is None:
            return text
        rest = blocks.cut(text, block)
        return None if MADE in block.flags and not rest.removeprefix(BOM).strip() else rest

    def secret(self, text: bytes) -> bool:
        block = self.mark.find(text)
        return block is not None and SECRET in block.flags

    @property
    def _noted(self) -> tuple[str, ...]:
        return (note(self.mark), *self.body)

    def _free(self, text: bytes) -> None:
        """Nothing of what we are to say is said there already. Raises Refused."""
        if self.language == "shell":
            line = _first_setting(text, self.names)
            if line:
                raise taken(self.mark, line[1], line[0])
        elif clash := _clash(_values(self.language, text, self.mark), _values(self.language, self._text, self.mark)):
            raise taken(self.mark, clash, _line_of(text, clash.split(".")[-1]))

    @property
    def _text(self) -> bytes:
        return self.snippet.encode()


@dataclass(frozen=True, slots=True)
class Items:
    """Entries of a list at the top level of a YAML file, behind those that are there.

    `items` are lines without indentation; `skeleton` is what a new file has besides.
    """

    mark: Mark
    key: str
    items: tuple[str, ...] = ()
    skeleton: str = ""
    holds_secret: bool = False
    names: tuple[str, ...] = field(default=())

    @property
    def snippet(self) -> str:
        return self.skeleton + "\n".join(f"  {line}" for line in self.items)

    def put(self, text: bytes | None) -> bytes:
        flags = frozenset([MADE] if text is None else []) | frozenset([SECRET] if self.holds_secret else [])
        text = self.skeleton.encode() if text is None else text
        _whole("yaml", text, self.mark.file)
        block = self.mark.find(text)
        without = blocks.cut(text, block) if block else text
        self._free(without)
        if block:
            ours = f"{block.indent}{self.key}:"  # where a person has no list, it came with us
            body = self._body(f"{block.indent}  ", ours) if block.body[:1] == (ours,) else self._body(block.indent)
            new = blocks.replace(text, block, self.mark, body, flags)
        else:
            new = self._inserted(text, flags)
        _same_but_for("yaml", without, new, self)
        return new

    def take(self, text: bytes) -> bytes | None:
        block = self.mark.find(text)
        if block is None:
            return text
        rest = blocks.cut(text, block)
        if MADE in block.flags and rest.split() == self.skeleton.encode().split():
            return None
        still_readable(self.mark, text.count(b"\n", 0, block.start) + 1, lambda: _events(rest, ""))
        return rest

    def secret(self, text: bytes) -> bool:
        block = self.mark.find(text)
        return block is not None and SECRET in block.flags

    def _body(self, indent: str, above: str = "") -> tuple[str, ...]:
        lines = (note(self.mark), *self.items)
        return (*([above] if above else []), *(f"{indent}{line}" for line in lines))

    def _inserted(self, text: bytes, flags: frozenset[str]) -> bytes:
        import yaml

        plain = blocks.decoded(text, self.mark.file)
        root = _composed(plain, self.mark.file)
        shift = len(text) - len(text.removeprefix(BOM))
        if root is None or (found := _under(root, self.key)) is None:
            top = " " * (root.start_mark.column if root is not None else 0)
            return blocks.insert(text, len(text), self.mark, self._body(f"{top}  ", f"{top}{self.key}:"), flags, top)
        name, value = found
        if isinstance(value, yaml.ScalarNode) and not value.value and value.tag.endswith(":null"):
            indent, line = " " * (name.start_mark.column + 2), name.end_mark.line + 1
        elif isinstance(value, yaml.SequenceNode) and not value.flow_style and value.value:
            indent, line = _dash(plain, value.value[0].start_mark.line), _line_after(value.value[-1])
        else:
            what = f"`{self.key}` is not written as a list with one entry a line"
            raise by_hand(self, what, name.start_mark.line + 1)
        at = _offset(text, line) if line else shift
        return blocks.insert(text, at, self.mark, self._body(indent), flags, indent)

    def _free(self, text: bytes) -> None:
        """None of the names of our entries is taken. Raises Refused."""
        root = _composed(blocks.decoded(text, self.mark.file), self.mark.file)
        found = _under(root, self.key) if root is not None else None
        for entry in found[1].value if found and found[1].id == "sequence" else ():
            named = _under(entry, "name")
            if named and named[1].value in self.names:
                raise taken(self.mark, f"{self.key}: {named[1].value}", named[0].start_mark.line + 1)


def note(mark: Mark) -> str:
    """The line of a block that says how to be rid of it."""
    return f"{mark.sign} `reconcile env {mark.client} --remove` takes this block out again"


def taken(mark: Mark, what: str, line: int) -> Refused:
    """What a person has set already is not overruled."""
    hint = f"take that line out, or leave it and use what `reconcile env {mark.client}` prints where you need it"
    where = Where(mark.file, line, 1) if line else Where(mark.file)
    return Refused([Diagnostic(f"{what} is set there already, and not by reconcile", where, hint)])


def still_readable(mark: Mark, line: int, read: Callable[[], object]) -> None:
    """What a person added since may lean on what is to go. Raises Refused."""
    try:
        read()
    except Refused as error:
        where = Where(mark.file, line, 1) if line else Where(mark.file)
        hint = "move what is yours below a key of your own; then say the same again"
        raise Refused([Diagnostic("without its block the file could not be read any more", where, hint)]) from error


def by_hand(form: Form, why: str, line: int = 0) -> Refused:
    """What cannot be put in without touching a person's lines is for the person to paste."""
    where = Where(form.mark.file, line, 1) if line else Where(form.mark.file)
    return Refused([Diagnostic(f"{why}, so that it cannot be added safely", where, f"paste this:\n{form.snippet}")])


def _first_setting(text: bytes, names: tuple[str, ...]) -> tuple[int, str] | None:
    """(line, name) of the first line outside of blocks of ours that gives one of these variables a value."""
    within = False
    for number, raw in enumerate(text.split(b"\n"), 1):
        line = raw.decode("utf-8", "replace")
        if ">>> reconcile env " in line or "<<< reconcile env " in line:
            within = ">>> reconcile env " in line
        elif not within and (name := next((name for name in names if sets(line, name)), "")):
            return number, name
    return None


# -- TOML and YAML by structure ----------------------------------------------------------------------------------------


def _whole(language: Language, text: bytes, file: str) -> None:
    """Raises Refused for a file that its own program could not read either."""
    if language == "shell":
        blocks.readable(text, file)
    else:
        _values(language, text, Mark("", file))


def _values(language: Language, text: bytes, mark: Mark) -> Mapping[str, Any]:
    """The keys of a file; of YAML the values are no more than that they are there."""
    plain = blocks.decoded(text, mark.file)
    if language == "yaml":
        return _yaml_keys(plain, mark.file)
    import tomllib

    try:
        return tomllib.loads(plain)
    except tomllib.TOMLDecodeError as error:
        raise Refused([Diagnostic(f"not readable as TOML: {error}", Where(mark.file), "mend the file")]) from error


def _yaml_keys(text: str, file: str) -> Mapping[str, Any]:
    _events(text.encode(), file)
    root = _composed(text, file)
    if root is None or (root.id == "scalar" and not root.value):
        return {}
    if root.id != "mapping":
        raise Refused([Diagnostic("it is not a mapping", Where(file, root.start_mark.line + 1, 1), "mend the file")])
    return {str(key.value): None for key, _ in root.value}


def _clash(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The dotted name of the first value that both have; empty where there is none."""
    for key, value in ours.items():
        if key not in theirs:
            continue
        if not isinstance(value, Mapping) or not isinstance(theirs[key], Mapping):
            return key
        if inner := _clash(theirs[key], value):
            return f"{key}.{inner}"
    return ""


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if both else value
    return out


def _same_but_for(language: Language, old: bytes, new: bytes, form: Form) -> None:
    """The file says all that it said, and what we say; nothing moved into another place. Raises Refused."""
    mark = form.mark
    try:
        if language == "toml":
            ours = _values(language, form.snippet.encode(), mark)
            good = _values(language, new, mark) == _merged(_values(language, old, mark), ours)
        else:
            good = _extended(_events(old, mark.file), _events(new, mark.file))
    except Refused as error:
        raise by_hand(form, "the file is written in a way that leaves no room for more lines") from error
    if not good:
        raise by_hand(form, "the file is written in a way in which more lines would change what it says")


def _extended(old: list[Any], new: list[Any]) -> bool:
    """Whether `new` is `old` with something put in at one place. An empty file may become anything."""
    if len(old) <= 2:
        return True
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(old))
    more = len(new) - len(old)
    if more < 0:
        return False
    # A key without a value has an empty scalar, which gives way to the list.
    gap = 1 if same < len(old) and old[same][:2] == ("ScalarEvent", "") else 0
    return old[same + gap :] == new[same + more + gap :]


def _events(text: bytes, file: str) -> list[Any]:
    """What a YAML text says, in order, without places. Linear, whatever its anchors multiply to. Raises Refused."""
    import yaml

    try:
        found = list(yaml.parse(blocks.decoded(text, file), _loader()))
    except yaml.YAMLError as error:
        at = getattr(error, "problem_mark", None)
        where = Where(file, at.line + 1, at.column + 1) if at else Where(file)
        problem = getattr(error, "problem", "") or "it is damaged"
        raise Refused([Diagnostic(f"not readable as YAML: {problem}", where, "mend the file")]) from error
    if sum(isinstance(event, yaml.DocumentStartEvent) for event in found) > 1:
        raise Refused([Diagnostic("it holds more than one document", Where(file), "keep one")])
    return [(type(e).__name__, getattr(e, "value", None), getattr(e, "tag", None), getattr(e, "anchor", None))
            for e in found]  # fmt: skip


def _composed(text: str, file: str) -> Any:
    """The nodes of a text that `_events` has found to be one document; None for none."""
    import yaml

    try:
        return yaml.compose(text, _loader())
    except (yaml.YAMLError, RecursionError) as error:
        raise Refused(f"{file} is not readable as YAML: it is damaged, or nested too deeply") from error


def _loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _under(node: Any, key: str) -> tuple[Any, Any] | None:
    """(key node, value node) of a mapping."""
    pairs = node.value if node.id == "mapping" else ()
    return next(((name, value) for name, value in pairs if name.value == key), None)


def _dash(text: str, line: int) -> str:
    """What stands before the dash of the entry that a line (from 0) belongs to."""
    lines = text.split("\n")
    while line and not lines[line].lstrip().startswith("-"):
        line -= 1
    return lines[line][: len(lines[line]) - len(lines[line].lstrip())]


def _line_after(node: Any) -> int:
    """The number (from 0) of the line behind the last line that a node has text in."""
    if node.id == "scalar" or getattr(node, "flow_style", False) or not node.value:
        mark = node.end_mark
        return int(mark.line + 1 if mark.column else mark.line)
    last = node.value[-1]
    return _line_after(last[1] if node.id == "mapping" else last)


def _offset(text: bytes, line: int) -> int:
    """The byte that a line (from 0) begins at; the end of the file where there are not so many."""
    at = 0
    for _ in range(line):
        at = text.find(b"\n", at) + 1
        if not at:
            return len(text)
    return at


def _line_of(text: bytes, key: str) -> int:
    """The first line that looks as if it gives a key its value; 0 where none does."""
    quoted = (key, f'"{key}"', f"'{key}'")
    for number, line in enumerate(text.decode("utf-8", "replace").split("\n"), 1):
        words = line.strip().removeprefix("[").replace("=", " ").replace(":", " ").replace("]", " ").replace(".", " ")
        if any(word in quoted for word in words.split()[:3]):
            return number
    return 0
