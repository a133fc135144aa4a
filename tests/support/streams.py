"""Strict readers of event streams: what the official clients accept by chance is an error here.

`chat_stream` and `messages_stream` take the bytes of a whole stream, raise AssertionError that says what is wrong, and
return what was said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

STOPS = (
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "pause_turn",
    "refusal",
    "model_context_window_exceeded",
)
FINISHES = ("stop", "length", "tool_calls", "content_filter")


@dataclass
class Call:
    """A tool call; `arguments` is JSON text, which only an answer that was cut may leave incomplete."""

    ident: str
    name: str
    arguments: str


@dataclass
class Chat:
    """What a chat stream said. `error` ends a stream in place of a finish."""

    ident: str = ""
    model: str = ""
    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    finish: str | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    comments: int = 0


@dataclass
class Messages:
    """What a messages stream said; `kinds` are its blocks in order. `error` ends a stream in place of a stop reason."""

    ident: str = ""
    model: str = ""
    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    finish: str | None = None
    stop_sequence: str | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    pings: int = 0


def blocks(data: bytes) -> list[list[str]]:
    """The lines of each event of a stream that is written in one way only: LF, no mark, a blank line after each."""
    text = data.decode("utf-8")
    assert "\r" not in text, "a carriage return"
    assert text.endswith("\n\n"), "the last event has no empty line after it"
    found = [block.split("\n") for block in text.removesuffix("\n\n").split("\n\n")]
    assert all(line for lines in found for line in lines), "more than one empty line between events"
    return found


def document(text: str) -> dict[str, Any]:
    """The JSON object of an event's data."""
    said = json.loads(text, parse_constant=lambda constant: _no(f"{constant} is no JSON"))
    assert isinstance(said, dict), "an event's data is no object"
    return said


def _no(message: str) -> Any:
    raise AssertionError(message)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _object(text: str, what: str) -> None:
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    assert isinstance(said, dict), f"{what} is no JSON object: {text!r}"


def chat_stream(data: bytes) -> Chat:
    """Reads a whole chat completion stream."""
    chat = Chat()
    over = False
    for lines in blocks(data):
        assert not over, f"something after the end: {lines}"
        assert len(lines) == 1, f"an event of several lines: {lines}"
        line = lines[0]
        if line.startswith(":"):
            chat.comments += 1
            continue
        assert line.startswith("data: "), f"neither data nor a comment: {line!r}"
        if line == "data: [DONE]":
            assert chat.finish is not None, "[DONE] before a finish_reason"
            over = True
            continue
        said = document(line.removeprefix("data: "))
        if "error" in said:
            _chat_error(said)
            chat.error, over = said["error"], True
            continue
        _chunk(chat, said)
    assert over, "neither [DONE] nor an error at the end"
    if chat.error is None and chat.finish != "length":
        for call in chat.calls:
            _object(call.arguments, f"the arguments of {call.name}")
    return chat


def _chat_error(said: dict[str, Any]) -> None:
    error = said["error"]
    assert said.keys() == {"error"}, "an error beside something else"
    assert isinstance(error, dict), "an error that is no object"
    assert isinstance(error.get("message"), str), "an error without a message"
    assert error["message"], "an error that says nothing"
    assert isinstance(error.get("type"), str), "an error without a type"
    assert {"param", "code"} <= error.keys(), "an error without param and code"


def _chunk(chat: Chat, said: dict[str, Any]) -> None:
    assert said.get("object") == "chat.completion.chunk", f"not a chunk: {said}"
    assert isinstance(said.get("created"), int), "created is no number"
    ident, model = said.get("id"), said.get("model")
    assert isinstance(ident, str), "no id"
    assert ident, "an empty id"
    assert isinstance(model, str), "no model"
    first = not chat.ident
    chat.ident, chat.model = chat.ident or ident, chat.model or model
    assert (chat.ident, chat.model) == (ident, model), "id or model changed on the way"
    choices = said.get("choices")
    assert isinstance(choices, list), "no choices"
    if not choices:
        assert chat.finish is not None, "usage before the finish"
        assert chat.usage is None, "usage twice"
        chat.usage = _chat_usage(said.get("usage"))
        return
    assert chat.usage is None, "content after usage"
    assert len(choices) == 1, "several choices"
    choice = choices[0]
    assert choice.get("index") == 0, "a choice other than the first"
    assert chat.finish is None, "content after the finish"
    delta = choice.get("delta")
    assert isinstance(delta, dict), "no delta"
    assert first == (delta.get("role") == "assistant"), "the role is said in the first chunk, and only there"
    _chat_delta(chat, delta)
    finish = choice["finish_reason"]
    if finish is not None:
        assert finish in FINISHES, f"unknown finish_reason {finish!r}"
        assert not chat.calls or finish != "stop", "finish_reason stop after tool calls"
        assert chat.calls or finish != "tool_calls", "finish_reason tool_calls without any"
        chat.finish = finish


def _chat_delta(chat: Chat, delta: dict[str, Any]) -> None:
    unknown = delta.keys() - {"role", "content", "reasoning_content", "tool_calls", "refusal"}
    assert not unknown, f"unknown in a delta: {unknown}"
    for key in ("content", "reasoning_content"):
        assert delta.get(key) is None or isinstance(delta[key], str), f"{key} is no text"
    chat.text += delta.get("content") or ""
    chat.reasoning += delta.get("reasoning_content") or ""
    calls = delta.get("tool_calls", [])
    assert isinstance(calls, list), "tool_calls is no list"
    for call in calls:
        index, function = call.get("index"), call.get("function")
        assert _is_count(index), "a tool call without an index"
        assert isinstance(function, dict), "a tool call without a function"
        assert isinstance(function.get("arguments"), str), "a tool call without arguments"
        if index == len(chat.calls):
            assert call.get("type") == "function", "a tool call that begins without a type"
            assert isinstance(call.get("id"), str), "a tool call that begins without an id"
            assert call["id"], "a tool call with an empty id"
            assert isinstance(function.get("name"), str), "a tool call that begins without a name"
            assert function["name"], "a tool call with an empty name"
            assert call["id"] not in [other.ident for other in chat.calls], "a tool call's id twice"
            chat.calls.append(Call(call["id"], function["name"], ""))
        else:
            assert index < len(chat.calls), "a tool call's index leaves one out"
            assert "id" not in call, "a tool call's id again"
            assert "name" not in function, "a tool call's name again"
        chat.calls[index].arguments += function["arguments"]


def _chat_usage(said: object) -> dict[str, Any]:
    assert isinstance(said, dict), "no usage in a chunk without choices"
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert _is_count(said.get(key)), f"usage.{key} is no count"
    assert said["prompt_tokens"] + said["completion_tokens"] == said["total_tokens"], "usage does not add up"
    return said


def messages_stream(data: bytes) -> Messages:
    """Reads a whole messages stream."""
    reader = _MessagesReader()
    for lines in blocks(data):
        assert len(lines) == 2, f"not a name and data: {lines}"
        assert lines[0].startswith("event: "), f"no name: {lines[0]!r}"
        assert lines[1].startswith("data: "), f"no data: {lines[1]!r}"
        name, said = lines[0].removeprefix("event: "), document(lines[1].removeprefix("data: "))
        assert said.get("type") == name, f"an event {name} whose type is {said.get('type')}"
        reader.event(name, said)
    return reader.result()


class _MessagesReader:
    def __init__(self) -> None:
        self.said = Messages()
        self._begun = False
        self._over = False
        self._open: str | None = None
        self._index = 0
        self._pieces: list[str] = []
        self._signed = False

    def event(self, name: str, said: dict[str, Any]) -> None:
        assert not self._over, f"{name} after the end"
        read = getattr(self, f"_{name}", None)
        assert read is not None, f"an unknown event {name}"
        assert self._begun or name in ("message_start", "error"), f"{name} before message_start"
        read(said)

    def result(self) -> Messages:
        assert self._over, "neither message_stop nor an error at the end"
        return self.said

    def _message_start(self, said: dict[str, Any]) -> None:
        assert not self._begun, "message_start twice"
        self._begun = True
        message = said["message"]
        assert message["type"] == "message", "not a message"
        assert message["role"] == "assistant", "not the assistant's"
        assert message["content"] == [], "content in message_start"
        assert message["stop_reason"] is None, "a stop reason in message_start"
        assert message["stop_sequence"] is None, "a stop sequence in message_start"
        assert isinstance(message["id"], str), "no id"
        assert message["id"].startswith("msg_"), f"the id is none of a message: {message['id']}"
        assert isinstance(message["model"], str), "no model"
        _messages_usage(message.get("usage"), "message_start")
        self.said.ident, self.said.model = message["id"], message["model"]

    def _ping(self, said: dict[str, Any]) -> None:
        self.said.pings += 1

    def _error(self, said: dict[str, Any]) -> None:
        error = said.get("error")
        assert isinstance(error, dict), "an error that is no object"
        assert isinstance(error.get("type"), str), "an error without a type"
        assert error["type"].endswith(("_error", "request_too_large")), f"an unknown type of error: {error['type']}"
        assert isinstance(error.get("message"), str), "an error without a message"
        assert error["message"], "an error that says nothing"
        self.said.error, self._over = error, True

    def _content_block_start(self, said: dict[str, Any]) -> None:
        assert self._open is None, f"a block begins inside a {self._open} block"
        assert self.said.usage is None, "a block after message_delta"
        assert said["index"] == self._index, f"index {said['index']}, where {self._index} is next"
        block = said["content_block"]
        kind = block["type"]
        empty: dict[str, dict[str, Any]] = {
            "text": {"text": ""},
            "thinking": {"thinking": "", "signature": ""},
            "tool_use": {"input": {}},
        }
        assert kind in empty, f"an unknown block {kind}"
        assert {key: block.get(key) for key in empty[kind]} == empty[kind], f"a {kind} block that does not begin empty"
        if kind == "tool_use":
            assert set(block["id"]) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"), (
                "a bad id"
            )
            assert block["id"], "an empty id"
            assert block["id"] not in [call.ident for call in self.said.calls], "a tool call's id twice"
            assert block["name"], "an empty name"
            self.said.calls.append(Call(block["id"], block["name"], ""))
        self.said.kinds.append(kind)
        self._open, self._pieces, self._signed = kind, [], False

    def _content_block_delta(self, said: dict[str, Any]) -> None:
        assert self._open is not None, "a delta outside of a block"
        assert said["index"] == self._index, f"a delta for block {said['index']} inside {self._index}"
        delta = said["delta"]
        kinds = {
            "text": {"text_delta": "text"},
            "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
            "tool_use": {"input_json_delta": "partial_json"},
        }[self._open]
        assert delta["type"] in kinds, f"a {delta['type']} in a {self._open} block"
        assert not self._signed, "a delta after the signature"
        text = delta[kinds[delta["type"]]]
        assert isinstance(text, str), "a delta that is no text"
        assert text, "an empty delta"
        if delta["type"] == "signature_delta":
            self._signed = True
        else:
            self._pieces.append(text)

    def _content_block_stop(self, said: dict[str, Any]) -> None:
        assert self._open is not None, "a block ends that never began"
        assert said["index"] == self._index, "another block ends than began"
        text = "".join(self._pieces)
        if self._open == "text":
            assert text, "an empty text block"
            self.said.text += text
        elif self._open == "thinking":
            assert self._signed, "thinking without a signature"
            self.said.reasoning += text
        else:
            self.said.calls[-1].arguments = text
        self._open = None
        self._index += 1

    def _message_delta(self, said: dict[str, Any]) -> None:
        assert self._open is None, "message_delta inside a block"
        assert self.said.usage is None, "message_delta twice"
        reason = said["delta"]["stop_reason"]
        assert reason in STOPS, f"an unknown stop reason {reason!r}"
        assert (said["delta"]["stop_sequence"] is None) == (reason != "stop_sequence"), (
            "stop_sequence without its reason"
        )
        assert not self.said.calls or reason != "end_turn", "end_turn after tool calls"
        assert self.said.calls or reason != "tool_use", "tool_use without a call"
        self.said.finish, self.said.stop_sequence = reason, said["delta"]["stop_sequence"]
        self.said.usage = _messages_usage(said.get("usage"), "message_delta")

    def _message_stop(self, said: dict[str, Any]) -> None:
        assert self._open is None, "message_stop inside a block"
        assert self.said.finish is not None, "message_stop without message_delta"
        if self.said.finish not in ("max_tokens", "model_context_window_exceeded"):
            for call in self.said.calls:
                _object(call.arguments, f"the input of {call.name}")
        self._over = True


def _messages_usage(said: object, where: str) -> dict[str, Any]:
    assert isinstance(said, dict), f"no usage in {where}"
    for key in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        assert _is_count(said.get(key)), f"{where}: usage.{key} is no count"
    return said
