"""Stream: what every translated stream has in common, whatever is told.

PURE, sans-I/O. A stream is fed, and then it ends or breaks. It is over once; an error that comes before anything was
told is `failed`, and an event only for who asks on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from reconciler.dialects.errors import Error
from reconciler.dialects.sse import Event, Events, TooLong
from reconciler.dialects.text import decode

DONE = "[DONE]"


class Broken(Exception):
    """The stream cannot go on."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.message)
        self.error = error


def nonsense(message: str) -> Broken:
    """The provider's fault: 502."""
    return Broken(Error(502, "", message))


class Stream(ABC):
    """Feed it a provider's stream; see `bridge.Bridge` for `failed`, `feed`, `end` and `broke`."""

    def __init__(self) -> None:
        self.failed: tuple[int, bytes] | None = None
        self._events = Events()
        self._begun = False  # something was told
        self._over = False
        self._error: Error | None = None  # that nobody was told yet

    @abstractmethod
    def _event(self, one: Event, out: list[bytes]) -> None:
        """Take an event. Raises `Broken`."""

    @abstractmethod
    def _close(self, out: list[bytes]) -> None:
        """The provider's stream is over: tell the rest, and the end. Raises `Broken` where it came too early."""

    @abstractmethod
    def _refusal(self, error: Error) -> tuple[int, bytes]:
        """Status and body of an error."""

    @abstractmethod
    def _error_event(self, error: Error) -> bytes:
        """An error inside a stream."""

    def feed(self, data: bytes) -> bytes:
        """Events for the caller, maybe none."""
        out: list[bytes] = []
        if not self._over:
            try:
                try:
                    events = self._events.feed(data)
                except TooLong as error:
                    self._take(error.events, out)
                    raise nonsense(f"The provider's stream cannot be read: {error}") from None
                self._take(events, out)
            except Broken as broken:
                self._fail(broken.error, out)
        return b"".join(out)

    def end(self) -> bytes:
        """What is left to say."""
        out: list[bytes] = []
        if not self._over:
            try:
                self._take([one for one in self._rest() if _complete(one)], out)
                if not self._over:
                    self._close(out)
            except Broken as broken:
                self._fail(broken.error, out)
        return b"".join(out) + self._tell()

    def broke(self, status: int, message: str) -> bytes:
        """An error event, unless the stream was over."""
        out: list[bytes] = []
        if not self._over:
            self._fail(Error(status, "", message), out)
        return b"".join(out) + self._tell()

    def _rest(self) -> list[Event]:
        try:
            return self._events.finish()
        except TooLong as error:
            raise nonsense(f"The provider's stream cannot be read: {error}") from None

    def _take(self, events: list[Event], out: list[bytes]) -> None:
        for one in events:
            if self._over:
                return
            if one.data:
                self._event(one, out)

    def _fail(self, error: Error, out: list[bytes]) -> None:
        self._over = True
        if self._begun:
            out.append(self._error_event(error))
        else:
            self._error = error
            self.failed = self._refusal(error)

    def _tell(self) -> bytes:
        """The error that nobody has been told."""
        error, self._error = self._error, None
        return b"" if error is None else self._error_event(error)


def _complete(one: Event) -> bool:
    """Whether the last event, whose end nobody saw, is all there."""
    try:
        return one.data.strip() == DONE or decode(one.data) is not None
    except ValueError:
        return False
