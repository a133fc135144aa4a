"""Turns: Anthropic's messages as chat's.

PURE. Turns of one role that follow each other are one turn, as Anthropic reads them. Results of tools come first, each
as a message of its own, since chat wants them right behind the calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.fields import Ignored, flag, mapping, sequence, string
from reconciler.dialects.ids import unpack
from reconciler.dialects.quirks import Quirks
from reconciler.dialects.text import dumps

Part = dict[str, Any]
Placed = tuple[str, dict[str, Any]]  # where a block stands, and the block

SKIP_SIGNATURE = "skip_thought_signature_validator"
"""What Google's documentation has a client send for calls that its models did not make."""
_BILLING = re.compile(r"x-anthropic-billing-header:[^\n]*\n*")
_APART = "\n\n"
_IN = "messages.content"  # how blocks' fields are named where they are left out


def turns(document: dict[str, Any], quirks: Quirks, ignored: Ignored) -> list[dict[str, Any]]:
    """Chat's messages: the system prompt first, then every turn. Raises `Unmappable`."""
    said = [text for _, text in _system_texts(document.get("system"), "system", quirks, ignored)]
    found = _runs(document.get("messages"), ignored)
    while found and found[0][0] == "system":
        _, blocks = found.pop(0)
        said += [_system_text(block, where, ignored) for where, block in blocks]
    messages = [_system(said)] if any(said) else []
    for role, blocks in found:
        if role == "user":
            messages += _user(blocks, quirks, ignored)
        elif role == "assistant":
            messages += _assistant(blocks, quirks, ignored)
        else:
            messages.append(_system([_system_text(block, where, ignored) for where, block in blocks]))
    if found and found[-1][0] == "assistant" and not quirks.prefill:
        raise Unmappable(
            "messages", "this model does not continue a last message of the assistant; end with the user's"
        )
    if not any(message["role"] != "system" for message in messages):
        raise Unmappable("messages", "must hold at least one message that says something")
    return messages


def without_billing(text: str) -> str:
    """The system text without the line that Claude Code changes in each request."""
    return _BILLING.sub("", text, count=1) if text.startswith("x-anthropic-billing-header:") else text


def _runs(value: object, ignored: Ignored) -> list[tuple[str, list[Placed]]]:
    """(role, blocks) of turns in a row."""
    runs: list[tuple[str, list[Placed]]] = []
    for position, item in enumerate(sequence(value, "messages")):
        where = f"messages.{position}"
        message = mapping(item, where)
        role = message.get("role")
        if role not in ("user", "assistant", "system"):
            raise Unmappable(f"{where}.role", "must be user, assistant or system")
        ignored.rest(message, frozenset(("role", "content")), "messages")
        blocks = list(_blocks(message.get("content"), f"{where}.content"))
        if runs and runs[-1][0] == role:
            runs[-1][1].extend(blocks)
        else:
            runs.append((role, blocks))
    if not runs:
        raise Unmappable("messages", "must hold at least one message")
    return runs


def _blocks(content: object, where: str) -> Iterator[Placed]:
    if isinstance(content, str):
        yield where, {"type": "text", "text": content}
        return
    if not isinstance(content, list):
        raise Unmappable(where, "must be a string or an array of content blocks")
    for position, block in enumerate(content):
        place = f"{where}.{position}"
        yield place, mapping(block, place)


def _system(texts: list[str]) -> dict[str, Any]:
    return {"role": "system", "content": _APART.join(text for text in texts if text)}


def _system_texts(value: object, where: str, quirks: Quirks, ignored: Ignored) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    for place, block in _blocks(value, where):
        text = _system_text(block, place, ignored)
        yield place, without_billing(text) if quirks.strip_billing else text


def _system_text(block: dict[str, Any], where: str, ignored: Ignored) -> str:
    if block.get("type") != "text":
        raise Unmappable(f"{where}.type", "a system prompt is text")
    return _text(block, where, ignored)


def _text(block: dict[str, Any], where: str, ignored: Ignored) -> str:
    ignored.rest(block, _TEXT, "system" if where.startswith("system") else _IN)
    return string(block.get("text"), f"{where}.text")


def _user(blocks: list[Placed], quirks: Quirks, ignored: Ignored) -> list[dict[str, Any]]:
    messages, parts = [], []
    for where, block in blocks:
        if block.get("type") == "tool_result":
            message, shown = _result(block, where, quirks, ignored)
            messages.append(message)
            parts += shown
    for where, block in blocks:
        if block.get("type") != "tool_result":
            parts += _parts(block, where, quirks, ignored)
    if parts:
        messages.append({"role": "user", "content": _content(parts)})
    return messages


def _content(parts: list[Part]) -> str | list[Part]:
    """Plain text where there is nothing else: not every template takes a list."""
    if all(part["type"] == "text" for part in parts):
        return _APART.join(part["text"] for part in parts)
    return parts


def _result(block: dict[str, Any], where: str, quirks: Quirks, ignored: Ignored) -> tuple[dict[str, Any], list[Part]]:
    """The tool's message, and what it holds besides text, which only a user may show in chat."""
    ignored.rest(block, _RESULT, _IN)
    ident, _ = unpack(string(block.get("tool_use_id"), f"{where}.tool_use_id"))
    texts, shown = [], []
    for place, inner in _blocks(block.get("content") or [], f"{where}.content"):
        for part in _parts(inner, place, quirks, ignored):
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                shown.append(part)
    text = _APART.join(texts)
    if shown:
        text = text or "The result is shown in the next message."
        shown.insert(0, {"type": "text", "text": f"Shown by the tool call {ident}:"})
    if block.get("is_error") is not None and flag(block["is_error"], f"{where}.is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": ident, "content": text}, shown


def _parts(block: dict[str, Any], where: str, quirks: Quirks, ignored: Ignored) -> list[Part]:
    kind = block.get("type")
    read = _PARTS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise Unmappable(f"{where}.type", f"this model's provider has nothing like {_named(kind)} here")
    return read(block, where, quirks, ignored)


def _plain_parts(block: dict[str, Any], where: str, quirks: Quirks, ignored: Ignored) -> list[Part]:
    if block.get("type") not in ("text", "image"):
        raise Unmappable(f"{where}.type", "a document holds text and images")
    return _parts(block, where, quirks, ignored)


def _named(kind: object) -> str:
    return f"'{kind[:60]}'" if isinstance(kind, str) else "a block without a type"


def _part_text(block: dict[str, Any], where: str, _: Quirks, ignored: Ignored) -> list[Part]:
    text = _text(block, where, ignored)
    return [{"type": "text", "text": text}] if text else []


def _part_image(block: dict[str, Any], where: str, _: Quirks, ignored: Ignored) -> list[Part]:
    ignored.rest(block, _SOURCED, _IN)
    return [{"type": "image_url", "image_url": {"url": _address(block, where)}}]


def _address(block: dict[str, Any], where: str) -> str:
    """A URL or a data URI."""
    source = mapping(block.get("source"), f"{where}.source")
    match source.get("type"):
        case "url":
            return string(source.get("url"), f"{where}.source.url")
        case "base64":
            media = string(source.get("media_type"), f"{where}.source.media_type")
            return f"data:{media};base64,{string(source.get('data'), f'{where}.source.data')}"
        case _:
            message = "must be base64 or url: a file that was uploaded to Anthropic cannot be read from here"
            raise Unmappable(f"{where}.source.type", message)


def _part_document(block: dict[str, Any], where: str, quirks: Quirks, ignored: Ignored) -> list[Part]:
    ignored.rest(block, _DOCUMENT, _IN)
    if isinstance(citations := block.get("citations"), dict) and citations.get("enabled"):
        ignored.add(f"{_IN}.citations")
    source = mapping(block.get("source"), f"{where}.source")
    title, context = (block.get(key) for key in ("title", "context"))
    head = [string(text, f"{where}.{key}") for key, text in (("title", title), ("context", context)) if text]
    match source.get("type"):
        case "text":
            text = string(source.get("data"), f"{where}.source.data")
            return [{"type": "text", "text": _APART.join([*head, text])}]
        case "content":
            inner = [
                part
                for place, item in _blocks(source.get("content"), f"{where}.source.content")
                for part in _plain_parts(item, place, quirks, ignored)
            ]
            return [*({"type": "text", "text": text} for text in head), *inner]
        case "base64" if quirks.files:
            name = title if isinstance(title, str) and title else "document.pdf"
            file = {"type": "file", "file": {"filename": name, "file_data": _address(block, where)}}
            return [*({"type": "text", "text": text} for text in head), file]
        case _:
            message = "this model's provider takes documents as text only: send their text, or pages as images"
            raise Unmappable(f"{where}.source.type", message)


def _part_search_result(block: dict[str, Any], where: str, _: Quirks, ignored: Ignored) -> list[Part]:
    ignored.rest(block, _SEARCH, _IN)
    if isinstance(citations := block.get("citations"), dict) and citations.get("enabled"):
        ignored.add(f"{_IN}.citations")
    head = [string(block.get(key), f"{where}.{key}") for key in ("title", "source")]
    texts = []
    for place, inner in _blocks(block.get("content"), f"{where}.content"):
        if inner.get("type") != "text":
            raise Unmappable(f"{place}.type", "a search result holds text")
        texts.append(_text(inner, place, ignored))
    return [{"type": "text", "text": _APART.join(["\n".join(head), *texts])}]


def _part_tool_reference(block: dict[str, Any], where: str, _: Quirks, ignored: Ignored) -> list[Part]:
    ignored.rest(block, _REFERENCE, _IN)
    return [{"type": "text", "text": f"Tool: {string(block.get('tool_name'), f'{where}.tool_name')}"}]


def _assistant(blocks: list[Placed], quirks: Quirks, ignored: Ignored) -> list[dict[str, Any]]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for where, block in blocks:
        match block.get("type"):
            case "text":
                texts.append(_text(block, where, ignored))
            case "thinking":
                ignored.rest(block, _THINKING, _IN)
                thoughts.append(string(block.get("thinking"), f"{where}.thinking"))
            case "redacted_thinking":
                ignored.add(f"{_IN}.redacted_thinking")
            case "tool_use":
                calls.append(_call(block, where, quirks, ignored, first=not calls))
            case kind:
                raise Unmappable(f"{where}.type", f"this model's provider has nothing like {_named(kind)} here")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    if calls:
        message["tool_calls"] = calls
    if any(thoughts):
        if quirks.reasoning == "none":
            ignored.add(f"{_IN}.thinking")
        else:
            message[quirks.reasoning] = _APART.join(thoughts)
    return [message] if calls or message["content"] else []


def _call(block: dict[str, Any], where: str, quirks: Quirks, ignored: Ignored, *, first: bool) -> dict[str, Any]:
    ignored.rest(block, _USE, _IN)
    ident, signature = unpack(string(block.get("id"), f"{where}.id"))
    name = string(block.get("name"), f"{where}.name")
    try:
        arguments = dumps(mapping(block.get("input"), f"{where}.input"))
    except ValueError:
        raise Unmappable(f"{where}.input", "is nested too deeply, or holds a number that JSON cannot say") from None
    call: dict[str, Any] = {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}
    if quirks.thought_signature and (signature or first):
        call["extra_content"] = {"google": {"thought_signature": signature or SKIP_SIGNATURE}}
    return call


_TEXT = frozenset(("type", "text"))
_RESULT = frozenset(("type", "tool_use_id", "content", "is_error"))
_SOURCED = frozenset(("type", "source"))
_DOCUMENT = frozenset(("type", "source", "title", "context", "citations"))
_SEARCH = frozenset(("type", "source", "title", "content", "citations"))
_REFERENCE = frozenset(("type", "tool_name"))
_THINKING = frozenset(("type", "thinking", "signature"))
_USE = frozenset(("type", "id", "name", "input", "caller"))
_PARTS: dict[str, Callable[[dict[str, Any], str, Quirks, Ignored], list[Part]]] = {
    "text": _part_text,
    "image": _part_image,
    "document": _part_document,
    "search_result": _part_search_result,
    "tool_reference": _part_tool_reference,
}
