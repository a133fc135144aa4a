"""Requests of the responses API as requests for chat completions."""

from __future__ import annotations

import base64
import json
import os
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.quirks import LOCAL, PLAIN, Quirks
from reconciler.dialects.responses_fix import ResponsesFix
from reconciler.dialects.responses_items import LONGEST_NAME, sealed, unsealed
from reconciler.dialects.responses_on_chat import ResponsesOnChat, references
from reconciler.dialects.responses_tables import CONTENT, FIELDS, INCLUDE, ITEMS, TOOLS

NIGHTLY = os.environ.get("RECONCILER_NIGHTLY") == "1"

F = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
G = {"type": "function", "name": "g"}
CHAT_F = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
}
CHAT_G = {"type": "function", "function": {"name": "g"}}
USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
PNG = "data:image/png;base64,AAAA"


def made(quirks: Quirks = PLAIN, history: list[dict[str, Any]] | None = None, **fields: Any) -> ResponsesOnChat:
    return ResponsesOnChat({"model": "fast", "input": "Hi", **fields}, quirks, "r1", history)


def chat(quirks: Quirks = PLAIN, **fields: Any) -> dict[str, Any]:
    return made(quirks, **fields).document


def said(*items: Any, quirks: Quirks = PLAIN, **fields: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = chat(quirks, input=list(items), **fields)["messages"]
    return messages


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def test_the_smallest_request() -> None:
    one = made()
    assert one.document == {"model": "fast", "messages": [{"role": "user", "content": "Hi"}]}
    assert (one.path, one.ignored, one.failed, one.store, one.previous) == ("/chat/completions", (), None, True, None)
    assert one.items == [
        {
            "type": "message",
            "id": "msg_r1_in0",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_text", "text": "Hi"}],
        }
    ]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", 0.5, {"temperature": 0.5}),
        ("temperature", 9, {"temperature": 2.0}),
        ("top_p", 0.9, {"top_p": 0.9}),
        ("user", "u", {"user": "u"}),
        ("max_output_tokens", 9, {"max_tokens": 9}),
        ("top_logprobs", 3, {"logprobs": True, "top_logprobs": 3}),
        ("top_logprobs", 0, {}),
        ("include", ["message.output_text.logprobs"], {"logprobs": True}),
        ("include", ["reasoning.encrypted_content"], {}),
        ("metadata", {"a": "b"}, {}),
        ("store", False, {}),
        ("background", False, {}),
        ("truncation", "disabled", {}),
        ("service_tier", "auto", {}),
        ("service_tier", "flex", {"service_tier": "flex"}),
        ("stream", False, {"stream": False}),
        ("stream", True, {"stream": True, "stream_options": {"include_usage": True}}),
        ("parallel_tool_calls", True, {}),
        ("reasoning", {"effort": "low", "summary": "auto"}, {"reasoning_effort": "low"}),
        ("reasoning", {"effort": "max"}, {"reasoning_effort": "high"}),
        ("text", {"format": {"type": "text"}}, {}),
        ("text", {"format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
        (
            "text",
            {"format": {"type": "json_schema", "name": "n", "schema": {"a": 1}, "strict": True, "description": "d"}},
            {"response_format": {"type": "json_schema", "json_schema": {
                "name": "n", "schema": {"a": 1}, "strict": True, "description": "d"}}},
        ),
        ("tools", [F, G], {"tools": [CHAT_F, CHAT_G]}),
        ("tools", [], {}),
        ("tool_choice", "auto", {}),
        ("tool_choice", "none", {}),
        ("conversation", None, {}),
    ],
)  # fmt: skip
def test_fields(field: str, value: Any, expected: dict[str, Any]) -> None:
    one = made(**{field: value})
    assert one.document == {"model": "fast", "messages": [{"role": "user", "content": "Hi"}], **expected}
    assert one.ignored == ()


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"prompt_cache_key": "k", "safety_identifier": "s"}, ("prompt_cache_key", "safety_identifier")),
        ({"max_tool_calls": 3}, ("max_tool_calls",)),
        ({"truncation": "auto"}, ("truncation",)),
        ({"text": {"verbosity": "low"}}, ("text.verbosity",)),
        ({"reasoning": {"effort": "none"}}, ("reasoning.effort",)),
        ({"reasoning": {"context": "all_turns"}}, ("reasoning.context",)),
        ({"stream_options": {"include_obfuscation": True}}, ("stream_options.include_obfuscation",)),
        ({"stream_options": {"include_obfuscation": False}}, ()),
        ({"include": ["file_search_call.results"]}, ("include.file_search_call.results",)),
        ({"top_k": 4, "n": 2, "mess\r\nages": 1}, ("n", "top_k", "unnamed")),
        ({"tools": [{**F, "defer_loading": True, "async": False}]}, ("tools.function.defer_loading",)),
        ({"tools": [{"type": "web_search"}], "tool_choice": "none"}, ("tools.web_search",)),
        ({"input": [USER, {"type": "web_search_call", "id": "w"}]}, ("input.web_search_call",)),
        ({"input": [{**USER, "phase": "commentary"}]}, ("input.message.phase",)),
        (
            {"input": [user({"type": "input_text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}})]},
            ("input.input_text.prompt_cache_breakpoint",),
        ),
        ({"input": [USER, {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "gAAA"}]},
         ("input.reasoning.encrypted_content",)),
        ({"input": [USER, {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "t"}]}]},
         ("input.reasoning",)),
    ],
)  # fmt: skip
def test_what_is_left_out_is_named(fields: dict[str, Any], ignored: tuple[str, ...]) -> None:
    assert made(**fields).ignored == ignored


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"store": 1}, "store"),
        ({"instructions": ["x"]}, "instructions"),
        ({"include": ["everything"]}, "include[0]"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"reasoning": []}, "reasoning"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"tools": {}}, "tools"),
        ({"tools": [F, 3]}, "tools[1]"),
        ({"tools": [F, F]}, "tools[1].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": []}]}, "tools[0].parameters"),
        ({"tools": [{"type": "teleport"}]}, "tools[0].type"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}]}, "tools[0].tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any", "tools": [F]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "g"}, "tools": [F]}, "tool_choice.name"),
        ({"tool_choice": {"type": "web_search_preview"}, "tools": [F]}, "tool_choice.type"),
        ({"tool_choice": {"type": "mcp", "server_label": "s"}, "tools": [F]}, "tool_choice.type"),
        ({"tool_choice": {"type": "custom", "name": "f"}, "tools": [F]}, "tool_choice.type"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}, "tools": [F]},
         "tool_choice.tools[0].type"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [G]}, "tools": [F]}, "tool_choice.tools"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "none", "tools": [F]}, "tools": [F]}, "tool_choice.mode"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"type": "message", "role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
        ({"input": [user("x")]}, "input[0].content[0]"),
        ({"input": [user({"type": "input_video"})]}, "input[0].content[0].type"),
        ({"input": [user({"type": "input_text"})]}, "input[0].content[0].text"),
        ({"input": [user({"type": "input_image", "file_id": "file-1"})]}, "input[0].content[0].file_id"),
        ({"input": [user({"type": "input_image"})]}, "input[0].content[0].image_url"),
        ({"input": [user({"type": "input_file", "file_id": "file-1"})]}, "input[0].content[0].file_id"),
        ({"input": [user({"type": "input_file", "file_url": "https://a.test/x"})]}, "input[0].content[0].file_url"),
        ({"input": [user({"type": "input_file", "file_data": "data:image/x;base64,AA"})]}, "input[0].content[0]"),
        ({"input": [user({"type": "input_audio", "input_audio": "x"})]}, "input[0].content[0].input_audio"),
        ({"input": [{**user({"type": "input_image", "image_url": PNG}), "role": "assistant"}]}, "input[0].content[0]"),
        ({"input": [USER, OUTPUT]}, "input[1].call_id"),
        ({"input": [USER, {**CALL, "arguments": {"x": 1}}]}, "input[1].arguments"),
        ({"input": [USER, {**CALL, "call_id": None}]}, "input[1].call_id"),
        ({"input": [USER, CALL, {**OUTPUT, "output": None}]}, "input[2].output"),
        ({"input": [USER, {"type": "item_reference", "id": "msg_x"}]}, "input[1].id"),
        ({"input": [USER, {"type": "custom_tool_call", "call_id": "c", "name": "n", "input": "x"}]}, "input[1].type"),
        ({"input": [USER, {"type": "compaction", "encrypted_content": "x"}]}, "input[1].type"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(Unmappable) as refused:
        made(**fields)
    assert refused.value.field == field
    assert refused.value.message


@pytest.mark.parametrize("kind", [kind for kind, field in TOOLS.items() if field.fate == "refused"])
def test_built_in_tools_are_refused_by_name_unless_they_may_not_be_called(kind: str) -> None:
    tools = [F, {"type": kind, "name": "x"}]
    with pytest.raises(Unmappable) as refused:
        made(tools=tools)
    assert refused.value.field == "tools[1].type"
    assert kind in refused.value.message
    only_f = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    one = made(tools=tools, tool_choice=only_f)
    assert (one.document["tools"], one.ignored) == ([CHAT_F], (f"tools.{kind}",))
    document = {"model": "fast", "input": "Hi", "tools": tools}
    lenient = ResponsesOnChat(document, PLAIN, "r1", drop_built_in=True)
    assert (lenient.document["tools"], lenient.ignored) == ([CHAT_F], (f"tools.{kind}",))
    for choice in ({"type": kind}, "required"):
        with pytest.raises(Unmappable):
            ResponsesOnChat({**document, "tools": tools[1:], "tool_choice": choice}, PLAIN, "r1", drop_built_in=True)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", {"tools": [CHAT_F, CHAT_G], "tool_choice": "none"}),
        ("required", {"tools": [CHAT_F, CHAT_G], "tool_choice": "required"}),
        ({"type": "function", "name": "g"},
         {"tools": [CHAT_F, CHAT_G], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
        ({"type": "allowed_tools", "mode": "auto", "tools": [G]}, {"tools": [CHAT_G]}),
        ({"type": "allowed_tools", "mode": "required", "tools": [F]}, {"tools": [CHAT_F], "tool_choice": "required"}),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, {}),
    ],
)  # fmt: skip
def test_tool_choice(choice: Any, expected: dict[str, Any]) -> None:
    document = chat(tools=[F, G], tool_choice=choice, parallel_tool_calls=False)
    expected = {**expected, "parallel_tool_calls": False} if "tools" in expected else expected
    assert {key: value for key, value in document.items() if key not in ("model", "messages")} == expected


def test_quirks_of_the_upstream() -> None:
    assert chat(Quirks(max_tokens="max_completion_tokens"), max_output_tokens=5)["max_completion_tokens"] == 5
    one = made(Quirks(sampling=False, effort="", stream_options=False), temperature=1, top_p=1, stream=True,
               reasoning={"effort": "high"})  # fmt: skip
    assert one.document.keys() == {"model", "messages", "stream"}
    assert one.ignored == ("reasoning.effort", "temperature", "top_p")
    assert chat(Quirks(no_thinking="none"), reasoning={"effort": "none"})["reasoning_effort"] == "none"


def test_a_local_engine_takes_anything_but_what_would_change_the_shape_of_the_answer() -> None:
    one = made(LOCAL, min_p=0.1, grammar="g", n=2, messages=[], reasoning={"effort": "none"},
               chat_template_kwargs={"tone": "kind", "enable_thinking": True})  # fmt: skip
    assert one.document["min_p"] == 0.1
    assert one.document["grammar"] == "g"
    assert one.document["messages"] == [{"role": "user", "content": "Hi"}]
    assert one.document["chat_template_kwargs"] == {"tone": "kind", "enable_thinking": False}
    assert one.ignored == ("messages", "n")


def test_messages_of_every_role() -> None:
    assert said(
        {"role": "developer", "content": "B"},
        {"role": "system", "content": [{"type": "input_text", "text": "C"}, {"type": "input_text", "text": "D"}]},
        USER,
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [
            {"type": "output_text", "text": "He", "annotations": []}, {"type": "output_text", "text": "llo"}]},
        {"role": "assistant", "content": "And?"},
        {"role": "developer", "content": "E"},
        user({"type": "input_text", "text": "Look"}, {"type": "input_image", "image_url": PNG, "detail": "original"}),
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Pity"}]},
        instructions="A",
    ) == [
        {"role": "system", "content": "A\n\nB\n\nC\nD"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello\n\nAnd?"},
        {"role": "system", "content": "E"},
        user({"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}}),
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Pity"},
    ]  # fmt: skip


def test_files_and_sound() -> None:
    text = "data:text/plain;base64," + base64.b64encode("Grüße".encode()).decode()
    pdf = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}
    sound = {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}
    parts = [
        {"type": "input_file", "filename": "a.txt", "file_data": text},
        {"type": "input_file", "file_data": "data:text/markdown,%23%20x"},
    ]
    assert said(user(*parts, sound)) == [
        user({"type": "text", "text": "a.txt:\nGrüße"}, {"type": "text", "text": "file:\n# x"}, sound)
    ]
    assert said(user(pdf), quirks=Quirks(files=True)) == [
        user({"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}})
    ]


def test_calls_and_their_outputs() -> None:
    other = {**CALL, "call_id": "c2", "name": "g", "arguments": ""}
    shown = {**OUTPUT, "call_id": "c2", "output": [{"type": "input_image", "image_url": PNG}]}
    assert said(
        USER,
        {"role": "assistant", "content": "Let me see."},
        CALL, other, OUTPUT, shown,
        {"role": "assistant", "content": "Sunny."},
    ) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [
            CHAT_CALL, {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": "The output follows in the next message."},
        user({"type": "text", "text": "Output of the tool call c2:"}, {"type": "image_url", "image_url": {"url": PNG}}),
        {"role": "assistant", "content": "Sunny."},
    ]  # fmt: skip


def test_a_call_and_its_output_again_and_again() -> None:
    again = [{**CALL, "call_id": "c2"}, {**OUTPUT, "call_id": "c2"}]
    assert [message["role"] for message in said(USER, CALL, OUTPUT, *again)] == [
        "user", "assistant", "tool", "assistant", "tool",
    ]  # fmt: skip


def test_reasoning_goes_back_where_the_upstream_takes_it() -> None:
    thought = {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "short"}],
               "content": [{"type": "reasoning_text", "text": "long"}]}  # fmt: skip
    short = {**thought, "content": None}
    ours = {**short, "encrypted_content": sealed("full")}
    assert said(USER, thought, CALL, OUTPUT, short, ours, {"role": "assistant", "content": "x"}, quirks=LOCAL)[1:] == [
        {"role": "assistant", "content": None, "reasoning_content": "long", "tool_calls": [CHAT_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": "x", "reasoning_content": "short\n\nfull"},
    ]
    one = made(LOCAL, input=[USER, thought])  # it came to no words
    assert (one.document["messages"], one.ignored) == ([{"role": "user", "content": "Hi"}], ("input.reasoning",))


def test_what_is_sealed_can_be_read_again_and_what_others_sealed_cannot() -> None:
    assert unsealed(sealed("Grüße 🌍")) == "Grüße 🌍"
    for foreign in ("gAAAAAB", "", None, 3, sealed("x")[:-3] + "!", "reconciler-1.////"):
        assert unsealed(foreign) is None


def test_a_thought_signature_comes_back_with_its_call() -> None:
    packed = {**CALL, "call_id": "rcid_WyJjYWxsX2EiLCJzLysiXQ"}
    answer = {**OUTPUT, "call_id": packed["call_id"]}
    call, output = said(USER, packed, answer, quirks=Quirks(thought_signature=True))[1:]
    assert call["tool_calls"][0]["id"] == output["tool_call_id"] == "call_a"
    assert call["tool_calls"][0]["extra_content"] == {"google": {"thought_signature": "s/+"}}
    call, output = said(USER, packed, answer)[1:]
    assert call["tool_calls"][0].keys() == {"id", "type", "function"}


def test_functions_of_namespaces() -> None:
    space = {"type": "namespace", "name": "files", "description": "All files", "tools": [F, G]}
    call = {**CALL, "namespace": "files"}
    one = made(
        tools=[space, F],
        input=[USER, call, OUTPUT],
        tool_choice={"type": "function", "name": "g", "namespace": "files"},
    )
    assert [tool["function"]["name"] for tool in one.document["tools"]] == ["files__f", "files__g", "f"]
    assert one.document["messages"][1]["tool_calls"][0]["function"]["name"] == "files__f"
    assert one.document["tool_choice"]["function"]["name"] == "files__g"
    assert one.ignored == ("tools.namespace.description",)
    long = made(tools=[{"type": "namespace", "name": "n" * 70, "tools": [F, G]}]).document["tools"]
    assert len({tool["function"]["name"] for tool in long}) == 2
    assert all(len(tool["function"]["name"]) == LONGEST_NAME for tool in long)


def test_what_came_before_goes_first_but_is_not_kept_again() -> None:
    history = [
        {"type": "message", "id": "m0", "role": "user", "content": [{"type": "input_text", "text": "One"}]},
        {**CALL, "id": "fc_1", "status": "completed"},
    ]
    one = made(history=history, previous_response_id="resp_0", input=[OUTPUT], instructions="Be brief.")
    assert one.document["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    assert one.items == [{**OUTPUT, "id": "fco_r1_in0"}]
    assert one.previous == "resp_0"
    with pytest.raises(Unmappable) as refused:
        made(history=[{"type": "mcp_call", "id": "x"}], previous_response_id="resp_0")
    assert refused.value.field == "previous_response_id.items[0].type"


def test_references_to_kept_items() -> None:
    kept = {"type": "message", "id": "m0", "role": "assistant", "content": [{"type": "output_text", "text": "One"}]}
    document = {"model": "fast", "input": [{"type": "item_reference", "id": "m0"}, {"id": "m0"}, USER]}
    assert references(document) == ["m0", "m0"]
    one = ResponsesOnChat(document, PLAIN, "r1", referred={"m0": kept})
    assert one.document["messages"][0] == {"role": "assistant", "content": "One\n\nOne"}
    assert one.items[0] == kept


def test_what_is_nested_so_deeply_that_it_could_not_be_repeated_is_refused() -> None:
    def schema(levels: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(levels):
            found = {"a": [found]}
        return {**F, "parameters": found}

    assert made(tools=[schema(45)]).document["tools"]
    for way in (made, lambda **fields: ResponsesFix({"model": "fast", "input": "Hi", **fields}, "r1")):
        with pytest.raises(Unmappable) as refused:
            way(tools=[schema(400)])
        assert refused.value.field == "tools"


def test_the_request_itself_is_not_changed() -> None:
    document = {"model": "fast", "input": [dict(USER), {**CALL}, {**OUTPUT}], "tools": [F], "stream": True}
    before = json.dumps(document)
    ResponsesOnChat(document, LOCAL, "r1")
    assert json.dumps(document) == before


def test_ids_are_made_of_what_an_id_may_hold() -> None:
    assert ResponsesOnChat({"model": "m", "input": "x"}, PLAIN, "r/1 ü-2").items[0]["id"] == "msg_r1-2_in0"


# The tables against the official client's types.


def kinds(union: Any) -> set[str]:
    """The values that `type` has in a union of typed dictionaries or models."""
    found: set[str] = set()
    for member in typing.get_args(union):
        hints = typing.get_type_hints(member)
        found |= {value for value in typing.get_args(_bare(hints.get("type"))) if isinstance(value, str)}
    return found


def _bare(hint: Any) -> Any:
    """Without Required, Optional and the like."""
    arguments = [argument for argument in typing.get_args(hint) if argument is not type(None)]
    if typing.get_origin(hint) is typing.Literal or not arguments:
        return hint
    return typing.Literal[tuple(value for argument in arguments for value in typing.get_args(_bare(argument)))]


def test_every_field_of_the_clients_request_has_its_place_in_the_table() -> None:
    from openai.types.responses.response_create_params import ResponseCreateParamsBase

    assert typing.get_type_hints(ResponseCreateParamsBase).keys() | {"stream"} == FIELDS.keys()


def test_every_kind_of_item_tool_and_content_has_its_place_in_a_table() -> None:
    from openai.types.responses.response_includable import ResponseIncludable
    from openai.types.responses.response_input_item_param import ResponseInputItemParam
    from openai.types.responses.tool_param import ToolParam

    items = kinds(ResponseInputItemParam)
    assert {"message", "function_call", "item_reference"} <= items <= ITEMS.keys()
    tools = kinds(ToolParam)
    assert {"function", "mcp", "custom"} <= tools <= TOOLS.keys()
    assert set(typing.get_args(ResponseIncludable)) == INCLUDE.keys()
    assert {"input_text", "input_image", "input_file", "input_audio", "output_text", "refusal"} == CONTENT.keys()
    for table in (FIELDS, ITEMS, TOOLS, CONTENT, INCLUDE):
        assert all(field.why for field in table.values())


EXAMPLES: dict[str, Any] = {
    "model": "fast",
    "input": "Hi",
    "instructions": "x",
    "tools": [F],
    "tool_choice": "required",
    "parallel_tool_calls": True,
    "text": {"format": {"type": "json_object"}},
    "reasoning": {"effort": "low"},
    "max_output_tokens": 5,
    "temperature": 1.0,
    "top_p": 0.5,
    "top_logprobs": 1,
    "include": ["message.output_text.logprobs"],
    "metadata": {"a": "b"},
    "store": False,
    "previous_response_id": "resp_0",
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "user": "u",
    "service_tier": "flex",
    "truncation": "disabled",
    "background": True,
    "conversation": "c",
    "prompt": {"id": "p"},
    "moderation": {"model": "m"},
    "max_tool_calls": 1,
    "background_options": {"completion_window": "2h"},
    "context_management": [{"type": "compaction"}],
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "access_programs": {"cyber": "standard"},
    "image": {"context_compression": "auto"},
}


@pytest.mark.parametrize("name", FIELDS)
def test_the_code_does_with_each_field_what_the_table_says(name: str) -> None:
    fields = {"tools": [F], name: EXAMPLES[name]}
    fate = FIELDS[name].fate
    if fate == "refused":
        with pytest.raises(Unmappable) as refused:
            made(**fields)
        assert (refused.value.field, refused.value.message) == (name, FIELDS[name].why)
        return
    history = [{"type": "message", "role": "user", "content": "Before"}]
    one, without = made(history=history, **fields), made(tools=[F])
    assert one.ignored == ((name,) if fate == "warned" else ())
    if fate == "passed":
        assert one.document[name] == EXAMPLES[name]
    if fate == "warned":
        assert one.document == without.document
    status, body = one.whole(200, b'{"choices": [{"message": {"content": "x"}}]}')
    kept = json.loads(body).get(name) == EXAMPLES[name]
    if fate == "mapped" and name not in ("model", "input", "tools", "stream_options", "include"):
        assert status == 200
        assert kept or one.document != without.document


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
WORDS = st.sampled_from(
    [
        *ITEMS,
        *CONTENT,
        *list(TOOLS)[:4],
        "user",
        "assistant",
        "developer",
        "json_schema",
        "allowed_tools",
        "required",
        "auto",
        "c1",
        "f",
        "data:text/plain;base64,AA",
        "data:text/plain,%ff",
        "low",
        "none",
    ]
)
KEYS = st.sampled_from(
    [
        "type",
        "role",
        "content",
        "text",
        "id",
        "call_id",
        "name",
        "namespace",
        "arguments",
        "output",
        "summary",
        "tools",
        "mode",
        "encrypted_content",
        "image_url",
        "file_data",
        "input_audio",
        "parameters",
        "format",
        "schema",
        "effort",
        "filename",
    ]
)
shaped = st.recursive(
    WORDS | json_values,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=20,
)


@settings(max_examples=600 if NIGHTLY else 150, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*FIELDS, "min_p"]), shaped, max_size=6),
    st.lists(st.dictionaries(KEYS, shaped, max_size=6), max_size=4),
    st.sampled_from([PLAIN, LOCAL, Quirks(thought_signature=True, files=True)]),
)
def test_arbitrary_documents_raise_nothing_but_unmappable(
    fields: dict[str, Any], items: list[dict[str, Any]], quirks: Quirks
) -> None:
    references(fields)
    for document in (fields, {**fields, "input": items}, {"model": "m", "input": items}):
        try:
            one = ResponsesOnChat(document, quirks, "r1", [])
        except Unmappable:
            continue
        json.dumps(one.document)
        assert one.document["messages"]
        assert one.whole(200, b'{"choices": [{"message": {"content": "x"}}]}')[0] == 200
