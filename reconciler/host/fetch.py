"""Downloads over HTTP that survive anything: resumed after kill -9, hashed as they stream, never trusted half-way.

Beside the part file lies a sidecar that binds it to one version of the resource (URL, validator, size). The part is
synced to disk before the sidecar says so, and a resume reads back and hashes only what the sidecar vouches for, then
asks for the rest with If-Range, so that a file which changed in between starts again instead of being spliced.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.effects import Effects
from reconciler.host.files import Files, disk_faults, disk_full, nearest_folder

if TYPE_CHECKING:
    import httpx2

SYNC_EVERY = 8 << 20  # bytes between two syncs: the most that a crash can cost
PIECE = 1 << 18
STALL = 30.0  # seconds without a byte
MARGIN = 64 << 20  # bytes of disk that a download leaves free

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Access:
    """A token, and the one host (with its port, as in an address) that may see it.

    For the scheme "Basic" the token is user and password as that scheme encodes them.
    """

    token: str = field(default="", repr=False)
    host: str = ""
    scheme: str = "Bearer"


OPEN = Access()


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came: sha256 (hex) and size (bytes) of the file at the part's path, CRC-32 of each 16 MiB of it (hex)."""

    sha256: str
    size: int
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class About:
    """What a server says of a file without sending it. `size` in bytes, None where it does not say."""

    size: int | None
    validator: str
    ranges: bool


@dataclass(slots=True)
class _Part:
    """One download in progress: the file, what binds it, and the hash of what is in it."""

    path: Path
    url: str
    validator: str = ""
    size: int | None = None
    done: int = 0
    hasher: Any = None

    @property
    def sidecar(self) -> Path:
        return self.path.with_name(self.path.name + ".json")


class Fetch:
    """The downloader of one controller."""

    def __init__(self, files: Files, effects: Effects) -> None:
        self._files, self._effects = files, effects
        self._client: httpx2.AsyncClient | None = None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def head(self, urls: str | Sequence[str], access: Access = OPEN) -> About:
        """What the first address that answers says of its file. Raises Fault."""
        url = urls if isinstance(urls, str) else urls[0]
        response = await self._opened().head(url, headers=_headers(url, access))
        if response.status_code != 200:
            raise _status_fault(url, response.status_code, response.headers)
        length = response.headers.get("content-length", "")
        ranges = response.headers.get("accept-ranges") == "bytes"
        return About(int(length) if length.isdigit() else None, response.headers.get("etag", ""), ranges)

    async def read(self, urls: str | Sequence[str], start: int, length: int, access: Access = OPEN) -> bytes:
        """`length` bytes (fewer at the end) from `start`; Fault NO_RANGES where only the whole is to be had."""
        url = urls if isinstance(urls, str) else urls[0]
        span = {"Range": f"bytes={start}-{start + length - 1}"}
        async with self._opened().stream("GET", url, headers=_headers(url, access) | span) as response:
            if response.status_code != 206:
                raise Fault("NO_RANGES", f"{_shown(url)} is to be had as a whole only", kind=FaultClass.PERMANENT)
            return await response.aread()

    def _opened(self) -> httpx2.AsyncClient:
        import httpx2

        if self._client is None:
            timeout = httpx2.Timeout(STALL, connect=15.0)
            self._client = httpx2.AsyncClient(timeout=timeout, follow_redirects=True, max_redirects=10)
        return self._client

    async def get(
        self,
        urls: str | Sequence[str],
        path: Path,
        progress: Progress,
        expected: str = "",
        *,
        size: int | None = None,
        access: Access = OPEN,
        priority: int = 0,
    ) -> Fetched:
        """Bring `url` to `path`, going on from what an earlier try left. Raises Fault.

        `expected` is a sha256 (hex) that the whole file must have; a part that does not match it is thrown away.
        """
        url = urls if isinstance(urls, str) else urls[0]
        self._files.folder(path.parent)
        part = await asyncio.to_thread(_resume, path, url)
        if not (part.size is not None and part.done == part.size):
            await self._transfer(part, progress, access)
        found = part.hasher.hexdigest()
        if expected and found != expected:
            self.discard(path)
            raise Fault(
                "CHECKSUM_MISMATCH",
                f"{_shown(url)} has sha256 {found}, but {expected} was asked for",
                hint="check the sha256 in the manifest; if it is right, the file at the source is not the one you mean",
                kind=FaultClass.PERMANENT,
            )
        return Fetched(found, part.done)

    def discard(self, path: Path) -> None:
        """Throw a part away, with its sidecar."""
        self._files.remove(path.with_name(path.name + ".json"))
        self._files.remove(path)

    async def _transfer(self, part: _Part, progress: Progress, access: Access) -> None:
        import httpx2

        headers = _headers(part.url, access)
        if part.done and part.validator:
            headers |= {"Range": f"bytes={part.done}-", "If-Range": part.validator}
        started = False
        try:
            async with self._opened().stream("GET", part.url, headers=headers) as response:
                self._check(response, part)
                started = True
                await self._receive(response, part, progress)
        except httpx2.TimeoutException as error:
            raise Fault("STALLED", f"{_shown(part.url)}: no data for {STALL:.0f} s") from error
        except httpx2.TooManyRedirects as error:
            raise Fault(
                "TOO_MANY_REDIRECTS", f"{_shown(part.url)} redirects without end", kind=FaultClass.PERMANENT
            ) from error
        except (httpx2.InvalidURL, ExceptionGroup) as error:  # a port beyond 65535 comes as a group
            raise Fault(
                "BAD_ADDRESS", f"{_shown(part.url)} is, or leads to, an impossible address", kind=FaultClass.PERMANENT
            ) from error
        except httpx2.TransportError as error:
            if started and part.size is not None:
                raise _cut_short(part) from error
            raise Fault(
                "NETWORK_UNREACHABLE",
                f"{_shown(part.url)} cannot be reached: {error or type(error).__name__}",
                hint="check the network, and the proxy settings (HTTPS_PROXY, SSL_CERT_FILE) if there is one",
            ) from error
        if part.size is not None and part.done != part.size:
            raise _cut_short(part)

    def _check(self, response: httpx2.Response, part: _Part) -> None:
        """Judge the status, and set the part to where this answer starts."""
        status = response.status_code
        if status == 416 or (status == 206 and not _continues(response.headers, part)):
            self.discard(part.path)
            raise Fault("RANGE_REFUSED", f"{_shown(part.url)}: the rest of the file is not to be had; starting again")
        if status not in (200, 206):
            raise _status_fault(part.url, status, response.headers)
        if urlsplit(part.url).scheme == "https" and response.url.scheme != "https":
            raise Fault(
                "INSECURE_REDIRECT",
                f"{_shown(part.url)} redirects to unencrypted {_shown(str(response.url))}",
                kind=FaultClass.PERMANENT,
            )
        if status == 200:
            part.done, part.hasher = 0, hashlib.sha256()
            length = response.headers.get("content-length", "")
            part.size = int(length) if length.isdigit() else None
            etag = response.headers.get("etag", "")
            part.validator = etag if etag and not etag.startswith("W/") else response.headers.get("last-modified", "")
        missing = (part.size or 0) - part.done
        if missing > shutil.disk_usage(nearest_folder(part.path)).free - MARGIN:
            raise disk_full(part.path, missing)

    async def _receive(self, response: httpx2.Response, part: _Part, progress: Progress) -> None:
        synced = part.done
        with disk_faults(part.path), part.path.open("r+b" if part.done else "wb") as out:
            out.truncate(part.done)
            out.seek(part.done)
            progress(part.done, part.size)
            async for piece in response.aiter_raw(PIECE):
                out.write(piece)
                part.hasher.update(piece)
                part.done += len(piece)
                progress(part.done, part.size)
                if part.done - synced >= SYNC_EVERY:
                    synced = part.done
                    await self._vouch(out, part)
            await self._vouch(out, part)

    async def _vouch(self, out: BinaryIO, part: _Part) -> None:
        """Sync the part, then let the sidecar say how much of it counts."""
        with self._effects("fetch-sync", part.path):
            await asyncio.to_thread(_sync, out)
        facts = {"url": part.url, "validator": part.validator, "size": part.size, "synced": part.done}
        self._files.write(part.sidecar, json.dumps(facts).encode())


def _cut_short(part: _Part) -> Fault:
    return Fault("CUT_SHORT", f"{_shown(part.url)}: the connection ended after {part.done} of {part.size} bytes")


def _sync(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())


def _resume(path: Path, url: str) -> _Part:
    """The part as an earlier try left it, hashed up to where its sidecar vouches for it."""
    part = _Part(path, url, hasher=hashlib.sha256())
    try:
        facts: Mapping[str, Any] = json.loads(part.sidecar.read_text())
        synced = int(facts["synced"])
        size, validator = facts["size"], str(facts["validator"])
        usable = facts["url"] == url and bool(validator) and 0 < synced <= path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return part
    if not usable:
        return part
    left = synced
    with path.open("rb") as data:
        while left and (piece := data.read(min(left, 1 << 20))):
            part.hasher.update(piece)
            left -= len(piece)
    part.done, part.size, part.validator = synced, size, validator
    return part


def _continues(headers: Mapping[str, str], part: _Part) -> bool:
    """Whether a 206 carries exactly the rest of this part."""
    unit, _, rest = headers.get("content-range", "").partition(" ")
    span, _, total = rest.partition("/")
    return unit == "bytes" and span.startswith(f"{part.done}-") and (part.size is None or total == str(part.size))


def _status_fault(url: str, status: int, headers: Mapping[str, str]) -> Fault:
    what = f"{_shown(url)} answered {status}"
    if status in (401, 403, 407):
        return Fault(
            "ACCESS_DENIED", what, hint="the source wants credentials or is not public", kind=FaultClass.NEEDS_HUMAN
        )
    if status in (404, 410):
        return Fault("NOT_FOUND", what, hint="check the source in the manifest", kind=FaultClass.PERMANENT)
    if status in (408, 425, 429) or status >= 500:
        return Fault("SOURCE_BUSY", what, after=_retry_after(headers))
    return Fault("SOURCE_REFUSED", what, kind=FaultClass.PERMANENT)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Retry-After in seconds, from its number or date form; at most an hour, 0 where it is absent or odd."""
    text = headers.get("retry-after", "")
    try:
        seconds = (
            float(text) if text.replace(".", "", 1).isdigit() else parsedate_to_datetime(text).timestamp() - time()
        )
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), 3600.0)


def _headers(url: str, access: Access) -> dict[str, str]:
    """What is asked with: the token goes to its own host only."""
    headers = {"Accept-Encoding": "identity"}
    if access.token and urlsplit(url).netloc == access.host:
        headers["Authorization"] = f"{access.scheme} {access.token}"
    return headers


def _shown(url: str) -> str:
    """A URL for people: without user, password, query and fragment, where secrets like to be."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
