"""Events are read alike however their bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dialects.sse import Event, Events, TooLong, event

FUZZ = settings(max_examples=300, derandomize=True, deadline=None, database=None)

CASES: dict[str, tuple[bytes, list[Event]]] = {
    "lf": (b"event: a\ndata: 1\n\ndata: 2\n\n", [Event("a", "1"), Event("", "2")]),
    "cr": (b"event: a\rdata: 1\r\rdata: 2\r\r", [Event("a", "1"), Event("", "2")]),
    "crlf": (b"event: a\r\ndata: 1\r\n\r\ndata: 2\r\n\r\n", [Event("a", "1"), Event("", "2")]),
    "mixed": (b"event: a\rdata: 1\n\r\ndata: 2\r\n\n", [Event("a", "1"), Event("", "2")]),
    "mark": (b"\xef\xbb\xbfdata: 1\n\n", [Event("", "1")]),
    "mark later": (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", [Event("", "1")]),
    "comment": (b": x\ndata: 1\n:\n\n", [Event("", "1")]),
    "comment alone": (b": x\n\n: y\n\n", []),
    "lines": (b"data: 1\ndata:\ndata: 2\n\n", [Event("", "1\n\n2")]),
    "no space": (b"data:1\nevent:a\n\n", [Event("a", "1")]),
    "two spaces": (b"data:  1\n\n", [Event("", " 1")]),
    "no colon": (b"data\ndata\n\n", [Event("", "\n")]),
    "other fields": (b"id: 7\nretry: 10\nx: y\ndata: 1\n\n", [Event("", "1")]),
    "name alone": (b"event: a\n\ndata: 1\n\n", [Event("", "1")]),
    "last name": (b"event: a\nevent: b\ndata: 1\n\n", [Event("b", "1")]),
    "no end": (b"data: 1\n\ndata: 2", [Event("", "1"), Event("", "2")]),
    "one line end": (b"data: 1\n", [Event("", "1")]),
    "letters": ("data: Grüße 🙂\n\n".encode(), [Event("", "Grüße 🙂")]),
    "not utf-8": (b"data: a\xff\xf0b\n\n", [Event("", "a\ufffd\ufffdb")]),
    "nothing": (b"", []),
    "empty lines": (b"\n\r\n\r", []),
}


def read(pieces: list[bytes]) -> list[Event]:
    events = Events()
    found = [one for piece in pieces for one in events.feed(piece)]
    return found + events.finish()


@pytest.mark.parametrize("name", CASES)
def test_what_a_stream_says(name: str) -> None:
    data, said = CASES[name]
    assert read([data]) == said


@pytest.mark.parametrize("name", CASES)
def test_cuts_change_nothing(name: str) -> None:
    data, said = CASES[name]
    assert read([data[at : at + 1] for at in range(len(data))]) == said
    for at in range(len(data)):
        assert read([data[:at], data[at:]]) == said
        assert read([data[:at], b"", data[at:]]) == said


@FUZZ
@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"data", b":", b" ", b"event", b"x", b"\xc3\xbc", b"\xef\xbb\xbf"])),
    st.data(),
)
def test_any_bytes_cut_anywhere(parts: list[bytes], chosen: st.DataObject) -> None:
    data = b"".join(parts)
    at = chosen.draw(st.integers(0, len(data)))
    assert read([data[:at], data[at:]]) == read([data])


def test_an_event_is_told_by_the_call_that_ends_it() -> None:
    events = Events()
    assert events.feed(b"data: 1\n") == []
    assert events.feed(b"\n") == [Event("", "1")]
    assert events.feed(b"data: 2\r\n\r") == [Event("", "2")]
    assert events.feed(b"\ndata: 3\n\n") == [Event("", "3")]


def read_until_too_long(events: Events, data: bytes, size: int) -> tuple[list[Event], str]:
    found: list[Event] = []
    for at in range(0, len(data), size):
        try:
            found += events.feed(data[at : at + size])
        except TooLong as error:
            return found + error.events, str(error)
    return found, ""


@pytest.mark.parametrize("size", [1, 7, 70, 1000])
@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_a_line_that_never_ends_is_an_error(size: int, end: bytes) -> None:
    data = b"data: 1\n\ndata: " + b"x" * 200 + end
    events, why = read_until_too_long(Events(line_limit=100), data, size)
    assert events == [Event("", "1")]
    assert "100 bytes" in why


def test_an_event_that_never_ends_is_an_error() -> None:
    events = Events(line_limit=100, event_limit=1000)
    line = b"data: " + b"x" * 90 + b"\n"
    assert events.feed(line * 10) == []
    with pytest.raises(ValueError, match="1000 bytes"):
        events.feed(line)


def test_limits_hold_what_is_just_allowed() -> None:
    assert read([b"data: " + b"x" * 94 + b"\n\n"]) == [Event("", "x" * 94)]
    events = Events(line_limit=100)
    assert events.feed(b"data: " + b"x" * 94 + b"\n\n") == [Event("", "x" * 94)]


def test_what_is_written_can_be_read() -> None:
    said = {"a": "Grüße\n\r 🙂", "b": "\ud800"}
    assert event("x", said) == b'event: x\ndata: {"a":"Gr\\u00fc\\u00dfe\\n\\r \\ud83d\\ude42","b":"\\ud800"}\n\n'
    assert event("", {"a": "ü"}) == 'data: {"a":"ü"}\n\n'.encode()
    assert read([event("x", {"a": 1})]) == [Event("x", '{"a":1}')]
