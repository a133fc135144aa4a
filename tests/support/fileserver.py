"""A real HTTP file server on 127.0.0.1 for download tests, honest by default and faulty on request.

Promises: files are served with a strong ETag (their sha256), Content-Length, single byte ranges (206, 416 and
Content-Range) and the conditions If-Range, If-Match and If-None-Match; HEAD tells what GET would. Every request is in
`log` and every body byte handed to the socket is counted in `sent`, before the client can have it. The server runs in a
thread of its own, so a test may block, and it is gone when the `with` block ends; `stop()` and `start()` in between
keep the port. When a client stops reading, the kernel holds up to some 6 MB that are counted but never seen.

    with FileServer({"/m.gguf": data}) as server:
        server.cut(after_bytes=1000, times=2)
        fetch(server.url("/m.gguf"))

Faults may be set and cleared while requests run; a request meets the faults set when it arrives. Each is for one `path`
or, without one, for all; a fault for the path goes before one for all. `times` is how many responses it spoils (None:
until cleared), and setting a fault again for the same path replaces it. Faults for several paths or of several sorts
combine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

HOST = "127.0.0.1"
LOGIN_PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><form>Password?</form></body></html>\n"

_CHUNK = 64 * 1024
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class Request:
    """One request as it arrived; `range` is the Range header, `headers` are looked up in any case."""

    method: str
    path: str
    query: str
    range: str | None
    headers: CIMultiDictProxy[str]


@dataclass(frozen=True)
class File:
    content: bytes
    content_type: str

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()}"'


@dataclass
class _Fault:
    sort: str
    path: str | None
    value: Any
    left: int | None


class FileServer:
    """Serves `files`, a map from absolute URL path to content. Paths that end in "/" or ".html" are HTML pages.

    With `tls` it speaks HTTPS with that certificate.
    """

    def __init__(self, files: Mapping[str, bytes] | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.log: list[Request] = []
        self.sent: Counter[str] = Counter()
        self.port = 0
        self._under_way: Counter[str] = Counter()
        self._files: dict[str, File] = {}
        self._faults: list[_Fault] = []
        self._changes: dict[str, tuple[int, bytes]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        for path, content in (files or {}).items():
            self.replace(path, content)

    # --- life -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the former port if there was one; returns when connections are accepted."""
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _CHUNK)  # keeps `sent` near the truth
            listener.bind((HOST, self.port))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        self.port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener, ready)), name=f"file server {self.port}", daemon=True
        )
        self._thread.start()
        if not ready.wait(10):
            raise RuntimeError("the file server did not start within 10 s")

    def stop(self) -> None:
        """Close the listener and every connection, also those in the middle of a body."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        thread.join(10)
        if thread.is_alive():
            raise RuntimeError("the file server did not stop within 10 s")

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.05)
        await runner.setup()
        try:
            await web.SockSite(runner, listener, ssl_context=self._tls).start()
            ready.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()

    # --- files ------------------------------------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        return self.url("")

    def url(self, path: str, host: str = HOST) -> str:
        """`host="localhost"` gives the same file under another host name."""
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    def replace(self, path: str, content: bytes, content_type: str | None = None) -> None:
        """Add a file or change it, which changes its ETag; bodies under way go on with the old content."""
        kind = content_type or ("text/html" if path.endswith(("/", ".html")) else "application/octet-stream")
        self._files[path] = File(content, kind)

    def remove(self, path: str) -> None:
        del self._files[path]

    def holds(self, path: str) -> bool:
        return path in self._files

    def respond(self, request: web.Request) -> web.Response | File | None:
        """For a subclass: what to answer once no fault is in the way; a response is sent as it is."""
        return self.find(request.path, request.headers)

    def find(self, path: str, headers: CIMultiDictProxy[str]) -> File | None:
        """What to serve; a subclass may negotiate by `headers`."""
        return self._files.get(path)

    def requests(self, path: str, method: str = "GET") -> list[Request]:
        return [request for request in self.log if (request.path, request.method) == (path, method)]

    # --- faults -----------------------------------------------------------------------------------------------------

    def status(
        self, code: int, times: int | None = 1, *, retry_after: float | str | None = None, path: str | None = None
    ) -> None:
        """Answer `code` with a short text body, and Retry-After if given."""
        self._set("status", path, (code, retry_after), times)

    def cut(self, after_bytes: int, times: int | None = 1, *, path: str | None = None) -> None:
        """Close the connection when exactly `after_bytes` of a longer body are sent."""
        self._set("cut", path, after_bytes, times)

    def stall(self, after_bytes: int, seconds: float, times: int | None = 1, *, path: str | None = None) -> None:
        """Send `after_bytes` of a longer body, pause for `seconds`, send the rest. 0 pauses after the headers."""
        self._set("stall", path, (after_bytes, seconds), times)

    def slow(self, bytes_per_second: int, times: int | None = None, *, path: str | None = None) -> None:
        """Pace each body, so that n connections get n times the rate."""
        self._set("slow", path, bytes_per_second, times)

    def corrupt(self, offset: int, times: int | None = None, *, path: str | None = None) -> None:
        """Flip every bit of the byte at `offset` of the file, in each response that includes it. The ETag stays."""
        self._set("corrupt", path, offset, times)

    def no_range(self, times: int | None = None, *, path: str | None = None) -> None:
        """Answer range requests with 200 and the whole file."""
        self._set("no_range", path, True, times)

    def lying_length(self, delta: int, times: int | None = None, *, path: str | None = None) -> None:
        """Claim that the file is `delta` bytes longer (the connection then closes early) or shorter than it is."""
        self._set("lying_length", path, delta, times)

    def redirect(self, path: str, url: str, times: int | None = None, *, code: int = 302) -> None:
        self._set("redirect", path, (url, code), times)

    def html(self, path: str | None = None, times: int | None = None) -> None:
        """Answer 200 with an HTML login page, as captive portals and expired sessions do."""
        self._set("html", path, True, times)

    def no_head(self, code: int = 405, times: int | None = None, *, path: str | None = None) -> None:
        """Refuse HEAD with `code`, as servers of signed addresses do."""
        self._set("no_head", path, code, times)

    def no_length(self, times: int | None = None, *, path: str | None = None) -> None:
        """Answer with chunks and without a length; ranges are not offered then."""
        self._set("no_length", path, True, times)

    def etag(self, etag: str, times: int | None = None, *, path: str | None = None) -> None:
        """Name this validator instead of the true one; none at all if it is empty."""
        self._set("etag", path, etag, times)

    def extra(self, data: bytes, times: int | None = None, *, path: str | None = None) -> None:
        """Send more than was promised behind each body, which then has chunks instead of a length."""
        self._set("extra", path, data, times)

    def short_ranges(self, most: int, times: int | None = None, *, path: str | None = None) -> None:
        """Answer a range with its first `most` bytes only, and say so, which a server may."""
        self._set("short_ranges", path, most, times)

    def one_at_a_time(self, times: int | None = None, *, path: str | None = None) -> None:
        """Answer 503 while another body of the same file is under way."""
        self._set("one_at_a_time", path, True, times)

    def restless(self, path: str | None = None, times: int | None = None) -> None:
        """Name another validator in each answer, as if the file changed all the time."""
        self._set("restless", path, True, times)

    def status_after(self, path: str, requests: int, code: int) -> None:
        """Answer `code` from then on, once so many more requests for the file were answered."""
        self._set("status_after", path, [requests, code], None)

    def change_after(self, path: str, requests: int, content: bytes) -> None:
        """Replace the file once so many more requests for it were answered."""
        with self._lock:
            self._changes[path] = (requests, content)

    def clear(self, path: str | None = None) -> None:
        """Remove the faults for `path`, or all faults."""
        with self._lock:
            self._faults = [fault for fault in self._faults if path is not None and fault.path != path]

    def _set(self, sort: str, path: str | None, value: Any, times: int | None) -> None:
        with self._lock:
            self._faults = [fault for fault in self._faults if (fault.sort, fault.path) != (sort, path)]
            self._faults.append(_Fault(sort, path, value, times))

    def _take(self, sort: str, path: str, applies: Callable[[Any], bool] = lambda value: True) -> Any:
        """The value of the fault that spoils this response, counted down, or None."""
        with self._lock:
            for wanted in (path, None):
                for fault in self._faults:
                    if (fault.sort, fault.path) == (sort, wanted) and fault.left != 0 and applies(fault.value):
                        if fault.left is not None:
                            fault.left -= 1
                        return fault.value
        return None

    # --- answers ----------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, headers = request.path, request.headers
        self.log.append(Request(request.method, path, request.query_string, headers.get("Range"), headers))
        self._change(path)
        if request.method == "HEAD" and (code := self._take("no_head", path)) is not None:
            return web.Response(status=code)
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        if (fault := self._take("status", path)) is not None:
            code, retry_after = fault
            extra = {} if retry_after is None else {"Retry-After": str(retry_after)}
            return web.Response(status=code, headers=extra, text=f"{code} on request\n")
        if (after := self._take("status_after", path)) is not None:
            after[0] -= 1
            if after[0] < 0:
                return web.Response(status=after[1])
        if (fault := self._take("redirect", path)) is not None:
            url, code = fault
            return web.Response(status=code, headers={"Location": url})
        if self._take("html", path):
            return web.Response(body=LOGIN_PAGE, content_type="text/html")
        file = self.respond(request)
        if file is None:
            return web.Response(status=404, text="not found\n")
        if isinstance(file, web.Response):
            return file
        return await self._answer_file(request, path, file)

    async def _answer_file(self, request: web.Request, path: str, file: File) -> web.StreamResponse:
        size = max(0, len(file.content) + (self._take("lying_length", path) or 0))
        chunked = bool(self._take("no_length", path))
        ranged = not self._take("no_range", path) and not chunked
        named = self._take("etag", path)
        etag = file.etag if named is None else named
        if self._take("restless", path):
            etag = f'"{len(self.log)}"'
        extra = self._take("extra", path) or b""
        headers = CIMultiDict({"Content-Type": file.content_type} | ({"ETag": etag} if etag else {}))
        if ranged:
            headers["Accept-Ranges"] = "bytes"
        if (code := _failed_condition(request.headers, etag)) is not None:
            return web.Response(status=code, headers={"ETag": etag})

        start, end, status = 0, size, 200
        if ranged and _range_holds(request.headers, etag):
            part = _parse_range(request.headers["Range"], size)
            if part is not None:
                start, end = part
                status = 206
                if start >= end:
                    return web.Response(status=416, headers={"Content-Range": f"bytes */{size}", "ETag": etag})
                end = min(end, start + (self._take("short_ranges", path) or end))
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if not chunked and not extra:
            headers["Content-Length"] = str(end - start)
        response = web.StreamResponse(status=status, headers=headers)
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        body = file.content[start:end]
        offset = self._take("corrupt", path, lambda offset: start <= offset < start + len(body))
        if offset is not None:
            at = offset - start
            body = body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]
        body += extra
        if self._under_way[path] and self._take("one_at_a_time", path):
            return web.Response(status=503)
        self._under_way[path] += 1
        try:
            with contextlib.suppress(ConnectionError):  # the client went away, which is its right
                await self._send(request, response, path, body, promised=end - start)
        finally:
            self._under_way[path] -= 1
        return response

    def _change(self, path: str) -> None:
        with self._lock:
            left, content = self._changes.get(path, (-1, b""))
            if left > 0:
                self._changes[path] = (left - 1, content)
            elif left == 0:
                del self._changes[path]
        if left == 0:
            self.replace(path, content)

    async def _send(
        self, request: web.Request, response: web.StreamResponse, path: str, body: bytes, promised: int
    ) -> None:
        """Sends `body`, or what the faults leave of it; closes the connection if that is less than `promised`."""
        cut = self._take("cut", path, lambda after: after < len(body))
        stall = self._take("stall", path, lambda value: value[0] < len(body))
        pace = self._take("slow", path)
        limit = len(body) if cut is None else cut
        chunk = _CHUNK if pace is None else max(1, min(_CHUNK, pace // 20))
        await response.prepare(request)
        position = 0
        while position < limit:
            end = min(position + chunk, limit)
            if stall is not None:
                after, seconds = stall
                if position == after:
                    await asyncio.sleep(seconds)
                    stall = None
                else:
                    end = min(end, after)
            if pace is not None:
                await asyncio.sleep((end - position) / pace)
            self.sent[path] += end - position  # before the write: who has the bytes finds them counted
            await response.write(body[position:end])
            position = end
        if limit < promised and request.transport is not None:
            request.transport.close()


def _failed_condition(headers: Mapping[str, str], etag: str) -> int | None:
    """The status that If-Match or If-None-Match asks for instead of the file."""
    if "If-Match" in headers and not _lists(headers["If-Match"], etag):
        return 412
    if "If-None-Match" in headers and _lists(headers["If-None-Match"], etag):
        return 304
    return None


def _lists(header: str, etag: str) -> bool:
    return "*" in header or etag in [entry.strip().removeprefix("W/") for entry in header.split(",")]


def _range_holds(headers: Mapping[str, str], etag: str) -> bool:
    """A range counts without If-Range or with the current strong ETag in it; a date never matches, as none is sent."""
    return "Range" in headers and headers.get("If-Range", etag) == etag


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a single range, empty if unsatisfiable; None to ignore the header, as RFC 9110
    asks for other units, bad syntax and, where a server likes, several ranges.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last = match.groups()
    if first:
        if last and int(last) < int(first):
            return None
        return int(first), min(int(last) + 1, size) if last else size
    if last:
        return max(0, size - int(last)), size
    return None
