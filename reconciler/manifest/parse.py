"""Values with positions → a checked `Stack`, or every fault of the file at once, each with its place and a hint."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from reconciler.core.diagnostics import Diagnostic, Refused, Where
from reconciler.core.section import Name, Section
from reconciler.kinds.engine.spec import EMBEDDED, EngineSection
from reconciler.kinds.gateway.spec import GatewaySection, exposed
from reconciler.kinds.model.spec import ModelSection
from reconciler.manifest.read import Document, read


def _not_a_truth(value: Any) -> Any:
    if isinstance(value, bool):  # True equals 1, which a Literal is content with
        raise ValueError("must be 1")
    return value


class Stack(Section):
    """The whole manifest: what this machine should run."""

    version: Annotated[Literal[1], BeforeValidator(_not_a_truth)]
    """The version of the manifest language."""
    name: Name = "stack"
    """What this stack is called, in messages."""
    data_root: Annotated[str, Field(min_length=1)] | None = None
    """Where everything is kept; relative to this file. Default: state, beside it."""
    engines: dict[Name, EngineSection] = {}
    """Programs that run models. `embedded` is always there."""
    models: dict[Name, ModelSection] = {}
    """Models to have and to serve."""
    gateway: GatewaySection = GatewaySection()
    """The one local API in front of all models."""


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
    faults = list(document.faults)
    stack = None
    if document.values is not None or not faults:
        try:
            stack = Stack.model_validate(document.values)
        except ValidationError as error:
            faults += [_translate(e, document) for e in error.errors(include_url=False)]
        faults += _references(document)
    if faults or stack is None:
        raise Refused(sorted(_once(faults), key=lambda d: (d.where.line, d.where.column) if d.where else (0, 0)))
    return Manifest(path, text, stack, document)


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


# -- pydantic's findings in our words -----------------------------------------------------------------------------


def _translate(error: Any, document: Document) -> Diagnostic:
    located = tuple(part for part in error["loc"] if part != "[key]")
    path = _existing(located, document, error["type"])
    dotted = ".".join(str(p) for p in path)
    match error["type"]:
        case "extra_forbidden":
            known = sorted(_keys_at(path[:-1], located))
            return Diagnostic(
                f"unknown key {str(path[-1])!r}", document.where(path, key=True), _nearest(str(path[-1]), known), dotted
            )
        case "missing":
            return Diagnostic(
                f"{located[-1]!r} is missing",
                document.where(path[:-1], key=True),
                f"add `{located[-1]}:` here",
                ".".join(str(p) for p in path[:-1]),
            )
        case "union_tag_not_found":
            return Diagnostic("'type' is missing", document.where(path, key=True), "add `type: embedded`", dotted)
        case "union_tag_invalid":
            tag, expected = error["ctx"]["tag"], error["ctx"]["expected_tags"]
            where = document.where((*path, "type"))
            return Diagnostic(f"{tag!r} is not an engine type", where, f"one of {expected}", f"{dotted}.type")
    given = error.get("input")
    if given is None and error["type"] in ("dict_type", "model_type", "model_attributes_type") and path:
        hint = "write something below it, or remove the line"
        return Diagnostic(f"{path[-1]!r} is empty", document.where(path, key=True), hint, dotted)
    plain = isinstance(given, str | int | float | bool) or given is None
    # What is wrong with these may be that a secret is in them.
    secret = isinstance(given, str) and path[-1:] in (("key",), ("source",))
    shown = f" (got {given!r})" if plain and not secret else ""
    where = document.where(path, key="[key]" in error["loc"])
    return Diagnostic(_words(error) + shown, where, _advice(error, given), dotted)


def _existing(located: tuple[Any, ...], document: Document, kind: str) -> tuple[Any, ...]:
    """pydantic's location without the parts that are not in the file, such as the tag of a union."""
    path: tuple[Any, ...] = ()
    for i, part in enumerate(located):
        last = i == len(located) - 1
        if (*path, part) in document.places or (last and kind in ("missing", "extra_forbidden")):
            path = (*path, part)
    return path


def _words(error: Any) -> str:
    kind, ctx = error["type"], error.get("ctx", {})
    known = {
        "string_type": "must be text",
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "int_parsing": "must be a whole number",
        "bool_type": "must be true or false",
        "dict_type": "must be a mapping",
        "model_type": "must be a mapping",
        "model_attributes_type": "must be a mapping",
        "tuple_type": "must be a list",
        "list_type": "must be a list",
    }
    if kind in known:
        return known[kind]
    if kind == "literal_error":
        return f"must be {ctx['expected']}"
    if kind == "string_pattern_mismatch":
        return "is not well formed"
    if kind in ("value_error", "assertion_error"):
        return str(ctx.get("error", error["msg"]))
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"must be {'at least' if kind[0] == 'g' else 'at most'} {ctx.get('ge', ctx.get('le'))}"
    return str(error["msg"])


def _advice(error: Any, given: Any) -> str:
    if error["type"] == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        if pattern.startswith("^(env:"):
            return "a secret is written as a reference: env:NAME or file:PATH"
        if pattern == r"^[0-9a-f]{64}$":
            return "a sha256 has 64 lower-case hexadecimal digits"
        return "use letters, digits, dots, dashes and underscores, and begin with a letter or digit"
    if error["type"] == "string_type" and given is not None:
        return "put it in quotes"  # as it is written there: 2026.10 has become 2026.1 by now
    if error["type"] == "literal_error" and given == error["ctx"]["expected"]:
        return "write it without quotes"
    if error["type"] == "literal_error" and isinstance(given, str):
        return _nearest(given, [w.strip("' ") for w in error["ctx"]["expected"].replace(" or ", ",").split(",")])
    return ""


def _keys_at(path: tuple[Any, ...], located: tuple[Any, ...]) -> set[str]:
    """The keys that the language has at a place; `located` still holds the union tags that `path` lacks."""
    here: Any = Stack
    for part in located[:-1]:
        here = _step(here, part)
    return set(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else set()


def _step(here: Any, part: Any) -> Any:
    while typing.get_origin(here) is Annotated:
        here = typing.get_args(here)[0]
    if isinstance(here, type) and issubclass(here, BaseModel):
        field = here.model_fields.get(part)
        return field.annotation if field else None
    arguments = typing.get_args(here)
    if typing.get_origin(here) in (typing.Union, UnionType):
        for option in arguments:
            tag = getattr(option, "model_fields", {}).get("type")
            if tag is not None and part in typing.get_args(tag.annotation):
                return option
        return here
    return arguments[1] if typing.get_origin(here) is dict else arguments[0] if arguments else None


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"one of: {', '.join(known)}" if known else ""


# -- names that point at something --------------------------------------------------------------------------------


def _references(document: Document) -> Iterator[Diagnostic]:
    """Dangling engines and names claimed twice. Works on raw values, so that these come along with other faults."""
    values = document.values if isinstance(document.values, dict) else {}
    models, engines = _mapping(values.get("models")), _mapping(values.get("engines"))
    claimed: dict[str, str] = {name: name for name in models}
    for name, model in models.items():
        model = _mapping(model)
        engine = model.get("engine", EMBEDDED)
        if isinstance(engine, str) and engine != EMBEDDED and engine not in engines:
            yield Diagnostic(
                f"there is no engine named {engine!r}",
                document.where(("models", name, "engine")),
                _nearest(engine, sorted({EMBEDDED, *engines})),
                f"models.{name}.engine",
            )
        aliases = model.get("aliases")
        aliases = aliases if isinstance(aliases, list) else []
        for i, alias in enumerate(aliases):
            if not isinstance(alias, str):
                continue
            other = claimed.setdefault(alias, name)
            if other != name or alias == name or alias in aliases[:i]:
                yield Diagnostic(
                    f"the name {alias!r} already belongs to the model {other!r}",
                    document.where(("models", name, "aliases", i)),
                    "clients could not tell them apart; remove one",
                    f"models.{name}.aliases",
                )
    gateway = _mapping(values.get("gateway"))
    if not gateway.get("api_keys") and isinstance(host := gateway.get("host"), str) and (problem := exposed(host)):
        yield Diagnostic(problem, document.where(("gateway",)), "name `api_keys`, or listen on 127.0.0.1", "gateway")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
