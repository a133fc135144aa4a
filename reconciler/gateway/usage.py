"""Usage: how many tokens an answer took, as its target tells them. PURE.

A `Meter` hears an answer as it goes by and keeps its first and its last few KiB; nothing is parsed before it is over,
and then only the object that tells the usage. The numbers are the target's own: where it tells none, none are counted.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

HEAD = 2048  # bytes of an answer's beginning: in Anthropic's streams, what was read is told there
TAIL = 8192  # bytes of its end
MOST = 10**9  # tokens of one answer: a larger number is nonsense
_KEY = b'"usage"'
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_TIMINGS = b'"timings":'
_OBJECT = 2048  # bytes that such an object takes at most
_CACHED = ("cache_creation_input_tokens", "cache_read_input_tokens")
_DECODER = json.JSONDecoder()


class Usage(NamedTuple):
    """Tokens that were read (with those from a cache) and written; None where the target does not say."""

    read: int | None
    written: int | None


class Meter:
    """Call it with each piece of an answer's body. `first` is when the first one came, by the clock, or 0."""

    __slots__ = ("_clock", "_head", "_lost", "_room", "_size", "_tail", "first")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.first = 0.0
        self._clock = clock
        self._room = HEAD
        self._head: list[bytes] = []
        self._tail: deque[bytes] = deque()
        self._size = 0
        self._lost = False

    def __call__(self, data: bytes) -> None:
        if self._room:
            if not self.first:
                self.first = self._clock()
            self._head.append(part := data[: self._room])
            self._room -= len(part)
            if not (data := data[len(part) :]):
                return
        if len(data) > TAIL:
            data, self._lost = data[-TAIL:], True
        tail = self._tail
        tail.append(data)
        self._size += len(data)
        while self._size - len(tail[0]) >= TAIL:
            self._size -= len(tail.popleft())
            self._lost = True

    @property
    def streamed(self) -> bool:
        """Whether it was a stream of events."""
        begun = self._head[0] if len(self._head) == 1 else b"".join(self._head)
        return begun.lstrip().startswith((b"data:", b"event:", b"id:", b":"))

    def usage(self) -> Usage | None:
        """What has been told so far; None where nothing was."""
        if not self._head:
            return None
        head, tail = b"".join(self._head), b"".join(self._tail)
        if not self._lost:
            head = tail = head + tail
        if self.streamed:
            return _streamed(head, tail) or _timed(tail)
        if not self._lost and tail.count(_KEY) > 1:
            return _outermost(tail)
        return next(_told(tail), None) or (next(_told(head), None) if self._lost else None)


def _streamed(head: bytes, tail: bytes) -> Usage | None:
    """What was told last; what was read may have been told at the beginning alone."""
    last = next(_told(tail), None)
    if last is not None and last.read and last.written is not None:
        return last
    begun = next(_told(head, last=False), None)
    if begun is None or last is None:
        return last or begun
    known = [count for count in (begun.read, last.read) if count is not None]
    return Usage(max(known, default=None), begun.written if last.written is None else last.written)


def _timed(tail: bytes) -> Usage | None:
    """A llama-server's last event says what it has timed, also where its usage was not asked for."""
    place = tail.rfind(_TIMINGS)
    if place < 0:
        return None
    try:
        text = tail[place + len(_TIMINGS) :][:_OBJECT].decode("utf-8", "replace")
        told = _DECODER.raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None
    fresh = _count(told, "prompt_n")
    read = fresh + (_count(told, "cache_n") or 0) if fresh is not None else None
    written = _count(told, "predicted_n")
    return Usage(read, written) if read is not None or written is not None else None


def _told(data: bytes, *, last: bool = True) -> Iterator[Usage]:
    """Each usage in the bytes, from the last or from the first. A quote in a text is escaped, so no text looks so."""
    place = data.rfind(_KEY) if last else data.find(_KEY)
    while place >= 0:
        if match := _USAGE.match(data, place):
            start = match.end()
            with suppress(ValueError, RecursionError):
                told = _DECODER.raw_decode(data[start : start + _OBJECT].decode("utf-8", "replace"))[0]
                if (usage := _usage(told)) is not None:
                    yield usage
        place = data.rfind(_KEY, 0, place) if last else data.find(_KEY, place + 1)


def _outermost(body: bytes) -> Usage | None:
    """Of several only that of the answer itself counts: what a model calls a tool with may be named so, too."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return _usage(document.get("usage")) if isinstance(document, dict) else None


def _usage(told: Any) -> Usage | None:
    """In OpenAI's words what came from a cache is part of what was read, in Anthropic's it is told beside it."""
    if not isinstance(told, dict):
        return None
    read, written = _count(told, "prompt_tokens"), _count(told, "completion_tokens")
    if read is None and written is None:
        read, written = _count(told, "input_tokens"), _count(told, "output_tokens")
        read = read + sum(_count(told, name) or 0 for name in _CACHED) if read is not None else None
    return Usage(read, written) if read is not None or written is not None else None


def _count(told: Any, name: str) -> int | None:
    value = told.get(name) if isinstance(told, dict) else None
    return value if type(value) is int and 0 <= value <= MOST else None


def wants_usage(document: dict[str, Any]) -> bool:
    """Whether a chat request asks for the usage of its stream, or says about it what nobody can read."""
    options = document.get("stream_options")
    return options.get("include_usage") is True if isinstance(options, dict) else options is not None


def with_usage(document: dict[str, Any]) -> dict[str, Any]:
    """The same request, which asks for the usage of its stream."""
    return {**document, "stream_options": {**(document.get("stream_options") or {}), "include_usage": True}}


class WithoutUsage:
    """A chat stream without the event that tells the usage, which the client did not ask for. Feed it whole lines."""

    __slots__ = ("_blank",)

    def __init__(self) -> None:
        self._blank = False

    def feed(self, data: bytes) -> bytes:
        """What the client gets of it."""
        if not self._blank and b'"usage"' not in data:
            return data
        out = []
        for line in data.splitlines(keepends=True):
            if self._blank and not line.strip():
                self._blank = False  # the end of the event that was taken out
                continue
            self._blank = line.startswith(b"data:") and b'"usage"' in line and _only_usage(line[5:])
            if not self._blank:
                out.append(line)
        return b"".join(out)


def _only_usage(data: bytes) -> bool:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and event.get("choices") == [] and isinstance(event.get("usage"), dict)
