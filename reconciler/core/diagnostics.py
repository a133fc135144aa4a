"""What went wrong, where, and the remedy: of an input (`Diagnostic`) and of the running machine (`Fault`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any


class Exit(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    ERROR = 1
    PENDING = 2
    DENIED = 3
    LOCKED = 4
    STALE = 5
    PARTIAL = 6


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file; line and column count from 1."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One fault of an input: what, where and the remedy."""

    summary: str
    where: Where | None = None
    hint: str = ""
    path: str = ""  # dotted path in the manifest, `models.chat.context`
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        what = f"{self.path}: " if self.path else ""
        hint = f"\n    hint: {self.hint}" if self.hint else ""
        return f"{place}{self.severity}: {what}{self.summary}{hint}"

    def to_json(self) -> dict[str, Any]:
        place = {"file": self.where.file, "line": self.where.line, "column": self.where.column} if self.where else None
        return {
            "severity": self.severity.value,
            "summary": self.summary,
            "path": self.path,
            "where": place,
            "hint": self.hint,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Diagnostic:
        """The opposite of `to_json`; keys that a newer version adds do not count."""
        place = value.get("where")
        where = Where(place["file"], place["line"], place["column"]) if place else None
        return cls(value["summary"], where, value["hint"], value["path"], Severity(value["severity"]))


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a word that is not known: the one that was probably meant, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"one of: {', '.join(names)}" if names else ""


class Refused(Exception):
    """An input that cannot be carried out; carries every diagnostic and the exit code it deserves."""

    def __init__(
        self, diagnostics: Iterable[Diagnostic] | str, *, exit_code: Exit = Exit.ERROR, hint: str = ""
    ) -> None:
        if isinstance(diagnostics, str):
            diagnostics = [Diagnostic(diagnostics, hint=hint)]
        self.diagnostics = tuple(diagnostics)
        self.exit_code = exit_code
        super().__init__("\n".join(str(d) for d in self.diagnostics))


class FaultClass(StrEnum):
    """What a fault asks for: time, a changed spec, or a person."""

    TRANSIENT = "transient"  # tried again with backoff
    PERMANENT = "permanent"  # waits until the spec changes
    NEEDS_HUMAN = "needs-human"  # tried again slowly; the hint says which step a person must take


class Fault(Exception):
    """A failure of the running machine, with a stable code, a message and a remedy.

    `after` is the least number of seconds before another try makes sense (an HTTP Retry-After, for example).
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str = "",
        kind: FaultClass = FaultClass.TRANSIENT,
        after: float = 0.0,
    ) -> None:
        self.code, self.message, self.hint, self.kind, self.after = code, message, hint, kind, after
        super().__init__(f"{code}: {message}" + (f" ({hint})" if hint else ""))
