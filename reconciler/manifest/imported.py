"""A draft from another tool's files → the text of a manifest that is valid and tidy, whatever those files said.

Each importer writes what it understands; what the language then does not take is left out, key by key, and said.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reconciler.core.diagnostics import Diagnostic, Refused, Where
from reconciler.foreign import write
from reconciler.foreign.draft import Draft
from reconciler.kinds.engine.llama_host import flags
from reconciler.kinds.engine.spec import EMBEDDED
from reconciler.manifest.later import unsupported
from reconciler.manifest.parse import check
from reconciler.manifest.read import Document, read
from reconciler.manifest.stack import Stack
from reconciler.manifest.tidy import tidy

ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Imported:
    """The text, and what in it a plan denies for now: (dotted path, a sentence)."""

    text: bytes
    later: tuple[tuple[str, str], ...]


def imported(draft: Draft, path: Path) -> Imported:
    """The manifest that will lie at `path`. Raises Refused where nothing is left of it."""
    text, stack = valid(draft, path)
    later = tuple((".".join(str(part) for part in at), said) for at, said in unsupported(stack))
    return Imported(_tidied(text, path), later)


def valid(draft: Draft, path: Path) -> tuple[bytes, Stack]:
    """The text and what it means, once all is out of the draft that the language does not take. Raises Refused."""
    _for_embedded(draft)
    for _ in range(ROUNDS):
        if draft.empty:
            break
        text = write.text(draft).encode()
        try:
            return text, check(text, path).stack
        except Refused as refused:
            _without(draft, read(text, str(path)), refused.diagnostics)
    faults = [Diagnostic(write.told(left)) for left in draft.left]
    nothing = Diagnostic(f"nothing of {draft.tool} can be carried over", hint="see what is said of each part")
    raise Refused([nothing, *faults])


def _for_embedded(draft: Draft) -> None:
    """The embedded engine has fewer flags than a llama-server, and would not start with others."""
    known = {option.lstrip("-") for action in flags()._actions for option in action.option_strings}
    for name, model in draft.models.items():
        options = model.get("options")
        if model.get("engine", EMBEDDED) != EMBEDDED or not isinstance(options, dict):
            continue
        unknown = [key for key in options if key.replace("_", "-") not in known]
        for key in unknown:
            del options[key]
        if not options:
            del model["options"]
        if told := [key for key in unknown if key != "jinja"]:  # it always does
            remedy = "name an `engine` of type llama.cpp, which does; some can be sent with each request"
            draft.leave(f"options {', '.join(told)} of {name}", "the embedded engine does not have them", remedy)


def _tidied(text: bytes, path: Path) -> bytes:
    try:
        return tidy(text, str(path))
    except Refused:  # right all the same
        return text


def _without(draft: Draft, document: Document, faults: tuple[Diagnostic, ...]) -> None:
    """Take out what the faults are of. Each time something goes, so that this ends."""
    paths = [path for path in (_path(document, fault.where) for fault in faults) if path]
    if not paths:
        raise Refused(faults)
    for path, fault in zip(paths, faults, strict=False):
        _remove(draft, path, fault.summary)


def _path(document: Document, where: Where | None) -> tuple[str | int, ...]:
    """The longest path at a place."""
    spots = [
        path
        for places in (document.keys, document.places)
        for path, at in places.items()
        if where and (at.line, at.column) == (where.line, where.column)
    ]
    return max(spots, key=len, default=())


def _remove(draft: Draft, path: tuple[str | int, ...], why: str) -> None:
    names = [str(part) for part in path]
    entries = next((inner for section, inner in draft.entries.items() if section == names[0]), {})
    if names[0] == "gateway":
        for key in names[1:2] or list(draft.gateway):
            draft.gateway.pop(key, None)
        draft.leave(f"`{'.'.join(names)}`", f"it is not possible here: {why}")
    elif len(names) >= 3 and names[1] in entries and names[2] in entries[names[1]]:
        inner = entries[names[1]]
        if len(names) > 3 and isinstance(inner[names[2]], dict) and names[3] in inner[names[2]]:
            del inner[names[2]][names[3]]
        else:
            del inner[names[2]]
        draft.leave(f"`{'.'.join(names)}`", f"it is not possible here: {why}")
    elif len(names) >= 2 and names[1] in entries:
        del entries[names[1]]
        draft.leave(f"`{'.'.join(names[:2])}`", f"it is not possible here: {why}")
    elif names[0] in draft.entries:
        draft.entries[names[0]].clear()
