"""pydantic's findings in our words: one fault a place, with the path, the position and a hint. Pure.

A value that may be a secret, or may hold one, is never repeated.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from reconciler.core.diagnostics import Diagnostic
from reconciler.core.section import ALIAS, NAME, REFERENCE, REFERENCE_HINT, SHA256, VARIABLE
from reconciler.manifest.read import Document
from reconciler.manifest.stack import Stack

Path = tuple[str | int, ...]

_SECRET = {"key", "api_key", "headers", "env"}  # whatever is there may be one; of the next, only a text may hold one
_TELLING = {
    "source",
    "base_url",
    "anthropic_base_url",
    "proxy",
    "url",
    "path",
    "args",
    "argv",
    "command",
    "mmproj",
    "lora",
    "draft",
}
_LISTED = 40  # names in a hint
_COMPARED = 100  # names that one name is compared to: a large file full of faults must not take minutes
_SHAPES = {"plain": "text", "list": "a list", "mapping": "a mapping"}
_FORMS = {
    REFERENCE: REFERENCE_HINT,
    SHA256: "a sha256 has 64 lower-case hexadecimal digits",
    NAME: "use letters, digits, dots, dashes and underscores, and begin with a letter or digit",
    ALIAS: "use letters, digits and . _ : / @ -, and begin with a letter or digit",
    VARIABLE: "use letters, digits and underscores, and do not begin with a digit",
}
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}


def translate(errors: Iterable[Any], document: Document) -> Iterator[Diagnostic]:
    """Errors of validating a Stack. What the members of one union find of one value is one fault."""
    groups: dict[tuple[Path, bool], list[Any]] = {}
    for error in errors:
        if error["type"] == "too_short" and error["input"]:
            continue  # it has items, all of them wrong
        is_key = error["loc"][-1:] == ("[key]",)
        path, _ = _placed(error["loc"])
        groups.setdefault((path, is_key), []).append(error)
    for (path, is_key), group in groups.items():
        yield _fault(path, is_key, group, document)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint: the known word that was probably meant, otherwise all of them."""
    known = list(known)
    listed = ", ".join(known[:_LISTED]) + (", …" if len(known) > _LISTED else "")
    return close(word, known) or (f"one of: {listed}" if known else "")


def close(word: str, known: list[str]) -> str:
    """A hint: the known word that was probably meant, if there is one."""
    folded = {k.casefold(): k for k in reversed(known) if len(known) <= _COMPARED or k[:2] == word[:2]}
    found = difflib.get_close_matches(word.casefold(), list(folded)[:_COMPARED], n=1, cutoff=0.6)
    return f"did you mean {folded[found[0]]!r}?" if found else ""


def _fault(path: Path, is_key: bool, group: list[Any], document: Document) -> Diagnostic:
    error, dotted = group[0], ".".join(str(p) for p in path)
    given, above = error.get("input"), ".".join(str(p) for p in path[:-1])
    match error["type"]:
        case "extra_forbidden":
            hint = nearest(str(path[-1]), sorted(_keys(error["loc"])))
            return Diagnostic(f"unknown key {str(path[-1])!r}", document.where(path, key=True), hint, dotted)
        case "missing":
            hint = f"add `{path[-1]}:` here"
            return Diagnostic(f"{path[-1]!r} is missing", document.where(path[:-1], key=True), hint, above)
        case "union_tag_not_found":
            return Diagnostic("'type' is missing", document.where(path, key=True), "add `type: embedded`", dotted)
        case "union_tag_invalid" if error["ctx"]["discriminator"] == "'type'":
            tag, expected = given["type"], _quoted(error["ctx"]["expected_tags"])
            problem = f"{tag!r} is not an engine type" if isinstance(tag, str) else "must be text"
            return Diagnostic(problem, document.where((*path, "type")), nearest(str(tag), expected), f"{dotted}.type")
    if given is None and path and any(_EXPECTED.get(e["type"]) == "a mapping" for e in group):
        hint = "write something below it, or remove the line"
        return Diagnostic(f"{path[-1]!r} is empty", document.where(path, key=True), hint, dotted)
    plain = isinstance(given, str | int | float | bool) or given is None
    secret = not (_SECRET | _TELLING if isinstance(given, str) else _SECRET).isdisjoint(path[-2:])
    shown = f" (got {given!r})" if plain and not secret else ""
    advice = next((a for a in (_advice(e, given) for e in group) if a), "")
    return Diagnostic(_together(group) + shown, document.where(path, key=is_key), advice, dotted)


def _together(group: list[Any]) -> str:
    """What each member of a union wants, in one sentence: fixed words last."""
    group = sorted(group, key=lambda e: e["type"] == "literal_error")
    words = list(dict.fromkeys(_words(error) for error in group))
    first, rest = words[0], [w.removeprefix("must be ") for w in words[1:]]
    return " or ".join([first, *rest]) if len(words) < 3 else f"{', '.join([first, *rest[:-1]])} or {rest[-1]}"


def _words(error: Any) -> str:
    kind, ctx = error["type"], error.get("ctx", {})
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}"
    if kind == "union_tag_invalid":
        return f"must be {' or '.join(_SHAPES[shape] for shape in _quoted(ctx['expected_tags']))}"
    if kind == "literal_error":
        return f"must be {ctx['expected']}"
    if kind == "enum":
        return "is no quantization that llama.cpp knows"
    if kind == "string_pattern_mismatch":
        return "is not well formed"
    if kind in ("value_error", "assertion_error"):
        return str(ctx.get("error", error["msg"]))
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"must be {'at least' if kind[0] == 'g' else 'at most'} {ctx.get('ge', ctx.get('le'))}"
    if kind in ("string_too_short", "too_short"):
        return "must not be empty"
    return str(error["msg"])


def _advice(error: Any, given: Any) -> str:
    kind, ctx = error["type"], error.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return _FORMS.get(ctx["pattern"], f"its form is {ctx['pattern']}")
    if kind == "string_type" and isinstance(given, int | float):
        return "put it in quotes"  # as it is written there: 2026.10 has become 2026.1 by now
    if kind == "literal_error" and given == ctx["expected"]:
        return "write it without quotes"
    if kind == "literal_error" and isinstance(given, str):
        return close(given, _quoted(ctx["expected"]))  # the summary lists them
    if kind == "enum":
        return nearest(str(given), _quoted(ctx["expected"]))
    return str(ctx.get("hint", ""))


def _quoted(words: str) -> list[str]:
    """`'a', 'b' or 'c'` → the words."""
    return [word.strip("' ") for word in words.replace(" or ", ",").split(",")]


# -- where in the language -----------------------------------------------------------------------------------------


def _placed(located: tuple[Any, ...]) -> tuple[Path, Any]:
    """pydantic's location → the path in the file, and the type that is declared there.

    The location also names the member of each union that was tried; the types say which parts these are.
    """
    path: Path = ()
    here: Any = Stack
    for part in located:
        here, members = _bare(here)
        if part == "[key]":
            break
        if members:
            here = next((m for m in members if _named(m, part)), None)
        elif isinstance(here, type) and issubclass(here, BaseModel):
            field: FieldInfo | None = here.model_fields.get(part)
            path, here = (*path, part), field.annotation if field else None
        else:
            arguments = typing.get_args(here)
            path, here = (*path, part), arguments[1 if typing.get_origin(here) is dict else 0] if arguments else None
    return path, here


def _keys(located: tuple[Any, ...]) -> set[str]:
    """The keys that the mapping may have in which an unknown one was found."""
    holder, _ = _bare(_placed(located[:-1])[1])
    return set(holder.model_fields) if isinstance(holder, type) and issubclass(holder, BaseModel) else set()


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without what is annotated to it and without None, and its members if it is a union of several."""
    while True:
        if typing.get_origin(annotation) is Annotated:
            annotation = typing.get_args(annotation)[0]
        elif typing.get_origin(annotation) in (typing.Union, UnionType):
            members = tuple(m for m in typing.get_args(annotation) if m is not NoneType)
            if len(members) > 1:
                return annotation, members
            annotation = members[0]
        else:
            return annotation, ()


def _named(member: Any, label: Any) -> bool:
    """Whether pydantic calls a member of a union so: by its tag, or by the `type` that it is for."""
    if any(isinstance(m, Tag) and m.tag == label for m in getattr(member, "__metadata__", ())):
        return True
    field = getattr(_bare(member)[0], "model_fields", {}).get("type")
    return field is not None and label in typing.get_args(_bare(field.annotation)[0])
