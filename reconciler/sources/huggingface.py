"""`hf:owner/name[@revision]`: what a model repository holds, through the hub's own client; bytes by our downloader."""

from __future__ import annotations

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.sources import Brought, Listing, Remote, Request, Tap, url


async def find(source: str, tap: Tap) -> Listing:
    raise Fault("NOT_BUILT", f"{source}: this source has yet to be built", kind=FaultClass.PERMANENT)


async def bring(request: Request, tap: Tap) -> Brought:
    return await url.bring(request, tap)


async def peek(remote: Remote, start: int, length: int, tap: Tap) -> bytes:
    return await url.peek(remote, start, length, tap)
