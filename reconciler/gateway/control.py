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


class ControlServer(web.Server):
    """`GET /state` and `POST /reload`, both answered with the state."""

    def __init__(self, state: Callable[[], dict[str, object]], reload: Callable[[bytes], None]) -> None:
        super().__init__(self._handle, access_log=None)
        self._state = state
        self._reload = reload

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        match (request.method, request.raw_path):
            case ("GET", "/state"):
                pass
            case ("POST", "/reload"):
                self._reload(await request.read())
            case _:
                refusal = Refusal(404, "GET /state and POST /reload are all there is", code="not_found")
                return web.Response(status=404, body=refusal.body(), content_type="application/json")
        return web.Response(body=json.dumps(self._state()).encode(), content_type="application/json")


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
