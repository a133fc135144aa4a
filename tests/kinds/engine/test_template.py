"""Command lines with places to fill in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from reconciler.kinds.engine.template import PLACES, Template, checked, escaped, fill, places, whole

VALUES = {"model_path": "/m/{port}.gguf", "model_name": "chat", "host": "127.0.0.1", "port": "80", "context": "4096"}


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (("serve", "{model_path}"), ["serve", "/m/{port}.gguf"]),
        (("serve", "--at={host}:{port}", "--len", "{context}"), ["serve", "--at=127.0.0.1:80", "--len", "4096"]),
        (("serve", '{{"name": "{model_name}"}}', "{{", "}}"), ["serve", '{"name": "chat"}', "{", "}"]),
        (("{{{port}}}", "{{port}}", "{port}{port}", ""), ["{80}", "{port}", "8080", ""]),
    ],
)
def test_a_template_is_filled_in_once(argv: tuple[str, ...], wanted: list[str]) -> None:
    assert [checked(word) for word in argv] == list(argv)
    assert Template(argv).filled(VALUES) == wanted


@given(st.text("{}port", max_size=12))
def test_what_is_escaped_is_filled_in_with_itself(text: str) -> None:
    assert checked(escaped(text)) == escaped(text)
    assert fill(escaped(text), VALUES) == text
    assert not places((escaped(text),))


@given(st.text("{}ports_", max_size=16))
def test_what_passes_can_be_filled_in(text: str) -> None:
    try:
        checked(text)
    except PydanticCustomError:
        return
    fill(text, VALUES)
    assert places((text,)) <= set(PLACES)


@pytest.mark.parametrize(
    ("word", "problem", "hint"),
    [
        ("{modelpath}", "unknown place {modelpath}", "{model_path}, {model_name}, {host}, {port}, {context}"),
        ("{}", "unknown place {}", "{port}"),
        ('{"a": 1}', "unknown place", "written twice"),
        ("{port", "lone '{'", "twice"),
        ("port}", "lone '}'", "twice"),
        ("{{{port}}", "lone '}'", "twice"),
    ],
)
def test_a_place_that_nobody_can_fill_in_is_refused(word: str, problem: str, hint: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        checked(word)
    assert problem in caught.value.message()
    assert hint in (caught.value.context or {})["hint"]


def test_a_command_line_begins_with_a_program_and_says_the_port() -> None:
    assert whole(("serve", "--port={port}"))
    for words, problem in ((("serve", "{{port}}"), "the port"), (("{model_path}", "{port}"), "begins with a place")):
        with pytest.raises(PydanticCustomError, match=problem):
            whole(words)
