"""Two bridges, one after the other: a caller's dialect through a second one to the upstream's.

PURE. The first bridge's upstream is the second one's caller: responses → chat → messages.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.bridge import Bridge


class Composed:
    """A `Bridge`. `second` was made from `first.document`; `first` knows what there is to keep of the exchange."""

    def __init__(self, first: Bridge, second: Bridge) -> None:
        self.first = first
        self._second = second
        self.path = second.path
        self.document: dict[str, Any] = second.document
        self.ignored = tuple(sorted({*first.ignored, *second.ignored}))
        self.failed: tuple[int, bytes] | None = None

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """As `Bridge`."""
        return self.first.whole(*self._second.whole(status, body))

    def feed(self, data: bytes) -> bytes:
        """As `Bridge`."""
        said = self.first.feed(self._second.feed(data))
        if self._second.failed is not None and self.failed is None:
            self.failed = self.first.whole(*self._second.failed)
        elif self.first.failed is not None:
            self.failed = self.first.failed
        return said

    def end(self) -> bytes:
        """As `Bridge`."""
        said = self.first.feed(self._second.end())
        return said + self.first.end()

    def broke(self, status: int, message: str) -> bytes:
        """As `Bridge`."""
        # The second's own words for it would only be read again by the first.
        return self.first.broke(status, message)
