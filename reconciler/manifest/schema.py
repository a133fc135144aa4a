"""The JSON Schema of the manifest, for editors: made from the types, so that it cannot disagree with them."""

from __future__ import annotations

import json
from typing import Any

from reconciler.manifest.parse import Stack


def schema() -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:reconciler:schema:stack:1",
        "title": "Reconciler stack",
        **{k: v for k, v in Stack.model_json_schema().items() if k != "title"},
    }


def text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
