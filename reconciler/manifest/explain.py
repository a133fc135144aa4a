"""What a key of the manifest means, out of its JSON Schema, so that it cannot disagree with what is accepted. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.core.diagnostics import Diagnostic, Refused, nearest
from reconciler.core.section import ALIAS, NAME, REFERENCE, SHA256
from reconciler.manifest.schema import schema

Node = Mapping[str, Any]

_MISSING = object()
_PATTERNS = {
    NAME: "a name",
    ALIAS: "a name",
    SHA256: "64 hexadecimal digits",
    REFERENCE: "a reference to a secret",
    "^[0-9]+[kKmM]?$": "a count such as 16k",
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """`key` is written with * for what people name; `path` leads to the value in a manifest, and is None where the
    key names no entry of it. `keys` are those below, each with its meaning."""

    key: str
    text: str
    type: str
    required: bool = False
    default: Any = None
    keys: Mapping[str, str] = field(default_factory=dict)
    path: tuple[str | int, ...] | None = ()


def meaning(key: str, values: Any = None) -> Meaning:
    """What `models.chat.context`, `models.*.context` or `models.context` means; `""` is the whole manifest. `values`
    are those of a checked manifest, if there is one: names are looked up in them. Raises Refused for an unknown key."""
    root = schema()
    here = _Place((root,), values, Meaning("", "", "", path=()))
    rest = key.strip().strip(".")
    while rest:
        here, rest = _step(here, rest, key, root)
    options = _options(here.nodes, root, here.value)
    default = next((n["default"] for n in here.nodes if "default" in n), None)
    return replace(
        here.found,
        text=_described((*here.nodes, *options)),
        type=_words(options),
        default=default,
        keys={name: _described((node, *_options((node,), root))) for name, node in _below(options, root).items()},
    )


def _described(nodes: Iterable[Node]) -> str:
    return next((" ".join(node["description"].split()) for node in nodes if node.get("description")), "")


def _below(options: list[Node], root: Node, prefix: str = "") -> dict[str, Node]:
    """The keys of a mapping; those of its entries, with *, where people name these."""
    out: dict[str, Node] = {}
    for option in options:
        for name, node in option.get("properties", {}).items():
            out.setdefault(prefix + name, node)
        if not prefix and (entry := _entry(option)):
            out |= _below(_options((entry,), root), root, "*.")
    return out


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a key has led so far: what the schema says there, the value there (None: unknown), what was found."""

    nodes: tuple[Node, ...]
    value: Any
    found: Meaning


def _step(here: _Place, rest: str, key: str, root: Node) -> tuple[_Place, str]:
    """One part further → the place there, and what is left of the key."""
    options = _options(here.nodes, root, here.value)
    head, _, tail = rest.partition(".")
    known: set[str] = set()
    for option in options:
        if head in option.get("properties", {}):
            required = head in option.get("required", ())
            return _at(here, option["properties"][head], head, head, required), tail
        known |= set(option.get("properties", {}))
        if entry := _entry(option):
            names = sorted(here.value, key=len, reverse=True) if isinstance(here.value, dict) else []
            name = next((n for n in names if rest == n or rest.startswith(n + ".")), None)
            if name is not None:
                return _at(here, entry, "*", name), rest[len(name) + 1 :]
            inner = {k for o in _options((entry,), root) for k in o.get("properties", {})}
            if head in inner:
                return _at(here, entry, "*", None), rest
            if head == "*" or not names or not inner:
                return _at(here, entry, "*", None), tail
            known |= {*names, *inner}
        if "items" in option:
            if head == "*" or head.isdecimal():
                return _at(here, option["items"], "*", int(head) if head.isdecimal() else None), tail
            return _at(here, option["items"], "*", None), rest
    done = key.strip(".")[: -len(rest)].rstrip(".")
    raise Refused([Diagnostic(f"there is no key {head!r}", hint=nearest(head, known), path=done)])


def _at(here: _Place, node: Node, shown: str, part: str | int | None, required: bool = False) -> _Place:
    value = None
    path = (*here.found.path, part) if here.found.path is not None and part is not None else None
    if isinstance(here.value, dict):
        value = here.value.get(part)
    elif isinstance(here.value, list) and isinstance(part, int) and part < len(here.value):
        value = here.value[part]
    key = f"{here.found.key}.{shown}".lstrip(".")
    return _Place((node,), value, replace(here.found, key=key, required=required, path=path))


def value_at(values: Any, path: Iterable[str | int]) -> Any:
    """The value at a path, or None."""
    for part in path:
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return None
    return values


# -- reading a schema -----------------------------------------------------------------------------------------------


def _options(nodes: Iterable[Node], root: Node, value: Any = None) -> list[Node]:
    """The plain schemas that a node stands for, without null; only that of its `type` where a value tells it."""
    out: list[Node] = []
    for node in nodes:
        if "$ref" in node:
            target = root["$defs"][node["$ref"].rpartition("/")[2]]
            out += _options(({**target, **{k: v for k, v in node.items() if k != "$ref"}},), root, value)
        elif (inner := node.get("anyOf") or node.get("oneOf")) and "properties" not in node:
            out += _options(inner, root, value)
        elif node.get("type") != "null":
            out.append(node)
    if isinstance(value, dict) and "type" in value:
        tagged = [n for n in out if _const(n.get("properties", {}).get("type", {})) == value["type"]]
        return tagged or out
    return out


def _const(node: Node) -> Any:
    return node.get("const", _MISSING)


def _entry(node: Node) -> Node | None:
    """The schema of what people name themselves, in a mapping of such."""
    patterns = node.get("patternProperties") or {}
    entry = next(iter(patterns.values()), node.get("additionalProperties"))
    return entry if isinstance(entry, dict) else None


def _words(options: Iterable[Node]) -> str:
    words = list(dict.fromkeys(_word(option) for option in options))
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else "".join(words)


def _word(node: Node) -> str:
    root = schema()
    if "const" in node:
        return f"`{_plain(node['const'])}`"
    if "enum" in node:
        return "one of " + ", ".join(_plain(item) for item in node["enum"])
    match node.get("type"):
        case "boolean":
            return "true or false"
        case "integer" | "number" as kind:
            return ("a whole number" if kind == "integer" else "a number") + _bounds(node)
        case "string":
            return _text(node)
        case "array":
            items = _words(_options((node.get("items", {}),), root))
            return f"a list, each item {items}" if items != "anything" else "a list"
        case "object" if entry := _entry(node):
            return f"a mapping, each entry {_words(_options((entry,), root))}"
        case "object":
            return "a mapping"
    return "anything"


def _bounds(node: Node) -> str:
    least, most = node.get("minimum"), node.get("maximum")
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return f" of at least {least}" if least is not None else f" of at most {most}" if most is not None else ""


def _text(node: Node) -> str:
    pattern = node.get("pattern", "")
    word = _PATTERNS.get(pattern, "text")
    if examples := node.get("examples"):
        return f"{word} such as " + ", ".join(_plain(e) for e in examples)
    return f"text that matches {pattern}" if pattern and word == "text" else word


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
