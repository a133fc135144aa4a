"""A strict reader of responses' event streams, which the official client is not.

`responses_stream` raises AssertionError that says what is wrong: an event of a kind or with a field that the client's
types do not have, a gap in `sequence_number`, a delta for what is not open, a text that is not the sum of its deltas,
an item that differs from what was told of it, an end that is not one, anything after it.
"""

from __future__ import annotations

import json
import typing
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

ENDS = {"response.completed": "completed", "response.incomplete": "incomplete", "response.failed": "failed"}


@dataclass
class Said:
    """What a stream said. `finish` is the status it ended with: completed, incomplete or failed."""

    text: str = ""
    reasoning: str = ""
    summary: str = ""
    refusal: str = ""
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    """(call_id, name, arguments) of each function call."""
    usage: dict[str, Any] | None = None
    finish: str = ""
    error: str = ""
    """The message of the error event, if there was one."""
    response: dict[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    """The kinds of the events, in their order."""


def check_response(document: dict[str, Any]) -> None:
    """Raises AssertionError where the object is not a `Response` by the letter of the client's type."""
    from openai.types.responses import Response

    missing = {"id", "object", "created_at", "status", "model", "output", "parallel_tool_calls", "tool_choice", "tools"}
    assert missing <= document.keys(), f"the response lacks {sorted(missing - document.keys())}"
    _valid(Response, document, "the response")


def responses_stream(data: bytes) -> Said:
    """Read a whole stream."""
    reader = _Reader()
    for name, document in _events(data):
        reader.event(name, document)
    assert reader.said.finish, "the stream has no end"
    return reader.said


def _events(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    assert data.endswith(b"\n\n"), "the stream does not end with an empty line"
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if not lines:
            continue
        assert len(lines) == 2, f"an event is not one event line and one data line: {block!r:.200}"
        assert lines[0].startswith("event: "), f"no event line: {block!r:.200}"
        assert lines[1].startswith("data: "), f"no data line: {block!r:.200}"
        found.append((lines[0][7:], json.loads(lines[1][6:])))
    return found


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _valid(kind: Any, document: object, what: str) -> None:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    try:
        _ADAPTERS[kind].validate_python(document, strict=False)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5]]
        raise AssertionError(f"{what} is not what the client's type says: {faults}") from None


def _kinds() -> dict[str, Any]:
    """The client's type of each event, by the event's kind."""
    from openai.types.responses import ResponseStreamEvent

    union = typing.get_args(ResponseStreamEvent)[0]
    return {typing.get_args(kind.model_fields["type"].annotation)[0]: kind for kind in typing.get_args(union)}


class _Reader:
    def __init__(self) -> None:
        self.said = Said()
        self._kinds = _kinds()
        self._next = 0
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # as told so far
        self._part: dict[str, Any] | None = None
        self._failing = False
        self._over = False

    def event(self, name: str, document: dict[str, Any]) -> None:
        kind = document.get("type")
        assert not self._over, f"{kind} after the end"
        assert kind == name, f"the event is called {name!r} and its data {kind!r}"
        assert kind in self._kinds, f"the client has no type for {kind}"
        _valid(self._kinds[kind], document, f"the event {kind}")
        number = document["sequence_number"]
        assert number == self._next, f"{kind} has the sequence_number {number} instead of {self._next}"
        self._next += 1
        first = {0: "response.created", 1: "response.in_progress"}.get(number)
        assert first is None or kind == first, f"event {number} is {kind}, not {first}"
        assert first is not None or kind not in ("response.created", "response.in_progress"), f"{kind} came twice"
        assert not self._failing or kind == "response.failed", f"{kind} after an error"
        self.said.events.append(kind)
        handler = getattr(self, "_" + kind.replace(".", "_"), None)
        assert handler is not None, f"nothing is known of {kind}"
        handler(document)

    def _response_created(self, event: dict[str, Any]) -> None:
        response = event["response"]
        check_response(response)
        assert response["status"] == "in_progress", f"a response is created as {response['status']}"
        assert response["output"] == [], "a response is created with output"
        assert self.said.response.get("id", response["id"]) == response["id"], "the response's id has changed"
        self.said.response = response

    _response_in_progress = _response_created

    def _response_output_item_added(self, event: dict[str, Any]) -> None:
        assert self._open is None, "an item is added while another one is open"
        assert event["output_index"] == len(self._items), f"output_index {event['output_index']} is not the next one"
        item = event["item"]
        ids = {known["id"] for known in self._items}
        assert item["id"], "an item has no id"
        assert item["id"] not in ids, f"the id {item['id']} is there twice"
        assert item["status"] == "in_progress", f"an item is added as {item['status']}"
        match item["type"]:
            case "message":
                assert item["content"] == [], "a message is added with content"
                assert item["role"] == "assistant", "a message is not the assistant's"
            case "function_call":
                assert item["arguments"] == "", "a call is added with arguments"
                assert item["name"], "a call has no name"
                assert item["call_id"], "a call has no call_id"
                calls = {known["call_id"] for known in self._items if known["type"] == "function_call"}
                assert item["call_id"] not in calls, f"the call_id {item['call_id']} is there twice"
            case "reasoning":
                assert item["summary"] == [], "reasoning is added with a summary"
                assert not item.get("content"), "reasoning is added with content"
            case kind:
                raise AssertionError(f"an item of type {kind}")
        self._open = json.loads(json.dumps(item))
        self._items.append(self._open)

    def _in(self, event: dict[str, Any], kind: str) -> dict[str, Any]:
        assert self._open is not None, f"{event['type']} while no item is open"
        assert self._open["type"] == kind, f"{event['type']} in an item of type {self._open['type']}"
        assert event["item_id"] == self._open["id"], f"{event['type']} for the item {event['item_id']}"
        assert event["output_index"] == len(self._items) - 1, f"{event['type']} at {event['output_index']}"
        return self._open

    def _part_of(self, event: dict[str, Any], kind: str) -> dict[str, Any]:
        item = self._in(event, "reasoning" if kind == "reasoning_text" else "message")
        assert self._part is not None, f"{event['type']} while no part is open"
        assert self._part["type"] == kind, f"{event['type']} in a part of type {self._part['type']}"
        assert event["content_index"] == len(item["content"]) - 1, f"content_index {event['content_index']}"
        return self._part

    def _response_content_part_added(self, event: dict[str, Any]) -> None:
        part = event["part"]
        item = self._in(event, "reasoning" if part["type"] == "reasoning_text" else "message")
        assert self._part is None, "a part is added while another one is open"
        item.setdefault("content", [])
        assert event["content_index"] == len(item["content"]), f"content_index {event['content_index']}"
        assert not part.get("text", part.get("refusal")), "a part is added with text"
        self._part = json.loads(json.dumps(part))
        item["content"].append(self._part)

    def _response_content_part_done(self, event: dict[str, Any]) -> None:
        part = self._part_of(event, event["part"]["type"])
        assert part.pop("done", False), "a part ends before its text is done"
        assert event["part"] == part, f"the part is {event['part']}, and was told as {part}"
        self._part = None

    def _delta(self, event: dict[str, Any], kind: str, key: str = "text") -> None:
        part = self._part_of(event, kind)
        assert not part.get("done"), "a delta after the text was done"
        assert event["delta"], "an empty delta"
        part[key] += event["delta"]

    def _done(self, event: dict[str, Any], kind: str, key: str = "text") -> None:
        part = self._part_of(event, kind)
        assert event[key] == part[key], f"done with {event[key]!r}, told as {part[key]!r}"
        part["done"] = True

    def _response_output_text_delta(self, event: dict[str, Any]) -> None:
        self._delta(event, "output_text")
        self._part_of(event, "output_text").setdefault("brief", []).extend(event["logprobs"])

    def _response_output_text_done(self, event: dict[str, Any]) -> None:
        part = self._part_of(event, "output_text")
        brief = part.pop("brief", [])
        assert event["logprobs"] == brief, "the log probabilities are not those of the deltas"
        self._done(event, "output_text")
        part["logprobs"] = [
            {**one, "bytes": list(one["token"].encode()), "top_logprobs": [
                {**other, "bytes": list(other["token"].encode())} for other in one["top_logprobs"]
            ]} for one in brief
        ]  # fmt: skip

    def _response_output_text_annotation_added(self, event: dict[str, Any]) -> None:
        part = self._part_of(event, "output_text")
        assert event["annotation_index"] == len(part["annotations"]), f"annotation {event['annotation_index']}"
        part["annotations"].append(event["annotation"])

    def _response_refusal_delta(self, event: dict[str, Any]) -> None:
        self._delta(event, "refusal", "refusal")

    def _response_refusal_done(self, event: dict[str, Any]) -> None:
        self._done(event, "refusal", "refusal")

    def _response_reasoning_text_delta(self, event: dict[str, Any]) -> None:
        self._delta(event, "reasoning_text")

    def _response_reasoning_text_done(self, event: dict[str, Any]) -> None:
        self._done(event, "reasoning_text")

    def _response_reasoning_summary_part_added(self, event: dict[str, Any]) -> None:
        item = self._in(event, "reasoning")
        assert self._part is None, "a part is added while another one is open"
        assert event["summary_index"] == len(item["summary"]), f"summary_index {event['summary_index']}"
        self._part = dict(event["part"])
        item["summary"].append(self._part)

    def _summary(self, event: dict[str, Any]) -> dict[str, Any]:
        item = self._in(event, "reasoning")
        assert self._part is not None, f"{event['type']} while no part is open"
        assert event["summary_index"] == len(item["summary"]) - 1, f"summary_index {event['summary_index']}"
        return self._part

    def _response_reasoning_summary_text_delta(self, event: dict[str, Any]) -> None:
        assert event["delta"], "an empty delta"
        self._summary(event)["text"] += event["delta"]

    def _response_reasoning_summary_text_done(self, event: dict[str, Any]) -> None:
        assert event["text"] == self._summary(event)["text"], "the summary is not the sum of its deltas"

    def _response_reasoning_summary_part_done(self, event: dict[str, Any]) -> None:
        assert event["part"] == self._summary(event), "the summary's part is not what was told"
        self._part = None

    def _response_function_call_arguments_delta(self, event: dict[str, Any]) -> None:
        item = self._in(event, "function_call")
        assert "done" not in item, "a delta after the arguments were done"
        assert event["delta"], "an empty delta"
        item["arguments"] += event["delta"]

    def _response_function_call_arguments_done(self, event: dict[str, Any]) -> None:
        item = self._in(event, "function_call")
        assert event["arguments"] == item["arguments"], "the arguments are not the sum of their deltas"
        item["done"] = True

    def _response_output_item_done(self, event: dict[str, Any]) -> None:
        item = event["item"]
        assert self._open is not None, "an item ends while none is open"
        assert self._part is None, "an item ends while a part of it is open"
        assert event["output_index"] == len(self._items) - 1, f"an item ends at {event['output_index']}"
        assert item["status"] in ("completed", "incomplete"), f"an item ends as {item['status']}"
        told = {**self._open, "status": item["status"]}
        if told["type"] == "function_call":
            assert told.pop("done", False), "a call ends before its arguments are done"
        if "encrypted_content" in told:
            assert item["encrypted_content"], "reasoning ends without its encrypted content"
            told["encrypted_content"] = item["encrypted_content"]
        assert item == told, f"the item is {item}, and was told as {told}"
        self._items[-1] = item
        self._open = None

    def _error(self, event: dict[str, Any]) -> None:
        assert event["message"], "an error without a message"
        self.said.error = event["message"]
        self._failing = True

    def _end(self, event: dict[str, Any]) -> None:
        response = event["response"]
        check_response(response)
        status = ENDS[event["type"]]
        assert response["status"] == status, f"{event['type']} with the status {response['status']}"
        assert response["id"] == self.said.response["id"], "the response's id has changed"
        if status == "failed":
            assert response["error"], "a failed response without an error"
            assert response["error"]["message"], "a failed response whose error says nothing"
        else:
            assert self._open is None, "the response ends while an item is open"
            assert response["output"] == self._items, f"the output is {response['output']}, told was {self._items}"
            assert response["error"] is None, "an error in a response that did not fail"
        details = response["incomplete_details"]
        assert bool(details) == (status == "incomplete"), f"{status} with incomplete_details {details}"
        self._sum_up(response)
        self.said.finish = status
        self._over = True

    _response_completed = _response_incomplete = _response_failed = _end

    def _sum_up(self, response: dict[str, Any]) -> None:
        said = self.said
        said.response, said.usage = response, response["usage"]
        for item in response["output"]:
            parts = item.get("content") or []
            said.text += "".join(part["text"] for part in parts if part["type"] == "output_text")
            said.reasoning += "".join(part["text"] for part in parts if part["type"] == "reasoning_text")
            said.refusal += "".join(part["refusal"] for part in parts if part["type"] == "refusal")
            said.summary += "".join(part["text"] for part in item.get("summary", []))
            if item["type"] == "function_call":
                said.calls.append((item["call_id"], item["name"], item["arguments"]))
