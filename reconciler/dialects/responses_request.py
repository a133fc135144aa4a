"""A responses request as a request for chat completions, and what has to be remembered for its answer.

PURE. Nothing is dropped silently: a field is said, refused by name, or listed in `ignored`; `responses_tables` says
which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.fields import clamped, flag, given, integer, mapping, number, sequence, string
from reconciler.dialects.quirks import EFFORTS, Quirks, fitting_effort
from reconciler.dialects.responses_items import Ignored, Item, Placed, kind_of, messages
from reconciler.dialects.responses_tables import FIELDS, INCLUDE
from reconciler.dialects.responses_tools import name_of, tools

SUMMARIES = ("auto", "concise", "detailed")
DEEPEST = 100  # levels of what the answer repeats, so that it can be written wherever that happens
_CHAT_SHAPE = frozenset(
    (
        "messages", "n", "functions", "function_call", "tool_calls", "logprobs", "max_tokens", "max_completion_tokens",
        "response_format", "reasoning_effort", "stream_options", "modalities", "audio", "prompt",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """`document` goes to the upstream. `echo` is what the answer repeats of the request, in the answer's shape.

    `items` are the request's own input items, each with an id, without what came before by reference. `names` gives
    namespace ("" for none) and name of a function by its name in chat. `store` says whether the answer may be kept.
    """

    document: dict[str, Any]
    ignored: tuple[str, ...]
    echo: dict[str, Any]
    items: list[Item]
    names: dict[str, tuple[str, str]]
    store: bool
    as_summary: bool
    with_logprobs: bool
    with_sealed: bool


def asked(
    document: dict[str, Any],
    quirks: Quirks,
    request_id: str,
    history: list[Item] | None,
    referred: Mapping[str, Item],
    *,
    drop_built_in: bool = False,
) -> Asked:
    """The request for chat; arguments as those of `ResponsesOnChat`. Raises `Unmappable`."""
    ignored = Ignored()
    said = given(document)
    look(said, ignored)
    earlier = before(said, history)
    items = input_items(said, request_id, referred)
    instructions = string(said.get("instructions", ""), "instructions")
    own = [Placed(f"input[{index}]", item) for index, item in enumerate(items)]
    kept = [Placed(f"previous_response_id.items[{index}]", item) for index, item in enumerate(earlier)]
    chat: dict[str, Any] = {"model": said.get("model"), "messages": messages(instructions, kept + own, quirks, ignored)}
    if not chat["messages"]:
        raise Unmappable("input", "says nothing; send text or at least one item")
    names = tools(said, chat, ignored, drop_built_in=drop_built_in)
    included = _include(said, ignored)
    for step in (_limits, _format, _thinking, _stream, _rest):
        step(said, chat, quirks, ignored)
    logprobs = _logprobs(said, chat, "message.output_text.logprobs" in included)
    return Asked(
        document=chat,
        ignored=ignored.names(),
        echo=echo(said),
        items=items,
        names=names,
        store=flag(said.get("store", True), "store"),
        as_summary=_summary(said) is not None,
        with_logprobs=logprobs,
        with_sealed="reasoning.encrypted_content" in included,
    )


def input_items(document: dict[str, Any], request_id: str, referred: Mapping[str, Item]) -> list[Item]:
    """The request's own input as items in the shape in which they are kept and listed: with id, type and parts.

    `referred` are kept items by their id, for those of type item_reference. Raises `Unmappable`.
    """
    stated = document.get("input")
    if stated is None:
        stated = []
    if isinstance(stated, str):
        stated = [{"type": "message", "role": "user", "content": stated}]
    found = []
    for index, item in enumerate(sequence(stated, "input")):
        where = f"input[{index}]"
        placed = Placed(where, mapping(item, where))
        kind = kind_of(placed)
        if kind == "item_reference":
            name = item.get("id")
            if not isinstance(name, str) or name not in referred:
                raise Unmappable(f"{where}.id", f"no item {name!r:.80} is kept here; send the item itself")
            found.append(referred[name])
            continue
        found.append(_listed({**item, "type": kind}, f"{request_id}_in{index}"))
    return found


def references(document: dict[str, Any]) -> list[str]:
    """The ids of kept items that a request refers to; looks at documents of any shape and never raises."""
    stated = document.get("input")
    items = [item for item in stated if isinstance(item, dict)] if isinstance(stated, list) else []
    return [
        item["id"]
        for item in items
        if isinstance(item.get("id"), str)
        and (item.get("type") == "item_reference" or (item.get("type") is None and "role" not in item))
    ]


_PREFIX = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _listed(item: Item, ident: str) -> Item:
    kind = item["type"]
    if not isinstance(item.get("id"), str) or not item["id"]:
        item["id"] = f"{_PREFIX.get(kind, 'item')}_{ident}"
    if kind == "message":
        item.setdefault("status", "completed")
        if isinstance(item.get("content"), str):
            text = item["content"]
            if item.get("role") == "assistant":
                item["content"] = [{"type": "output_text", "text": text, "annotations": []}]
            else:
                item["content"] = [{"type": "input_text", "text": text}]
    return item


def before(said: dict[str, Any], history: list[Item] | None) -> list[Item]:
    """The items that previous_response_id stands for. Raises `Unmappable` where they are not known."""
    if "previous_response_id" not in said:
        return []
    name = string(said["previous_response_id"], "previous_response_id")
    if history is None:
        raise Unmappable(
            "previous_response_id",
            f"no answer {name[:80]!r} is kept here: it may have been made with store: false, be too old, or have been "
            "asked for with another key; send the whole conversation as input",
        )
    return history


def look(said: dict[str, Any], ignored: Ignored) -> None:
    """Refuse what the table refuses (raises `Unmappable`), and note what it leaves out."""
    for key, value in said.items():
        field = FIELDS.get(key)
        if field is None:
            continue
        if field.fate == "refused" and value is not False:
            raise Unmappable(key, field.why)
        if field.fate == "warned":
            ignored.add(key)


def _include(said: dict[str, Any], ignored: Ignored) -> set[str]:
    found = set()
    for index, name in enumerate(sequence(said.get("include", []), "include")):
        field = INCLUDE.get(string(name, f"include[{index}]"))
        if field is None:
            raise Unmappable(f"include[{index}]", f"{name!r:.80} is nothing that can be included")
        if field.fate == "mapped":
            found.add(name)
        else:
            ignored.add(f"include.{name}")
    return found


def _limits(said: dict[str, Any], chat: dict[str, Any], quirks: Quirks, ignored: Ignored) -> None:
    """The limit of tokens, and sampling."""
    if "max_output_tokens" in said:
        chat[quirks.max_tokens] = integer(said["max_output_tokens"], "max_output_tokens", 1)
    for key in ("temperature", "top_p"):
        if key not in said:
            continue
        value = number(said[key], key)
        if quirks.sampling:
            chat[key] = clamped(value, *quirks.temperature) if key == "temperature" else value
        else:
            ignored.add(key)


def _format(said: dict[str, Any], chat: dict[str, Any], quirks: Quirks, ignored: Ignored) -> None:
    text = mapping(said.get("text", {}), "text")
    ignored.rest("text", text, frozenset(("format",)))
    if text.get("format") is None:
        return
    form = mapping(text["format"], "text.format")
    kind = form.get("type")
    if kind == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif kind == "json_schema":
        ignored.rest("text.format", form, frozenset(("type", "name", "schema", "strict", "description")))
        schema: Item = {
            "name": name_of("text.format", form),
            "schema": mapping(form.get("schema"), "text.format.schema"),
        }
        schema |= {key: form[key] for key in ("strict", "description") if form.get(key) is not None}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind != "text":
        raise Unmappable("text.format.type", "must be text, json_object or json_schema")


def _thinking(said: dict[str, Any], chat: dict[str, Any], quirks: Quirks, ignored: Ignored) -> None:
    reasoning = mapping(said.get("reasoning", {}), "reasoning")
    ignored.rest("reasoning", reasoning, frozenset(("effort", "summary", "generate_summary")))
    effort = reasoning.get("effort")
    if effort is None:
        return
    if effort == "none":
        _no_thinking(chat, quirks, ignored)
        return
    if effort not in EFFORTS:
        raise Unmappable("reasoning.effort", f"must be one of none, {', '.join(EFFORTS)}")
    fitting = fitting_effort(effort, quirks)
    if fitting:
        chat["reasoning_effort"] = fitting
    else:
        ignored.add("reasoning.effort")


def _no_thinking(chat: dict[str, Any], quirks: Quirks, ignored: Ignored) -> None:
    if quirks.no_thinking == "none":
        chat["reasoning_effort"] = "none"
    elif quirks.no_thinking == "template":
        chat["chat_template_kwargs"] = {"enable_thinking": False}
    else:
        ignored.add("reasoning.effort")


def _summary(said: dict[str, Any]) -> str | None:
    reasoning = said.get("reasoning") or {}
    summary = reasoning.get("summary") or reasoning.get("generate_summary")
    if summary is not None and summary not in SUMMARIES:
        raise Unmappable("reasoning.summary", f"must be one of {', '.join(SUMMARIES)}")
    return summary


def _stream(said: dict[str, Any], chat: dict[str, Any], quirks: Quirks, ignored: Ignored) -> None:
    options = mapping(said.get("stream_options", {}), "stream_options")
    ignored.rest("stream_options", options, frozenset())
    if "stream" not in said:
        return
    chat["stream"] = flag(said["stream"], "stream")
    if chat["stream"] and quirks.stream_options:
        chat["stream_options"] = {"include_usage": True}


def _rest(said: dict[str, Any], chat: dict[str, Any], quirks: Quirks, ignored: Ignored) -> None:
    """What has the same name in both dialects, what only counts for some values, and what nobody here knows."""
    if "user" in said:
        chat["user"] = string(said["user"], "user")
    if "metadata" in said:
        mapping(said["metadata"], "metadata")
    tier = string(said.get("service_tier", "auto"), "service_tier")
    if tier not in ("auto", "default"):
        chat["service_tier"] = tier
    if said.get("truncation", "disabled") != "disabled":
        ignored.add("truncation")
    for key, value in said.items():
        if key in FIELDS:
            continue
        if quirks.anything and key not in _CHAT_SHAPE:
            if key == "chat_template_kwargs" and isinstance(value, dict):
                value = {**value, **chat.get(key, {})}
            chat[key] = value
        else:
            ignored.add(key)


def _logprobs(said: dict[str, Any], chat: dict[str, Any], included: bool) -> bool:
    most = integer(said.get("top_logprobs", 0), "top_logprobs", 0)
    if not included and not most:
        return False
    chat["logprobs"] = True
    if most:
        chat["top_logprobs"] = most
    return True


def echo(said: dict[str, Any]) -> dict[str, Any]:
    """What the official client's type of an answer has of its request; null where nothing was asked for.

    Raises `Unmappable`.
    """
    for key, value in said.items():
        if key != "input" and _depth(value) > DEEPEST:
            raise Unmappable(key, f"is nested more than {DEEPEST} levels deep")
    text = mapping(said.get("text", {}), "text")
    reasoning = said.get("reasoning") or {}
    return {
        "background": False,
        "instructions": said.get("instructions"),
        "max_output_tokens": said.get("max_output_tokens"),
        "max_tool_calls": said.get("max_tool_calls"),
        "metadata": said.get("metadata", {}),
        "parallel_tool_calls": flag(said.get("parallel_tool_calls", True), "parallel_tool_calls"),
        "previous_response_id": said.get("previous_response_id"),
        "prompt_cache_key": said.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": _summary(said)},
        "safety_identifier": said.get("safety_identifier"),
        "service_tier": said.get("service_tier", "default"),
        "store": said.get("store", True),
        "temperature": said.get("temperature"),
        "text": {"format": {"type": "text"}, **given(text)},
        "tool_choice": said.get("tool_choice", "auto"),
        "tools": said.get("tools", []),
        "top_logprobs": said.get("top_logprobs", 0),
        "top_p": said.get("top_p"),
        "truncation": said.get("truncation", "disabled"),
        "user": said.get("user"),
    }


def _depth(value: object) -> int:
    """How many objects and lists lie in each other; without recursion, since that is what it guards."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        if depth > DEEPEST:
            break
    return depth
