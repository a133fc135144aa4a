"""Chat streams as upstreams send them, with what a response has to say then."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

REQUEST: dict[str, Any] = {"model": "fast", "input": "Hi", "stream": True}
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 12},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
RESPONSE_USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 0},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 27,
}


def clock() -> float:
    return 1_800_000_000.5


def chunk(delta: dict[str, Any], finish: str | None = None, **choice: Any) -> dict[str, Any]:
    one = {"index": 0, "delta": delta, "finish_reason": finish, **choice}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "up", "choices": [one]}


def call(arguments: Any, *, name: str | None = None, **entry: Any) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{**entry, "function": function}]}


def stream(*documents: Any, newline: str = "\n", done: bool = True) -> bytes:
    said = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in documents]
    said += ["[DONE]"] if done else []
    return "".join(f"data: {one}{newline}{newline}" for one in said).encode()


ROLE = chunk({"role": "assistant", "content": None})
STOP = chunk({}, "stop")
CALLED = chunk({}, "tool_calls")
COUNTED = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 7,
    "model": "up",
    "choices": [],
    "usage": USAGE,
}
TOKEN = {
    "token": "ü",
    "bytes": None,
    "logprob": -0.5,
    "top_logprobs": [{"token": "u", "logprob": -2.0, "bytes": [117]}],
}
LINK = {
    "type": "url_citation",
    "url_citation": {"url": "https://a.test", "title": "A", "start_index": 0, "end_index": 2},
}


@dataclass
class Told:
    """What a chat's stream has to become."""

    data: bytes
    text: str = ""
    reasoning: str = ""
    summary: str = ""
    refusal: str = ""
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    finish: str = "completed"
    reason: str | None = None
    usage: dict[str, Any] | None = None
    items: list[str] = field(default_factory=list)
    request: dict[str, Any] = field(default_factory=dict)


F = ("call_a", "f", '{"x": 1}')
G = ("call_b", "g", '{"y": "}"}')

GOOD: dict[str, Told] = {
    "text": Told(
        stream(ROLE, chunk({"content": "Grüße "}), chunk({"content": ""}), chunk({"content": "🌍!"}), STOP, COUNTED),
        text="Grüße 🌍!",
        usage=RESPONSE_USAGE,
        items=["message"],
    ),
    "windows line ends, no usage": Told(
        stream(ROLE, chunk({"content": "a\r\nb"}), STOP, newline="\r\n"), text="a\r\nb", items=["message"]
    ),
    "no space, comments, no DONE": Told(
        b": hello\n\ndata:"
        + json.dumps(chunk({"content": "x"})).encode()
        + b"\n\n: ping\n\n"
        + stream(STOP, done=False),
        text="x",
        items=["message"],
    ),
    "no last empty line": Told(stream(chunk({"content": "x"}), STOP)[:-2], text="x", items=["message"]),
    "nothing at all": Told(stream(ROLE, STOP, COUNTED), usage=RESPONSE_USAGE),
    "usage before the end": Told(
        stream(chunk({"content": "x"}), COUNTED, STOP), text="x", usage=RESPONSE_USAGE, items=["message"]
    ),
    "cut off": Told(
        stream(chunk({"content": "x"}), chunk({}, "length")),
        text="x",
        finish="incomplete",
        reason="max_output_tokens",
        items=["message"],
    ),
    "filtered": Told(
        stream(chunk({"content": "x"}), chunk({}, "content_filter")),
        text="x",
        finish="incomplete",
        reason="content_filter",
        items=["message"],
    ),
    "nothing before it was cut off": Told(
        stream(ROLE, chunk({}, "length")), finish="incomplete", reason="max_output_tokens"
    ),
    "reasoning": Told(
        stream(chunk({"reasoning_content": "Hm"}), chunk({"reasoning": "m."}), chunk({"content": "Yes"}), STOP),
        reasoning="Hmm.",
        text="Yes",
        items=["reasoning", "message"],
    ),
    "reasoning as a summary": Told(
        stream(chunk({"reasoning_content": "Hm"}), chunk({"reasoning": "m."}), chunk({"content": "Yes"}), STOP),
        summary="Hmm.",
        text="Yes",
        items=["reasoning", "message"],
        request={"reasoning": {"summary": "auto"}},
    ),
    "reasoning to be sent back": Told(
        stream(chunk({"reasoning_content": "Hmm."}), chunk({"content": "Yes"}), STOP),
        reasoning="Hmm.",
        text="Yes",
        items=["reasoning", "message"],
        request={"include": ["reasoning.encrypted_content"], "store": False},
    ),
    "reasoning only, cut off": Told(
        stream(chunk({"reasoning_content": "Hmm."}), chunk({}, "length")),
        reasoning="Hmm.",
        items=["reasoning"],
        finish="incomplete",
        reason="max_output_tokens",
    ),
    "thinking between words": Told(
        stream(chunk({"content": "A"}), chunk({"reasoning_content": "Hmm."}), chunk({"content": "B"}), STOP),
        reasoning="Hmm.",
        text="AB",
        items=["message", "reasoning", "message"],
    ),
    "content in parts": Told(
        stream(
            chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]}),
            chunk({"content": [{"type": "text", "text": "Yes"}]}),
            STOP,
        ),
        reasoning="Hm",
        text="Yes",
        items=["reasoning", "message"],
    ),
    "refusal": Told(
        stream(chunk({"refusal": "I "}), chunk({"refusal": "won't"}), STOP), refusal="I won't", items=["message"]
    ),
    "text, then refusal": Told(
        stream(chunk({"content": "Well. "}), chunk({"refusal": "No."}), STOP),
        text="Well. ",
        refusal="No.",
        items=["message"],
    ),
    "log probabilities": Told(
        stream(chunk({"content": "ü"}, logprobs={"content": [TOKEN]}), chunk({"content": "!"}), STOP),
        text="ü!",
        items=["message"],
        request={"top_logprobs": 1},
    ),
    "citation": Told(
        stream(chunk({"content": "A!"}), chunk({"annotations": [LINK]}), STOP), text="A!", items=["message"]
    ),
    "one call": Told(
        stream(
            ROLE,
            chunk(call("", name="f", index=0, id="call_a", type="function")),
            chunk(call('{"x"', index=0)),
            chunk(call(": 1}", index=0)),
            CALLED,
            COUNTED,
        ),
        calls=[F],
        usage=RESPONSE_USAGE,
        items=["function_call"],
    ),
    "words, then a call": Told(
        stream(chunk({"content": "Let me see."}), chunk(call('{"x": 1}', name="f", index=0, id="call_a")), CALLED),
        text="Let me see.",
        calls=[F],
        items=["message", "function_call"],
    ),
    "a call, then words": Told(
        stream(chunk(call('{"x": 1}', name="f", index=0, id="call_a")), chunk({"content": "Done."}), STOP),
        text="Done.",
        calls=[F],
        items=["function_call", "message"],
    ),
    "words in the middle of a call": Told(
        stream(
            chunk(call('{"x"', name="f", index=0, id="call_a")),
            chunk({"content": "Now."}),
            chunk(call(": 1}", index=0)),
            chunk({"content": " There."}),
            CALLED,
        ),
        text="Now. There.",
        calls=[F],
        items=["function_call", "message"],
    ),
    "two calls": Told(
        stream(
            chunk(call("", name="f", index=0, id="call_a")),
            chunk(call('{"x": 1}', index=0)),
            chunk(call("", name="g", index=1, id="call_b")),
            chunk(call('{"y": "}', index=1)),
            chunk(call('"}', index=1)),
            CALLED,
        ),
        calls=[F, G],
        items=["function_call"] * 2,
    ),
    "two calls, mixed": Told(
        stream(
            chunk(call("", name="f", index=0, id="call_a")),
            chunk(call("", name="g", index=1, id="call_b")),
            chunk(call('{"y": "}', index=1)),
            chunk(call('{"x"', index=0)),
            chunk(call('"}', index=1)),
            chunk(call(": 1}", index=0)),
            CALLED,
        ),
        calls=[F, G],
        items=["function_call"] * 2,
    ),
    "two calls in one chunk": Told(
        stream(
            chunk(
                {
                    "tool_calls": [
                        {"index": 0, "id": "call_a", "function": {"name": "f", "arguments": '{"x": 1}'}},
                        {"index": 1, "id": "call_b", "function": {"name": "g", "arguments": '{"y": "}"}'}},
                    ]
                },
                "tool_calls",
            )
        ),
        calls=[F, G],
        items=["function_call"] * 2,
    ),
    "two calls without an index": Told(
        stream(
            chunk(call('{"x"', name="f", id="call_a")),
            chunk(call(": 1}")),
            chunk(call('{"y": "}"}', name="g", id="call_b")),
            CALLED,
        ),
        calls=[F, G],
        items=["function_call"] * 2,
    ),
    "two calls that share an index": Told(
        stream(
            chunk(call('{"x": 1}', name="f", index=0, id="call_a")),
            chunk(call('{"y": "}"}', name="g", index=0, id="call_b")),
            STOP,
        ),
        calls=[F, G],
        items=["function_call"] * 2,
    ),
    "id and name in every piece": Told(
        stream(
            chunk(call('{"x"', name="f", index=0, id="call_a")),
            chunk(call(": 1}", name="f", index=0, id="call_a")),
            CALLED,
        ),
        calls=[F],
        items=["function_call"],
    ),
    "a name that comes late": Told(
        stream(chunk(call(None, index=0, id="call_a")), chunk(call('{"x": 1}', name="f", index=0)), CALLED),
        calls=[F],
        items=["function_call"],
    ),
    "no arguments": Told(
        stream(chunk(call("", name="f", index=0, id="call_a")), CALLED),
        calls=[("call_a", "f", "{}")],
        items=["function_call"],
    ),
    "no id": Told(
        stream(chunk(call('{"x": 1}', name="f", index=0)), CALLED),
        calls=[("call_r1_0", "f", '{"x": 1}')],
        items=["function_call"],
    ),
    "arguments that are an object": Told(
        stream(chunk(call({"x": 1}, name="f", index=0, id="call_a")), CALLED),
        calls=[("call_a", "f", '{"x":1}')],
        items=["function_call"],
    ),
    "a call in the old form": Told(
        stream(
            chunk({"function_call": {"name": "f", "arguments": ""}}),
            chunk({"function_call": {"arguments": '{"x": 1}'}}),
            chunk({}, "function_call"),
        ),
        calls=[("call_r1_0", "f", '{"x": 1}')],
        items=["function_call"],
    ),
    "a call that was cut off": Told(
        stream(chunk(call('{"x": "lo', name="f", index=0, id="call_a")), chunk({}, "length")),
        calls=[("call_a", "f", '{"x": "lo')],
        finish="incomplete",
        reason="max_output_tokens",
        items=["function_call"],
    ),
    "cut off before the name of the second call": Told(
        stream(
            chunk(call('{"x": 1}', name="f", index=0, id="call_a")),
            chunk(call(None, index=1, id="b")),
            chunk({}, "length"),
        ),
        calls=[F],
        finish="incomplete",
        reason="max_output_tokens",
        items=["function_call"],
    ),
    "two calls with one id": Told(
        stream(
            chunk(call("{}", name="f", index=0, id="x")),
            chunk(call("{}", name="g", index=1, id="x")),
            chunk(call(" ", index=1, id="x")),
            CALLED,
        ),
        calls=[("x", "f", "{}"), ("x_2", "g", "{} ")],
        items=["function_call"] * 2,
    ),
    "a thought signature": Told(
        stream(
            chunk(
                call('{"x": 1}', name="f", index=0, id="call_a", extra_content={"google": {"thought_signature": "s/+"}})
            ),
            STOP,
        ),
        calls=[("rcid_WyJjYWxsX2EiLCJzLysiXQ", "f", '{"x": 1}')],
        items=["function_call"],
    ),
    "fields of other types than they should be": Told(
        stream(
            {"choices": "none", "usage": [], "created": "now"},
            {"choices": [None, {"delta": []}, {"index": 0, "delta": {"content": 5}}]},
            chunk({"tool_calls": [None, 3], "annotations": [None, {"url_citation": 1}], "reasoning_content": {"a": 1}}),
            chunk({"content": "x"}, logprobs={"content": [None, {"token": 1}]}),
            chunk({"content": "ignored"}, index=1),
            STOP,
        ),
        text="x",
        items=["message"],
        request={"top_logprobs": 2},
    ),
}

BAD_AT_ONCE: dict[str, tuple[bytes, int]] = {
    "an error object": (stream({"error": {"message": "slow down", "type": "rate_limit_error", "code": 429}}), 429),
    "an error after the role": (stream(ROLE, {"error": {"message": "out of memory", "code": 500}}), 500),
    "an error in an array": (stream([{"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}]), 503),
    "an error event": (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"m"}}\n\n',
        503,
    ),
    "no JSON": (b"data: {nonsense\n\n", 502),
    "an end without an answer": (stream(ROLE), 502),
    "nothing": (b"", 502),
    "a page": (b"<html><title>Bad gateway</title></html>", 502),
    "finished with an error": (stream(ROLE, chunk({}, "error")), 502),
    "a call without a name": (stream(chunk(call("{}", index=0, id="call_a")), CALLED), 502),
}
BAD_LATER: dict[str, bytes] = {
    "an error object": stream({"error": {"message": "it broke", "type": "server_error"}}),
    "an error in a choice's place": stream({"choices": [], "error": {"message": "it broke", "code": 502}}),
    "no JSON": b"data: {nonsense\n\n",
    "an end without an answer": stream(),
    "a cut": b'data: {"choices": [{"index": 0, "del',
    "finished with an error": stream(chunk({}, "error")),
}
