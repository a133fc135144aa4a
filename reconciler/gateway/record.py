"""Record: what is known of one request once it is over. Numbers and names, never a key, never content.

The parts through which a request goes fill it in; metrics, access log and spans are made from it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from reconciler.gateway.usage import Meter

if TYPE_CHECKING:
    from reconciler.gateway.spans import Span
    from reconciler.gateway.tap import Copy

PACE_SECONDS = 0.05  # a stream that took less tells nothing of how fast it is written
GONE = "client_gone"


class Record:
    """One request.

    `began` and `first` (the first byte of the answer's body; 0: none) are `time.perf_counter()`. `model` is what was
    asked for, `known` the same as far as the routes name it, else "unknown". `status` is 0 while nothing was written.
    `read` and `written` are tokens, None where no target told. `broke` is the code of what went wrong, empty where
    nothing did. `troubles` are (target, kind), `fallbacks` (model, target that failed, kind), `rotations` (provider,
    status): all are None while there are none.
    """

    __slots__ = (
        "address", "attempts", "began", "broke", "copy", "fallbacks", "first", "key", "known", "model", "operation",
        "pace", "path", "read", "received", "request_id", "rotations", "sent", "span", "status", "streamed", "target",
        "troubles", "written",
    )  # fmt: skip

    def __init__(self, request_id: str, address: str) -> None:
        self.began = time.perf_counter()
        self.request_id = request_id
        self.address = address
        self.operation = "other"
        self.path = ""
        self.model = ""
        self.known = "none"
        self.key = "none"
        self.target = "none"
        self.streamed = False
        self.attempts = 0
        self.status = 0
        self.received = 0
        self.sent = 0
        self.first = 0.0
        self.read: int | None = None
        self.written: int | None = None
        self.pace = 0.0
        self.broke = ""
        self.troubles: list[tuple[str, str]] | None = None
        self.fallbacks: list[tuple[str, str, str]] | None = None
        self.rotations: list[tuple[str, str]] | None = None
        self.copy: Copy | None = None
        self.span: Span | None = None

    def meter(self) -> Meter:
        """One that hears the answer of the next target."""
        self.attempts += 1
        return Meter(time.perf_counter)

    def count(self, meter: Meter) -> None:
        """Add what a target told of its answer."""
        usage = meter.usage()
        if usage is None:
            return
        if usage.read is not None:
            self.read = (self.read or 0) + usage.read
        if usage.written is not None:
            self.written = (self.written or 0) + usage.written
            took = time.perf_counter() - meter.first
            if meter.streamed and took >= PACE_SECONDS:
                self.pace = usage.written / took

    def trouble(self, target: str, kind: str) -> None:
        """A target failed."""
        self.troubles = [*(self.troubles or ()), (target, kind)]

    def fallback(self, after: str, kind: str) -> None:
        """The next one is asked, after that one failed."""
        self.fallbacks = [*(self.fallbacks or ()), (self.known, after, kind)]

    def rotation(self, provider: str, status: int) -> None:
        """The next key of a provider is tried, after one got that status."""
        self.rotations = [*(self.rotations or ()), (provider, str(status))]
