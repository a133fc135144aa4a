"""What a llama-server's own responses can be asked for, and how.

PURE. It leaves out without a word what it does not know (formats, built-in tools) and refuses what others take.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.fields import given
from reconciler.dialects.responses_items import Ignored, Item
from reconciler.dialects.responses_request import look
from reconciler.dialects.responses_tables import ITEMS, TOOLS


def fits(document: dict[str, Any]) -> bool:
    """Whether llama-server's own responses do all that is asked. Any document; never raises.

    They know nothing of formats, log probabilities, summaries, allowed tools, built-in tools and files.
    """
    said = given(document)
    text, reasoning, choice = said.get("text"), said.get("reasoning"), said.get("tool_choice", "auto")
    form = text.get("format") if isinstance(text, dict) else None
    return (
        (not isinstance(form, dict) or form.get("type") == "text")
        and not (isinstance(reasoning, dict) and (reasoning.get("summary") or reasoning.get("generate_summary")))
        and isinstance(choice, str)
        and not said.get("top_logprobs")
        and not said.get("include")
        and all(isinstance(tool, dict) and tool.get("type") == "function" for tool in _all(said.get("tools")))
        and not any(_is_file(part) for item in _all(said.get("input")) for part in _parts_of(item))
    )


def _all(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _parts_of(item: object) -> list[Any]:
    if not isinstance(item, dict):
        return []
    return [*_all(item.get("content")), *_all(item.get("output"))]


def _is_file(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in ("input_file", "input_audio")


def native_request(said: dict[str, Any], items: list[Item], ignored: Ignored) -> dict[str, Any]:
    """The request as llama-server takes it: the whole conversation, and nothing that it would leave out unseen.

    `items` are the conversation and the request's own. Raises `Unmappable`.
    """
    look(said, ignored)
    for index, tool in enumerate(said["tools"] if isinstance(said.get("tools"), list) else []):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            why = TOOLS[kind].why if kind in TOOLS and TOOLS[kind].fate == "refused" else "cannot be offered here"
            raise Unmappable(f"tools[{index}].type", f"the tool {kind!r:.60} {why}")
    text = said.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    if isinstance(form, dict) and form.get("type") != "text":
        ignored.add("text.format")
    if not items:
        raise Unmappable("input", "says nothing; send text or at least one item")
    sent = []
    for index, item in enumerate(items):
        kind = item.get("type")
        field = ITEMS[kind] if isinstance(kind, str) and kind in ITEMS else None
        if field is not None and field.fate == "refused":
            raise Unmappable(f"input[{index}].type", f"an item of type '{kind}' {field.why}")
        if kind == "web_search_call" or (kind == "reasoning" and not item.get("content")):
            ignored.add(f"input.{kind}")
            continue
        sent.append(item)
    kept = {key: value for key, value in said.items() if key not in ("previous_response_id", "background", "store")}
    return {**kept, "input": sent}
