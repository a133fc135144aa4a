"""What a local engine leaves open is closed, and nothing else is touched."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reconciler.dialects import mend
from reconciler.dialects.bridge import Unmappable
from tests.dialects import corpus
from tests.support.streams import messages_stream

USER = {"role": "user", "content": "Hi"}
BILLING = "x-anthropic-billing-header: cc_version=2; cch=fa690;"


@pytest.mark.parametrize(
    "document",
    [
        {"max_tokens": 1, "messages": [USER]},
        {"max_tokens": 0, "messages": [{"role": "system", "content": []}, {"role": "assistant", "content": "x"}]},
    ],
)
def test_what_is_right_passes(document: dict[str, Any]) -> None:
    mend.check_messages(document)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"max_tokens": 1}, "messages"),
        ({"max_tokens": 1, "messages": []}, "messages"),
        ({"max_tokens": 1, "messages": {}}, "messages"),
        ({"max_tokens": 1, "messages": ["Hi"]}, "messages.0"),
        ({"max_tokens": 1, "messages": [USER, {"role": "tool", "content": "x"}]}, "messages.1.role"),
        ({"max_tokens": 1, "messages": [{"content": "x"}]}, "messages.0.role"),
        ({"max_tokens": 1, "messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [USER]}, "max_tokens"),
        ({"messages": [USER], "max_tokens": None}, "max_tokens"),
        ({"messages": [USER], "max_tokens": -1}, "max_tokens"),
    ],
)
def test_what_is_wrong_is_refused(document: dict[str, Any], field: str) -> None:
    with pytest.raises(Unmappable) as raised:
        mend.check_messages(document)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("system", "kept"),
    [
        (f"{BILLING}\nYou", "You"),
        ([{"type": "text", "text": BILLING}, {"type": "text", "text": "You"}], [{"type": "text", "text": "You"}]),
        ([{"type": "text", "text": f"{BILLING}\nYou", "x": 1}], [{"type": "text", "text": "You", "x": 1}]),
    ],
)
def test_the_billing_line_goes(system: Any, kept: Any) -> None:
    document = {"model": "m", "system": system}
    assert mend.for_local(document) == {"model": "m", "system": kept}
    assert document["system"] == system


@pytest.mark.parametrize("system", [None, "You", f"Say {BILLING}", [{"type": "text", "text": "You"}], [7], 7])
def test_another_system_prompt_is_the_same_object(system: Any) -> None:
    document = {"system": system}
    assert mend.for_local(document) is document


def test_thinking_of_others_is_not_sent_to_anthropic() -> None:
    unsigned = {"type": "thinking", "thinking": "Hm", "signature": "unsigned"}
    signed = {"type": "thinking", "thinking": "Hm", "signature": "c2ln"}
    text = {"type": "text", "text": "x"}
    document = {
        "messages": [
            USER,
            {"role": "assistant", "content": [unsigned, signed, text]},
            {"role": "assistant", "content": [{**unsigned, "signature": ""}]},
        ]
    }
    assert mend.for_anthropic(document) == {"messages": [USER, {"role": "assistant", "content": [signed, text]}]}
    same = {"messages": [USER, {"role": "assistant", "content": [signed, text]}]}
    assert mend.for_anthropic(same) is same


LLAMA = b'{"error":{"code":400,"message":"Too long","type":"invalid_request_error"}}'


def test_errors_get_the_callers_envelope() -> None:
    status, body = mend.fix_error(400, LLAMA, "anthropic", "r1")
    assert (status, json.loads(body)) == (
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "Too long"}, "request_id": "r1"},
    )
    assert mend.fix_error(400, LLAMA, "openai") == (400, LLAMA)
    assert mend.fix_error(400, body, "anthropic") == (400, body)
    status, again = mend.fix_error(400, body, "openai")
    assert json.loads(again)["error"] == {
        "message": "Too long",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert mend.fix_error(503, b"loading", "anthropic")[0] == 529
    assert json.loads(mend.fix_error(503, b"loading", "openai")[1])["error"]["type"] == "overloaded_error"


def test_a_whole_message_gets_an_id_of_one() -> None:
    body = b'{"content":[{"type":"text","text":"\\"id\\":\\"chatcmpl-x\\""}],"id": "chatcmpl-abc","type":"message"}'
    assert mend.fix_message(body) == body.replace(b'"id": "chatcmpl-abc"', b'"id": "msg_abc"')
    assert mend.fix_message(b'{"id":"msg_1"}') == b'{"id":"msg_1"}'


ENGINE = (
    corpus.start().replace(b'"id": "msg_1"', b'"id": "chatcmpl-abc"')
    + corpus.block(
        0, {"type": "text", "text": ""}, {"type": "text_delta", "text": 'say "id": "chatcmpl-x" and "error"'}
    )
    + corpus.stop("end_turn")
)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_stream_gets_the_id_of_a_message(end: bytes) -> None:
    data = ENGINE.replace(b"\n", end)
    for at in range(len(data)):
        mended = mend.FixedMessages()
        out = mended.feed(data[:at]) + mended.feed(data[at:]) + mended.end()
        assert out == data.replace(b"chatcmpl-abc", b"msg_abc")


@pytest.mark.parametrize(
    "error",
    [
        b"data: " + LLAMA + b"\n\n",
        b"event: error\ndata: " + LLAMA + b"\n\n",
        b"event: error\r\ndata: " + LLAMA + b"\r\n\r\n",
    ],
)
def test_a_stream_that_breaks_ends_with_anthropics_error(error: bytes) -> None:
    begun = corpus.start() + corpus.text_block()
    for at in range(len(begun + error)):
        mended = mend.FixedMessages("r1")
        data = begun + error
        said = messages_stream(mended.feed(data[:at]) + mended.feed(data[at:]) + mended.end())
        assert said.error == {"type": "invalid_request_error", "message": "Too long"}


def test_anthropics_own_error_stays() -> None:
    mended = mend.FixedMessages()
    assert mended.feed(corpus.OVERLOADED) == corpus.OVERLOADED


def test_an_event_without_an_end_is_not_held_for_ever() -> None:
    mended = mend.FixedMessages()
    data = b"data: " + b"x" * (mend.HELD_LIMIT + 1)
    assert mended.feed(data) == data
    assert mended.end() == b""


def test_a_message_that_a_stop_sequence_ended_says_so() -> None:
    engines = b'{"id":"chatcmpl-1","content":[],"stop_reason":"end_turn","stop_sequence":%b,"usage":{}}'
    assert json.loads(mend.fix_message(engines % b'"END"'))["stop_reason"] == "stop_sequence"
    assert mend.fix_message(engines % b"null") == (engines % b"null").replace(b"chatcmpl-", b"msg_")
    asks = b'{"content":[{"input":{"stop_reason":"end_turn","stop_sequence":"x"}}],"stop_reason":"tool_use"}'
    assert mend.fix_message(asks) == asks, "what a tool is called with is nobody's stop reason"
    end = b'event: message_delta\ndata: {"delta":{"stop_reason":"end_turn","stop_sequence":%b}}\n\n'
    assert b'"stop_reason":"stop_sequence"' in mend.FixedMessages().feed(end % b'"END"')
    assert mend.FixedMessages().feed(end % b"null") == end % b"null"
