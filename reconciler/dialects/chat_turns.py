"""Turns: chat's messages as Anthropic's.

PURE. Messages of one side that follow each other become one turn; results of tools are the user's, and come first in
it, right behind the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.fields import Ignored, mapping, sequence, string
from reconciler.dialects.ids import safe
from reconciler.dialects.kept import Kept
from reconciler.dialects.quirks import Quirks
from reconciler.dialects.text import decode

Block = dict[str, Any]
Placed = tuple[str, dict[str, Any]]

_IN = "messages.content"
_HOISTED = ("system", "developer")


def turns(
    document: dict[str, Any], quirks: Quirks, ignored: Ignored, kept: Kept | None
) -> tuple[list[Block], list[dict[str, Any]]]:
    """(system blocks, turns). Raises `Unmappable`."""
    system: list[Block] = []
    found: list[tuple[str, list[Block]]] = []
    for position, item in enumerate(sequence(document.get("messages"), "messages")):
        where = f"messages.{position}"
        message = mapping(item, where)
        role = message.get("role")
        if role in _HOISTED:
            ignored.rest(message, _PLAIN, "messages")
            system += _texts_only(message, where, ignored)
            continue
        side, blocks = _turn(role, message, where, ignored, kept)
        if found and found[-1][0] == side:
            found[-1][1].extend(blocks)
        elif blocks:
            found.append((side, blocks))
    if not found:
        raise Unmappable("messages", "must hold at least one message of a user that says something")
    if found[-1][0] == "assistant":
        if not quirks.prefill:
            raise Unmappable(
                "messages", "this model does not continue a last message of the assistant; end with the user's"
            )
        _trim(found[-1][1])
    return system, [{"role": side, "content": _in_order(side, blocks)} for side, blocks in found]


def _turn(
    role: object, message: dict[str, Any], where: str, ignored: Ignored, kept: Kept | None
) -> tuple[str, list[Block]]:
    match role:
        case "user":
            ignored.rest(message, _PLAIN, "messages")
            return "user", list(_content(message.get("content"), f"{where}.content", ignored))
        case "tool":
            ignored.rest(message, _TOOL, "messages")
            return "user", [_result(message, where, ignored)]
        case "assistant":
            return "assistant", _assistant(message, where, ignored, kept)
        case _:
            raise Unmappable(f"{where}.role", "must be system, developer, user, assistant or tool")


def _in_order(side: str, blocks: list[Block]) -> list[Block]:
    """Results of tools first; of an assistant, thinking first."""
    first = "tool_result" if side == "user" else "thinking"
    ahead = [block for block in blocks if first in block["type"]]
    return ahead + [block for block in blocks if first not in block["type"]]


def _trim(blocks: list[Block]) -> None:
    """Anthropic refuses a beginning that ends in white space."""
    if blocks[-1]["type"] == "text":
        blocks[-1] = blocks[-1] | {"text": blocks[-1]["text"].rstrip()}


def _texts_only(message: dict[str, Any], where: str, ignored: Ignored) -> list[Block]:
    blocks = list(_content(message.get("content"), f"{where}.content", ignored))
    if any(block["type"] != "text" for block in blocks):
        raise Unmappable(f"{where}.content", "a system prompt is text")
    return blocks


def _content(value: object, where: str, ignored: Ignored) -> Iterator[Block]:
    """Blocks of a message's content; empty text is left out."""
    if isinstance(value, str):
        if value.strip():
            yield {"type": "text", "text": value}
        return
    if not isinstance(value, list):
        raise Unmappable(where, "must be a string or an array of parts")
    for position, item in enumerate(value):
        place = f"{where}.{position}"
        part = mapping(item, place)
        kind = part.get("type")
        read = _PARTS.get(kind) if isinstance(kind, str) else None
        if read is None:
            known = kind[:60] if isinstance(kind, str) else "a part without a type"
            raise Unmappable(f"{place}.type", f"this model's provider takes nothing like {known}")
        for block in read(part, place, ignored):
            if isinstance(part.get("cache_control"), dict):
                block["cache_control"] = part["cache_control"]
            yield block


def _part_text(part: dict[str, Any], where: str, ignored: Ignored) -> list[Block]:
    ignored.rest(part, frozenset(("type", "text", "cache_control")), _IN)
    text = string(part.get("text"), f"{where}.text")
    return [{"type": "text", "text": text}] if text.strip() else []


def _part_refusal(part: dict[str, Any], where: str, _: Ignored) -> list[Block]:
    text = string(part.get("refusal"), f"{where}.refusal")
    return [{"type": "text", "text": text}] if text.strip() else []


def _part_image(part: dict[str, Any], where: str, ignored: Ignored) -> list[Block]:
    ignored.rest(part, frozenset(("type", "image_url", "cache_control")), _IN)
    image = part.get("image_url")
    image = {"url": image} if isinstance(image, str) else mapping(image, f"{where}.image_url")
    if image.get("detail") not in (None, "auto"):
        ignored.add(f"{_IN}.image_url.detail")
    url = string(image.get("url"), f"{where}.image_url.url")
    if url.startswith(("https://", "http://")):
        return [{"type": "image", "source": {"type": "url", "url": url}}]
    media, data = _data(url, f"{where}.image_url.url")
    return [{"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}]


def _data(uri: str, where: str) -> tuple[str, str]:
    """(media type, base64) of a data URI."""
    head, comma, data = uri.partition(",")
    kind, *rest = head.removeprefix("data:").split(";")
    if not head.startswith("data:") or not comma or "base64" not in rest:
        raise Unmappable(where, "must be an http(s) address, or a data URI in base64")
    return kind.strip().lower(), data


def _part_file(part: dict[str, Any], where: str, ignored: Ignored) -> list[Block]:
    ignored.rest(part, frozenset(("type", "file", "cache_control")), _IN)
    file = mapping(part.get("file"), f"{where}.file")
    if file.get("file_data") is None:
        raise Unmappable(
            f"{where}.file", "must hold file_data: a file that was uploaded elsewhere cannot be read from here"
        )
    media, data = _data(string(file["file_data"], f"{where}.file.file_data"), f"{where}.file.file_data")
    if media != "application/pdf":
        raise Unmappable(f"{where}.file.file_data", f"this model's provider reads PDF files, not '{media[:60]}'")
    block: Block = {"type": "document", "source": {"type": "base64", "media_type": media, "data": data}}
    if isinstance(file.get("filename"), str) and file["filename"]:
        block["title"] = file["filename"]
    return [block]


def _result(message: dict[str, Any], where: str, ignored: Ignored) -> Block:
    ident = string(message.get("tool_call_id"), f"{where}.tool_call_id")
    block: Block = {"type": "tool_result", "tool_use_id": _ident(ident, f"{where}.tool_call_id")}
    if message.get("content") is not None:
        content = list(_content(message["content"], f"{where}.content", ignored))
        if content:
            plain = len(content) == 1 and content[0].keys() == {"type", "text"}
            block["content"] = content[0]["text"] if plain else content
    return block


def _ident(ident: str, where: str) -> str:
    if not ident:
        raise Unmappable(where, "must not be empty")
    return safe(ident)


def _assistant(message: dict[str, Any], where: str, ignored: Ignored, kept: Kept | None) -> list[Block]:
    if message.get("function_call") is not None:
        raise Unmappable(f"{where}.function_call", "is no longer in use; send tool_calls")
    if message.get("audio") is not None:
        raise Unmappable(f"{where}.audio", "this model's provider has no audio")
    content = message.get("content")
    blocks = [] if content is None else list(_content(content, f"{where}.content", ignored))
    if isinstance(refusal := message.get("refusal"), str) and refusal.strip():
        blocks.append({"type": "text", "text": refusal})
    calls = message.get("tool_calls")
    thinking: list[Block] = []
    for at, item in enumerate(sequence([] if calls is None else calls, f"{where}.tool_calls")):
        place = f"{where}.tool_calls.{at}"
        call = _call(mapping(item, place), place, ignored)
        thinking = thinking or (kept.get(call["id"]) if kept is not None else [])
        blocks.append(call)
    ignored.rest(message, _ASSISTANT if thinking else _ASSISTANT - _REASONING, "messages")
    return thinking + blocks


def _call(call: dict[str, Any], where: str, ignored: Ignored) -> Block:
    if call.get("type", "function") != "function":
        raise Unmappable(f"{where}.type", "must be function: this model's provider knows no other calls")
    ignored.rest(call, frozenset(("id", "type", "function", "index")), "messages.tool_calls")
    function = mapping(call.get("function"), f"{where}.function")
    text = string(function.get("arguments", ""), f"{where}.function.arguments")
    try:
        arguments = decode(text) if text.strip() else {}
    except ValueError as error:
        raise Unmappable(f"{where}.function.arguments", f"must be JSON: {error}") from None
    return {
        "type": "tool_use",
        "id": _ident(string(call.get("id"), f"{where}.id"), f"{where}.id"),
        "name": string(function.get("name"), f"{where}.function.name"),
        "input": mapping(arguments, f"{where}.function.arguments"),
    }


_PLAIN = frozenset(("role", "content"))
_TOOL = frozenset(("role", "content", "tool_call_id", "name"))  # a tool's name is that of its call
_REASONING = frozenset(("reasoning_content", "reasoning"))
_ASSISTANT = frozenset(("role", "content", "refusal", "tool_calls")) | _REASONING
_PARTS: dict[str, Callable[[dict[str, Any], str, Ignored], list[Block]]] = {
    "text": _part_text,
    "refusal": _part_refusal,
    "image_url": _part_image,
    "file": _part_file,
}
