"""Whatever comes in: a request is said or refused, a stream is strict and ends well or with an error."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dialects import mend
from reconciler.dialects.bridge import Bridge, Unmappable
from reconciler.dialects.chat_on_messages import ChatOnMessages
from reconciler.dialects.kept import Kept
from reconciler.dialects.messages_on_chat import MessagesOnChat, counted
from reconciler.dialects.messages_request import count_on_chat
from reconciler.dialects.quirks import LOCAL, PLAIN, Quirks
from tests.dialects import corpus
from tests.support.streams import chat_stream, messages_stream

FUZZ = settings(max_examples=400, derandomize=True, deadline=None, database=None)
EVERY = Quirks(
    max_tokens="max_completion_tokens",
    reasoning="reasoning",
    effort="max",
    no_thinking="none",
    stop_limit=0,
    top_k=True,
    anything=True,
    prefill=True,
    files=True,
    thought_signature=True,
    strip_billing=True,
)
QUIRKS = st.sampled_from([PLAIN, LOCAL, EVERY])

WORDS = st.sampled_from(
    [
        "",
        "x",
        "text",
        "user",
        "assistant",
        "system",
        "tool",
        "developer",
        "image",
        "image_url",
        "tool_use",
        "tool_result",
        "thinking",
        "document",
        "base64",
        "url",
        "file",
        "function",
        "auto",
        "any",
        "required",
        "json_schema",
        "low",
        "{}",
        '{"a": 1}',
        "[",
        "data:image/png;base64,AA",
        "https://a",
        "enabled",
        "disabled",
        "content",
        "search_result",
        "\ud800",
        "rcid_WyJhIiwiYiJd",
        "x-anthropic-billing-header: x\n",
        "allowed_tools",
        "custom",
        "refusal",
        "redacted_thinking",
    ]
)
KEYS = st.sampled_from(
    [
        "type",
        "role",
        "content",
        "text",
        "source",
        "data",
        "media_type",
        "url",
        "tool_use_id",
        "tool_call_id",
        "id",
        "name",
        "input",
        "arguments",
        "function",
        "tool_calls",
        "image_url",
        "thinking",
        "signature",
        "is_error",
        "budget_tokens",
        "effort",
        "format",
        "schema",
        "json_schema",
        "cache_control",
        "title",
        "citations",
        "enabled",
        "file",
        "file_data",
        "allowed_tools",
        "mode",
        "tools",
        "refusal",
        "reasoning_content",
        "input_schema",
        "parameters",
        "display",
        "strict",
    ]
)
LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | WORDS
    | st.text(max_size=5)
    | st.just("").map(lambda _: 10**5000)
)
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=15
)
TURN = st.fixed_dictionaries(
    {"role": WORDS, "content": WORDS | st.lists(st.dictionaries(KEYS, JSON, max_size=6), max_size=3)}
)
FIELD = st.sampled_from(
    [
        "model",
        "system",
        "stream",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "stop_sequences",
        "temperature",
        "top_p",
        "top_k",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
        "output_format",
        "metadata",
        "n",
        "modalities",
        "user",
        "response_format",
        "reasoning_effort",
        "parallel_tool_calls",
        "stream_options",
        "chat_template_kwargs",
        "messages",
        "x",
    ]
)
REQUEST = st.dictionaries(FIELD, JSON, max_size=6).flatmap(
    lambda more: st.lists(TURN | st.just({"role": "user", "content": "Hi"}), max_size=4).map(
        lambda turns: {"model": "m", "max_tokens": 5, "messages": turns, **more}
    )
)


def outcome(say: Callable[[], Any]) -> tuple[Any, Unmappable | None]:
    try:
        return say(), None
    except Unmappable as refused:
        return None, refused


@FUZZ
@given(REQUEST | st.dictionaries(st.text() | FIELD, JSON), QUIRKS)
def test_any_request_is_said_or_refused(document: dict[str, Any], quirks: Quirks) -> None:
    before = copy.deepcopy(document)
    for say in (
        lambda: MessagesOnChat(document, quirks, "r").ignored,
        lambda: ChatOnMessages(document, quirks, "r", 10, kept=Kept()).ignored,
        lambda: count_on_chat(document, quirks),
        lambda: mend.check_messages(document),
        lambda: mend.for_local(document),
        lambda: mend.for_anthropic(document),
    ):
        said, refused = outcome(say)
        assert refused is None or (refused.field and refused.message)
        if isinstance(said, tuple):
            assert all(path.isascii() and path.isprintable() and ":" not in path for path in said)
    assert document == before


def messages() -> MessagesOnChat:
    return MessagesOnChat(corpus.MESSAGES_REQUEST, PLAIN, "r")


def chat() -> ChatOnMessages:
    return ChatOnMessages(corpus.CHAT_WITH_USAGE, PLAIN, "r", 100, kept=Kept())


PIECES: dict[Callable[[], Bridge], list[bytes]] = {
    messages: sorted({event + b"\n\n" for data in corpus.CHAT.values() for event in data.split(b"\n\n") if event}),
    chat: sorted({event + b"\n\n" for data in corpus.MESSAGES.values() for event in data.split(b"\n\n") if event}),
}
READ: dict[Callable[[], Bridge], Callable[[bytes], Any]] = {messages: messages_stream, chat: chat_stream}


def strict(make: Callable[[], Bridge], pieces: list[bytes]) -> None:
    bridge = make()
    out = b"".join(bridge.feed(piece) for piece in pieces)
    if bridge.failed is not None:
        assert out == b""
        assert 400 <= bridge.failed[0] <= 599
        json.loads(bridge.failed[1])
    READ[make](out + bridge.end())
    assert bridge.end() == b""


@pytest.mark.parametrize("make", [messages, chat])
@FUZZ
@given(
    pieces=st.lists(
        st.binary(max_size=60) | st.sampled_from([b"data: ", b"\n\n", b"[DONE]", b"event: error\n", b'{"a":']),
        max_size=8,
    )
)
def test_any_bytes_end_with_an_error(make: Callable[[], Bridge], pieces: list[bytes]) -> None:
    bridge = make()
    out = b"".join(bridge.feed(piece) for piece in pieces)
    said = READ[make](out + bridge.end())
    assert said.error is not None


@pytest.mark.parametrize("make", [messages, chat])
@settings(FUZZ, max_examples=600)
@given(data=st.data())
def test_events_in_any_order_make_a_strict_stream(make: Callable[[], Bridge], data: st.DataObject) -> None:
    strict(make, data.draw(st.lists(st.sampled_from(PIECES[make]), max_size=12)))


EVENT_KEYS = st.sampled_from(
    [
        "choices",
        "delta",
        "index",
        "content",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "finish_reason",
        "usage",
        "error",
        "type",
        "message",
        "reasoning",
        "reasoning_content",
        "x_groq",
        "content_block",
        "text",
        "partial_json",
        "input",
        "stop_reason",
        "thinking",
        "signature",
        "prompt_tokens",
        "prompt_tokens_details",
        "extra_content",
        "refusal",
        "data",
    ]
)
EVENT_WORDS = st.sampled_from(
    [
        "stop",
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "error",
        "message_stop",
        "text_delta",
        "input_json_delta",
        "tool_use",
        "thinking",
        "ping",
        "{",
        "}",
        "x",
        "",
        "[DONE]",
    ]
)
EVENT = st.recursive(
    EVENT_WORDS | st.integers(-1, 2) | st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(EVENT_KEYS, inner, max_size=5),
    max_leaves=12,
)


@pytest.mark.parametrize("make", [messages, chat])
@settings(FUZZ, max_examples=500)
@given(data=st.data())
def test_events_of_any_shape_make_a_strict_stream(make: Callable[[], Bridge], data: st.DataObject) -> None:
    pieces = [corpus.data(one) for one in data.draw(st.lists(EVENT, max_size=3))]
    for piece in pieces:
        status, body = make().whole(200, piece[6:])
        assert 200 <= status <= 599
        json.loads(body)
    mixed = data.draw(st.lists(st.sampled_from(pieces + PIECES[make]), max_size=8))
    strict(make, mixed)


@FUZZ
@given(st.integers(100, 599), st.binary(max_size=200) | EVENT.map(lambda said: json.dumps(said).encode()))
def test_any_whole_answer_is_said(status: int, body: bytes) -> None:
    for make in (messages, chat):
        said, whole = make().whole(status, body)
        assert said == 200 or 400 <= said <= 599
        json.loads(whole)
    for fixed, whole in (
        counted(status, body),
        mend.fix_error(status, body, "openai"),
        mend.fix_error(status, body, "anthropic"),
    ):
        assert 100 <= fixed <= 599
        json.loads(whole)


@FUZZ
@given(
    st.lists(
        st.binary(max_size=30) | st.sampled_from([b"event: error\n", b'data: {"error": 1}', b"\n\n", b"\r\n"]),
        max_size=9,
    )
)
def test_a_mended_stream_keeps_what_it_does_not_know(pieces: list[bytes]) -> None:
    mended = mend.FixedMessages("r")
    out = b"".join(mended.feed(piece) for piece in pieces) + mended.end()
    if b"message_start" not in b"".join(pieces) and b"error" not in b"".join(pieces):
        assert out == b"".join(pieces)
