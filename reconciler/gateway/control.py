"""Control: the private socket on which the controller asks for the state and for a reload.

Only the owner of the process can open it: the socket is created with mode 0600, never wider for a moment.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from reconciler.gateway.errors import Refusal
from reconciler.gateway.tap import Taps


class ControlServer(web.Server):
    """`GET /state` and `POST /reload`, both answered with the state. A reload may bring `{"secrets": …}`.

    `GET /tap?model=NAME` answers with JSON lines until the caller leaves; with `&bodies=0` without what was said.
    `check` raises `Refusal` for a name that nobody can ask for.
    """

    def __init__(
        self,
        state: Callable[[], dict[str, object]],
        reload: Callable[[object], None],
        taps: Taps,
        check: Callable[[str], None],
    ) -> None:
        super().__init__(self._handle, access_log=None, handler_cancellation=True)
        self._taps = taps
        self._check = check
        self._state = state
        self._reload = reload

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        match (request.method, request.raw_path):
            case ("GET", "/state"):
                pass
            case ("POST", "/reload"):
                body = await request.read()
                try:
                    self._reload(json.loads(body) if body else None)
                except ValueError as error:
                    refusal = Refusal(400, str(error), code="bad_reload")
                    return web.Response(status=400, body=refusal.body(), content_type="application/json")
            case ("GET", _) if request.path == "/tap":
                return await self._tap(request)
            case _:
                refusal = Refusal(404, "GET /state, GET /tap and POST /reload are all there is", code="not_found")
                return web.Response(status=404, body=refusal.body(), content_type="application/json")
        return web.Response(body=json.dumps(self._state()).encode(), content_type="application/json")

    async def _tap(self, request: web.BaseRequest) -> web.StreamResponse:
        name, bodies = request.query.get("model", ""), request.query.get("bodies") != "0"
        try:
            self._check(name)
            with self._taps.listening(name, bodies=bodies) as tap:
                response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
                await response.prepare(request)
                async for line in tap.lines():
                    await response.write(line)
                return response
        except (Refusal, ValueError) as error:
            refusal = error if isinstance(error, Refusal) else Refusal(429, str(error), code="too_many_taps")
            return web.Response(status=refusal.status, body=refusal.body(), content_type="application/json")


class ControlSocket:
    """The listening socket at `path`; a socket left there by a dead process is replaced.

    Raises OSError when the path cannot be bound, FileExistsError when something other than a socket is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise FileExistsError(f"{path} exists and is not a socket")
            path.unlink()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self.socket.bind(str(path))
        finally:
            os.umask(before)
        self._inode = path.stat().st_ino

    def remove(self) -> None:
        """Unlink the path if it is still ours: a successor may have bound it already."""
        with suppress(OSError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
