"""Values with positions → a checked `Stack`, or every fault of the file at once, each with its place and a hint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from reconciler.core.diagnostics import Diagnostic, Refused, Where
from reconciler.manifest.faults import translate
from reconciler.manifest.later import unsupported
from reconciler.manifest.read import Document, read
from reconciler.manifest.references import dangling
from reconciler.manifest.stack import Stack as Stack


@dataclass(frozen=True, slots=True)
class Manifest:
    """A file that was read and is right. `text` is what it said."""

    path: Path
    text: bytes
    stack: Stack
    document: Document

    def where(self, *path: str | int) -> Where:
        return self.document.where(path, key=True)


def load(path: Path) -> Manifest:
    """Read and check a manifest. Raises Refused with everything that is wrong with it."""
    try:
        if path.exists() and not path.is_file():
            raise Refused(f"{path} is not a file", hint="name the manifest with -f FILE")
        text = path.read_bytes()
    except FileNotFoundError:
        raise Refused(
            f"there is no {path}", hint="name the manifest with -f FILE, or write one: see examples/quickstart"
        ) from None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
    return check(text, path)


def check(text: bytes, path: Path) -> Manifest:
    """Check the text of a manifest that lies, or will lie, at `path`. Raises Refused."""
    document = read(text, _shown(path))
    stack, faults = understand(document)
    if stack is not None and not faults:
        faults = [_too_early(document, path, sentence) for path, sentence in unsupported(stack)]
    if faults or stack is None:
        raise Refused(sorted(_once(faults), key=lambda d: (d.where.line, d.where.column) if d.where else (0, 0)))
    return Manifest(path, text, stack, document)


def understand(document: Document) -> tuple[Stack | None, list[Diagnostic]]:
    """What a document says in the whole language, whether it can be carried out yet or not; or all that is wrong."""
    faults = list(document.faults)
    stack = None
    if document.values is not None or not faults:
        try:
            stack = Stack.model_validate(document.values)
        except ValidationError as error:
            faults += translate(error.errors(include_url=False), document)
        faults += dangling(document)
    return stack, faults


def _too_early(document: Document, path: tuple[str | int, ...], sentence: str) -> Diagnostic:
    dotted = ".".join(str(part) for part in path)
    return Diagnostic(sentence, document.where(path, key=True), "change or remove it", dotted)


def _shown(path: Path) -> str:
    """The path as a person would write it: relative where it lies below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _once(faults: Iterable[Diagnostic]) -> Iterator[Diagnostic]:
    """One fault a place: the reader's word before the checker's consequence of it."""
    seen: set[Where | None] = set()
    for fault in faults:
        if fault.where not in seen:
            seen.add(fault.where)
            yield fault
