"""`https://host/path/model.gguf`: one file from a web server; of a split model, the parts that its name counts."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from reconciler.host.fetch import Access
from reconciler.sources import Brought, Listing, Remote, Request, Tap


async def find(source: str, tap: Tap) -> Listing:
    access = Access(tap.token, urlsplit(source).netloc.rpartition("@")[2])
    name = PurePosixPath(unquote(urlsplit(source).path)).name
    return Listing("", (Remote(name, (source,), access=access),))


async def bring(request: Request, tap: Tap) -> Brought:
    remote = request.remote
    got = await tap.fetch.get(
        remote.urls,
        request.part,
        request.progress,
        request.sha256,
        size=remote.size,
        access=remote.access,
        priority=request.priority,
    )
    return Brought(got.sha256, got.size, remote.name, got.blocks)


async def peek(remote: Remote, start: int, length: int, tap: Tap) -> bytes:
    return await tap.fetch.read(remote.urls, start, length, remote.access)
