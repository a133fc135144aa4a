"""Manifests made from the JSON Schema alone, so that they follow the language by themselves; and ways to spoil them."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

WORDS = ("a", "b", "chat", "embedded", "default", "1.0", "x", "10", "1k", "A_B", "/x", "file:a.gguf", "env:KEY")
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**70), max_value=10**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "~", "yes", "0x10", "1e9", "=", "<<", "2026-01-01", "\x00", "\ud800", "é" * 300, "9" * 400]),
    st.just([]),
    st.just({}),
    st.just([{"a": [1]}]),
)


def values(node: Any, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that are right by a node of the schema. Where it has examples, mostly those: they also make sense."""
    if node is True or node == {}:
        return ODD
    if ref := node.get("$ref"):
        return values(_found(ref, schema), schema)
    if "const" in node:
        return st.just(node["const"])
    if "enum" in node:
        return st.sampled_from(node["enum"])
    for union in ("anyOf", "oneOf"):
        if union in node:
            return st.one_of([values(option, schema) for option in node[union]])
    if "allOf" in node:
        return values({key: v for part in node["allOf"] for key, v in {**part, **_sides(node)}.items()}, schema)
    return MAKERS[node.get("type", "object" if "properties" in node else "string")](node, schema)


def _found(ref: str, schema: dict[str, Any]) -> Any:
    here: Any = schema
    for part in ref.removeprefix("#/").split("/"):
        here = here[part.replace("~1", "/").replace("~0", "~")]
    return here


def _sides(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "allOf"}


def _object(node: dict[str, Any], schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    required = set(node.get("required", ()))
    fixed = {
        key: st.deferred(lambda part=part: values(part, schema)) for key, part in node.get("properties", {}).items()
    }
    parts = [
        st.fixed_dictionaries(
            {key: made for key, made in fixed.items() if key in required},
            optional={key: made for key, made in fixed.items() if key not in required},
        )
    ]
    free = [(_text({"pattern": p}), part) for p, part in node.get("patternProperties", {}).items()]
    if node.get("additionalProperties") not in (None, False):
        free.append((_text(node.get("propertyNames", {"minLength": 1})), node["additionalProperties"]))
    for names, part in free:
        made = st.deferred(lambda part=part: values(part, schema))
        parts.append(st.dictionaries(names, made, min_size=node.get("minProperties", 0), max_size=3))
    return st.tuples(*parts).map(lambda maps: {key: value for part in maps for key, value in part.items()})


def _array(node: dict[str, Any], schema: dict[str, Any]) -> st.SearchStrategy[list[Any]]:
    least, most = node.get("minItems", 0), min(node.get("maxItems", 3), node.get("minItems", 0) + 3)
    item = values(node.get("items", {}), schema)
    return st.lists(item, min_size=least, max_size=most, unique_by=repr if node.get("uniqueItems") else None)


def _text(node: dict[str, Any], schema: Any = None) -> st.SearchStrategy[str]:
    least, most, pattern = node.get("minLength", 0), node.get("maxLength", 40), node.get("pattern")
    fits = [w for w in WORDS if (not pattern or re.search(pattern, w)) and least <= len(w) <= most]
    if pattern:
        made = st.from_regex(pattern, fullmatch=True, alphabet=string.printable).filter(
            lambda s: least <= len(s) <= max(most, 64)
        )
    else:
        made = st.text(string.printable + "äλ", min_size=least, max_size=most)
    known = [*node.get("examples", ()), *([node["default"]] if isinstance(node.get("default"), str) else [])]
    if known:  # a grain of anything beside them
        return st.one_of(*[st.sampled_from(known)] * 9, made)
    return st.one_of(*[st.sampled_from(fits)] * 4, made) if fits else made


def _integer(node: dict[str, Any], schema: Any) -> st.SearchStrategy[int]:
    least = node.get("minimum", node.get("exclusiveMinimum", -2) + 1 if "exclusiveMinimum" in node else None)
    return st.integers(least, node.get("maximum"))


def _number(node: dict[str, Any], schema: Any) -> st.SearchStrategy[float]:
    least, open_ = node.get("exclusiveMinimum", node.get("minimum")), "exclusiveMinimum" in node
    most, shut = node.get("exclusiveMaximum", node.get("maximum")), "exclusiveMaximum" in node
    return st.floats(
        least, most, exclude_min=open_, exclude_max=shut, allow_nan=False, allow_infinity=False, allow_subnormal=False
    )


MAKERS: dict[str, Callable[[dict[str, Any], dict[str, Any]], st.SearchStrategy[Any]]] = {
    "object": _object,
    "array": _array,
    "string": _text,
    "integer": _integer,
    "number": _number,
    "boolean": lambda node, schema: st.booleans(),
    "null": lambda node, schema: st.none(),
}


# -- to text ------------------------------------------------------------------------------------------------------


def styled(value: Any, style: str) -> str:
    """The value as YAML, in one of several handwritings."""
    if style == "json":
        return json.dumps(value, ensure_ascii=False)
    if style == "json, spread":
        return json.dumps(value, indent=2)
    import yaml

    flow = {"block": False, "flow": True, "quoted": None, "narrow": False}[style]
    quotes = '"' if style == "quoted" else None
    width = 20 if style == "narrow" else 200
    return str(
        yaml.safe_dump(
            value,
            default_flow_style=flow,
            default_style=quotes,
            width=width,
            allow_unicode=style != "quoted",
            sort_keys=style == "narrow",
        )
    )


STYLES = ("block", "flow", "narrow", "json", "json, spread")


# -- spoiling -----------------------------------------------------------------------------------------------------


@st.composite
def spoiled_values(draw: st.DrawFn, value: Any) -> Any:
    """The value with something in it replaced, removed, renamed, wrapped or added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(list(value)))
        return {**value, key: draw(spoiled_values(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(spoiled_values(value[at])), *value[at + 1 :]]
    how = draw(st.sampled_from(["odd", "odd", "wrap", "key", "drop", "text"]))
    if how == "key" and isinstance(value, dict):
        return {
            **value,
            draw(st.one_of(st.sampled_from(["contxt", "type", "<<", "x-y"]), st.text(max_size=6))): draw(ODD),
        }
    if how == "drop" and isinstance(value, dict) and value:
        gone = draw(st.sampled_from(list(value)))
        return {key: v for key, v in value.items() if key != gone}
    if how == "wrap":
        return draw(st.sampled_from([[value], {"a": value}, [[value]]]))
    if how == "text":
        return str(value)
    return draw(ODD)


HAZARDS = (
    "\t", "\ufeff", "\r\n", "\r", "\x00", "\x07", "\x85", "\u2028", "\n", "\n  ", "# ", "|\n", ">\n", "---\n", "...\n",
    "&a ", "*a", "<<: *a", "a: &a [*a]\n", "!x ", "!!python/object:os.x ", "!!binary ", "!!set {a}", "!!omap [a: 1]",
    "? ", ": ", "- ", "{", "}", "[", "]", ",", "'", '"', "\\x", "@", "`", "~", "%YAML 1.1\n", "[" * 60, "{a: " * 60,
    "9" * 500, "0x" + "f" * 80, "0o9", "1_0", "1e999", ".nan", "2026-02-30", "é" * 3000, "version: 1\n",
)  # fmt: skip


@st.composite
def spoiled_text(draw: st.DrawFn, text: str) -> bytes:
    """The text with hazards of YAML put in, pieces cut or doubled, or bytes changed."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        size = draw(st.sampled_from([0, 0, 1, 3, 20]))
        match draw(st.sampled_from(["hazard", "hazard", "cut", "double", "case", "tabs", "lines"])):
            case "hazard":
                text = text[:at] + draw(st.sampled_from(HAZARDS)) + text[at + size :]
            case "cut":
                text = text[:at] + text[at + size + 1 :]
            case "double":
                text = text[: at + size] + text[at:]
            case "case":
                text = text[:at] + text[at : at + size].swapcase() + text[at + size :]
            case "tabs":
                text = text.replace("  ", "\t", size)
            case "lines":
                text = text.replace("\n", "\r\n")
    raw = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(max_size=4)) + raw[at + 1 :]
    if draw(st.integers(0, 12)) == 0:
        raw = text.encode(draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32"])), "replace")
    return raw
