"""`https://host/path/model.gguf`: one file from a web server."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from reconciler.sources import Brought, Request


async def bring(request: Request) -> Brought:
    got = await request.fetch.get(request.source, request.part, request.progress, request.sha256)
    name = PurePosixPath(unquote(urlsplit(request.source).path)).name
    return Brought(got.sha256, got.size, name)
