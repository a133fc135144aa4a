"""Items: the input of a responses request as the messages of a chat.

PURE. Items of the assistant that follow each other are one message, since chat wants a call and the words around it in
one; outputs of tools come right after it. Nothing is dropped silently: `Ignored` collects what was left out.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.ids import unpack
from reconciler.dialects.quirks import Quirks
from reconciler.dialects.responses_tables import CONTENT, ITEM_KEYS, ITEMS, PART_KEYS

Item = dict[str, Any]
LONGEST_NAME = 64  # of a chat function
_SEALED = "reconciler-1."
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}\Z")


class Placed(NamedTuple):
    """An item, and how it is called in a message to the caller, such as `input[3]`."""

    where: str
    item: Item


class Ignored:
    """Names of what was left out, each once, fit for a header."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def add(self, name: str) -> None:
        self._names.add(name if _PLAIN_NAME.match(name) else "unnamed")

    def rest(self, prefix: str, given: Item, known: frozenset[str]) -> None:
        """Every key of `given` that is set and not known."""
        for key, value in given.items():
            if key not in known and value is not None and value is not False:
                self.add(f"{prefix}.{key}")

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._names))


def kind_of(placed: Placed) -> str:
    """The item's type, also where it goes without saying; raises `Unmappable` for one that is not known."""
    where, item = placed
    kind = item.get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference" if "id" in item else None
    if not isinstance(kind, str) or kind not in ITEMS:
        raise Unmappable(f"{where}.type", f"{_shown(kind)} is no type of an input item that is known here")
    return kind


def chat_name(namespace: object, name: str) -> str:
    """How a function is called in chat: NAMESPACE__NAME, shortened by a checksum where that is too long."""
    if not isinstance(namespace, str) or not namespace:
        return name
    joined = f"{namespace}__{name}"
    if len(joined) <= LONGEST_NAME:
        return joined
    checksum = f"_{zlib.crc32(joined.encode('utf-8', 'replace')):08x}"
    return joined[: LONGEST_NAME - len(checksum)] + checksum


def sealed(text: str) -> str:
    """Reasoning as `encrypted_content`: readable again by `unsealed`, and not a secret."""
    return _SEALED + base64.b64encode(text.encode("utf-8", "replace")).decode()


def unsealed(value: object) -> str | None:
    """The text of `sealed`; None for what somebody else encrypted."""
    if not isinstance(value, str) or not value.startswith(_SEALED):
        return None
    try:
        return base64.b64decode(value[len(_SEALED) :], validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def messages(instructions: str | None, items: Iterable[Placed], quirks: Quirks, ignored: Ignored) -> list[Item]:
    """The chat's messages. Raises `Unmappable`."""
    chat = _Chat(quirks, ignored)
    if instructions:
        chat.messages.append({"role": "system", "content": instructions})
    for placed in items:
        chat.add(placed)
    chat.close()
    return _one_system(chat.messages)


class _Chat:
    """Takes items in their order. `_turn` is the assistant's message that is being put together."""

    def __init__(self, quirks: Quirks, ignored: Ignored) -> None:
        self.messages: list[Item] = []
        self._quirks = quirks
        self._ignored = ignored
        self._turn: Item | None = None
        self._shown: list[Item] = []  # images of tool outputs, for the user message after them
        self._calls: set[str] = set()

    def add(self, placed: Placed) -> None:
        kind = kind_of(placed)
        field = ITEMS[kind]
        if field.fate == "refused":
            raise Unmappable(f"{placed.where}.type", f"an item of type '{kind}' {field.why}")
        if field.fate == "warned":
            self._ignored.add(f"input.{kind}")
            return
        if kind in ITEM_KEYS:
            self._ignored.rest(f"input.{kind}", placed.item, ITEM_KEYS[kind])
        match kind:
            case "message":
                self._message(placed)
            case "function_call":
                self._call(placed)
            case "function_call_output":
                self._output(placed)
            case "reasoning":
                self._reasoning(placed)
            case _:
                raise Unmappable(f"{placed.where}.id", "the item that it refers to is not known here; send the item")

    def close(self) -> None:
        """What is being put together is complete."""
        self._close_turn()
        self._close_outputs()

    def _close_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is None:
            return
        if "tool_calls" not in turn and turn["content"] is None:
            self._ignored.add("input.reasoning")  # it came to no words: chat has no message for it
            return
        self.messages.append(turn)

    def _close_outputs(self) -> None:
        if self._shown:
            self.messages.append({"role": "user", "content": self._shown})
            self._shown = []

    def _speak(self) -> Item:
        """The assistant's message that is being put together."""
        self._close_outputs()
        if self._turn is None:
            self._turn = {"role": "assistant", "content": None}
        return self._turn

    def _message(self, placed: Placed) -> None:
        where, item = placed
        role, content = item.get("role"), item.get("content")
        if role == "assistant":
            text = _text(where, content, self._quirks, self._ignored, "")
            if text:
                turn = self._speak()
                turn["content"] = text if turn["content"] is None else f"{turn['content']}\n\n{text}"
        elif role in ("system", "developer"):
            self.close()
            self.messages.append(
                {"role": "system", "content": _text(where, content, self._quirks, self._ignored, "\n")}
            )
        elif role == "user":
            self.close()
            self.messages.append({"role": "user", "content": _content(where, content, self._quirks, self._ignored)})
        else:
            raise Unmappable(f"{where}.role", f"{_shown(role)} is none of user, assistant, system and developer")

    def _call(self, placed: Placed) -> None:
        where, item = placed
        name, ident = _string(where, item, "name"), _string(where, item, "call_id")
        arguments = item.get("arguments")
        if not isinstance(arguments, str):
            raise Unmappable(f"{where}.arguments", "must be JSON as text")
        function = {"name": chat_name(item.get("namespace"), name), "arguments": arguments or "{}"}
        plain, signature = unpack(ident)
        call: Item = {"id": plain, "type": "function", "function": function}
        if signature and self._quirks.thought_signature:
            call["extra_content"] = {"google": {"thought_signature": signature}}
        self._speak().setdefault("tool_calls", []).append(call)
        self._calls.add(ident)

    def _output(self, placed: Placed) -> None:
        where, item = placed
        ident = _string(where, item, "call_id")
        if ident not in self._calls:
            raise Unmappable(f"{where}.call_id", f"there is no function_call before it that has the call_id {ident!r}")
        self._close_turn()
        output = item.get("output")
        if isinstance(output, str):
            text = output
        else:
            parts = _parts(f"{where}.output", output, self._quirks, self._ignored)
            text = "\n".join(part["text"] for part in parts if part["type"] == "text")
            shown = [part for part in parts if part["type"] != "text"]
            if shown:
                self._shown += [{"type": "text", "text": f"Output of the tool call {ident}:"}, *shown]
                text = text or "The output follows in the next message."
        self.messages.append({"role": "tool", "tool_call_id": unpack(ident)[0], "content": text})

    def _reasoning(self, placed: Placed) -> None:
        text = _reasoning_text(placed.item)
        if not text:
            if placed.item.get("encrypted_content"):
                self._ignored.add("input.reasoning.encrypted_content")
            return
        key = self._quirks.reasoning
        if key == "none":
            self._ignored.add("input.reasoning")
            return
        turn = self._speak()
        before = turn.get(key)
        turn[key] = f"{before}\n\n{text}" if before else text


def _reasoning_text(item: Item) -> str:
    """What was thought: in full where the item has it, else what we put into `encrypted_content`, else its summary."""
    for key in ("content", "encrypted_content", "summary"):
        value = item.get(key)
        if key == "encrypted_content":
            text = unsealed(value) or ""
        else:
            parts = [part.get("text") for part in value if isinstance(part, dict)] if isinstance(value, list) else []
            text = "\n\n".join(part for part in parts if isinstance(part, str) and part)
        if text:
            return text
    return ""


def _one_system(messages: list[Item]) -> list[Item]:
    """Templates of many models take one system message, at the beginning."""
    count = 0
    while count < len(messages) and messages[count]["role"] == "system":
        count += 1
    if count < 2:
        return messages
    texts = [message["content"] for message in messages[:count]]
    return [{"role": "system", "content": "\n\n".join(text for text in texts if text)}, *messages[count:]]


def _content(where: str, content: object, quirks: Quirks, ignored: Ignored) -> str | list[Item]:
    """Text alone as text, since not every server takes parts."""
    if isinstance(content, str):
        return content
    parts = _parts(f"{where}.content", content, quirks, ignored)
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _text(where: str, content: object, quirks: Quirks, ignored: Ignored, between: str) -> str:
    """The text of a message that may hold nothing else."""
    if isinstance(content, str):
        return content
    parts = _parts(f"{where}.content", content, quirks, ignored)
    for index, part in enumerate(parts):
        if part["type"] != "text":
            raise Unmappable(f"{where}.content[{index}]", "only text can be said in a message of this role")
    return between.join(part["text"] for part in parts)


def _parts(where: str, content: object, quirks: Quirks, ignored: Ignored) -> list[Item]:
    if not isinstance(content, list):
        raise Unmappable(where, "must be text or a list of parts")
    return [_part(f"{where}[{index}]", part, quirks, ignored) for index, part in enumerate(content)]


def _part(where: str, part: object, quirks: Quirks, ignored: Ignored) -> Item:
    if not isinstance(part, dict):
        raise Unmappable(where, "must be an object")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in CONTENT:
        raise Unmappable(f"{where}.type", f"{_shown(kind)} is no type of content that is known here")
    ignored.rest(f"input.{kind}", part, PART_KEYS[kind])
    match kind:
        case "input_text" | "output_text":
            return {"type": "text", "text": _string(where, part, "text", empty=True)}
        case "refusal":
            return {"type": "text", "text": _string(where, part, "refusal", empty=True)}
        case "input_image":
            return _image(where, part)
        case "input_file":
            return _file(where, part, quirks)
        case _:
            audio = part.get("input_audio")
            if not isinstance(audio, dict):
                raise Unmappable(f"{where}.input_audio", "must be an object with data and format")
            return {"type": "input_audio", "input_audio": audio}


def _image(where: str, part: Item) -> Item:
    if part.get("file_id") is not None:
        raise Unmappable(f"{where}.file_id", "uploaded files are not known here; send the image as a data URL")
    image: Item = {"url": _string(where, part, "image_url")}
    detail = part.get("detail")
    if detail is not None:
        image["detail"] = "high" if detail == "original" else detail
    return {"type": "image_url", "image_url": image}


def _file(where: str, part: Item, quirks: Quirks) -> Item:
    for key in ("file_id", "file_url"):
        if part.get(key) is not None:
            raise Unmappable(f"{where}.{key}", "only files that come with the request are known here; use file_data")
    data = _string(where, part, "file_data")
    name = part.get("filename")
    label = name if isinstance(name, str) and name else "file"
    text = _plain_text(data)
    if text is not None:
        return {"type": "text", "text": f"{label}:\n{text}"}
    if not quirks.files:
        raise Unmappable(where, "this model's provider takes text files only; send what the file says as text")
    return {"type": "file", "file": {"filename": label, "file_data": data}}


def _plain_text(data: str) -> str | None:
    """The text of a data URL whose media type is text; None for anything else."""
    if not data.startswith("data:text/"):
        return None
    head, comma, body = data.partition(",")
    if not comma:
        return None
    try:
        raw = base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
        return raw.decode()
    except (binascii.Error, ValueError):
        return None


def _string(where: str, holder: Item, key: str, *, empty: bool = False) -> str:
    value = holder.get(key)
    if not isinstance(value, str) or not (value or empty):
        raise Unmappable(f"{where}.{key}", "must be text" if empty else "must be text that is not empty")
    return value


def _shown(value: object) -> str:
    return json.dumps(value, default=str)[:60]
