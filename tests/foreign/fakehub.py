"""A hub on 127.0.0.1 that the real hub client can fill its cache from: one repository, one commit, large files."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from aiohttp import web

COMMIT = "c" * 40


class FakeHub:
    """`files` of the repository `acme/tiny`, by name. Serves until the `with` block ends."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_route("*", "/acme/tiny/resolve/{revision}/{file:.+}", self._file)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._up.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _file(self, request: web.Request) -> web.Response:
        data = self.files.get(request.match_info["file"])
        if data is None:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"X-Repo-Commit": COMMIT, "ETag": etag, "X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
        return web.Response(body=data, headers=headers)
