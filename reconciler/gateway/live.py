"""The routes in force: read at start, replaced whole when the file changes, kept when the new ones are bad."""

from __future__ import annotations

from pathlib import Path

from reconciler.gateway import guards
from reconciler.gateway.guards import Trust
from reconciler.gateway.log import log
from reconciler.gateway.routes import Routes, load

Stamp = tuple[int, int, int]


class LiveRoutes:
    """`routes` and the `trust` that follows from them change together; `error` says why a newer file is not in force.

    The constructor raises ValueError or OSError when there is nothing to start from.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._look()
        self.error: str | None = None
        self.routes: Routes
        self.trust: Trust
        self._replace(path.read_bytes())

    def poll(self) -> None:
        """Read the file again if it has been touched since the last time."""
        if self._look() != self._stamp:
            self.reload()

    def reload(self) -> None:
        """Read the file again."""
        self._stamp = self._look()
        before = self.routes
        try:
            self._replace(self._path.read_bytes())
        except OSError as error:
            self._keep(f"cannot read {self._path.name}: {error.strerror}")
            return
        except ValueError as error:
            self._keep(str(error))
            return
        self.error = None
        if (before.host, before.port) != (self.routes.host, self.routes.port):
            log("warning", "listen-change-ignored", host=self.routes.host, port=self.routes.port)
        log("info", "routes-in-force", serial=self.routes.serial, digest=self.routes.digest)

    def _replace(self, data: bytes) -> None:
        routes = load(data)
        trust = guards.trust(routes)
        self.routes, self.trust = routes, trust

    def _keep(self, error: str) -> None:
        self.error = error
        log("error", "routes-kept", serial=self.routes.serial, reason=error)

    def _look(self) -> Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)
