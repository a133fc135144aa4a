"""Chat request: what a client asks of OpenAI's chat API, as an Anthropic request.

PURE. `FIELDS` says of every field what becomes of it; the documentation's table is made from it.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.chat_turns import turns
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
from reconciler.dialects.kept import Kept
from reconciler.dialects.quirks import EFFORTS, Quirks, fitting_effort

FIELDS = {
    "model": Field("mapped", "The provider's name for it is sent."),
    "messages": Field("mapped", "System and developer messages become the system prompt; results of tools the user's."),
    "max_tokens": Field("mapped", "As max_tokens; without it the model's own limit is sent, since one is required."),
    "max_completion_tokens": Field("mapped", "As max_tokens, before it."),
    "stream": Field("passed", "As it is."),
    "stream_options": Field("mapped", "include_usage ends the stream with the usage."),
    "stop": Field("mapped", "As stop_sequences; one of white space alone is refused."),
    "temperature": Field("mapped", "Kept within 0 and 1; left out where the model takes none."),
    "top_p": Field("mapped", "Kept within 0 and 1; left out where the model takes none."),
    "top_k": Field("passed", "As it is."),
    "tools": Field("mapped", "Functions; custom tools are refused."),
    "tool_choice": Field("mapped", "required becomes any, a function tool; allowed_tools leaves the others out."),
    "parallel_tool_calls": Field("mapped", "As tool_choice.disable_parallel_tool_use."),
    "response_format": Field("mapped", "json_schema as output_config.format; json_object is refused, text is plain."),
    "reasoning_effort": Field("mapped", "As output_config.effort; none switches thinking off."),
    "thinking": Field("passed", "Anthropic's own field, as it is."),
    "user": Field("mapped", "As metadata.user_id."),
    "safety_identifier": Field("mapped", "As metadata.user_id, before user."),
    "n": Field("mapped", "1 is what there is; more are refused."),
    "modalities": Field("mapped", "text is what there is; others are refused."),
    "frequency_penalty": Field("warned", "Anthropic has no penalties."),
    "presence_penalty": Field("warned", "Anthropic has no penalties."),
    "logit_bias": Field("warned", "Anthropic has no biases."),
    "logprobs": Field("warned", "Anthropic tells no log probabilities."),
    "top_logprobs": Field("warned", "Anthropic tells no log probabilities."),
    "seed": Field("warned", "Anthropic has no seeds."),
    "metadata": Field("warned", "Nothing is stored that it could be found by."),
    "store": Field("warned", "Nothing is stored."),
    "prediction": Field("warned", "It only makes the same answer come sooner."),
    "prompt_cache_key": Field("warned", "Anthropic's cache is asked for by cache_control, which is passed on."),
    "prompt_cache_options": Field("warned", "Anthropic's cache is asked for by cache_control, which is passed on."),
    "prompt_cache_retention": Field("warned", "Anthropic's cache is asked for by cache_control, which is passed on."),
    "service_tier": Field("warned", "Tiers are OpenAI's own."),
    "verbosity": Field("warned", "Anthropic has no such setting."),
    "audio": Field("refused", "Anthropic's models do not speak; ask for text"),
    "function_call": Field("refused", "is no longer in use; send tool_choice"),
    "functions": Field("refused", "is no longer in use; send tools"),
    "moderation": Field("refused", "this model's provider moderates in its own way only; leave it out"),
    "web_search_options": Field("refused", "cannot be told to this model's provider; offer a tool that searches"),
    "messages.name": Field("warned", "Anthropic's turns have no names."),
    "messages.refusal": Field("mapped", "As text."),
    "messages.reasoning_content": Field(
        "warned", "Thinking is not taken back without its signature; kept thinking is sent with its tool calls."
    ),
    "messages.annotations": Field("warned", "Anthropic takes no annotations."),
    "messages.audio": Field("refused", "Anthropic's models do not speak."),
    "messages.function_call": Field("refused", "No longer in use; tool_calls are."),
    "messages.content.text": Field("mapped", "Text; what is empty is left out, since Anthropic refuses it."),
    "messages.content.refusal": Field("mapped", "As text."),
    "messages.content.image_url": Field("mapped", "An image by its address, or from a data URI."),
    "messages.content.image_url.detail": Field("warned", "Anthropic chooses the detail."),
    "messages.content.file": Field("mapped", "A document from a data URI (PDF or text); an uploaded file is refused."),
    "messages.content.input_audio": Field("refused", "Anthropic's models do not listen."),
    "messages.content.cache_control": Field("passed", "Anthropic's own field, as it is."),
    "messages.tool_calls.extra_content": Field("warned", "Of another provider; it means nothing to Anthropic."),
    "messages.tool_calls.custom": Field("refused", "Anthropic's tools take JSON."),
    "tools.custom": Field("refused", "Anthropic's tools take JSON."),
    "tools.function.strict": Field("passed", "As it is."),
    "response_format.json_schema.name": Field("mapped", "Anthropic's formats have no name; it changes no answer."),
    "response_format.json_schema.strict": Field("mapped", "Anthropic's formats always hold strictly."),
    "response_format.json_schema.description": Field("warned", "Anthropic's formats have no description."),
}
_FUNCTION = frozenset(("name", "description", "parameters", "strict"))
_UNLIMITED: dict[str, Any] = {"type": "object", "properties": {}}


def messages_request(
    document: dict[str, Any], quirks: Quirks, max_tokens: int, kept: Kept | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(messages request, paths of what was left out); `max_tokens` is sent where the caller gave none.

    Raises `Unmappable`.
    """
    document = given(document)
    refuse(document, FIELDS)
    ignored = Ignored()
    asked: dict[str, Any] = {"model": string(document.get("model"), "model")}
    system, messages = turns(document, quirks, ignored, kept)
    if system:
        asked["system"] = system
    asked["messages"] = messages
    asked["max_tokens"] = _limit(document, max_tokens)
    _sampling(document, quirks, asked, ignored)
    _single(document)
    _tools(document, asked, ignored)
    _answer(document, quirks, asked, ignored)
    user = document.get("safety_identifier", document.get("user"))
    if user is not None:
        asked["metadata"] = {"user_id": string(user, "user")}
    if "stream" in document and flag(document["stream"], "stream"):
        asked["stream"] = True
    for key, value in document.items():
        field = FIELDS.get(key) if "." not in key else None
        if field is None and quirks.anything and key not in ("system", "stop_sequences"):
            asked.setdefault(key, value)
        elif field is None or (field.fate == "warned" and not _says_nothing(key, value)):
            ignored.add(key)
    return asked, ignored.paths()


def wants_usage(document: dict[str, Any]) -> bool:
    """Whether the stream is to end with its usage."""
    options = document.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _says_nothing(key: str, value: object) -> bool:
    """Whether the value is what happens without the field."""
    if key in ("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "store", "metadata"):
        return not value
    return key == "service_tier" and value in ("auto", "default")


def _limit(document: dict[str, Any], otherwise: int) -> int:
    for key in ("max_completion_tokens", "max_tokens"):
        if key in document:
            return integer(document[key], key, 1)
    return otherwise


def _single(document: dict[str, Any]) -> None:
    if integer(document.get("n", 1), "n", 1) > 1:
        raise Unmappable("n", "this model's provider gives one answer at a time; ask again for another")
    if any(kind != "text" for kind in sequence(document.get("modalities", []), "modalities")):
        raise Unmappable("modalities", "this model's provider answers in text only")


def _sampling(document: dict[str, Any], quirks: Quirks, asked: dict[str, Any], ignored: Ignored) -> None:
    lowest, highest = quirks.temperature
    for key, low, high in (("temperature", max(0.0, lowest), min(1.0, highest)), ("top_p", 0.0, 1.0)):
        if key not in document:
            continue
        value = number(document[key], key)
        kept = clamped(value, low, high)
        if quirks.sampling:
            asked[key] = kept
        if not quirks.sampling or kept != value:
            ignored.add(key)
    if "top_k" in document:
        asked["top_k"] = integer(document["top_k"], "top_k", 0)
    stop = document.get("stop", [])
    stops = [string(one, "stop") for one in ([stop] if isinstance(stop, str) else sequence(stop, "stop"))]
    if any(not one.strip() for one in stops):
        raise Unmappable("stop", "this model's provider takes no stop sequence of white space alone")
    if stops:
        asked["stop_sequences"] = stops


def _tools(document: dict[str, Any], asked: dict[str, Any], ignored: Ignored) -> None:
    items = sequence(document.get("tools", []), "tools")
    tools = [_tool(mapping(item, f"tools.{at}"), f"tools.{at}", ignored) for at, item in enumerate(items)]
    choice, among = _choice(document.get("tool_choice"))
    if among is not None:
        tools = [tool for tool in tools if tool["name"] in among]
    if tools:
        asked["tools"] = tools
    elif choice is not None and choice["type"] in ("any", "tool"):
        raise Unmappable("tool_choice", "there are no tools to choose from")
    parallel = document.get("parallel_tool_calls")
    if not tools:
        return
    if parallel is not None and not flag(parallel, "parallel_tool_calls") and (choice or {}).get("type") != "none":
        choice = (choice or {"type": "auto"}) | {"disable_parallel_tool_use": True}
    if choice is not None:
        asked["tool_choice"] = choice


def _tool(tool: dict[str, Any], where: str, ignored: Ignored) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise Unmappable(f"{where}.type", "must be function: this model's provider takes no other tools")
    function = given(mapping(tool.get("function"), f"{where}.function"))
    ignored.rest(function, _FUNCTION, "tools.function")
    said: dict[str, Any] = {"name": string(function.get("name"), f"{where}.function.name")}
    if "description" in function:
        said["description"] = string(function["description"], f"{where}.function.description")
    schema = mapping(function.get("parameters", _UNLIMITED), f"{where}.function.parameters")
    said["input_schema"] = schema if "type" in schema else {"type": "object", **schema}
    if "strict" in function:
        said["strict"] = flag(function["strict"], f"{where}.function.strict")
    if isinstance(tool.get("cache_control"), dict):
        said["cache_control"] = tool["cache_control"]
    return said


def _choice(choice: object) -> tuple[dict[str, Any] | None, set[str] | None]:
    """(Anthropic's choice, names of the tools that are left to choose from)."""
    if choice is None:
        return None, None
    if isinstance(choice, str):
        kinds = {"auto": "auto", "none": "none", "required": "any"}
        if choice not in kinds:
            raise Unmappable("tool_choice", "must be auto, none, required or a tool")
        return {"type": kinds[choice]}, None
    said = mapping(choice, "tool_choice")
    match said.get("type"):
        case "function":
            function = mapping(said.get("function"), "tool_choice.function")
            return {"type": "tool", "name": string(function.get("name"), "tool_choice.function.name")}, None
        case "allowed_tools":
            allowed = mapping(said.get("allowed_tools"), "tool_choice.allowed_tools")
            if allowed.get("mode") not in ("auto", "required"):
                raise Unmappable("tool_choice.allowed_tools.mode", "must be auto or required")
            names = set()
            for item in sequence(allowed.get("tools"), "tool_choice.allowed_tools.tools"):
                where = "tool_choice.allowed_tools.tools"
                function = mapping(mapping(item, where).get("function"), f"{where}.function")
                names.add(string(function.get("name"), f"{where}.function.name"))
            return {"type": "any" if allowed["mode"] == "required" else "auto"}, names
        case _:
            raise Unmappable("tool_choice.type", "must be function or allowed_tools")


def _answer(document: dict[str, Any], quirks: Quirks, asked: dict[str, Any], ignored: Ignored) -> None:
    config: dict[str, Any] = {}
    if "response_format" in document:
        shape = mapping(document["response_format"], "response_format")
        match shape.get("type"):
            case "text":
                pass
            case "json_schema":
                config["format"] = _format(mapping(shape.get("json_schema"), "response_format.json_schema"), ignored)
            case "json_object":
                message = "json_object is not known to this model's provider; send a json_schema"
                raise Unmappable("response_format.type", message)
            case _:
                raise Unmappable("response_format.type", "must be text or json_schema")
    if "thinking" in document:
        asked["thinking"] = mapping(document["thinking"], "thinking")
    if "reasoning_effort" in document:
        _effort(document["reasoning_effort"], quirks, asked, config, ignored)
    if config:
        asked["output_config"] = config


def _effort(effort: object, quirks: Quirks, asked: dict[str, Any], config: dict[str, Any], ignored: Ignored) -> None:
    if effort == "none":
        asked.setdefault("thinking", {"type": "disabled"})
    elif isinstance(effort, str) and effort in EFFORTS:
        taken = fitting_effort("low" if effort == "minimal" else effort, quirks)
        if taken:
            config["effort"] = "low" if taken == "minimal" else taken
        else:
            ignored.add("reasoning_effort")
    else:
        raise Unmappable("reasoning_effort", f"must be one of none, {', '.join(EFFORTS)}")


def _format(schema: dict[str, Any], ignored: Ignored) -> dict[str, Any]:
    ignored.rest(schema, frozenset(("schema", "strict", "name")), "response_format.json_schema")
    return {"type": "json_schema", "schema": mapping(schema.get("schema"), "response_format.json_schema.schema")}
