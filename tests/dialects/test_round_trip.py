"""There and back again keeps the meaning."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dialects.chat_on_messages import ChatOnMessages
from reconciler.dialects.messages_on_chat import MessagesOnChat
from reconciler.dialects.quirks import LOCAL, PLAIN
from tests.dialects import corpus
from tests.support.streams import Chat, chat_stream, messages_stream

FUZZ = settings(max_examples=300, derandomize=True, deadline=None, database=None)
THERE = replace(PLAIN, prefill=True, effort="max")
BACK = replace(LOCAL, effort="max")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda text: text.strip())
NAME = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
INPUT = st.dictionaries(TEXT, VALUE, max_size=3)
IMAGE = st.sampled_from(["https://a/b.png", "data:image/png;base64,AAAA"]).map(
    lambda url: {"type": "image_url", "image_url": {"url": url}}
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Chat messages as one would write them: a user's and an assistant's in turn, calls followed by their results."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(TEXT)})
    idents = (f"call {number}" if number % 2 else f"call_{number}" for number in range(100))
    for _ in range(draw(st.integers(1, 3))):
        text = {"type": "text", "text": draw(TEXT)}
        messages.append(
            {"role": "user", "content": draw(st.just(text["text"]) | IMAGE.map(lambda image, t=text: [t, image]))}
        )
        calls = [
            {
                "id": ident,
                "type": "function",
                "function": {"name": draw(NAME), "arguments": json.dumps(draw(INPUT), ensure_ascii=False)},
            }
            for ident, _ in zip(idents, range(draw(st.integers(0, 2))), strict=False)
        ]
        answer: dict[str, Any] = {"role": "assistant", "content": draw(TEXT if not calls else TEXT | st.none())}
        messages.append(answer | ({"tool_calls": calls} if calls else {}))
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": draw(TEXT)} for call in calls]
        if calls:
            messages.append({"role": "assistant", "content": draw(TEXT)})
    return [*messages, {"role": "user", "content": draw(TEXT)}]


TOOLS = st.lists(
    st.builds(
        lambda name, described: {
            "type": "function",
            "function": {"name": name, "parameters": {"type": "object", "properties": {}}, **described},
        },
        NAME,
        st.just({}) | st.builds(lambda text: {"description": text}, TEXT),
    ),
    min_size=1,
    max_size=2,
)
OPTIONS = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 10**6)},
    optional={
        "stream": st.just(True),
        "temperature": st.floats(0, 1),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(0, 100),
        "stop": st.lists(TEXT, min_size=1, max_size=4),
        "reasoning_effort": st.sampled_from(["low", "medium", "high", "xhigh", "max"]),
    },
)


def meaning(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with their arguments read."""
    found = []
    for message in messages:
        message = dict(message)
        if "tool_calls" in message:
            message["tool_calls"] = [
                (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
                for call in message["tool_calls"]
            ]
        found.append(message)
    return found


@FUZZ
@given(conversations(), OPTIONS, TOOLS, st.sampled_from(["auto", "none", "required", None]), st.booleans())
def test_a_chat_request_comes_back(
    messages: list[dict[str, Any]],
    options: dict[str, Any],
    tools: list[dict[str, Any]],
    choice: str | None,
    single: bool,
) -> None:
    asked = {"model": "m", "messages": messages, "tools": tools, **options}
    if choice is not None:
        asked["tool_choice"] = choice
    if single and choice != "none":
        asked["parallel_tool_calls"] = False
    there = ChatOnMessages(asked, THERE, "r", 10)
    assert there.ignored == ()
    back = MessagesOnChat(there.document, BACK, "r")
    assert back.ignored == ()
    said = dict(back.document)
    said.pop("stream_options", None)
    if single and choice is None:
        assert said.pop("tool_choice") == "auto"
    assert meaning(said.pop("messages")) == meaning(asked.pop("messages"))
    assert said == asked


@st.composite
def answers(draw: st.DrawFn) -> Chat:
    """What an assistant might say."""
    chat = Chat(text=draw(TEXT | st.just("")), reasoning=draw(TEXT | st.just("")))
    chat.finish = draw(st.sampled_from(["stop", "length", "content_filter"]))
    for _ in range(draw(st.integers(0, 3))):
        chat.calls.append(draw(st.builds(lambda name, given: (name, json.dumps(given)), NAME, INPUT)))  # type: ignore[arg-type]
        chat.finish = "tool_calls"
    return chat


@FUZZ
@given(answers(), st.data())
def test_a_chat_stream_comes_back(chat: Chat, chosen: st.DataObject) -> None:
    pieces = [{"reasoning_content": letter} for letter in chat.reasoning] + [
        {"content": letter} for letter in chat.text
    ]
    for index, (name, arguments) in enumerate(chat.calls):  # type: ignore[misc]
        cut = chosen.draw(st.integers(0, len(arguments)))
        pieces.append(corpus.call(index, f"call_{index}", name, arguments[:cut]))
        pieces.append(corpus.call(index, None, None, arguments[cut:]))
    usage = {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27}
    said = corpus.data(
        *(corpus.chunk(piece) for piece in pieces), corpus.chunk({}, chat.finish), {"choices": [], "usage": usage}
    )
    there = MessagesOnChat(corpus.MESSAGES_REQUEST, PLAIN, "r")
    between = there.feed(said + b"data: [DONE]\n\n") + there.end()
    messages_stream(between)
    back = ChatOnMessages(corpus.CHAT_WITH_USAGE, PLAIN, "r", 10)
    again = chat_stream(back.feed(between) + back.end())
    assert (again.text, again.reasoning, again.finish, again.error) == (chat.text, chat.reasoning, chat.finish, None)
    assert [(call.ident, call.name, json.loads(call.arguments)) for call in again.calls] == [
        (f"call_{index}", name, json.loads(arguments))
        for index, (name, arguments) in enumerate(chat.calls)  # type: ignore[misc]
    ]
    assert again.usage is not None
    assert {key: again.usage[key] for key in usage} == usage
