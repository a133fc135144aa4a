"""Tools of a responses request as chat's tools.

PURE. A built-in tool that may not be called in this request is harmless and left out; any other is refused by name,
unless the gateway was told to do without (some clients offer a web search with every request).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.fields import flag, mapping, sequence, string
from reconciler.dialects.responses_items import Ignored, Item, chat_name
from reconciler.dialects.responses_tables import FUNCTION_KEYS, TOOLS


def tools(
    said: dict[str, Any], chat: dict[str, Any], ignored: Ignored, *, drop_built_in: bool
) -> dict[str, tuple[str, str]]:
    """Put `tools` and `tool_choice` into the chat; gives namespace and name of each function by its name in chat.

    With `drop_built_in`, built-in tools are left out rather than refused. Raises `Unmappable`.
    """
    choice = said.get("tool_choice", "auto")
    names: dict[str, tuple[str, str]] = {}
    allowed = _allowed(choice)
    harmless = drop_built_in or choice == "none" or allowed is not None
    offered: list[Item] = []
    for index, tool in enumerate(sequence(said.get("tools", []), "tools")):
        for name, function in _functions(f"tools[{index}]", tool, ignored, harmless):
            shown = chat_name(*name)
            if shown in names:
                raise Unmappable(f"tools[{index}].name", f"there are two tools that are called {shown!r}")
            names[shown] = name
            offered.append({"type": "function", "function": {"name": shown, **function}})
    if allowed is not None:
        for shown in sorted(allowed - names.keys()):
            raise Unmappable("tool_choice.tools", f"{shown!r:.80} is none of the tools")
        offered = [tool for tool in offered if tool["function"]["name"] in allowed]
    _choose(choice, names, offered, chat)
    if offered:
        chat["tools"] = offered
        if "parallel_tool_calls" in said:
            chat["parallel_tool_calls"] = flag(said["parallel_tool_calls"], "parallel_tool_calls")
    return names


def _functions(where: str, tool: object, ignored: Ignored, harmless: bool) -> list[tuple[tuple[str, str], Item]]:
    """((namespace, name), chat function without name) of each function that the tool stands for."""
    tool = mapping(tool, where)
    kind = tool.get("type")
    field = TOOLS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise Unmappable(f"{where}.type", f"{kind!r:.60} is no type of a tool that is known here")
    if field.fate == "refused":
        if not harmless:
            raise Unmappable(f"{where}.type", f"the tool '{kind}' {field.why}")
        ignored.add(f"tools.{kind}")
        return []
    if kind == "function":
        return [(("", name_of(where, tool)), _function(where, tool, ignored))]
    space = name_of(where, tool)
    ignored.rest("tools.namespace", tool, frozenset(("type", "name", "tools")))
    found = []
    for index, inner in enumerate(sequence(tool.get("tools", []), f"{where}.tools")):
        place = f"{where}.tools[{index}]"
        if mapping(inner, place).get("type") != "function":
            raise Unmappable(f"{place}.type", "only functions can be offered from a namespace")
        found.append(((space, name_of(place, inner)), _function(place, inner, ignored)))
    return found


def name_of(where: str, tool: Item) -> str:
    """The `name`, which must be there. Raises `Unmappable`."""
    name = string(tool.get("name"), f"{where}.name")
    if not name:
        raise Unmappable(f"{where}.name", "must not be empty")
    return name


def _function(where: str, tool: Item, ignored: Ignored) -> Item:
    ignored.rest("tools.function", tool, FUNCTION_KEYS)
    function: Item = {}
    for key, read in _FUNCTION_READERS.items():
        if tool.get(key) is not None:
            function[key] = read(tool[key], f"{where}.{key}")
    return function


_FUNCTION_READERS: dict[str, Callable[[object, str], Any]] = {
    "description": string,
    "parameters": mapping,
    "strict": flag,
}


def _allowed(choice: object) -> set[str] | None:
    """The chat names of the functions that `allowed_tools` names; None for any other choice."""
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return None
    found = set()
    for index, tool in enumerate(sequence(choice.get("tools"), "tool_choice.tools")):
        where = f"tool_choice.tools[{index}]"
        if mapping(tool, where).get("type") != "function":
            raise Unmappable(
                f"{where}.type", f"only functions can be called here, and {tool.get('type')!r:.60} is none"
            )
        found.add(chat_name(tool.get("namespace"), name_of(where, tool)))
    return found


def _choose(choice: object, names: Mapping[str, object], offered: list[Item], chat: dict[str, Any]) -> None:
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind == "function":
            name = chat_name(choice.get("namespace"), name_of("tool_choice", choice))
            if name not in names:
                raise Unmappable("tool_choice.name", f"{name!r:.80} is none of the tools")
            chat["tool_choice"] = {"type": "function", "function": {"name": name}}
            return
        if kind != "allowed_tools":
            raise Unmappable("tool_choice.type", f"{kind!r:.60} cannot be called here; only functions can")
        choice = choice.get("mode", "auto")
        if choice not in ("auto", "required"):
            raise Unmappable("tool_choice.mode", "must be auto or required")
    if not isinstance(choice, str) or choice not in ("auto", "none", "required"):
        raise Unmappable("tool_choice", "must be auto, none, required, or name functions")
    if not offered:
        if choice == "required":
            raise Unmappable("tool_choice", "a tool is required, and there is none")
        return
    if choice != "auto":
        chat["tool_choice"] = choice
