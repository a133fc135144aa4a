"""Server-sent events: bytes cut anywhere in, events out.

PURE. Reads what WHATWG HTML §9.2.6 allows (CR, LF or CRLF, a byte order mark, comments, several data lines, a field
without a space) and forgives a last event without its empty line. Nothing grows without bound.
"""

from __future__ import annotations

from typing import NamedTuple

from reconciler.dialects.text import encode

LINE_LIMIT = 16 << 20  # bytes; an image in a tool result is the largest thing that is one line
EVENT_LIMIT = 16 << 20
_MARK = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event: `name` is "" where the stream gave none; `data` is its lines, joined by a newline."""

    name: str
    data: str


class TooLong(ValueError):
    """A line or an event past its limit; `events` are those that were whole before it."""

    def __init__(self, message: str, events: list[Event]) -> None:
        super().__init__(message)
        self.events = events


class Events:
    """Feed it bytes; an event is returned by the call that brings its end."""

    def __init__(self, line_limit: int = LINE_LIMIT, event_limit: int = EVENT_LIMIT) -> None:
        """Limits in bytes."""
        self._line_limit = line_limit
        self._event_limit = event_limit
        self._pieces: list[bytes] = []  # of the line that has begun
        self._held = 0
        self._after_cr = False
        self._first = True
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes end. Raises `TooLong`, a ValueError, after which the stream is of no use."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        if self._pieces and len(lines) > 1:
            lines[0] = b"".join(self._pieces) + lines[0]
            self._pieces, self._held = [], 0
        rest = lines.pop()
        events: list[Event] = []
        for line in lines:
            self._line(line, events)
        if rest:
            self._pieces.append(rest)
            self._held += len(rest)
            if self._held > self._line_limit:
                raise TooLong(f"a line of the event stream is longer than {self._line_limit} bytes", events)
        return events

    def finish(self) -> list[Event]:
        """The body is over: the event that lacked its empty line, if there is one. Raises `TooLong`."""
        events: list[Event] = []
        if self._pieces:
            line, self._pieces = b"".join(self._pieces), []
            self._line(line, events)
        self._line(b"", events)
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(_MARK)
        if not line:
            if self._data:
                name, data = self._name.decode("utf-8", "replace"), b"\n".join(self._data).decode("utf-8", "replace")
                events.append(Event(name, data))
            self._name, self._data, self._size = b"", [], 0
            return
        if len(line) > self._line_limit:
            raise TooLong(f"a line of the event stream is longer than {self._line_limit} bytes", events)
        field, _, value = line.partition(b":")
        if field == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._size += len(value) + 1
            if self._size > self._event_limit:
                raise TooLong(f"an event of the stream is longer than {self._event_limit} bytes", events)
        elif field == b"event":
            self._name = value.removeprefix(b" ")


def event(name: str, document: object) -> bytes:
    """The event as bytes, its data JSON on one line; no `event:` line where the name is ""."""
    if name:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(document))
    return b"data: %b\n\n" % encode(document)
