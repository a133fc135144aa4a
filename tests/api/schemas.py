"""The published schemas, as a consumer reads them, and closed: where a key that they do not tell of is a fault."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.e2e.stage import CHECKOUT

NAMES = ("plan", "status", "control", "output")
FOLDER = CHECKOUT / "schemas"


def document(name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((FOLDER / f"{name}.schema.json").read_text())
    return made


def closed(node: Any) -> Any:
    """The same, with every object that lists its keys limited to these. What is only a part of others stays open."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: value if key in ("allOf", "snapshot") else closed(value) for key, value in node.items()}
    if "snapshot" in out:
        out["snapshot"] = {key: closed(value) for key, value in out["snapshot"].items()}
    if "allOf" in out or isinstance(out.get("properties"), dict):
        out.setdefault("additionalProperties" if "properties" in out else "unevaluatedProperties", False)
    return out


@cache
def validator(pointer: str) -> Draft202012Validator:
    """`output#/$defs/history` → what checks it, closed."""
    resources = [Resource.from_contents(closed(document(name))) for name in NAMES]
    registry: Any = Registry().with_resources((r.id() or "", r) for r in resources)
    name, hash_, rest = pointer.partition("#")
    return Draft202012Validator({"$ref": f"urn:reconciler:schema:{name}:1{hash_}{rest}"}, registry=registry)


def check(pointer: str, value: Any) -> Any:
    """The value, if it is as the schema says."""
    found = [f"{error.json_path}: {error.message}" for error in validator(pointer).iter_errors(value)]
    assert not found, "\n".join(found) + "\n" + json.dumps(value, indent=1)[:4000]
    return value
