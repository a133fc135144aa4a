"""The JSON Schema of the manifest, for editors: made from the types, so that it cannot disagree with them."""

from __future__ import annotations

import json
from typing import Any

from reconciler.manifest.stack import Stack

_NAMED = ("properties", "patternProperties", "$defs")  # below them stand names of the language, not of schemas


def _closed(node: Any, names: bool = False) -> Any:
    """Names that do not fit their pattern are errors; pydantic's schema lets them pass.

    The default of a section goes: its keys have theirs, written as in a manifest, where it has our values.
    """
    if isinstance(node, dict):
        plain = {key: v for key, v in node.items() if names or key != "default" or not isinstance(v, dict)}
        closed = {key: _closed(value, key in _NAMED and not names) for key, value in plain.items()}
        return closed | {"additionalProperties": False} if "patternProperties" in node and not names else closed
    return [_closed(value) for value in node] if isinstance(node, list) else node


def _laid_over(node: Any) -> Any:
    """An entry that overrides another file's says only what differs: what it must have may be said there."""
    if isinstance(node, dict):
        out = {key: _laid_over(value) for key, value in node.items()}
        if "override" in out.get("properties", {}) and "version" not in out["properties"] and out.get("required"):
            overrides = {"properties": {"override": {"const": True}}, "required": ["override"]}
            out["anyOf"] = [{"required": out.pop("required")}, overrides]
        return out
    return [_laid_over(value) for value in node] if isinstance(node, list) else node


def schema() -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:reconciler:schema:stack:1",
        "title": "Reconciler stack",
        **{k: v for k, v in _laid_over(_closed(Stack.model_json_schema())).items() if k != "title"},
    }


def text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
