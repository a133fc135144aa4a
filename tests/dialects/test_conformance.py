"""The published table is the one that the translators read, and they do what it says."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.dialects import chat_request, messages_request, responses_tables
from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.chat_on_messages import ChatOnMessages
from reconciler.dialects.fields import Field
from reconciler.dialects.messages_on_chat import MessagesOnChat
from reconciler.dialects.quirks import PLAIN
from reconciler.dialects.responses_on_chat import ResponsesOnChat
from tests.dialects.conformance import FILE, PAIRS, document

HI = [{"role": "user", "content": "hi"}]
VALUES: dict[str, Any] = {
    "metadata": {"user_id": "u"},
    "logprobs": True,
    "store": True,
    "logit_bias": {"5": 1},
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "service_tier": "flex",
}


def test_the_table_is_up_to_date() -> None:
    said = "docs/conformance.md is out of date: run `python -m tests.dialects.conformance`"
    assert FILE.read_text(encoding="utf-8") == document(), said


def test_every_field_of_every_table_has_its_line() -> None:
    lines = set(FILE.read_text(encoding="utf-8").splitlines())
    for pair in PAIRS:
        for table in pair.tables:
            for name, field in table.rows.items():
                assert any(line.startswith(f"| `{name}` | {field.fate} | ") for line in lines), name


def _through(pair: str, document: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What is sent, and what is named as left out."""
    if pair == "messages":
        made: Any = MessagesOnChat({"model": "m", "messages": HI, "max_tokens": 5, **document}, PLAIN, "r")
    elif pair == "chat":
        made = ChatOnMessages({"model": "m", "messages": HI, **document}, PLAIN, "r", 5)
    else:
        made = ResponsesOnChat({"model": "m", "input": "hi", **document}, PLAIN, "r")
    return made.document, made.ignored


def _top(fate: str) -> list[Any]:
    tables: dict[str, dict[str, Field]] = {
        "messages": messages_request.FIELDS,
        "chat": chat_request.FIELDS,
        "responses": responses_tables.FIELDS,
    }
    return [
        pytest.param(pair, name, id=f"{pair}-{name}")
        for pair, fields in tables.items()
        for name, field in fields.items()
        if field.fate == fate and "." not in name
    ]


@pytest.mark.parametrize(("pair", "name"), _top("refused"))
def test_what_is_refused_is_refused_by_name(pair: str, name: str) -> None:
    with pytest.raises(Unmappable) as caught:
        _through(pair, {name: VALUES.get(name, True)})
    assert caught.value.field == name


@pytest.mark.parametrize(("pair", "name"), _top("warned"))
def test_what_is_left_out_is_named_and_not_sent(pair: str, name: str) -> None:
    sent, ignored = _through(pair, {name: VALUES.get(name, "x")})
    assert name in ignored
    assert name not in sent
