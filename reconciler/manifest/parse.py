"""Values with positions → a checked `Stack`, or every fault of the file at once, each with its place and a hint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from reconciler.core.diagnostics import Diagnostic, Refused, Where
from reconciler.manifest.faults import translate
from reconciler.manifest.include import SECTIONS, Disk, Kept, Texts, gather
from reconciler.manifest.read import Document
from reconciler.manifest.references import dangling
from reconciler.manifest.stack import Stack as Stack
from reconciler.manifest.unheard import unheard
from reconciler.manifest.when import problem


@dataclass(frozen=True, slots=True)
class Manifest:
    """Files that were read and are right. `texts` are what they said, by absolute path, the root's first."""

    path: Path
    texts: Mapping[Path, bytes]
    stack: Stack
    document: Document

    def where(self, *path: str | int) -> Where:
        return self.document.where(path, key=True)


def load(path: Path, source: Texts | None = None) -> Manifest:
    """Read and check a manifest and what it includes, from disk or elsewhere. Raises Refused with all that is wrong."""
    gathered = gather(path, source if source is not None else Disk())
    document = gathered.document
    stack, faults = understand(document)
    if stack is not None:
        faults += [*_conditions(stack, document), *unheard(stack, document)]
    if faults or stack is None:
        raise Refused(sorted(_once(faults), key=_order))
    return Manifest(path, gathered.texts, stack, document)


def check(text: bytes, path: Path) -> Manifest:
    """Check the text of a manifest that lies, or will lie, at `path`, and includes nothing. Raises Refused."""
    return load(path, Kept({Path(os.path.abspath(path)): text}))  # noqa: PTH100  (lexical, as `gather` does)


def _conditions(stack: Stack, document: Document) -> Iterator[Diagnostic]:
    """What is wrong with `when:`, whether it is for this machine or not."""
    for section in SECTIONS:
        for name, entry in getattr(stack, section).items():
            if entry.when and (wrong := problem(entry.when)):
                yield Diagnostic(wrong, document.where((section, name, "when")), "", f"{section}.{name}.when")


def _order(fault: Diagnostic) -> tuple[str, int, int]:
    return (fault.where.file, fault.where.line, fault.where.column) if fault.where else ("", 0, 0)


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


def _once(faults: Iterable[Diagnostic]) -> Iterator[Diagnostic]:
    """One fault a place: the reader's word before the checker's consequence of it."""
    seen: set[Where | None] = set()
    for fault in faults:
        if fault.where not in seen:
            seen.add(fault.where)
            yield fault
