"""Bridge: one exchange between a caller and an upstream that speak different dialects.

PURE. A bridge is made from the caller's request, carries what has to be remembered until the answer is over, and is
used once. It never raises for what an upstream says.
"""

from __future__ import annotations

from typing import Any, Protocol


class Unmappable(Exception):
    """A request that cannot be said in the other dialect.

    `field` is where, as a dotted path; `message` is why, and what helps.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Bridge(Protocol):
    """One exchange, translated.

    A streamed answer comes through `feed` until the upstream's body ends (`end`) or breaks (`broke`). `feed` returns
    b"" until there is something to say that cannot be taken back, so that the gateway can still ask somebody else.
    Once `failed` is set, nothing has been said and `feed` stays silent; `end` then says the same as an error event,
    for a caller whose stream is already open.
    """

    path: str
    """The operation at the upstream, without prefix: "/chat/completions" or "/messages"."""
    document: dict[str, Any]
    """What to send, with the caller's name of the model."""
    ignored: tuple[str, ...]
    """Harmless fields that were left out, as dotted paths without positions, sorted."""

    @property
    def failed(self) -> tuple[int, bytes] | None:
        """Status and whole body for the caller, where the stream failed before any content."""
        ...

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """The caller's status and body, from a whole answer of the upstream or its error."""
        ...

    def feed(self, data: bytes) -> bytes:
        """The caller's event bytes, maybe none, from bytes of the upstream's event stream cut anywhere."""
        ...

    def end(self) -> bytes:
        """The body came to its end: what is left to say; an error event where the stream had not come to its own."""
        ...

    def broke(self, status: int, message: str) -> bytes:
        """The connection broke or stalled: an error event; nothing where the stream was over already."""
        ...
