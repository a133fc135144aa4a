"""`https://host/path/model.gguf`: one file from a web server; of a split model, the parts that its name counts.

What a server calls a file's digest (an ETag, a header of a hub) is never taken for its sha256: that comes from the
manifest, from the lock, or from the bytes.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.fetch import Access
from reconciler.sources import Brought, Listing, Remote, Request, Tap
from reconciler.sources.names import printable, shards

AT_ONCE = 8
_PAGE = re.compile(r"(/[^/]+/[^/]+)/blob/(.+\.gguf)", re.IGNORECASE)
_SILENT = ("SOURCE_REFUSED", "ACCESS_DENIED")  # what servers say to HEAD that would have answered GET


async def find(source: str, tap: Tap) -> Listing:
    """The file at an address, or all parts of it. Raises Fault where one is not there."""
    parts = urlsplit(source)
    _refuse_page(source)
    access = Access(tap.token, parts.netloc.rpartition("@")[2])
    addresses = [urlunsplit(parts._replace(path=path)) for path in shards(parts.path)] or [source]
    turns = asyncio.Semaphore(AT_ONCE)
    try:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(_ask(address, access, tap, turns)) for address in addresses]
    except BaseExceptionGroup as failed:
        raise _first(failed, len(addresses)) from None
    return Listing("", tuple(task.result() for task in asked))


async def _ask(address: str, access: Access, tap: Tap, turns: asyncio.Semaphore) -> Remote:
    async with turns:
        return Remote(_name(address), (address,), await _size(address, access, tap), access=access)


def _first(failed: BaseExceptionGroup[BaseException], parts: int) -> BaseException:
    first = failed.exceptions[0]
    if isinstance(first, Fault) and first.code == "NOT_FOUND" and parts > 1:
        return Fault(
            "PARTS_MISSING",
            f"{first.message}: by its name the model has {parts} parts, and all are needed",
            hint="check the source in the manifest: all parts lie beside each other",
            kind=FaultClass.PERMANENT,
        )
    return first


async def bring(request: Request, tap: Tap) -> Brought:
    """Bring the file, which must have the sha256 that is asked for, or the one that its source names."""
    remote = request.remote
    refuse_contradiction(request)
    got = await tap.fetch.get(
        remote.urls,
        request.part,
        request.progress,
        request.sha256 or remote.sha256,
        size=remote.size,
        access=remote.access,
        priority=request.priority,
    )
    return Brought(got.sha256, got.size, remote.name, got.blocks)


def refuse_contradiction(request: Request) -> None:
    """Raise Fault where the source itself says that the file has another sha256 than is asked for."""
    remote = request.remote
    if request.sha256 and remote.sha256 not in ("", request.sha256):
        raise Fault(
            "CHECKSUM_MISMATCH",
            f"{remote.name} has sha256 {remote.sha256} by its source's own word, but {request.sha256} was asked for",
            hint="check the sha256 in the manifest; if it is right, the file at the source is not the one you mean",
            kind=FaultClass.PERMANENT,
        )


async def peek(remote: Remote, start: int, length: int, tap: Tap) -> bytes:
    return await tap.fetch.read(remote.urls, start, length, remote.access)


async def _size(address: str, access: Access, tap: Tap) -> int | None:
    try:
        return (await tap.fetch.head(address, access)).size
    except Fault as fault:
        if fault.code in _SILENT:
            return None
        raise


def _name(address: str) -> str:
    return printable(PurePosixPath(unquote(urlsplit(address).path)).name or "model")


def _refuse_page(source: str) -> None:
    """A hub's page about a file looks like the file's address."""
    parts = urlsplit(source)
    if match := _PAGE.fullmatch(parts.path):
        direct = urlunsplit(
            parts._replace(netloc=parts.netloc.rpartition("@")[2], path=f"{match[1]}/resolve/{match[2]}")
        )
        raise Fault(
            "WEB_PAGE",
            f"{_name(source)}: the address is that of the page about the file, not of the file",
            hint=f"use {direct.partition('?')[0]}",
            kind=FaultClass.PERMANENT,
        )
