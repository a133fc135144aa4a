"""The lists in which services name their models, in any of the shapes that are in use. Pure: bytes in, names out.

OpenAI's is `{"data": [{"id"}]}`, Anthropic's the same in pages, Together's a bare array, Ollama's and Gemini's own are
`{"models": [{"name"}]}`; Gemini puts `models/` before each name and takes none in requests.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

MOST = 20_000  # names that are kept
_NAME = re.compile(r"[!-~]{1,200}")
_PREFIX = "models/"


@dataclass(frozen=True, slots=True)
class Page:
    """`models` as requests name them; `after` the name to go on from, empty on the last page; `left_out` how many
    entries had no name that can be asked for."""

    models: tuple[str, ...]
    after: str = ""
    left_out: int = 0


def page(body: bytes) -> Page:
    """One answer. Raises ValueError for what is no list of models."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    entries = _entries(document)
    names = [_name(entry) for entry in entries]
    models = tuple(dict.fromkeys(name for name in names if name))
    more = isinstance(document, dict) and document.get("has_more") is True
    last = document.get("last_id") if more else None
    after = last if isinstance(last, str) and _NAME.fullmatch(last) else ""
    return Page(models[:MOST], after, sum(not name for name in names))


def _entries(document: Any) -> list[Any]:
    found = document
    if isinstance(document, dict):
        found = document.get("data", document.get("models"))
        if found is None and "data" in document and document.get("object") == "list":
            found = []  # as some say that there are none
    if not isinstance(found, list):
        raise ValueError("it holds no list of models")
    return found


def _name(entry: Any) -> str:
    if isinstance(entry, dict):
        entry = next((entry[key] for key in ("id", "name", "model") if isinstance(entry.get(key), str)), "")
    if not isinstance(entry, str):
        return ""
    name = entry.removeprefix(_PREFIX)
    return name if _NAME.fullmatch(name) else ""
