"""Anthropic requests as chat requests: field by field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_params

from reconciler.dialects import messages_turns
from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.ids import pack
from reconciler.dialects.messages_on_chat import MessagesOnChat
from reconciler.dialects.messages_request import FIELDS, chat_request, count_on_chat
from reconciler.dialects.quirks import LOCAL, PLAIN, Quirks

USER = {"role": "user", "content": "Hi"}
BASE: dict[str, Any] = {"model": "fast", "max_tokens": 100, "messages": [USER]}
TOOL = {"name": "look", "description": "Looks", "input_schema": {"type": "object", "properties": {}}}
FUNCTION = {
    "type": "function",
    "function": {"name": "look", "description": "Looks", "parameters": TOOL["input_schema"]},
}


def ask(quirks: Quirks = PLAIN, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    chat, ignored = chat_request({**BASE, **fields}, quirks)
    json.dumps(chat, allow_nan=False)
    return chat, ignored


def turns(*messages: dict[str, Any], quirks: Quirks = PLAIN, system: Any = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(quirks, messages=list(messages), system=system)[0]["messages"]
    return found


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def user(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def assistant(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(content)}


def test_a_plain_request() -> None:
    assert ask() == ({"model": "fast", "messages": [USER], "max_tokens": 100}, ())


MAPPED: list[tuple[Quirks, dict[str, Any], dict[str, Any]]] = [
    (replace(PLAIN, max_tokens="max_completion_tokens"), {}, {"max_completion_tokens": 100}),
    (PLAIN, {"max_tokens": 7.0}, {"max_tokens": 7}),
    (PLAIN, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
    (replace(PLAIN, stream_options=False), {"stream": True}, {"stream": True}),
    (PLAIN, {"stream": False}, {}),
    (PLAIN, {"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
    (PLAIN, {"stop_sequences": []}, {}),
    (LOCAL, {"stop_sequences": list("abcdef")}, {"stop": list("abcdef")}),
    (PLAIN, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
    (LOCAL, {"top_k": 40}, {"top_k": 40}),
    (PLAIN, {"tools": [TOOL]}, {"tools": [FUNCTION]}),
    (PLAIN, {"tools": [{"type": "custom", **TOOL}]}, {"tools": [FUNCTION]}),
    (PLAIN, {"tools": []}, {}),
    (
        PLAIN,
        {"tools": [{"name": "a", "input_schema": {}, "strict": True}]},
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {}, "strict": True}}]},
    ),
    *(
        (PLAIN, {"tools": [TOOL], "tool_choice": choice}, {"tools": [FUNCTION], **said})
        for choice, said in (
            ({"type": "auto"}, {"tool_choice": "auto"}),
            ({"type": "none"}, {"tool_choice": "none"}),
            ({"type": "any"}, {"tool_choice": "required"}),
            ({"type": "tool", "name": "look"}, {"tool_choice": {"type": "function", "function": {"name": "look"}}}),
            (
                {"type": "auto", "disable_parallel_tool_use": True},
                {"tool_choice": "auto", "parallel_tool_calls": False},
            ),
            ({"type": "any", "disable_parallel_tool_use": False}, {"tool_choice": "required"}),
        )
    ),
    (PLAIN, {"tool_choice": {"type": "auto"}}, {}),
    (PLAIN, {"tool_choice": {"type": "none"}}, {}),
    (PLAIN, {"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
    (PLAIN, {"output_config": {"effort": "max"}}, {"reasoning_effort": "high"}),
    (replace(PLAIN, effort="xhigh"), {"output_config": {"effort": "max"}}, {"reasoning_effort": "xhigh"}),
    (replace(PLAIN, effort="max"), {"output_config": {"effort": "max"}}, {"reasoning_effort": "max"}),
    (replace(PLAIN, effort="low"), {"output_config": {"effort": "medium"}}, {"reasoning_effort": "low"}),
    *(
        (
            replace(PLAIN, effort="max"),
            {"thinking": {"type": "enabled", "budget_tokens": budget}},
            {"reasoning_effort": effort},
        )
        for budget, effort in (
            (1024, "low"),
            (2048, "low"),
            (2049, "medium"),
            (8192, "medium"),
            (24576, "high"),
            (32000, "xhigh"),
        )
    ),
    (
        PLAIN,
        {"thinking": {"type": "enabled", "budget_tokens": 32000}, "output_config": {"effort": "low"}},
        {"reasoning_effort": "low"},
    ),
    (PLAIN, {"thinking": {"type": "adaptive"}}, {}),
    (replace(PLAIN, no_thinking="none"), {"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
    (LOCAL, {"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False}}),
    (
        LOCAL,
        {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"a": 1}},
        {"chat_template_kwargs": {"a": 1, "enable_thinking": False}},
    ),
    *(
        (
            PLAIN,
            {**said},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        )
        for shape in [{"type": "json_schema", "schema": {"type": "object"}}]
        for said in ({"output_config": {"format": shape}}, {"output_format": shape})
    ),
    (LOCAL, {"min_p": 0.1, "seed": 7}, {"min_p": 0.1, "seed": 7}),
    (PLAIN, {"system": None, "tools": None, "stream": None, "temperature": None, "thinking": None}, {}),
]


@pytest.mark.parametrize(("quirks", "fields", "said"), MAPPED)
def test_what_is_mapped(quirks: Quirks, fields: dict[str, Any], said: dict[str, Any]) -> None:
    chat, ignored = ask(quirks, **fields)
    limit = chat.keys() & {"max_tokens", "max_completion_tokens"} - said.keys()
    assert {key: value for key, value in chat.items() if key not in {"model", "messages", *limit}} == said
    assert ignored == ()


IGNORED: list[tuple[Quirks, dict[str, Any], tuple[str, ...], dict[str, Any]]] = [
    (PLAIN, {"temperature": 3}, ("temperature",), {"temperature": 2.0}),
    (replace(PLAIN, temperature=(0.0, 1.0)), {"temperature": 1.5}, ("temperature",), {"temperature": 1.0}),
    (replace(PLAIN, sampling=False), {"temperature": 1, "top_p": 1}, ("temperature", "top_p"), {}),
    (PLAIN, {"top_k": 40}, ("top_k",), {}),
    (PLAIN, {"min_p": 0.1, "seed": 7}, ("min_p", "seed"), {}),
    (LOCAL, {"n": 4, "stream_options": {}}, ("n", "stream_options"), {}),
    (PLAIN, {"thinking": {"type": "disabled"}}, ("thinking",), {}),
    (PLAIN, {"thinking": {"type": "between_tools"}}, ("thinking",), {}),
    (replace(PLAIN, effort=""), {"output_config": {"effort": "low"}}, ("output_config.effort",), {}),
    (replace(PLAIN, effort=""), {"thinking": {"type": "enabled", "budget_tokens": 1024}}, ("thinking",), {}),
    (PLAIN, {"output_config": {"task_budget": 7}}, ("output_config.task_budget",), {}),
    (PLAIN, {"x\r\ny": 1, "ü" * 200: 1}, ("?" * 80, "x??y"), {}),
    (
        PLAIN,
        {"tools": [{**TOOL, "cache_control": {"type": "ephemeral"}, "defer_loading": True, "input_examples": [{}]}]},
        ("tools.cache_control", "tools.defer_loading", "tools.input_examples"),
        {"tools": [FUNCTION]},
    ),
    (PLAIN, {"tools": [{**TOOL, "allowed_callers": ["direct"]}]}, ("tools.allowed_callers",), {"tools": [FUNCTION]}),
    (
        PLAIN,
        {"messages": [user(text("Hi", cache_control={"type": "ephemeral"}))]},
        ("messages.content.cache_control",),
        {},
    ),
    (PLAIN, {"system": [text("", cache_control={"type": "ephemeral"})]}, ("system.cache_control",), {}),
    (PLAIN, {"messages": [{**USER, "name": "Ada"}]}, ("messages.name",), {}),
]


@pytest.mark.parametrize(("quirks", "fields", "ignored", "said"), IGNORED)
def test_what_is_left_out_is_named(
    quirks: Quirks, fields: dict[str, Any], ignored: tuple[str, ...], said: dict[str, Any]
) -> None:
    chat, named = ask(quirks, **fields)
    assert named == ignored
    assert {key: value for key, value in chat.items() if key not in BASE} == said


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if field.fate == "warned" and "." not in key])
def test_every_field_that_warns_is_named(key: str) -> None:
    for quirks in (PLAIN, LOCAL):
        chat, named = ask(quirks, **{key: {"a": "b"}})
        assert named == (key,)
        assert key not in chat


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if field.fate == "refused" and "." not in key])
def test_every_field_that_is_refused_is_named(key: str) -> None:
    with pytest.raises(Unmappable) as raised:
        ask(LOCAL, **{key: {"a": "b"}})
    assert (raised.value.field, raised.value.message) == (key, FIELDS[key].why)
    assert ask(LOCAL, **{key: None})[1] == ()


CACHED = {"cache_control": {"type": "ephemeral"}}
CITED = {"type": "document", "source": {"type": "text", "data": "D"}, "citations": {"enabled": True}}
INSIDE: dict[str, dict[str, Any]] = {
    "system.cache_control": {"system": [text("A", **CACHED)]},
    "messages.content.thinking": {"messages": [USER, assistant({"type": "thinking", "thinking": "Hm"}), USER]},
    "messages.content.redacted_thinking": {"messages": [USER, assistant({"type": "redacted_thinking"}), USER]},
    "messages.content.cache_control": {"messages": [user(text("A", **CACHED))]},
    "messages.content.citations": {"messages": [user(CITED)]},
    "tools.cache_control": {"tools": [TOOL | CACHED]},
    "tools.defer_loading": {"tools": [TOOL | {"defer_loading": True}]},
    "tools.input_examples": {"tools": [TOOL | {"input_examples": []}]},
    "tools.eager_input_streaming": {"tools": [TOOL | {"eager_input_streaming": True}]},
    "tools.allowed_callers": {"tools": [TOOL | {"allowed_callers": ["direct"]}]},
    "messages.content.server_tool_use": {"messages": [USER, assistant({"type": "server_tool_use"}), USER]},
    "messages.content.container_upload": {"messages": [user({"type": "container_upload", "file_id": "f"})]},
    "tools.type": {"tools": [TOOL | {"type": "bash_20250124"}]},
}


@pytest.mark.parametrize(
    "key", [key for key, field in FIELDS.items() if "." in key and field.fate in ("warned", "refused")]
)
def test_every_inner_field_that_warns_or_is_refused_is_named(key: str) -> None:
    if FIELDS[key].fate == "warned":
        assert ask(**INSIDE[key])[1] == (key,)
    else:
        with pytest.raises(Unmappable, match="type"):
            ask(**INSIDE[key])


def test_the_table_knows_every_block_that_is_read() -> None:
    known = {key.removeprefix("messages.content.") for key in FIELDS}
    assert messages_turns._PARTS.keys() <= known
    assert {"tool_use", "tool_result", "thinking", "redacted_thinking"} <= known


def test_the_table_knows_every_field_of_the_official_client() -> None:
    official = message_create_params.MessageCreateParamsBase.__annotations__.keys()
    beta = beta_params.MessageCreateParamsBase.__annotations__.keys()
    assert not (official | beta | {"stream"}) - FIELDS.keys()


def test_the_table_explains_itself() -> None:
    for key, field in FIELDS.items():
        assert field.fate in ("mapped", "passed", "refused", "warned"), key
        assert field.why.endswith(".") or field.fate == "refused", key


REFUSED: list[tuple[Quirks, dict[str, Any], str]] = [
    (PLAIN, {"messages": []}, "messages"),
    (PLAIN, {"messages": None}, "messages"),
    (PLAIN, {"messages": "Hi"}, "messages"),
    (PLAIN, {"messages": ["Hi"]}, "messages.0"),
    (PLAIN, {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    (PLAIN, {"messages": [{"role": ["user"], "content": "x"}]}, "messages.0.role"),
    (PLAIN, {"messages": [{"role": "user"}]}, "messages.0.content"),
    (PLAIN, {"messages": [user()]}, "messages"),
    (PLAIN, {"messages": [{"role": "user", "content": ""}]}, "messages"),
    (PLAIN, {"messages": [{"role": "system", "content": "x"}]}, "messages"),
    (PLAIN, {"messages": [USER, assistant(text("x"))]}, "messages"),
    (PLAIN, {"model": 7}, "model"),
    (PLAIN, {"max_tokens": None}, "max_tokens"),
    (PLAIN, {"max_tokens": 0}, "max_tokens"),
    (PLAIN, {"max_tokens": -1}, "max_tokens"),
    (PLAIN, {"max_tokens": "7"}, "max_tokens"),
    (PLAIN, {"max_tokens": True}, "max_tokens"),
    (PLAIN, {"system": 7}, "system"),
    (PLAIN, {"system": [{"type": "image"}]}, "system.0.type"),
    (PLAIN, {"stream": "yes"}, "stream"),
    (PLAIN, {"temperature": "hot"}, "temperature"),
    (LOCAL, {"top_k": 1.5}, "top_k"),
    (PLAIN, {"stop_sequences": list("abcde")}, "stop_sequences"),
    (PLAIN, {"stop_sequences": [7]}, "stop_sequences"),
    (PLAIN, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
    (PLAIN, {"tools": [TOOL, {"type": "bash_20250124", "name": "bash"}]}, "tools.1.type"),
    (PLAIN, {"tools": [{"name": "a"}]}, "tools.0.input_schema"),
    (PLAIN, {"tools": [{"input_schema": {}}]}, "tools.0.name"),
    (PLAIN, {"tools": [{**TOOL, "allowed_callers": ["code_execution_20250825"]}]}, "tools.0.allowed_callers"),
    (PLAIN, {"tool_choice": {"type": "any"}}, "tool_choice"),
    (PLAIN, {"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    (PLAIN, {"tools": [TOOL], "tool_choice": {"type": "x"}}, "tool_choice.type"),
    (PLAIN, {"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
    (PLAIN, {"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    (PLAIN, {"thinking": {}}, "thinking.type"),
    (PLAIN, {"output_config": {"effort": "huge"}}, "output_config.effort"),
    (PLAIN, {"output_config": {"effort": ["low"]}}, "output_config.effort"),
    (PLAIN, {"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    (PLAIN, {"output_format": {"type": "json_schema"}}, "output_format.schema"),
    *(
        (PLAIN, {"messages": [USER, user(block)]}, f"messages.1.content.0.{where}")
        for block, where in (
            ({"type": "container_upload", "file_id": "f"}, "type"),
            ({"type": "hologram"}, "type"),
            ({}, "type"),
            ({"type": ["text"]}, "type"),
            ({"type": "text"}, "text"),
            ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source.type"),
            ({"type": "image"}, "source"),
            ({"type": "image", "source": {"type": "base64", "data": "x"}}, "source.media_type"),
            (
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "x"}},
                "source.type",
            ),
            ({"type": "document", "source": {"type": "url", "url": "https://a"}}, "source.type"),
            ({"type": "document", "source": {"type": "file", "file_id": "f"}}, "source.type"),
            (
                {"type": "document", "source": {"type": "content", "content": [{"type": "document"}]}},
                "source.content.0.type",
            ),
            ({"type": "tool_use", "id": "a", "name": "b", "input": {}}, "type"),
            ({"type": "tool_result"}, "tool_use_id"),
            ({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "browser_state"}]}, "content.0.type"),
            ({"type": "tool_result", "tool_use_id": "a", "is_error": "x"}, "is_error"),
            ({"type": "search_result", "title": "a", "source": "b", "content": [{"type": "image"}]}, "content.0.type"),
        )
    ),
    *(
        (PLAIN, {"messages": [USER, assistant(block), USER]}, f"messages.1.content.0.{where}")
        for block, where in (
            ({"type": "server_tool_use", "id": "a", "name": "web_search", "input": {}}, "type"),
            ({"type": "web_search_tool_result", "tool_use_id": "a", "content": []}, "type"),
            ({"type": "image"}, "type"),
            ({"type": "tool_use", "name": "b", "input": {}}, "id"),
            ({"type": "tool_use", "id": "a", "input": {}}, "name"),
            ({"type": "tool_use", "id": "a", "name": "b", "input": "{}"}, "input"),
            ({"type": "tool_use", "id": "a", "name": "b", "input": {"x": float("inf")}}, "input"),
            ({"type": "thinking"}, "thinking"),
        )
    ),
]


@pytest.mark.parametrize(
    ("quirks", "fields", "where"), REFUSED, ids=[f"{at}-{case[2]}" for at, case in enumerate(REFUSED)]
)
def test_what_cannot_be_said_is_named(quirks: Quirks, fields: dict[str, Any], where: str) -> None:
    with pytest.raises(Unmappable) as raised:
        ask(quirks, **fields)
    assert raised.value.field == where
    assert raised.value.message
    assert str(raised.value) == f"{where}: {raised.value.message}"


def test_the_system_prompt_is_one_message_before_all() -> None:
    assert turns(USER, system="A") == [{"role": "system", "content": "A"}, USER]
    assert turns(USER, system=[text("A"), text(""), text("B")])[0] == {"role": "system", "content": "A\n\nB"}
    assert turns({"role": "system", "content": "B"}, USER, system="A")[0] == {"role": "system", "content": "A\n\nB"}
    assert turns(USER, system="") == [USER]


def test_a_system_message_in_the_middle_stays_there() -> None:
    found = turns(USER, {"role": "system", "content": [text("Now")]}, USER)
    assert [message["role"] for message in found] == ["user", "system", "user"]
    assert found[1]["content"] == "Now"


BILLING = "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=fa690;"


def test_the_billing_line_goes_for_local_engines_alone() -> None:
    for system in ([text(BILLING), text("You")], BILLING + "\nYou", [text(BILLING + "\nYou")]):
        assert turns(USER, system=system, quirks=LOCAL)[0]["content"] == "You"
        assert BILLING in turns(USER, system=system)[0]["content"]
    kept = f"Say {BILLING}"
    assert turns(USER, system=kept, quirks=LOCAL)[0]["content"] == kept
    assert turns(USER, system=[text(BILLING)], quirks=LOCAL) == [USER]


def test_turns_of_one_role_become_one() -> None:
    found = turns(
        USER, user(text("there"), text("you")), {"role": "assistant", "content": "A"}, assistant(text("B")), USER
    )
    assert found == [
        {"role": "user", "content": "Hi\n\nthere\n\nyou"},
        {"role": "assistant", "content": "AB"},
        USER,
    ]


USE = {"type": "tool_use", "id": "a", "name": "look", "input": {"where": "Köln", "n": [1, None]}}


def test_tool_calls_and_their_results() -> None:
    found = turns(
        USER,
        assistant(text("Let me"), USE, {**USE, "id": "b", "input": {}}),
        user(
            text("and?"),
            {"type": "tool_result", "tool_use_id": "b", "content": "1"},
            {"type": "tool_result", "tool_use_id": "a", "content": [text("2"), text("3")], "is_error": True},
        ),
    )
    function = {"name": "look", "arguments": '{"where":"Köln","n":[1,null]}'}
    assert found[1:] == [
        {
            "role": "assistant",
            "content": "Let me",
            "tool_calls": [
                {"id": "a", "type": "function", "function": function},
                {"id": "b", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "b", "content": "1"},
        {"role": "tool", "tool_call_id": "a", "content": "Error: 2\n\n3"},
        {"role": "user", "content": "and?"},
    ]
    alone = turns(USER, assistant(USE), user({"type": "tool_result", "tool_use_id": "a"}))
    assert alone[1]["content"] is None
    assert alone[2] == {"role": "tool", "tool_call_id": "a", "content": ""}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
SHOWN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_images() -> None:
    linked = {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}
    assert turns(user(text("What?"), IMAGE, linked)) == [
        user(text("What?"), SHOWN, {"type": "image_url", "image_url": {"url": "https://a/b.png"}})
    ]


def test_images_of_tools_follow_as_the_users() -> None:
    result = {"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}
    assert turns(USER, assistant(USE), user(result, text("Well?")))[2:] == [
        {"role": "tool", "tool_call_id": "a", "content": "The result is shown in the next message."},
        user(text("Shown by the tool call a:"), SHOWN, text("Well?")),
    ]


def test_documents() -> None:
    plain = {
        "type": "document",
        "title": "T",
        "context": "C",
        "source": {"type": "text", "media_type": "text/plain", "data": "D"},
    }
    assert turns(user(plain)) == [{"role": "user", "content": "T\n\nC\n\nD"}]
    mixed = {"type": "document", "title": "T", "source": {"type": "content", "content": [text("D"), IMAGE]}}
    assert turns(user(mixed)) == [user(text("T"), text("D"), SHOWN)]
    written = {"type": "document", "source": {"type": "content", "content": "D"}}
    assert turns(user(written)) == [{"role": "user", "content": "D"}]
    pdf = {
        "type": "document",
        "title": "a.pdf",
        "source": {"type": "base64", "media_type": "application/pdf", "data": "AA"},
    }
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}}
    assert turns(user(pdf), quirks=replace(PLAIN, files=True)) == [user(text("a.pdf"), file)]
    cited = {**plain, "citations": {"enabled": True}}
    assert ask(messages=[user(cited)])[1] == ("messages.content.citations",)


def test_search_results_and_references_become_text() -> None:
    found = {"type": "search_result", "title": "T", "source": "https://a", "content": [text("X"), text("Y")]}
    reference = {"type": "tool_reference", "tool_name": "look"}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [found, reference]}
    assert turns(USER, assistant(USE), user(result))[2]["content"] == "T\nhttps://a\n\nX\n\nY\n\nTool: look"


def test_thinking_goes_back_where_it_is_taken() -> None:
    thinking = {"type": "thinking", "thinking": "Hm", "signature": "s"}
    messages = [USER, assistant(thinking, {"type": "redacted_thinking", "data": "x"}, text("A")), USER]
    chat, ignored = ask(messages=messages)
    assert chat["messages"][1] == {"role": "assistant", "content": "A"}
    assert ignored == ("messages.content.redacted_thinking", "messages.content.thinking")
    chat, ignored = ask(LOCAL, messages=messages)
    assert chat["messages"][1] == {"role": "assistant", "content": "A", "reasoning_content": "Hm"}
    assert ignored == ("messages.content.redacted_thinking",)
    assert "reasoning" in ask(replace(PLAIN, reasoning="reasoning"), messages=messages)[0]["messages"][1]


def test_a_turn_of_thinking_alone_is_none() -> None:
    assert turns(USER, assistant({"type": "thinking", "thinking": "Hm", "signature": "s"}), USER) == [USER, USER]


def test_a_beginning_is_continued_where_that_is_taken() -> None:
    begun = {"role": "assistant", "content": "Once"}
    assert turns(USER, begun, quirks=LOCAL)[-1] == begun


def test_thought_signatures_come_back() -> None:
    signed = {**USE, "id": pack("call_a", "sig"), "input": {}}
    messages = [USER, assistant(signed, {**USE, "id": "b"}), user({"type": "tool_result", "tool_use_id": signed["id"]})]
    gemini = replace(PLAIN, thought_signature=True)
    found = turns(*messages, quirks=gemini)
    assert [call["id"] for call in found[1]["tool_calls"]] == ["call_a", "b"]
    assert [call.get("extra_content") for call in found[1]["tool_calls"]] == [
        {"google": {"thought_signature": "sig"}},
        None,
    ]
    assert found[2]["tool_call_id"] == "call_a"
    other = turns(*messages)
    assert [call.get("extra_content") for call in other[1]["tool_calls"]] == [None, None]
    foreign = turns(USER, assistant(USE), user({"type": "tool_result", "tool_use_id": "a"}), quirks=gemini)
    assert foreign[1]["tool_calls"][0]["extra_content"]["google"]["thought_signature"].startswith("skip_")


def test_what_is_counted_is_what_is_asked() -> None:
    document = {
        **BASE,
        "system": [text(BILLING), text("A")],
        "tools": [TOOL],
        "stop_sequences": ["x"],
        "temperature": 1,
    }
    del document["max_tokens"]
    chat = count_on_chat(document)
    assert chat == {"model": "fast", "messages": [{"role": "system", "content": "A"}, USER], "tools": [FUNCTION]}
    whole, _ = chat_request({**document, "max_tokens": 5}, LOCAL)
    assert chat.items() <= whole.items()


def test_a_bridge_holds_the_request() -> None:
    bridge = MessagesOnChat({**BASE, "metadata": {"user_id": "u"}}, PLAIN, "r1")
    assert (bridge.path, bridge.ignored, bridge.failed) == ("/chat/completions", ("metadata",), None)
    assert bridge.document["messages"] == [USER]
