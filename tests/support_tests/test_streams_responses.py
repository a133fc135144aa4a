"""The strict reader of responses' streams sees what the official client lets pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from reconciler.dialects.quirks import PLAIN
from reconciler.dialects.responses_on_chat import ResponsesOnChat
from tests.dialects.responses_corpus import CALLED, COUNTED, REQUEST, call, chunk, stream
from tests.support.streams_responses import responses_stream

Events = list[dict[str, Any]]
GOOD = ResponsesOnChat({**REQUEST, "reasoning": {"summary": None}}, PLAIN, "r1").feed(
    stream(
        chunk({"reasoning_content": "Hm."}),
        chunk({"content": "Let me "}),
        chunk({"content": "see."}),
        chunk(call('{"x": 1}', name="f", index=0, id="call_a")),
        CALLED,
        COUNTED,
    )
)


def events() -> Events:
    return [json.loads(block.split("data: ")[1]) for block in GOOD.decode().split("\n\n")[:-1]]


def written(said: Events, *, renumber: bool = True) -> bytes:
    for number, event in enumerate(said):
        if renumber:
            event["sequence_number"] = number
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in said).encode()


def of(said: Events, kind: str, which: int = 0) -> dict[str, Any]:
    return [event for event in said if event["type"] == f"response.{kind}"][which]


def without(kind: str, which: int = 0) -> Callable[[Events], None]:
    def change(said: Events) -> None:
        said.remove(of(said, kind, which))

    return change


def with_(kind: str, which: int = 0, **fields: Any) -> Callable[[Events], None]:
    def change(said: Events) -> None:
        of(said, kind, which).update(fields)

    return change


def twice(kind: str, which: int = 0) -> Callable[[Events], None]:
    def change(said: Events) -> None:
        event = of(said, kind, which)
        said.insert(said.index(event), dict(event))

    return change


def item(kind: str, which: int = 0, **fields: Any) -> Callable[[Events], None]:
    def change(said: Events) -> None:
        of(said, kind, which)["item"].update(fields)

    return change


def final(**fields: Any) -> Callable[[Events], None]:
    def change(said: Events) -> None:
        said[-1]["response"].update(fields)

    return change


def test_a_good_stream_is_read() -> None:
    said = responses_stream(GOOD)
    assert (said.text, said.reasoning, said.calls) == ("Let me see.", "Hm.", [("call_a", "f", '{"x": 1}')])
    assert responses_stream(written(events())) == said


BROKEN: dict[str, tuple[Callable[[Events], None], str]] = {
    "no beginning": (without("created"), "response.created"),
    "no second beginning": (without("in_progress"), "response.in_progress"),
    "two beginnings": (twice("in_progress"), "came twice"),
    "no end": (without("completed"), "no end"),
    "two ends": (twice("completed"), "after the end"),
    "an item that was not added": (without("output_item.added"), "no item is open"),
    "an item that did not end": (without("output_item.done"), "while another one is open"),
    "an item at the wrong place": (with_("output_item.added", 1, output_index=0), "not the next one"),
    "an item twice": (item("output_item.added", 1, id="rs_r1_0"), "is there twice"),
    "an item that begins as completed": (item("output_item.added", status="completed"), "is added as"),
    "an item that ends in progress": (item("output_item.done", status="in_progress"), "ends as"),
    "an item that ends as another": (item("output_item.done", 1, id="msg_other"), "was told as"),
    "a part that was not added": (without("content_part.added"), "no part is open"),
    "a part that did not end": (without("content_part.done"), "is open"),
    "a part at the wrong place": (with_("content_part.added", 1, content_index=1), "content_index"),
    "a text without its end": (without("output_text.done"), "before its text is done"),
    "a text that lacks a delta": (without("output_text.delta"), "done with"),
    "a text with a delta twice": (twice("output_text.delta"), "done with"),
    "reasoning in the message": (with_("reasoning_text.delta", output_index=1), "at 1"),
    "a delta for another item": (with_("output_text.delta", item_id="msg_other"), "for the item"),
    "a delta at the wrong place": (with_("output_text.delta", content_index=3), "content_index"),
    "an empty delta": (with_("output_text.delta", delta=""), "an empty delta"),
    "arguments without their end": (without("function_call_arguments.done"), "before its arguments are done"),
    "arguments that lack a delta": (without("function_call_arguments.delta"), "not the sum"),
    "a call without a name": (item("output_item.added", 2, name=""), "no name"),
    "a field that is missing": (lambda said: of(said, "output_text.delta").pop("logprobs"), "client's type"),
    "a response that lacks a field": (lambda said: said[-1]["response"].pop("tools"), "response.tools"),
    "a field of another type": (final(parallel_tool_calls="perhaps"), "client's type"),
    "usage that lacks a field": (final(usage={"input_tokens": 1}), "client's type"),
    "another id at the end": (final(id="resp_2"), "has changed"),
    "an end that says otherwise": (final(status="incomplete"), "with the status"),
    "details of an end that is complete": (
        final(incomplete_details={"reason": "content_filter"}),
        "incomplete_details",
    ),
    "an output that was not told": (final(output=[]), "told was"),
    "an event that nobody knows": (lambda said: said.insert(3, {"type": "response.sung"}), "no type for"),
    "anything after an error": (
        lambda said: said.insert(4, {"type": "error", "message": "m", "code": None, "param": None}),
        "after an error",
    ),
    "a failure without an error": (
        lambda said: said[-1].update(type="response.failed", response={**said[-1]["response"], "status": "failed"}),
        "without an error",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_is_seen(name: str) -> None:
    change, says = BROKEN[name]
    said = events()
    change(said)
    with pytest.raises(AssertionError, match=says):
        responses_stream(written(said))


def test_a_gap_in_the_numbers_is_seen() -> None:
    said = events()
    del said[5]
    with pytest.raises(AssertionError, match="sequence_number 6 instead of 5"):
        responses_stream(written(said, renumber=False))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (GOOD[:-1], "empty line"),
        (GOOD.replace(b"event: response.completed\n", b""), "not one event line"),
        (GOOD.replace(b"event: response.completed\n", b"event: completed\n"), "is called"),
        (b"", "empty line"),
        (b": nothing\n\n", "no end"),
    ],
)
def test_a_broken_framing_is_seen(data: bytes, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        responses_stream(data)
