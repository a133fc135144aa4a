"""A draft as the text of a manifest: in the order of the language, with what was left out told in comments. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from reconciler.foreign.draft import SECTIONS, Draft, Left

WIDTH = 100  # columns that a list may take in one line
_PLAIN = re.compile(
    r"-{0,2}[A-Za-z_/~.][A-Za-z0-9_./~+@=-]*(?::[A-Za-z0-9_./~+@=-]+)*|[1-9][0-9]{0,8}(k|ms|s|m|h|d)|[0-9a-f]{64}"
)
_MEANS = re.compile(r"(?i)null|true|false|yes|no|on|off|y|n|~|\.inf|\.nan|[-+.0-9_]+([eE][-+0-9]+)?")
_ORDER = (  # what a person looks for first; all else follows as it came
    "type", "command", "args", "url", "transport", "headers", "preset", "base_url", "api_key", "source", "quant",
    "file", "mmproj", "sha256", "engine", "aliases", "task", "context", "parallel", "gpu_layers", "cache_type",
    "options", "env", "lora", "draft", "start", "idle_timeout",
)  # fmt: skip


def text(draft: Draft) -> str:
    """The whole manifest; ends with a newline."""
    return "\n".join(_lines(draft)) + "\n"


def _lines(draft: Draft) -> Iterator[str]:
    read = ", ".join(draft.read[:3]) + (" …" if len(draft.read) > 3 else "")
    yield from _comment(f"Made by `reconcile import` from {draft.tool}: {read}" if read else "Made by import", "")
    if draft.needed:
        yield from _comment(f"Set before `reconcile apply`: {', '.join(sorted(draft.needed))}", "")
    yield "version: 1"
    for section in SECTIONS:
        entries = draft.entries[section]
        if entries:
            yield ""
            yield f"{section}:"
        for name, entry in entries.items():
            if note := draft.notes.get((section, name)):
                yield from _comment(note, "  ")
            ordered = {key: entry[key] for key in _ORDER if key in entry}
            yield from _pair(name, {**ordered, **entry}, 1)
    if draft.gateway:
        yield ""
        yield from _pair("gateway", draft.gateway, 0)
    if draft.left:
        yield ""
        yield "# Not carried over, or to be looked at:"
        for one in draft.left:
            yield from _comment(f"- {told(one)}", "")


def told(left: Left) -> str:
    """One thing that was left out, in a sentence."""
    place = f" ({left.where})" if left.where else ""
    remedy = f"; {left.remedy}" if left.remedy else ""
    return f"{left.what}{place}: {left.why}{remedy}"


def _comment(words: str, indent: str) -> Iterator[str]:
    plain = "".join(c if c.isprintable() else " " for c in words)
    yield f"{indent}# {' '.join(plain.split())}"


def _pair(key: str, value: Any, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(value, dict) and value:
        yield f"{indent}{_scalar(key)}:"
        for name, inner in value.items():
            yield from _pair(name, inner, depth + 1)
    elif isinstance(value, list) and value and (flow := _flow(value)) is None:
        yield f"{indent}{_scalar(key)}:"
        for item in value:
            yield f"{indent}  - {_inline(item)}"
    else:
        yield f"{indent}{_scalar(key)}: {flow if isinstance(value, list) and value else _inline(value)}"


def _flow(value: list[Any]) -> str | None:
    """A list in one line, None where it is too long for that or not of scalars."""
    line = _inline(value)
    return line if len(line) <= WIDTH and not any(isinstance(v, dict | list) for v in value) else None


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(k)}: {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if not isinstance(value, str):
        return str(value)
    if _PLAIN.fullmatch(value) and not _MEANS.fullmatch(value) and not value.startswith("..."):
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else _escaped(c) for c in quoted)


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
