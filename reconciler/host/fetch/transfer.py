"""What is missing of one file, from one address, over several connections at once.

The first request asks for the first segment and thereby learns everything: size, version, whether ranges are there.
Then every connection takes the next segment that nobody has, so that the file grows from its beginning. Each answer
must be of the version that the first one named: bytes of two versions are never put side by side, `Changed` is raised
instead. A server without ranges, or without anything to tell its versions apart, is read as one stream.

A connection that fails gives back what it still had to bring. While others go on that is all; when none is left, all
begin again after a pause, until `tries` times in a row brought nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.plan import human_bytes
from reconciler.host.fetch import spans
from reconciler.host.fetch.ask import no_ranges
from reconciler.host.fetch.pace import Lane
from reconciler.host.fetch.part import Sink, Version
from reconciler.host.fetch.patience import Patience
from reconciler.host.fetch.threads import ended
from reconciler.host.fetch.wire import Access, Place, Wire, body, shown, status_fault

if TYPE_CHECKING:
    import httpx2

SEGMENT = 12 << 20  # bytes of one request
LEAST = 2 << 20  # bytes that are worth a request of their own
BATCH = 1 << 19  # bytes that one connection gathers before they are written
MOST_PIECES = 64
OFTEN = 0.5  # seconds after which also fewer are written
PROGRESS = 1 << 16  # bytes that count as going forward


class Changed(Exception):
    """What is there does not fit what the server has now. `plain`: asking for ranges is what it cannot bear."""

    def __init__(self, fault: Fault, *, plain: bool = False) -> None:
        self.fault, self.plain = fault, plain
        super().__init__(fault.code)


class Transfer:
    """`held` is the version that the sink has bytes of, if it is the server's; `sure` that its bytes will be proven.

    `size` (bytes) is what the file must have, where that is known. `plain` asks for no ranges.
    """

    def __init__(
        self,
        wire: Wire,
        url: str,
        access: Access,
        sink: Sink,
        lane: Lane,
        patience: Patience,
        *,
        held: Version | None = None,
        sure: bool = False,
        size: int | None = None,
        plain: bool = False,
        whole: bool = True,
        connections: int = 4,
    ) -> None:
        self._wire, self._url, self._access, self._sink, self._lane = wire, url, access, sink, lane
        self._patience, self._sure, self._wanted_size, self._connections = patience, sure, size, connections
        self._version, self._plain, self._whole = held, plain, whole
        self._todo: list[spans.Span] = []
        self._shortcut: Place | None = None
        self._fault: Fault | None = None
        self._ended = False

    async def run(self) -> None:
        """Bring all that is missing. Raises Fault or Changed."""
        tries, best = 0, self._sink.done
        while True:
            try:
                await self._session()
                if self._complete():
                    return
                fault = self._fault or Fault("CUT_SHORT", f"{shown(self._url)}: the connection ended early")
            except Fault as error:
                fault = error
            if fault.kind is not FaultClass.TRANSIENT:
                raise fault
            tries = 1 if self._sink.done >= best + PROGRESS else tries + 1
            best = max(best, self._sink.done)
            if tries >= self._patience.tries or fault.after > self._patience.longest:
                raise fault
            await asyncio.sleep(self._patience.before(tries, fault))

    def _complete(self) -> bool:
        return self._ended or (self._sink.size is not None and not self._sink.missing())

    # --- one session: open, then as many connections as are of use --------------------------------------------------

    async def _session(self) -> None:
        self._fault = None
        first, span = await self._open()
        try:
            async with asyncio.TaskGroup() as group:
                follower = group.create_task(self._sink.follow())
                if span is None:
                    await self._stream(first)
                else:
                    self._todo = list(self._after(span))
                    async with asyncio.TaskGroup() as workers:
                        workers.create_task(self._work(first, span))
                        for _ in range(min(self._connections, self._requests() + 1) - 1):
                            workers.create_task(self._work())
                follower.cancel()
        except BaseExceptionGroup as group_error:
            raise _telling(group_error) from None
        finally:
            await first.aclose()

    def _after(self, span: spans.Span) -> spans.Spans:
        """What is missing besides a span at the beginning of it."""
        return tuple((max(start, span[1]), end) for start, end in self._sink.missing() if end > span[1])

    def _requests(self) -> int:
        return sum(-(-(end - start) // min(LEAST, SEGMENT)) for start, end in self._todo)

    async def _work(self, opened: httpx2.Response | None = None, span: spans.Span | None = None) -> None:
        """Bring segments until none is left, or until the server lets this connection down."""
        while span := span or await self._next():
            before = self._sink.done
            response, opened = opened, None
            try:
                at = await self._segment(span, response)
                self._give_back((at, span[1]))  # a server may send less than it was asked for
                if at == span[0]:
                    return
            except _Broken as broken:
                self._give_back((broken.at, span[1]))
                self._fault = fault = broken.fault
                if fault.kind is not FaultClass.TRANSIENT:
                    raise fault from None
                if fault.code == "SOURCE_BUSY" or self._sink.done < before + PROGRESS or self._patience.tries == 1:
                    return
                await asyncio.sleep(self._patience.before(1, fault))
            span = None

    async def _next(self) -> spans.Span | None:
        """The next segment to ask for; waits until the hash is near enough to it."""
        while self._todo:
            start, end = self._todo[0]
            share = spans.total(self._todo) // self._connections  # towards the end smaller, so that all end together
            cut = min(end, start + min(SEGMENT, max(LEAST, share)))
            if self._sink.near(cut):
                self._todo[0:1] = [(cut, end)] if cut < end else []
                return start, cut
            await self._moved()
        return None

    def _give_back(self, span: spans.Span) -> None:
        self._todo = list(spans.joined((*self._todo, span)))
        self._sink.moved.set()  # who waits for the hash to come nearer may be the one to bring what it waits for

    async def _moved(self) -> None:
        self._sink.moved.clear()
        await self._sink.moved.wait()

    async def _segment(self, span: spans.Span, response: httpx2.Response | None) -> int:
        """Bring a span → where it ended, which is earlier if the server sent less. Raises _Broken or Changed."""
        try:
            if response is None:
                response = await self._ask(_range(span) | self._if_range())
                self._judge(response, span)
        except Fault as fault:
            if response is not None:
                await response.aclose()
            raise _Broken(span[0], fault) from fault
        except BaseException:
            if response is not None:
                await response.aclose()
            raise
        try:
            return await self._pour(response, *span)
        finally:
            await response.aclose()

    async def _stream(self, response: httpx2.Response) -> None:
        """The whole file from its beginning to wherever it ends."""
        size = self._version.size if self._version else None
        try:
            at = await self._pour(response, 0, self._wanted_size + 1 if self._wanted_size is not None else None)
        except _Broken as broken:
            raise broken.fault from None
        if size is not None and at != size:
            raise Fault("CUT_SHORT", f"{shown(self._url)}: the connection ended after {at} of {size} bytes")
        self._check_size(at)
        self._ended = True
        self._sink.ended_at(at)

    async def _pour(self, response: httpx2.Response, at: int, end: int | None) -> int:
        """Write an answer's bytes from `at` on, none beyond `end` → where they ended. Raises _Broken."""
        batch, held, flying = list[bytes](), 0, None
        clock = asyncio.get_running_loop().time
        since = clock()
        try:
            async with aclosing(body(response, self._url)) as pieces:
                async for piece in pieces:
                    if at == 0 and not batch:
                        _refuse_page(self._url, response, piece)
                    if end is not None and at + held + len(piece) > end:
                        piece = piece[: end - at - held]
                    batch.append(piece)
                    held += len(piece)
                    await self._lane.take(len(piece))
                    if held >= BATCH or len(batch) >= MOST_PIECES or clock() - since > OFTEN:
                        if flying is not None:
                            await ended(flying)
                            flying = None
                        await self._sink.room(held)
                        while not self._sink.near(at):
                            await self._moved()
                        flying = self._sink.put(at, batch)
                        at, batch, held, since = at + held, [], 0, clock()
                    if end is not None and at + held == end:
                        break
        except Fault as fault:
            raise _Broken(await self._landed(at, batch, flying), fault) from fault
        except asyncio.CancelledError:
            await self._landed(at, batch, flying)
            raise
        return await self._landed(at, batch, flying)

    async def _landed(self, at: int, batch: Sequence[bytes], flying: asyncio.Future[None] | None) -> int:
        """Write what is left, and wait until all is written → where it ends."""
        if flying is not None:
            await ended(flying)
        if batch:
            await ended(self._sink.put(at, batch))
        return at + sum(map(len, batch))

    # --- asking and judging -----------------------------------------------------------------------------------------

    async def _open(self) -> tuple[httpx2.Response, spans.Span | None]:
        """The first answer, and the span that it brings; None for the whole file in one stream."""
        missing = self._sink.missing() if self._sink.size is not None else None
        if self._plain:
            span = None
        elif missing:
            span = (missing[0][0], min(missing[0][1], missing[0][0] + SEGMENT))
        elif self._sink.done:  # of a file whose end nobody knows
            span = (self._sink.done, self._sink.done + SEGMENT)
        elif self._wanted_size is not None and self._wanted_size <= SEGMENT:
            span = None
        else:
            span = (0, SEGMENT)
        if span is not None:
            while not self._sink.near(span[1]):
                await self._moved()
        response = await self._ask(_range(span) | self._if_range() if span else {})
        try:
            return response, await self._judge_first(response, span)
        except BaseException:
            await response.aclose()
            raise

    async def _judge_first(self, response: httpx2.Response, span: spans.Span | None) -> spans.Span | None:
        if span is not None and response.status_code in (206, 416):
            if self._version is not None:
                return self._judge(response, span)
            if response.status_code == 416:
                raise Changed(status_fault(self._url, 416, response.headers), plain=span[0] == 0)
            found = _content_range(response)
            if found is None or found[0] != span[0] or found[2] is None:
                raise Changed(_odd_range(self._url), plain=True)
            if self._sink.done and found[2] != self._sink.size:
                raise Changed(_changed(self._url))
            version = _version(response, found[2])
            if not (version.validator or self._sure) and found[1] < found[2]:
                raise Changed(_odd_range(self._url), plain=True)
            self._check_size(found[2])
            self._take_on(version)
            return span[0], min(span[1], found[1])
        if response.status_code != 200:
            raise status_fault(self._url, response.status_code, response.headers)
        if not self._whole:
            raise no_ranges(self._url)
        if self._version is not None and span is not None and response.headers.get("accept-ranges") == "bytes":
            raise Changed(_changed(self._url))
        length = response.headers.get("content-length", "")
        size = int(length) if length.isdigit() else None
        if size is not None:
            self._check_size(size)
        if self._sink.done:
            await self._sink.clear()
        self._take_on(_version(response, size))
        return None

    def _take_on(self, version: Version) -> None:
        self._version = version
        self._sink.bind(self._url, version)

    def _judge(self, response: httpx2.Response, span: spans.Span) -> spans.Span:
        """What of a span this answer brings. Raises Fault, and Changed if it is of another version."""
        status, version = response.status_code, self._version
        assert version is not None
        if status == 416:
            raise Changed(status_fault(self._url, 416, response.headers))
        if status == 200:
            raise Changed(_changed(self._url))
        if status != 206:
            raise status_fault(self._url, status, response.headers)
        found = _content_range(response)
        if found is None or found[0] != span[0]:
            raise Changed(_odd_range(self._url), plain=True)
        etag = response.headers.get("etag", "")
        if (found[2] is not None and version.size is not None and found[2] != version.size) or (
            etag and version.etag and etag != version.etag
        ):
            raise Changed(_changed(self._url))
        if version.size is None and found[2] is not None:
            self._take_on(Version(found[2], version.etag, version.modified))
        return span[0], min(span[1], found[1])

    def _check_size(self, size: int) -> None:
        if self._wanted_size is not None and size != self._wanted_size:
            raise Fault(
                "SIZE_MISMATCH",
                f"{shown(self._url)} has {size} bytes ({human_bytes(size)}), but {self._wanted_size} were announced",
                hint="distrust the source, or take what it has now with `reconcile lock --upgrade`",
                kind=FaultClass.PERMANENT,
            )

    def _if_range(self) -> dict[str, str]:
        return {"If-Range": self._version.validator} if self._version and self._version.validator else {}

    async def _ask(self, headers: dict[str, str]) -> httpx2.Response:
        """Ask where a redirect led the last time, and at the address itself if that works no more."""
        headers = {"Accept-Encoding": "identity"} | headers
        if (shortcut := self._shortcut) is not None:
            try:
                response, _ = await self._wire.ask("GET", shortcut, self._access, headers)
            except Fault:
                self._shortcut = None
                raise
            if response.status_code in (200, 206, 416):
                return response
            self._shortcut = None
            await response.aclose()
        response, place = await self._wire.ask("GET", Place(self._url), self._access, headers)
        if place.url != self._url and response.status_code in (200, 206):
            self._shortcut = place
        return response


class _Broken(Exception):
    """A connection ended with a fault; everything before `at` is written."""

    def __init__(self, at: int, fault: Fault) -> None:
        self.at, self.fault = at, fault
        super().__init__(fault.code)


def _telling(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception of a group that says most: a person's interrupt, a change, then whatever came first."""
    leaves = list(_leaves(group))
    for sort in (KeyboardInterrupt, SystemExit, Changed):
        for leaf in leaves:
            if isinstance(leaf, sort):
                return leaf
    return leaves[0]


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _range(span: spans.Span) -> dict[str, str]:
    return {"Range": f"bytes={span[0]}-{span[1] - 1}"}


def _content_range(response: httpx2.Response) -> tuple[int, int, int | None] | None:
    """Start, end (exclusive) and total of a 206; None where it does not say, or says nonsense."""
    unit, _, rest = response.headers.get("content-range", "").partition(" ")
    where, _, total = rest.partition("/")
    first, _, last = where.partition("-")
    if unit != "bytes" or not (first.isdigit() and last.isdigit()) or int(last) < int(first):
        return None
    if total.isdigit() and int(last) >= int(total):
        return None
    return int(first), int(last) + 1, int(total) if total.isdigit() else None


def _version(response: httpx2.Response, size: int | None) -> Version:
    return Version(size, response.headers.get("etag", ""), response.headers.get("last-modified", ""))


def _changed(url: str) -> Fault:
    return Fault("SOURCE_CHANGED", f"{shown(url)} changed while it was fetched; it is begun again")


def _odd_range(url: str) -> Fault:
    return Fault("RANGE_REFUSED", f"{shown(url)}: the server's ranges make no sense; it is begun again")


def _refuse_page(url: str, response: httpx2.Response, piece: bytes) -> None:
    """Raise Fault when a file's first bytes are those of a web page."""
    start = piece[:512].lstrip().lower()
    claimed = response.headers.get("content-type", "").partition(";")[0].strip() == "text/html"
    if start.startswith((b"<!doctype html", b"<html")) or (claimed and start.startswith(b"<")):
        raise Fault(
            "NOT_A_FILE",
            f"{shown(url)} is a web page, not a file",
            hint="the address leads to a web page; use the direct download link, or sign in where it asks for it",
            kind=FaultClass.PERMANENT,
        )
