"""A whole answer from a stream, however the stream is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reconciler.gateway.gather import Gathering, as_stream

CHAT = "/chat/completions"
CHUNK = {"id": "i", "object": "chat.completion.chunk"}
EVENTS: list[Any] = [
    {**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]},
    {**CHUNK, "choices": [{"index": 0, "delta": {"reasoning_content": "hm "}}]},
    {**CHUNK, "choices": [{"index": 0, "delta": {"content": "grüß "}}]},
    {**CHUNK, "choices": [{"index": 0, "delta": {"content": "🌍"}}]},
    {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {**CHUNK, "choices": [], "usage": {"total_tokens": 3}},
]


def stream(events: list[Any], end: str = "data: [DONE]\n\n", newline: str = "\n") -> bytes:
    lines = "".join(f"data: {json.dumps(e, ensure_ascii=False)}{newline}{newline}" for e in events)
    return (f": ping{newline}{newline}" + lines + end).encode()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_it_is_the_same_wherever_the_bytes_are_cut(newline: str) -> None:
    whole = stream(EVENTS, newline=newline)
    for cut in range(len(whole)):
        gathering = Gathering()
        gathering.feed(whole[:cut])
        gathering.feed(whole[cut:])
        assert gathering.complete
        status, body = gathering.result()
        assert status == 200
        assert json.loads(body) == {
            "id": "i",
            "object": "chat.completion",
            "usage": {"total_tokens": 3},
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "grüß 🌍", "reasoning_content": "hm "},
                }
            ],
        }


def test_a_stream_without_its_end_is_not_complete() -> None:
    gathering = Gathering()
    gathering.feed(stream(EVENTS, end=""))
    assert not gathering.complete


@pytest.mark.parametrize(("code", "status"), [(400, 400), (503, 503), ("odd", 500), (200, 500), (None, 500)])
def test_an_error_in_the_stream_becomes_the_answer(code: Any, status: int) -> None:
    gathering = Gathering()
    gathering.feed(stream([*EVENTS[:3], {"error": {"message": "no", "code": code}}], end=""))
    assert gathering.complete
    assert gathering.result()[0] == status
    assert json.loads(gathering.result()[1]) == {"error": {"message": "no", "code": code}}


@pytest.mark.parametrize("event", [b"data: {\n", b"data: []\n", b'data: {"choices": [{"index": "x", "delta": {}}]}\n'])
def test_what_no_completion_streams_is_refused(event: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Gathering().feed(event)


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (CHAT, {"messages": [], "stream": True}),
        (CHAT, {"messages": [], "tools": []}),
        (CHAT, {"messages": [], "n": 2}),
        (CHAT, {"messages": [], "logprobs": True}),
        (CHAT, {"messages": [], "some_new_field": 1}),
        ("/completions", {"prompt": ["a", "b"]}),
        ("/completions", {"prompt": [1, 2]}),
        ("/embeddings", {"input": "x"}),
    ],
)
def test_what_a_stream_might_say_differently_goes_as_it_is(path: str, document: dict[str, Any]) -> None:
    document = {"model": "m", **document}
    assert as_stream(path, document, json.dumps(document).encode()) is None


@pytest.mark.parametrize("more", [{}, {"stream": False}, {"stream": None}])
@pytest.mark.parametrize("space", ["", " \n\t\r"])
def test_a_plain_request_is_asked_for_as_a_stream_and_otherwise_unchanged(more: dict[str, Any], space: str) -> None:
    document = {"model": "m", "messages": [{"role": "user", "content": "ü }"}], "temperature": 0.1, **more}
    body = as_stream(CHAT, document, (space + json.dumps(document, ensure_ascii=False) + space).encode())
    assert body is not None
    assert json.loads(body) == {**document, "stream": True, "stream_options": {"include_usage": True}}
    assert body.count(b'"stream"') == 1
