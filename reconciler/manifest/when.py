"""`when:` conditions: CEL expressions over facts of the machine that say whether an entry is for it. Pure.

Evaluation is bounded by the language: it has no loops but those over lists and maps, of which the library runs
10,000 rounds at most, 32 calls deep; its regular expressions take linear time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from reconciler.core.diagnostics import Diagnostic, Refused, Where, nearest
from reconciler.core.state import HostFacts
from reconciler.manifest.read import Document

if TYPE_CHECKING:
    from cel_expr_python.cel import Env

MAX_LENGTH = 1000  # characters

FACTS = {
    "host.os": "linux, macos or windows",
    "host.arch": "x86_64 or arm64",
    "host.cpu": "logical cores, a whole number",
    "host.memory_gib": "memory, a whole number of GiB",
    "host.gpu": "nvidia, amd, intel, apple, or empty",
    "host.labels": "what labels.yaml in the data root says: a map of text",
}

EXAMPLE = "host.memory_gib >= 16"

_UNKNOWN = re.compile(r"undeclared reference to '([^']*)'")
_OVERLOAD = re.compile(r"found no matching overload for '_?([^']*?)_?' applied to '\(([^']*)\)'")
_SYNTAX = re.compile(r"Syntax error: ([^\n]*?)(?: expecting [^\n]*)?(?:\n|$)")
_COLUMN = re.compile(r"<input>:\d+:(\d+)")
_KEY = re.compile(r'Key not found in map : "(.*)"', re.DOTALL)


def problem(text: str) -> str:
    """What is wrong with a condition, as a sentence with its remedy; empty where it can be evaluated."""
    if len(text) > MAX_LENGTH:
        return f"the condition has {len(text)} characters; {MAX_LENGTH} are the limit"
    from cel_expr_python import cel

    try:
        text.encode()  # half a character is refused here, in one way
        kind = _language().compile(text).return_type()
    except (RuntimeError, ValueError) as error:
        return _explained(str(error))
    if kind != cel.Type.BOOL:
        return f"the condition gives {kind.name().lower()}, but must be true or false, such as `{EXAMPLE}`"
    return ""


def holds(text: str, facts: HostFacts) -> bool:
    """Whether a condition is true of a machine. Raises Refused where it cannot be said."""
    if wrong := problem(text):
        raise Refused(wrong)
    from cel_expr_python import cel

    try:
        value = _language().compile(text).eval(data=_values(facts))
    except (RuntimeError, ValueError) as error:
        why = "it takes too many steps" if "budget" in str(error) else "it is nested too deeply"
        raise Refused(f"the condition cannot be evaluated: {why}", hint="make it simpler") from None
    if value.type() != cel.Type.BOOL:
        raise _failed(str(value.value()))
    return bool(value.value())


def dropped(stack: Any, facts: HostFacts, document: Document | None = None) -> set[tuple[str, str]]:
    """The entries of a Stack, as (section, name), that are not for this machine. Raises Refused with every condition
    that cannot be evaluated; with the document, each has its place."""
    out: set[tuple[str, str]] = set()
    faults: list[Diagnostic] = []
    for section in type(stack).model_fields:
        entries = getattr(stack, section)
        for name, entry in entries.items() if isinstance(entries, Mapping) else ():
            condition = getattr(entry, "when", "")
            try:
                if condition and not holds(condition, facts):
                    out.add((section, name))
            except Refused as refused:
                where = document.where((section, name, "when")) if document else None
                faults += [_placed(d, where, f"{section}.{name}.when") for d in refused.diagnostics]
    if faults:
        raise Refused(faults)
    return out


def _placed(fault: Diagnostic, where: Where | None, path: str) -> Diagnostic:
    return Diagnostic(fault.summary, where, fault.hint, path)


@lru_cache(maxsize=1)
def _language() -> Env:
    from cel_expr_python import cel

    kind = cel.Type
    kinds = {"host.cpu": kind.INT, "host.memory_gib": kind.INT, "host.labels": kind.Map(kind.STRING, kind.STRING)}
    return cel.NewEnv(variables={name: kinds.get(name, kind.STRING) for name in FACTS})


def _values(facts: HostFacts) -> dict[str, Any]:
    values = {name: getattr(facts, name.removeprefix("host.")) for name in FACTS}
    return values | {"host.labels": dict(facts.labels)}


def _explained(message: str) -> str:
    """The library's first finding in our words."""
    column = found[1] if (found := _COLUMN.search(message)) else "1"
    if found := _UNKNOWN.search(message):
        return f"there is no {found[1]!r}; {nearest(found[1], FACTS)}"
    if found := _OVERLOAD.search(message):
        return f"{found[1].strip('_')!r} cannot be applied to ({found[2]}) in column {column}; {_hint(found[2])}"
    if found := _SYNTAX.search(message):
        return f"not a condition: {found[1]} in column {column}; write it as in `{EXAMPLE}`"
    if "recursion" in message:
        return "the condition is nested too deeply; make it simpler"
    first = message.partition("ERROR: ")[2].partition("\n")[0] or message.partition("\n")[0]
    return f"not a condition: {first}"


def _hint(types: str) -> str:
    if "double" in types:
        return "write whole numbers"
    return "texts are quoted and numbers are not, as in `host.os == 'linux' && host.cpu >= 8`"


def _failed(message: str) -> Refused:
    if found := _KEY.search(message):
        hint = f"ask for it first: `'{found[1]}' in host.labels && …`, or name it in labels.yaml"
        return Refused(f"this machine has no label {found[1]!r}", hint=hint)
    return Refused(f"the condition cannot be evaluated: {message.partition(': ')[2] or message}")
