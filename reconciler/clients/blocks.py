"""A marked block of lines in somebody else's file: put in, kept up to date, taken out without a trace. Pure, on bytes.

The first line of a block names us, says how it came to be, and holds a digest of what it encloses, so that it is
enough to look at the file to know what is ours:

    # >>> reconcile env aider [0a1b2c3d made] >>>

`made`: the file was not there before. `split`: the line end before the block is ours, too, since the file did not end
in one (or the block was put into the middle of a line). What was changed between the marks is a person's; then, and
where marks are missing or doubled, nothing is touched.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from reconciler.core.diagnostics import Diagnostic, Refused, Where

MADE, SPLIT, SECRET = "made", "split", "secret"
BOM = b"\xef\xbb\xbf"
_FOREIGN = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Block:
    """A block that is whole and unchanged: bytes `start` to `end`, the line end of its last line included."""

    start: int
    end: int
    flags: frozenset[str]
    body: tuple[str, ...]
    indent: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Whose blocks are meant: those of `client` in `file`, behind the comment sign `sign`."""

    client: str
    file: str
    sign: str = "#"

    def lines(self, body: Sequence[str], flags: frozenset[str], indent: str = "") -> list[str]:
        """A block as lines without line ends."""
        words = " ".join([digest(body), *sorted(flags)])
        begin = f"{self.sign} >>> reconcile env {self.client} [{words}] >>>"
        return [indent + begin, *body, f"{indent}{self.sign} <<< reconcile env {self.client} <<<"]

    def find(self, text: bytes) -> Block | None:
        """Its block. Raises Refused where it is damaged, doubled or changed."""
        mark = re.compile(rb"(>>>|<<<) reconcile env %s(?![\w-])" % re.escape(self.client.encode()))
        lines = text.removeprefix(BOM).split(b"\n")
        seen = [(number, line) for number, line in enumerate(lines) if mark.search(line)]
        if not seen:
            return None
        begin = re.fullmatch(self._begin, seen[0][1].rstrip(b"\r"))
        end = re.fullmatch(self._end, seen[-1][1].rstrip(b"\r"))
        if len(seen) > 2:
            raise self._refused(seen[2][0] + 1, "there is more than one of its blocks", "delete all but one of them")
        if begin is None or end is None or len(seen) < 2:
            hint = "take out by hand what is left of it, with its marks"
            raise self._refused(seen[0][0] + 1, "its block is not whole: a mark is missing or was changed", hint)
        return self._block(text, seen[0][0], seen[1][0], begin)

    def _block(self, text: bytes, first: int, last: int, begin: re.Match[bytes]) -> Block:
        shift = len(text) - len(text.removeprefix(BOM))
        lines = text[shift:].split(b"\n")
        inner = tuple(line.rstrip(b"\r").decode("utf-8", "replace") for line in lines[first + 1 : last])
        if digest(inner) != begin[2].decode():
            hint = "move your lines out of it, or delete it with its marks; then say the same again"
            raise self._refused(first + 1, "its block was changed by hand", hint)
        start = shift + sum(len(line) + 1 for line in lines[:first])
        end = min(len(text), shift + sum(len(line) + 1 for line in lines[: last + 1]))
        return Block(start, end, frozenset(begin[3].decode().split()), inner, begin[1].decode())

    @property
    def _begin(self) -> bytes:
        name = re.escape(f"{self.sign} >>> reconcile env {self.client} ").encode()
        return rb"([ \t]*)" + name + rb"\[([0-9a-f]{8})((?: [a-z]+)*)\] >>>[ \t]*"

    @property
    def _end(self) -> bytes:
        return rb"[ \t]*" + re.escape(f"{self.sign} <<< reconcile env {self.client} <<<").encode() + rb"[ \t]*"

    def _refused(self, line: int, what: str, hint: str) -> Refused:
        return Refused([Diagnostic(what, Where(self.file, line, 1), hint)])


def only_ours(text: bytes) -> bool:
    """Whether a file came to be with a block of ours, be it another client's."""
    return bool(re.search(rb"^\S+ >>> reconcile env \S+ \[[0-9a-f]{8}[ a-z]* made\b", text, re.MULTILINE))


def digest(body: Sequence[str]) -> str:
    """8 hex digits of sha256; indentation and line ends do not count, since editors change them unasked."""
    return hashlib.sha256("\n".join(line.strip() for line in body).encode()).hexdigest()[:8]


def line_end(text: bytes) -> bytes:
    """The line end that a file mostly has."""
    return b"\r\n" if text.count(b"\r\n") * 2 > text.count(b"\n") else b"\n"


def insert(text: bytes, at: int, mark: Mark, body: Sequence[str], flags: frozenset[str], indent: str = "") -> bytes:
    """Put a block in before the byte `at`: as lines of its own, wherever that is."""
    eol = line_end(text)
    fresh = at == 0 or text[:at].endswith(b"\n") or text[:at] == BOM
    flags = flags - {SPLIT} if fresh else flags | {SPLIT}
    lines = eol.join(line.encode() for line in mark.lines(body, flags, indent))
    last = b"" if not fresh and at == len(text) else eol
    return text[:at] + (b"" if fresh else eol) + lines + last + text[at:]


def replace(text: bytes, block: Block, mark: Mark, body: Sequence[str], flags: frozenset[str]) -> bytes:
    """The same with other contents; where it is, and all around it, stays."""
    eol = line_end(text)
    kept = block.flags - {SECRET} | flags & {SECRET}
    last = eol if text[block.start : block.end].endswith(b"\n") else b""
    lines = eol.join(line.encode() for line in mark.lines(body, kept, block.indent))
    return text[: block.start] + lines + last + text[block.end :]


def cut(text: bytes, block: Block, inline: bool = False) -> bytes:
    """The file as it was without the block; `inline`: it may have been put right behind an opening brace."""
    before, after = text[: block.start], text[block.end :]
    if SPLIT not in block.flags:
        return before + after
    # The line end before it was ours; but where lines follow that were added since, they need one.
    if after and not (inline and before.rstrip(b"\r\n").endswith(b"{")):
        return before + after
    return before.removesuffix(b"\r\n" if b"\r\n" in text[block.start : block.end] else b"\n") + after


def readable(text: bytes, file: str) -> None:
    """Raises Refused for a file that is no text in bytes: UTF-16, or anything with zero bytes in it."""
    if text.startswith(_FOREIGN) or b"\x00" in text:
        hint = "store it as UTF-8, or paste what `reconcile env` prints yourself"
        raise Refused(f"{file} is not text in UTF-8 (it may be UTF-16)", hint=hint)


def decoded(text: bytes, file: str) -> str:
    """The text of a file that is UTF-8, without its byte order mark. Raises Refused."""
    readable(text, file)
    try:
        return text.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        raise Refused([Diagnostic("it is not UTF-8", Where(file, line, 1), "store the file as UTF-8")]) from error
