"""Tap: requests and answers as they go by, for who listens on the control socket.

While nobody listens nothing is copied. What a listener does not fetch in time is left out, and it is told how much:
neither a slow one nor one that reads nothing holds up a request or takes more than a fixed amount of memory. What is
shown is masked. Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from reconciler.gateway.mask import Mask, secret_values
from reconciler.gateway.record import Record

MOST_TAPS = 8
MOST_BODY = 256 << 10  # bytes of a body that are shown
MOST_HELD = 4 << 20  # bytes that wait for one listener
MOST_COPIES = 64  # requests that are copied at once

Entry = dict[str, Any]


class Tap:
    """One listener, for what is asked under one `name`; `bodies`: with what was said."""

    def __init__(self, name: str, *, bodies: bool) -> None:
        self.name = name
        self.bodies = bodies
        self._lost = 0
        self._entries: deque[bytes] = deque()
        self._size = 0
        self._come = asyncio.Event()

    def put(self, entry: Entry) -> None:
        """Have it fetched, or count it as lost."""
        data = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        if self._size + len(data) > MOST_HELD:
            self.lose()
            return
        if self._lost:
            self._hold(self._gap())
        self._hold(data)

    def lose(self) -> None:
        """One entry is left out."""
        self._lost += 1
        self._come.set()

    def _hold(self, data: bytes) -> None:
        self._entries.append(data)
        self._size += len(data)
        self._come.set()

    def _gap(self) -> bytes:
        lost, self._lost = self._lost, 0
        return json.dumps({"event": "lost", "entries": lost}).encode() + b"\n"

    async def lines(self) -> AsyncIterator[bytes]:
        """Each entry as a line, for ever, and in the place of those that were lost how many."""
        while True:
            while not (self._entries or self._lost):
                self._come.clear()
                await self._come.wait()
            if not self._entries:
                yield self._gap()
                continue
            data = self._entries.popleft()
            self._size -= len(data)
            yield data


class Taps:
    """All who listen. `secrets` gives what must never be shown, whatever it looks like."""

    def __init__(self, secrets: Callable[[], Iterable[str]]) -> None:
        self.open: list[Tap] = []
        self._secrets = secrets
        self._copies = 0

    @contextmanager
    def listening(self, name: str, *, bodies: bool) -> Iterator[Tap]:
        """A listener for as long as this lasts; raises ValueError where there are too many."""
        if len(self.open) >= MOST_TAPS:
            raise ValueError(f"{MOST_TAPS} taps are open already; close one")
        tap = Tap(name, bodies=bodies)
        self.open.append(tap)
        try:
            yield tap
        finally:
            self.open.remove(tap)

    def copy(self, record: Record, path: str, headers: Mapping[str, str], document: Any, body: bytes) -> Copy | None:
        """A copy of a request and its answer; only to be called while somebody listens. `document` is what `body` says.

        None where too many are being copied: then all who listen are told that they lost one.
        """
        if self._copies >= MOST_COPIES:
            for tap in self.open:
                tap.lose()
            return None
        self._copies += 1
        mask = Mask([*self._secrets(), *secret_values(headers)])
        return Copy(self, mask, record, path, headers, document, body)

    def end(self) -> None:
        """One copy less."""
        self._copies -= 1


class Copy:
    """One request that is shown to those who listen for a name that it was asked or served under."""

    def __init__(
        self,
        taps: Taps,
        mask: Mask,
        record: Record,
        path: str,
        headers: Mapping[str, str],
        document: Any,
        body: bytes,
    ) -> None:
        self._taps = taps
        self._mask = mask
        self._asked = (record, path, headers, document, body)
        self._told: list[Tap] = []
        self._said: list[bytes] = []
        self._size = 0
        self._more = 0
        self._bodies = any(tap.bodies for tap in taps.open)

    def reach(self, *names: str) -> None:
        """It is asked, or served, under these names: whoever listens for one of them is shown the request."""
        for tap in self._taps.open:
            if tap.name in names and tap not in self._told:
                self._told.append(tap)
                tap.put(self._request(tap.bodies))

    def add(self, data: bytes) -> None:
        """A piece of the answer's body."""
        if not self._bodies:
            return
        part = data[: MOST_BODY - self._size]
        self._more += len(data) - len(part)
        if part:
            self._said.append(part)
            self._size += len(part)

    def done(self, record: Record, seconds: float) -> None:
        """The answer is over."""
        self._taps.end()
        listening = [tap for tap in self._told if tap in self._taps.open]
        said = None
        if any(tap.bodies for tap in listening):
            said = self._mask.body(b"".join(self._said), cut=self._more > 0)
        for tap in listening:
            tap.put(self._answer(record, seconds, said if tap.bodies else None))

    def _request(self, bodies: bool) -> Entry:
        record, path, headers, document, body = self._asked
        entry: Entry = {
            "event": "request",
            "id": record.request_id,
            "at": time.time(),
            "path": path,
            "model": self._mask.text(record.model),
            "key": record.key,
            "client": record.address,
            "headers": self._mask.headers(headers.items()),
        }
        if bodies and len(body) <= MOST_BODY:
            entry["body"] = self._mask.value(document)
        elif bodies:
            entry |= {"body": self._mask.body(body[:MOST_BODY], cut=True), "body_cut": True}
        return entry

    def _answer(self, record: Record, seconds: float, said: Any) -> Entry:
        entry: Entry = {
            "event": "answer",
            "id": record.request_id,
            "at": time.time(),
            "status": record.status,
            "target": record.target,
            "attempts": record.attempts,
            "tokens_in": record.read,
            "tokens_out": record.written,
            "first_byte_ms": round((record.first - record.began) * 1000, 1) if record.first else None,
            "ms": round(seconds * 1000, 1),
            "broke": record.broke,
        }
        if said is not None:
            entry |= {"body": said, **({"body_cut": True} if self._more else {})}
        return entry
