"""llama-server's own responses, mended. The streams are what b11434 said, with shorter ids."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.responses_fix import ResponsesFix
from reconciler.dialects.responses_native import fits
from tests.dialects.canned import EVENTS, answering
from tests.dialects.responses_corpus import clock
from tests.support.streams_responses import check_response, responses_stream


def native(*events: dict[str, Any], newline: str = "\n") -> bytes:
    return "".join(
        f"event: {event['type']}{newline}data: {json.dumps(event, separators=(',', ':'))}{newline}{newline}"
        for event in events
    ).encode()


def life(kind: str, **response: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "response": {"id": "resp_x", "object": "response", "status": kind, **response}}


def part(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "item_id": "msg_x", **fields}


def usage(tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": 6,
        "output_tokens": tokens,
        "total_tokens": 6 + tokens,
        "input_tokens_details": {"cached_tokens": 5},
    }


TEXT = {"type": "output_text", "annotations": [], "logprobs": [], "text": "The quick"}
MESSAGE = {"type": "message", "status": "completed", "id": "msg_x", "content": [TEXT], "role": "assistant"}
THOUGHT: dict[str, Any] = {"id": "rs_x", "summary": [], "type": "reasoning", "encrypted_content": "",
                           "content": [{"text": "I muse", "type": "reasoning_text"}]}  # fmt: skip
CALL = {"type": "function_call", "status": "completed", "arguments": '{"a":1}', "call_id": "fc_x", "name": "f"}
CREATED = ({**life("created"), "response": life("in_progress")["response"]}, life("in_progress"))


def completed(tokens: int, *output: dict[str, Any]) -> dict[str, Any]:
    final = life("completed", created_at=7, model="chat.gguf", output=list(output), usage=usage(tokens))
    return {**final, "timings": {"predicted_n": tokens}}


PLAIN = (
    *CREATED,
    {"type": "response.output_item.added", "item": {**MESSAGE, "content": [], "status": "in_progress"}},
    part("content_part.added", part={"type": "output_text", "text": ""}),
    part("output_text.delta", delta="The"),
    part("output_text.delta", delta=" quick"),
    part("output_text.done", text="The quick"),
    part("content_part.done", part=TEXT),
    {"type": "response.output_item.done", "item": MESSAGE},
)
MUSED = (
    *CREATED,
    {"type": "response.output_item.added", "item": {**THOUGHT, "content": [], "status": "in_progress"}},
    {"type": "response.reasoning_text.delta", "delta": "I muse", "item_id": "rs_x"},
    *PLAIN[2:6],
    {"type": "response.output_item.done", "item": THOUGHT},
    *PLAIN[6:],
)
CALLED = (
    *CREATED,
    {"type": "response.output_item.added", "item": {**CALL, "arguments": "", "status": "in_progress"}},
    {"type": "response.function_call_arguments.delta", "delta": '{"a":1}', "item_id": "fc_x"},
    {"type": "response.output_item.done", "item": CALL},
)
STREAMS = {
    "text": (*PLAIN, completed(3, MESSAGE)),
    "reasoning and text": (*MUSED, completed(6, THOUGHT, MESSAGE)),
    "a call": (*CALLED, completed(6, CALL)),
    "nothing": (*CREATED, completed(1)),
}


def fix(**fields: Any) -> ResponsesFix:
    return ResponsesFix({"model": "fast", "input": "Hi", "stream": True, **fields}, "r1", clock=clock)


def run(data: bytes, *cuts: int, **fields: Any) -> bytes:
    one = fix(**fields)
    said, last = b"", 0
    for cut in (*cuts, len(data)):
        said += one.feed(data[last:cut])
        last = cut
    assert one.failed is None
    assert one.answer is not None
    assert one.end() == one.broke(502, "late") == one.feed(data) == b""
    return said


def events(data: bytes) -> list[dict[str, Any]]:
    found = [json.loads(block.split("data: ", 1)[1]) for block in data.decode().split("\n\n")[:-1]]
    names = [block.split("\n")[0] for block in data.decode().split("\n\n")[:-1]]
    assert names == [f"event: {event['type']}" for event in found]
    return found


@pytest.mark.parametrize("name", STREAMS)
def test_every_event_is_what_the_official_clients_types_require(name: str) -> None:
    from openai.types.responses import ResponseStreamEvent

    said = events(run(native(*STREAMS[name])))
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for number, event in enumerate(said):
        adapter.validate_python(event)
        assert event["sequence_number"] == number
        if "response" in event:
            check_response(event["response"])
    assert [event["type"] for event in said] == [event["type"] for event in STREAMS[name]]
    assert said[-1]["response"]["model"] == "fast"
    places = {event["item"]["id"]: event["output_index"] for event in said if "item" in event}
    assert places == {item["id"]: index for index, item in enumerate(said[-1]["response"]["output"])}
    assert all(places[event["item_id"]] == event["output_index"] for event in said if "item_id" in event)


def test_a_plain_stream_passes_the_strict_validator() -> None:
    said = responses_stream(run(native(*STREAMS["text"])))
    assert (said.text, said.finish, said.response["completed_at"]) == ("The quick", "completed", None)
    assert said.usage == {**usage(3), "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
                          "output_tokens_details": {"reasoning_tokens": 0}}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("limit", [None, 3])
def test_it_is_the_same_wherever_the_bytes_are_cut(name: str, limit: int | None) -> None:
    data = native(*STREAMS[name])
    whole = run(data, max_output_tokens=limit)
    for cut in range(1, len(data)):
        assert run(data, cut, max_output_tokens=limit) == whole
    assert run(data, *range(1, len(data)), max_output_tokens=limit) == whole
    assert run(native(*STREAMS[name], newline="\r\n"), max_output_tokens=limit) == whole


@pytest.mark.parametrize("name", ["text", "reasoning and text", "a call"])
def test_an_answer_that_the_limit_ended_is_incomplete(name: str) -> None:
    said = events(run(native(*STREAMS[name]), max_output_tokens=3))
    final = said[-1]
    assert final["type"] == "response.incomplete"
    assert final["response"]["status"] == "incomplete"
    assert final["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    done = [event["item"]["status"] for event in said if event["type"] == "response.output_item.done"]
    assert done == [item["status"] for item in final["response"]["output"]]
    assert (done[-1], set(done[:-1])) == ("incomplete", {"completed"} if done[:-1] else set())


def test_text_that_reads_like_a_field_is_only_text() -> None:
    words = '"item_id":"rs_x","sequence_number":9,\\'
    text = {**TEXT, "text": words}
    told = (*PLAIN[:4], part("output_text.delta", delta=words), part("output_text.done", text=words),
            part("content_part.done", part=text), {**PLAIN[8], "item": {**MESSAGE, "content": [text]}},
            completed(3, {**MESSAGE, "content": [text]}))  # fmt: skip
    assert responses_stream(run(native(*told))).text == words


def test_a_limit_that_was_not_reached_changes_nothing() -> None:
    data = native(*STREAMS["text"])
    loose = run(data, max_output_tokens=4)
    assert loose.replace(b'"max_output_tokens":4', b'"max_output_tokens":null') == run(data)


def test_the_context_ends_answers_too() -> None:
    one = ResponsesFix({"model": "fast", "input": "Hi"}, "r1", context=9)
    assert events(one.feed(native(*STREAMS["text"])))[-1]["type"] == "response.incomplete"


@pytest.mark.parametrize("name", STREAMS)
def test_the_official_client_reads_it(name: str) -> None:
    import openai

    with (
        answering(200, EVENTS, run(native(*STREAMS[name]))) as served,
        openai.OpenAI(base_url=served.base, api_key="k", max_retries=0) as client,
    ):
        with client.responses.stream(model="fast", input="Hi") as streamed:
            final = streamed.get_final_response()
        last: Any = list(client.responses.create(model="fast", input="Hi", stream=True))[-1]
    assert final.output_text == last.response.output_text == ("The quick" if "text" in name else "")
    assert [item.type for item in final.output] == [item.type for item in last.response.output]


def test_what_is_numbered_already_passes_byte_for_byte() -> None:
    mended = run(native(*STREAMS["reasoning and text"]))
    one = fix()
    again = one.feed(mended)
    assert again == mended
    assert one.answer is not None


def test_a_whole_answer_is_completed() -> None:
    answer = {**completed(3, MESSAGE)["response"], "completed_at": 8}
    one = fix(max_output_tokens=3, temperature=0.5)
    status, body = one.whole(200, json.dumps(answer).encode())
    said = json.loads(body)
    check_response(said)
    assert (status, said) == (200, one.answer)
    assert (said["status"], said["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (said["model"], said["temperature"], said["completed_at"]) == ("fast", 0.5, None)
    assert said["output"][0]["status"] == "incomplete"
    loose = json.loads(fix(max_output_tokens=4).whole(200, json.dumps(answer).encode())[1])
    assert (loose["status"], loose["completed_at"]) == ("completed", 8)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error":{"code":400,"message":"\'input\' is required","type":"invalid_request_error"}}', 400),
        (503, b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}', 503),
        (200, b"nonsense", 502),
        (200, b"{}", 502),
    ],
)
def test_errors_are_in_the_apis_shape(status: int, body: bytes, expected: int) -> None:
    got, answer = fix().whole(status, body)
    assert got == expected
    error = json.loads(answer)["error"]
    assert error["message"]
    assert error["code"] is None or isinstance(error["code"], str)


ERROR = b'event: error\ndata: {"error":{"code":500,"message":"it broke","type":"server_error"}}\n\n'


@pytest.mark.parametrize("bad", [ERROR, b"data: nonsense\n\n", ERROR.removeprefix(b"event: error\n")])
def test_an_error_before_any_content_can_still_be_told_by_a_status(bad: bytes) -> None:
    data = native(*CREATED) + bad
    for cut in range(len(data)):
        one = fix()
        assert one.feed(data[:cut]) + one.feed(data[cut:]) == b""
        assert one.failed is not None
        assert one.failed[0] in (500, 502)
        assert [event["type"] for event in events(one.end())][-2:] == ["error", "response.failed"]


@pytest.mark.parametrize("bad", [ERROR, b"data: nonsense\n\n", b"", b"data: {"])
def test_an_error_later_is_an_event(bad: bytes) -> None:
    begun = native(*PLAIN[:6])
    for cut in range(len(begun + bad)):
        one = fix()
        said = events(one.feed((begun + bad)[:cut]) + one.feed((begun + bad)[cut:]) + one.end())
        assert one.failed is None
        assert [event["sequence_number"] for event in said] == list(range(len(said)))
        assert [event["type"] for event in said[-3:]] == ["response.output_text.delta", "error", "response.failed"]
        check_response(said[-1]["response"])
        assert one.answer == said[-1]["response"]
        assert (one.answer["status"], one.answer["error"]["message"]) == ("failed", said[-2]["message"])


def test_what_is_nested_too_deeply_is_an_error_and_no_exception() -> None:
    for levels in (500, 900, 960, 980, 985, 990, 995, 100_000):
        deep = '{"a":' * levels + "1" + "}" * levels
        response = f'{{"object":"response","output":[{deep}],"usage":{{}}}}'
        one = fix()
        one.feed(native(*PLAIN[:6]))
        one.feed(b'data: {"type":"response.completed","response":%b}\n\n' % response.encode())
        assert one.end().startswith(b"event: error") or one.answer is not None or one.end() == b""
        assert fix().whole(200, response.encode())[0] in (200, 502)


def test_a_broken_connection_is_an_error_event() -> None:
    one = fix()
    said = events(one.feed(native(*PLAIN)) + one.broke(504, "silent"))
    assert [event["type"] for event in said[-3:]] == ["response.output_item.done", "error", "response.failed"]
    assert (said[-2]["message"], said[-1]["response"]["output"]) == ("silent", [MESSAGE])
    assert one.end() == b""


def test_the_request_is_what_the_engine_takes() -> None:
    history = [
        {"type": "message", "id": "m", "role": "user", "content": [{"type": "input_text", "text": "One"}]},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"},
        {"type": "message", "id": "n", "role": "assistant", "content": [{"type": "output_text", "text": "Two"}]},
    ]
    document = {
        "model": "fast",
        "input": [{"role": "assistant", "content": "Three"}, {"type": "item_reference", "id": "k"}],
        "previous_response_id": "resp_0",
        "store": True,
        "background": False,
        "temperature": 0.5,
    }
    kept = {"type": "function_call_output", "id": "k", "call_id": "c", "output": "x"}
    one = ResponsesFix(document, "r1", history, referred={"k": kept})
    assert one.document == {
        "model": "fast",
        "temperature": 0.5,
        "input": [
            history[0],
            history[2],
            {
                "type": "message",
                "id": "msg_r1_in0",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Three", "annotations": []}],
            },
            kept,
        ],
    }
    assert (one.ignored, one.previous, one.store, one.path) == (("input.reasoning",), "resp_0", True, "/responses")
    assert one.items == one.document["input"][2:]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"type": "mcp_call", "id": "x"}]}, "input[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [3]}, "tools[0].type"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
    ],
)
def test_what_the_engine_would_leave_out_unseen_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(Unmappable) as refused:
        fix(**fields)
    assert refused.value.field == field
    assert fix(text={"format": {"type": "json_object"}}).ignored == ("text.format",)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([native(event) for event in STREAMS["reasoning and text"]] + [ERROR])
    )
)
def test_arbitrary_bytes_never_raise(pieces: list[bytes]) -> None:
    one = fix(max_output_tokens=3)
    for piece in pieces:
        one.feed(piece)
    one.end()
    assert one.end() == b""


shapes = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["message", "function_call", "reasoning", "completed", "response.completed", "error"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "item",
                    "response",
                    "output",
                    "status",
                    "id",
                    "call_id",
                    "usage",
                    "part",
                    "item_id",
                    "error",
                    "input_tokens_details",
                    "output_tokens",
                    "object",
                    "created_at",
                    "role",
                    "content",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(shapes, max_size=4))
def test_arbitrary_documents_never_raise_but_as_unmappable(documents: list[Any]) -> None:
    one = fix(max_output_tokens=3)
    for document in documents:
        one.feed(b"event: response.output_item.done\ndata: " + json.dumps(document).encode() + b"\n\n")
        wrapped = {"type": "response.completed", "response": document}
        fix().feed(b"data: " + json.dumps(wrapped).encode() + b"\n\n")
        answer = {**document, "object": "response"} if isinstance(document, dict) else document
        fix(max_output_tokens=3).whole(200, json.dumps(answer).encode())
        fits(document if isinstance(document, dict) else {"input": document, "tools": document, "text": document})
        try:
            ResponsesFix(document if isinstance(document, dict) else {"input": document, "tools": document}, "r1", [])
        except Unmappable:
            continue
    one.end()


def test_an_answer_that_failed_before_any_content_is_told_by_a_status() -> None:
    failed = life("failed", output=[], error={"code": "server_error", "message": "out of memory"})
    for events in ((failed,), (*CREATED, failed)):
        bridge = ResponsesFix({"model": "m", "input": "hi", "stream": True}, "r")
        assert bridge.feed(native(*events)) == b""
        assert bridge.failed is not None
        assert bridge.failed[0] >= 500
        assert b"out of memory" in bridge.failed[1]


def test_an_error_after_numbered_events_has_the_next_number() -> None:
    numbered = [{**event, "sequence_number": at} for at, event in enumerate(PLAIN[:3])]
    delta = {**part("output_text.delta", delta="The"), "sequence_number": 3}
    bridge = ResponsesFix({"model": "m", "input": "hi", "stream": True}, "r")
    bridge.feed(native(*numbered, delta))
    assert b'"sequence_number":4' in bridge.broke(502, "it broke")
