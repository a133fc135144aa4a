"""Messages request: what a client asks of Anthropic's API, as a chat request.

PURE. `FIELDS` says of every field what becomes of it; the documentation's table is made from it.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.fields import (
    Field,
    Ignored,
    clamped,
    flag,
    given,
    integer,
    mapping,
    number,
    refuse,
    sequence,
    string,
)
from reconciler.dialects.messages_turns import turns
from reconciler.dialects.quirks import EFFORTS, LOCAL, Quirks, fitting_effort

FIELDS = {
    "model": Field("mapped", "The provider's name for it is sent."),
    "messages": Field("mapped", "Turns of one role in a row become one; the others keep their order."),
    "max_tokens": Field(
        "mapped", "Under the name that the provider has for it; 0 is refused, since nothing is warmed."
    ),
    "system": Field("mapped", "The first message, of the role system."),
    "stream": Field("mapped", "A stream is asked for with its usage."),
    "stop_sequences": Field("mapped", "As stop; refused where there are more than the provider takes."),
    "temperature": Field("mapped", "Kept within what the provider takes; left out where it takes none."),
    "top_p": Field("mapped", "As it is; left out where the provider takes none."),
    "top_k": Field("passed", "To providers that take it; left out for others."),
    "tools": Field("mapped", "As functions; tools that Anthropic runs itself are refused."),
    "tool_choice": Field("mapped", "any becomes required, tool the named function; none is as it is."),
    "thinking": Field("mapped", "A budget becomes an effort; disabled switches reasoning off where the provider can."),
    "output_config": Field("mapped", "effort becomes reasoning_effort, format becomes response_format."),
    "output_format": Field("mapped", "As output_config.format."),
    "metadata": Field("warned", "Who the user is stays here."),
    "service_tier": Field("warned", "Tiers are Anthropic's own."),
    "speed": Field("warned", "Fast mode is Anthropic's own; the answer is the same."),
    "cache_control": Field("warned", "Providers that speak chat cache prefixes by themselves."),
    "context_management": Field("warned", "Nothing is cleared on the way; the whole conversation is sent."),
    "compaction": Field("warned", "Nothing is summed up on the way; the whole conversation is sent."),
    "diagnostics": Field("warned", "There is no diagnosis to give."),
    "betas": Field("warned", "Features of Anthropic's that a provider does not know."),
    "billing_policy": Field("warned", "Billing is the provider's own."),
    "fallback_credit_token": Field("warned", "Billing is the provider's own."),
    "fallbacks": Field("warned", "Which model steps in is said by the gateway's routes."),
    "user_profile_id": Field("warned", "Profiles are Anthropic's own."),
    "workspace_id": Field("warned", "Workspaces are Anthropic's own."),
    "container": Field("refused", "this model's provider has no containers; leave it out"),
    "mcp_servers": Field("refused", "this model's provider connects to no MCP servers; offer their tools as tools"),
    "inference_geo": Field("refused", "where this model's provider computes cannot be promised; leave it out"),
    "thread": Field("refused", "this model's provider keeps no threads; send the conversation"),
    "system.cache_control": Field("warned", "As cache_control."),
    "messages.content.text": Field("mapped", "Text; blocks of a user in a row are set apart by an empty line."),
    "messages.content.image": Field("mapped", "As image_url: an address or a data URI; an uploaded file is refused."),
    "messages.content.document": Field(
        "mapped", "Text as text, others as file where the provider takes those, otherwise refused."
    ),
    "messages.content.search_result": Field("mapped", "As text: title, source, content."),
    "messages.content.tool_use": Field("mapped", "A tool call; its input becomes JSON text."),
    "messages.content.tool_result": Field(
        "mapped", "A message of the role tool; an error is marked by its text, images follow as the user's."
    ),
    "messages.content.tool_reference": Field("mapped", "As text: every tool is offered from the start."),
    "messages.content.thinking": Field("warned", "Sent as reasoning where the provider takes that back."),
    "messages.content.redacted_thinking": Field("warned", "Nobody but Anthropic can read it."),
    "messages.content.cache_control": Field("warned", "As cache_control."),
    "messages.content.citations": Field("warned", "Answers come without citations."),
    "messages.content.server_tool_use": Field("refused", "A tool that Anthropic ran; its results cannot be told."),
    "messages.content.container_upload": Field("refused", "There are no containers."),
    "tools.type": Field("refused", "Any but custom is a tool that Anthropic defines."),
    "tools.strict": Field("passed", "As it is."),
    "tools.cache_control": Field("warned", "As cache_control."),
    "tools.defer_loading": Field("warned", "Every tool is offered from the start."),
    "tools.input_examples": Field("warned", "Chat has no place for them."),
    "tools.eager_input_streaming": Field("warned", "Arguments come as the provider streams them."),
    "tools.allowed_callers": Field("warned", "Refused where the model itself may not call the tool."),
}
_NOT_PASSED = frozenset(
    (
        "n",
        "best_of",
        "stream_options",
        "functions",
        "function_call",
        "max_completion_tokens",
        "stop",
        "parallel_tool_calls",
    )
)
"""Chat's own fields that would change the shape of the answer, or what has been said already."""
_BUDGETS = ((2048, "low"), (8192, "medium"), (24576, "high"))
_TOOL = frozenset(("type", "name", "description", "input_schema", "strict", "allowed_callers"))
_ANSWER = "answer"


def chat_request(document: dict[str, Any], quirks: Quirks) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(chat request, paths of what was left out). Raises `Unmappable`."""
    document = given(document)
    chat, ignored = _asked(document, quirks)
    limit = integer(document.get("max_tokens"), "max_tokens", 0)
    if not limit:
        raise Unmappable("max_tokens", "must be at least 1: this model's provider warms no cache")
    chat[quirks.max_tokens] = limit
    _sampling(document, quirks, chat, ignored)
    if "stream" in document and flag(document["stream"], "stream"):
        chat["stream"] = True
        if quirks.stream_options:
            chat["stream_options"] = {"include_usage": True}
    return chat, ignored.paths()


def count_on_chat(document: dict[str, Any], quirks: Quirks = LOCAL) -> dict[str, Any]:
    """The chat request whose prompt is to be counted, without what only bears on the answer. Raises `Unmappable`."""
    chat, _ = _asked(given(document), quirks)
    return chat


def shows_thinking(document: dict[str, Any]) -> bool:
    """Whether the client takes thinking in the answer: unless it said that it does not."""
    thinking = document.get("thinking")
    return not isinstance(thinking, dict) or (
        thinking.get("type") != "disabled" and thinking.get("display") != "omitted"
    )


def _asked(document: dict[str, Any], quirks: Quirks) -> tuple[dict[str, Any], Ignored]:
    """What the prompt is made of."""
    refuse(document, FIELDS)
    ignored = Ignored()
    chat: dict[str, Any] = {
        "model": string(document.get("model"), "model"),
        "messages": turns(document, quirks, ignored),
    }
    _tools(document, chat, ignored)
    _reasoning(document, quirks, chat, ignored)
    for key, value in document.items():
        field = FIELDS.get(key) if "." not in key else None
        if field is None and quirks.anything and key not in _NOT_PASSED:
            chat.setdefault(key, value)
        elif field is None or field.fate == "warned":
            ignored.add(key)
    return chat, ignored


def _sampling(document: dict[str, Any], quirks: Quirks, chat: dict[str, Any], ignored: Ignored) -> None:
    for key, lowest, highest in (("temperature", *quirks.temperature), ("top_p", 0.0, 1.0)):
        if key not in document:
            continue
        value = number(document[key], key)
        kept = clamped(value, lowest, highest)
        if quirks.sampling:
            chat[key] = kept
        if not quirks.sampling or kept != value:
            ignored.add(key)
    if "top_k" in document:
        if quirks.top_k:
            chat["top_k"] = integer(document["top_k"], "top_k", 0)
        else:
            ignored.add("top_k")
    stops = [string(stop, "stop_sequences") for stop in sequence(document.get("stop_sequences", []), "stop_sequences")]
    if quirks.stop_limit and len(stops) > quirks.stop_limit:
        raise Unmappable("stop_sequences", f"this model's provider takes at most {quirks.stop_limit}")
    if stops:
        chat["stop"] = stops


def _tools(document: dict[str, Any], chat: dict[str, Any], ignored: Ignored) -> None:
    items = sequence(document.get("tools", []), "tools")
    tools = [_tool(mapping(item, f"tools.{at}"), f"tools.{at}", ignored) for at, item in enumerate(items)]
    if tools:
        chat["tools"] = tools
    if "tool_choice" in document:
        _choice(mapping(document["tool_choice"], "tool_choice"), chat)


def _tool(tool: dict[str, Any], where: str, ignored: Ignored) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise Unmappable(f"{where}.type", "only tools of the type custom can be offered to this model's provider")
    ignored.rest(tool, _TOOL, "tools")
    callers = tool.get("allowed_callers")
    if callers is not None:
        if "direct" not in sequence(callers, f"{where}.allowed_callers"):
            raise Unmappable(f"{where}.allowed_callers", "this model's provider runs no code that could call the tool")
        ignored.add("tools.allowed_callers")
    function: dict[str, Any] = {"name": string(tool.get("name"), f"{where}.name")}
    if tool.get("description") is not None:
        function["description"] = string(tool["description"], f"{where}.description")
    function["parameters"] = mapping(tool.get("input_schema"), f"{where}.input_schema")
    if tool.get("strict") is not None:
        function["strict"] = flag(tool["strict"], f"{where}.strict")
    return {"type": "function", "function": function}


def _choice(choice: dict[str, Any], chat: dict[str, Any]) -> None:
    match choice.get("type"):
        case "auto" | "none" as kind:
            chosen: object = kind
        case "any":
            chosen = "required"
        case "tool":
            chosen = {"type": "function", "function": {"name": string(choice.get("name"), "tool_choice.name")}}
        case _:
            raise Unmappable("tool_choice.type", "must be auto, any, tool or none")
    if "tools" not in chat:  # chat refuses a choice among nothing
        if chosen not in ("auto", "none"):
            raise Unmappable("tool_choice", "there are no tools to choose from")
        return
    chat["tool_choice"] = chosen
    single = choice.get("disable_parallel_tool_use")
    if single is not None and flag(single, "tool_choice.disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False


def _reasoning(document: dict[str, Any], quirks: Quirks, chat: dict[str, Any], ignored: Ignored) -> None:
    config = given(mapping(document.get("output_config", {}), "output_config"))
    ignored.rest(config, frozenset(("effort", "format")), "output_config")
    for where, shape in (
        ("output_config.format", config.get("format")),
        ("output_format", document.get("output_format")),
    ):
        if shape is not None:
            chat["response_format"] = _format(mapping(shape, where), where)
    effort, budgeted = config.get("effort"), _budgeted(document, quirks, chat, ignored)
    if effort is not None and effort not in EFFORTS:
        raise Unmappable("output_config.effort", f"must be one of {', '.join(EFFORTS)}")
    wanted = effort or budgeted
    if wanted and "reasoning_effort" not in chat:
        taken = fitting_effort(wanted, quirks)
        if taken:
            chat["reasoning_effort"] = taken
        else:
            ignored.add("output_config.effort" if effort else "thinking")


def _budgeted(document: dict[str, Any], quirks: Quirks, chat: dict[str, Any], ignored: Ignored) -> str:
    """The effort that a thinking budget stands for, "" for none; switches reasoning off where that is asked for."""
    if "thinking" not in document:
        return ""
    thinking = given(mapping(document["thinking"], "thinking"))
    ignored.rest(thinking, frozenset(("type", "budget_tokens", "display")), "thinking")
    match thinking.get("type"):
        case "enabled":
            budget = integer(thinking.get("budget_tokens"), "thinking.budget_tokens", 1)
            return next((effort for most, effort in _BUDGETS if budget <= most), "xhigh")
        case "adaptive":
            return ""
        case "between_tools":
            ignored.add("thinking")
            return ""
        case "disabled":
            if quirks.no_thinking == "none":
                chat["reasoning_effort"] = "none"
            elif quirks.no_thinking == "template":
                said = document.get("chat_template_kwargs")
                chat["chat_template_kwargs"] = {**(said if isinstance(said, dict) else {}), "enable_thinking": False}
            else:
                ignored.add("thinking")
            return ""
        case _:
            raise Unmappable("thinking.type", "must be enabled, adaptive, between_tools or disabled")


def _format(shape: dict[str, Any], where: str) -> dict[str, Any]:
    if shape.get("type") != "json_schema":
        raise Unmappable(f"{where}.type", "must be json_schema")
    schema = mapping(shape.get("schema"), f"{where}.schema")
    return {"type": "json_schema", "json_schema": {"name": _ANSWER, "schema": schema, "strict": True}}
