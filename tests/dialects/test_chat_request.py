"""Chat requests as Anthropic requests: field by field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import completion_create_params

from reconciler.dialects import chat_turns
from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.chat_on_messages import ChatOnMessages
from reconciler.dialects.chat_request import FIELDS, messages_request
from reconciler.dialects.ids import unpack
from reconciler.dialects.quirks import PLAIN, Quirks

USER = {"role": "user", "content": "Hi"}
BASE: dict[str, Any] = {"model": "fast", "messages": [USER]}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks", "parameters": SCHEMA}}
SEE = {"type": "function", "function": {"name": "see"}}
SAID_TOOL = {"name": "look", "description": "Looks", "input_schema": SCHEMA}
ANY = replace(PLAIN, anything=True)
PREFILL = replace(PLAIN, prefill=True)


def ask(quirks: Quirks = PLAIN, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    asked, ignored = messages_request({**BASE, **fields}, quirks, 4096)
    json.dumps(asked, allow_nan=False)
    return asked, ignored


def turns(*messages: dict[str, Any], quirks: Quirks = PLAIN) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(quirks, messages=list(messages))[0]["messages"]
    return found


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def said(role: str, *content: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(content)}


def test_a_plain_request() -> None:
    assert ask() == ({"model": "fast", "messages": [said("user", text("Hi"))], "max_tokens": 4096}, ())


ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "look"}}]},
}
SHAPE = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
MAPPED: list[tuple[Quirks, dict[str, Any], dict[str, Any]]] = [
    (PLAIN, {"max_tokens": 7}, {"max_tokens": 7}),
    (PLAIN, {"max_completion_tokens": 8, "max_tokens": 7}, {"max_tokens": 8}),
    (PLAIN, {"stream": True}, {"stream": True}),
    (PLAIN, {"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
    (PLAIN, {"stream": False, "n": 1, "modalities": ["text"]}, {}),
    (PLAIN, {"stop": "END"}, {"stop_sequences": ["END"]}),
    (PLAIN, {"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
    (PLAIN, {"stop": []}, {}),
    (PLAIN, {"temperature": 0.5, "top_p": 1, "top_k": 40}, {"temperature": 0.5, "top_p": 1, "top_k": 40}),
    (PLAIN, {"tools": [TOOL]}, {"tools": [SAID_TOOL]}),
    (PLAIN, {"tools": [SEE]}, {"tools": [{"name": "see", "input_schema": {"type": "object", "properties": {}}}]}),
    (
        PLAIN,
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {}, "strict": True}}]},
        {"tools": [{"name": "a", "input_schema": {"type": "object"}, "strict": True}]},
    ),
    (
        PLAIN,
        {"tools": [TOOL | {"cache_control": {"type": "ephemeral"}}]},
        {"tools": [SAID_TOOL | {"cache_control": {"type": "ephemeral"}}]},
    ),
    *(
        (PLAIN, {"tools": [TOOL], "tool_choice": choice}, {"tools": [SAID_TOOL], "tool_choice": to})
        for choice, to in (
            ("auto", {"type": "auto"}),
            ("none", {"type": "none"}),
            ("required", {"type": "any"}),
            ({"type": "function", "function": {"name": "look"}}, {"type": "tool", "name": "look"}),
        )
    ),
    (PLAIN, {"tools": [TOOL, SEE], "tool_choice": ALLOWED}, {"tools": [SAID_TOOL], "tool_choice": {"type": "any"}}),
    (PLAIN, {"tools": [TOOL], "parallel_tool_calls": True}, {"tools": [SAID_TOOL]}),
    (
        PLAIN,
        {"tools": [TOOL], "parallel_tool_calls": False},
        {"tools": [SAID_TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    ),
    (
        PLAIN,
        {"tools": [TOOL], "parallel_tool_calls": False, "tool_choice": "required"},
        {"tools": [SAID_TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
    ),
    (
        PLAIN,
        {"tools": [TOOL], "parallel_tool_calls": False, "tool_choice": "none"},
        {"tools": [SAID_TOOL], "tool_choice": {"type": "none"}},
    ),
    (PLAIN, {"parallel_tool_calls": False, "tool_choice": "auto"}, {}),
    (PLAIN, {"response_format": {"type": "text"}}, {}),
    (PLAIN, {"response_format": SHAPE}, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    (PLAIN, {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
    (PLAIN, {"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}),
    (PLAIN, {"reasoning_effort": "xhigh"}, {"output_config": {"effort": "high"}}),
    (replace(PLAIN, effort="max"), {"reasoning_effort": "max"}, {"output_config": {"effort": "max"}}),
    (
        PLAIN,
        {"reasoning_effort": "low", "response_format": SHAPE},
        {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}},
    ),
    (PLAIN, {"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
    (PLAIN, {"user": "u"}, {"metadata": {"user_id": "u"}}),
    (PLAIN, {"user": "u", "safety_identifier": "s"}, {"metadata": {"user_id": "s"}}),
    (ANY, {"min_p": 0.1}, {"min_p": 0.1}),
    (PLAIN, {"logprobs": False, "frequency_penalty": 0, "logit_bias": {}, "store": False, "service_tier": "auto"}, {}),
    (PLAIN, {"tools": None, "stop": None, "stream": None, "n": None, "temperature": None, "user": None}, {}),
]


@pytest.mark.parametrize(("quirks", "fields", "to"), MAPPED)
def test_what_is_mapped(quirks: Quirks, fields: dict[str, Any], to: dict[str, Any]) -> None:
    asked, ignored = ask(quirks, **fields)
    assert {key: value for key, value in asked.items() if key not in BASE} == {"max_tokens": 4096, **to}
    assert ignored == ()


IGNORED: list[tuple[Quirks, dict[str, Any], tuple[str, ...], dict[str, Any]]] = [
    (PLAIN, {"temperature": 1.5}, ("temperature",), {"temperature": 1.0}),
    (replace(PLAIN, sampling=False), {"temperature": 1, "top_p": 1}, ("temperature", "top_p"), {}),
    (replace(PLAIN, effort=""), {"reasoning_effort": "low"}, ("reasoning_effort",), {}),
    (PLAIN, {"min_p": 0.1}, ("min_p",), {}),
    (ANY, {"system": "x", "stop_sequences": ["x"]}, ("stop_sequences", "system"), {}),
    (PLAIN, {"messages": [{**USER, "name": "Ada"}]}, ("messages.name",), {}),
    (
        PLAIN,
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA, "description": "d"},
            }
        },
        ("response_format.json_schema.description",),
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    ),
    (
        PLAIN,
        {"messages": [said("user", {"type": "image_url", "image_url": {"url": "https://a", "detail": "high"}})]},
        ("messages.content.image_url.detail",),
        {},
    ),
]


@pytest.mark.parametrize(("quirks", "fields", "ignored", "to"), IGNORED)
def test_what_is_left_out_is_named(
    quirks: Quirks, fields: dict[str, Any], ignored: tuple[str, ...], to: dict[str, Any]
) -> None:
    asked, named = ask(quirks, **fields)
    assert named == ignored
    assert {key: value for key, value in asked.items() if key not in {"max_tokens", *BASE}} == to


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if field.fate == "warned" and "." not in key])
def test_every_field_that_warns_is_named(key: str) -> None:
    for quirks in (PLAIN, ANY):
        asked, named = ask(quirks, **{key: {"a": "b"}})
        assert named == (key,)
        assert key not in asked


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if field.fate == "refused" and "." not in key])
def test_every_field_that_is_refused_is_named(key: str) -> None:
    with pytest.raises(Unmappable) as raised:
        ask(ANY, **{key: {"a": "b"}})
    assert (raised.value.field, raised.value.message) == (key, FIELDS[key].why)


def test_the_table_knows_every_field_of_the_official_client() -> None:
    official = completion_create_params.CompletionCreateParamsBase.__annotations__.keys()
    assert not (official | {"stream"}) - FIELDS.keys()


def test_the_table_explains_itself() -> None:
    for key, field in FIELDS.items():
        assert field.fate in ("mapped", "passed", "refused", "warned"), key
        assert field.why.endswith(".") or field.fate == "refused", key


def call(**more: Any) -> dict[str, Any]:
    return {"id": "call_a", "type": "function", "function": {"name": "look", "arguments": '{"a": "ü"}'}, **more}


def calling(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def result(content: Any = "Dom", ident: str = "call_a") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": ident, "content": content}


INSIDE: dict[str, tuple[dict[str, Any], str]] = {
    "messages.name": ({"messages": [{**USER, "name": "Ada"}]}, ""),
    "messages.reasoning_content": (
        {"messages": [USER, {"role": "assistant", "content": "A", "reasoning_content": "Hm"}, USER]},
        "",
    ),
    "messages.annotations": ({"messages": [USER, {"role": "assistant", "content": "A", "annotations": []}, USER]}, ""),
    "messages.audio": ({"messages": [USER, {"role": "assistant", "audio": {"id": "a"}}, USER]}, "messages.1.audio"),
    "messages.function_call": (
        {"messages": [USER, {"role": "assistant", "function_call": {"name": "a"}}, USER]},
        "messages.1.function_call",
    ),
    "messages.content.image_url.detail": (
        {"messages": [said("user", {"type": "image_url", "image_url": {"url": "https://a", "detail": "low"}})]},
        "",
    ),
    "messages.content.input_audio": (
        {"messages": [said("user", {"type": "input_audio", "input_audio": {}})]},
        "messages.0.content.0.type",
    ),
    "messages.tool_calls.extra_content": ({"messages": [USER, calling(call(extra_content={})), result()]}, ""),
    "messages.tool_calls.custom": (
        {"messages": [USER, calling(call(type="custom")), result()]},
        "messages.1.tool_calls.0.type",
    ),
    "tools.custom": ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools.0.type"),
    "response_format.json_schema.description": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "description": "d"}}},
        "",
    ),
}


@pytest.mark.parametrize(
    "key", [key for key, field in FIELDS.items() if "." in key and field.fate in ("warned", "refused")]
)
def test_every_inner_field_that_warns_or_is_refused_is_named(key: str) -> None:
    fields, where = INSIDE[key]
    if FIELDS[key].fate == "warned":
        assert ask(**fields)[1] == (key,)
    else:
        with pytest.raises(Unmappable) as raised:
            ask(**fields)
        assert raised.value.field == where


def test_the_table_knows_every_part_that_is_read() -> None:
    known = {key.removeprefix("messages.content.") for key in FIELDS}
    assert chat_turns._PARTS.keys() <= known


REFUSED: list[tuple[Quirks, dict[str, Any], str]] = [
    (PLAIN, {"messages": []}, "messages"),
    (PLAIN, {"messages": None}, "messages"),
    (PLAIN, {"messages": [{"role": "system", "content": "x"}]}, "messages"),
    (PLAIN, {"messages": [{"role": "user", "content": " "}]}, "messages"),
    (PLAIN, {"messages": [7]}, "messages.0"),
    (PLAIN, {"messages": [{"role": "function", "name": "a", "content": "x"}]}, "messages.0.role"),
    (PLAIN, {"messages": [{"role": {}, "content": "x"}]}, "messages.0.role"),
    (PLAIN, {"messages": [{"role": "user"}]}, "messages.0.content"),
    (PLAIN, {"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages"),
    (PLAIN, {"model": None}, "model"),
    (PLAIN, {"max_tokens": 0}, "max_tokens"),
    (PLAIN, {"max_completion_tokens": "7"}, "max_completion_tokens"),
    (PLAIN, {"n": 2}, "n"),
    (PLAIN, {"n": "x"}, "n"),
    (PLAIN, {"modalities": ["text", "audio"]}, "modalities"),
    (PLAIN, {"stop": ["a", "\n"]}, "stop"),
    (PLAIN, {"stop": 7}, "stop"),
    (PLAIN, {"temperature": []}, "temperature"),
    (PLAIN, {"stream": 1}, "stream"),
    (PLAIN, {"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools.0.type"),
    (PLAIN, {"tools": [{"type": "function"}]}, "tools.0.function"),
    (PLAIN, {"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
    (PLAIN, {"tool_choice": "required"}, "tool_choice"),
    (PLAIN, {"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
    (PLAIN, {"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
    (PLAIN, {"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    (
        PLAIN,
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "x"}}},
        "tool_choice.allowed_tools.mode",
    ),
    (PLAIN, {"tools": [SEE], "tool_choice": ALLOWED}, "tool_choice"),
    (PLAIN, {"response_format": {"type": "json_object"}}, "response_format.type"),
    (PLAIN, {"response_format": {"type": "xml"}}, "response_format.type"),
    (PLAIN, {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (PLAIN, {"reasoning_effort": "huge"}, "reasoning_effort"),
    (PLAIN, {"reasoning_effort": ["low"]}, "reasoning_effort"),
    (PLAIN, {"user": 7}, "user"),
    *(
        (PLAIN, {"messages": [said("user", part)]}, f"messages.0.content.0.{where}")
        for part, where in (
            ({"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}, "type"),
            ({}, "type"),
            ({"type": "text"}, "text"),
            ({"type": "image_url"}, "image_url"),
            ({"type": "image_url", "image_url": {"url": "ftp://a"}}, "image_url.url"),
            ({"type": "image_url", "image_url": {"url": "data:image/png,x"}}, "image_url.url"),
            ({"type": "file", "file": {"file_id": "f"}}, "file"),
            ({"type": "file", "file": {"file_data": "data:text/csv;base64,AA"}}, "file.file_data"),
        )
    ),
    (
        PLAIN,
        {"messages": [said("system", {"type": "image_url", "image_url": {"url": "https://a"}}), USER]},
        "messages.0.content",
    ),
    *(
        (PLAIN, {"messages": [USER, calling(one), result()]}, f"messages.1.tool_calls.0.{where}")
        for one, where in (
            (call(type="custom"), "type"),
            (call(id=None), "id"),
            (call(id=""), "id"),
            (call(function={"name": "a", "arguments": '{"a'}), "function.arguments"),
            (call(function={"name": "a", "arguments": "[]"}), "function.arguments"),
            (call(function={"name": "a", "arguments": {}}), "function.arguments"),
            (call(function={"arguments": "{}"}), "function.name"),
        )
    ),
    (PLAIN, {"messages": [USER, calling(function_call={"name": "a"}), USER]}, "messages.1.function_call"),
    (PLAIN, {"messages": [USER, calling(audio={"id": "a"}), USER]}, "messages.1.audio"),
    (PLAIN, {"messages": [USER, calling(call()), {"role": "tool", "content": "x"}]}, "messages.2.tool_call_id"),
]


@pytest.mark.parametrize(
    ("quirks", "fields", "where"), REFUSED, ids=[f"{at}-{case[2]}" for at, case in enumerate(REFUSED)]
)
def test_what_cannot_be_said_is_named(quirks: Quirks, fields: dict[str, Any], where: str) -> None:
    with pytest.raises(Unmappable) as raised:
        ask(quirks, **fields)
    assert raised.value.field == where
    assert raised.value.message


def test_system_messages_are_hoisted() -> None:
    asked, _ = ask(messages=[{"role": "system", "content": "A"}, USER, said("developer", text("B"), text(" "))])
    assert asked["system"] == [text("A"), text("B")]
    assert asked["messages"] == [said("user", text("Hi"))]


def test_turns_of_one_side_become_one_with_results_first() -> None:
    found = turns(
        USER, calling(call(), call(id="call_b")), USER, result(), result([text("x"), text("y")], "call_b"), USER
    )
    assert found == [
        said("user", text("Hi")),
        said(
            "assistant",
            {"type": "tool_use", "id": "call_a", "name": "look", "input": {"a": "ü"}},
            {"type": "tool_use", "id": "call_b", "name": "look", "input": {"a": "ü"}},
        ),
        said(
            "user",
            {"type": "tool_result", "tool_use_id": "call_a", "content": "Dom"},
            {"type": "tool_result", "tool_use_id": "call_b", "content": [text("x"), text("y")]},
            text("Hi"),
            text("Hi"),
        ),
    ]


def test_what_is_empty_is_left_out() -> None:
    assert turns(USER, {"role": "assistant", "content": ""}, {"role": "assistant", "content": None}, USER) == [
        said("user", text("Hi"), text("Hi"))
    ]
    assert turns(USER, calling(call()), result(""))[2]["content"] == [{"type": "tool_result", "tool_use_id": "call_a"}]
    empty = call(function={"name": "look", "arguments": ""})
    assert turns(USER, calling(empty), result())[1]["content"][0]["input"] == {}


def test_an_assistants_words() -> None:
    message = {"role": "assistant", "content": [text("A"), {"type": "refusal", "refusal": "B"}], "refusal": "C"}
    assert turns(USER, message, USER)[1] == said("assistant", text("A"), text("B"), text("C"))
    asked, ignored = ask(
        messages=[USER, {"role": "assistant", "content": "A", "reasoning_content": "Hm", "annotations": []}, USER]
    )
    assert asked["messages"][1] == said("assistant", text("A"))
    assert ignored == ("messages.annotations", "messages.reasoning_content")


def test_a_beginning_loses_its_last_space() -> None:
    assert turns(USER, {"role": "assistant", "content": "Once \n"}, quirks=PREFILL)[-1] == said(
        "assistant", text("Once")
    )


def test_images_and_files() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/PNG;base64,AA"}},
        {
            "type": "image_url",
            "image_url": {"url": "https://a/b.png", "detail": "auto"},
            "cache_control": {"type": "ephemeral"},
        },
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,BB"}},
    ]
    assert turns(said("user", *parts)) == [
        said(
            "user",
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
            {
                "type": "image",
                "source": {"type": "url", "url": "https://a/b.png"},
                "cache_control": {"type": "ephemeral"},
            },
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "BB"},
                "title": "a.pdf",
            },
        )
    ]
    assert turns(USER, calling(call()), result([parts[0]]))[2]["content"][0]["content"][0]["type"] == "image"


def test_odd_ids_are_made_safe_alike() -> None:
    ident = "functions.look:0"
    found = turns(USER, calling(call(id=ident, extra_content={"google": {}})), result(ident=ident))
    use, back = found[1]["content"][0]["id"], found[2]["content"][0]["tool_use_id"]
    assert use == back
    assert unpack(use) == (ident, "")
    assert ask(messages=[USER, calling(call(extra_content={"x": 1})), result()])[1] == (
        "messages.tool_calls.extra_content",
    )


def test_a_bridge_holds_the_request() -> None:
    bridge = ChatOnMessages({**BASE, "seed": 7}, PLAIN, "r1", 100)
    assert (bridge.path, bridge.ignored, bridge.failed) == ("/messages", ("seed",), None)
    assert bridge.document["max_tokens"] == 100
