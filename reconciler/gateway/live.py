"""The routes in force: read at start, replaced whole when the file changes, kept when the new ones are bad.

Beside them the secrets of providers, which the controller hands over: they are in memory only, never in a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reconciler.core.ids import canonical
from reconciler.gateway import guards
from reconciler.gateway.guards import Trust
from reconciler.gateway.log import log
from reconciler.gateway.routes import Base, Routes, Target, load

Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What a provider is asked with: keys that take turns, headers, and the proxy where its URL holds a password."""

    keys: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    proxy: str = ""

    def applied(self, target: Target) -> Target:
        """The target with these headers, through this proxy."""
        if self.headers:
            target = replace(target, headers=(*target.headers, *self.headers))
        if self.proxy:
            speaks = {d: Base(replace(base.peer, proxy=self.proxy), base.path) for d, base in target.speaks.items()}
            target = replace(target, speaks=speaks)
        return target


def read_secrets(raw: object) -> dict[str, Secrets]:
    """By provider; raises ValueError, which never quotes one."""
    if not isinstance(raw, dict):
        raise ValueError("secrets: expected an object")
    return {str(name): _secrets(name, one) for name, one in raw.items()}


def _secrets(name: object, raw: object) -> Secrets:
    if not isinstance(raw, dict):
        raise ValueError(f"secrets.{name}: expected an object")
    keys, headers, proxy = raw.get("keys") or [], raw.get("headers") or {}, raw.get("proxy") or ""
    if not isinstance(keys, list) or not isinstance(headers, dict) or not isinstance(proxy, str):
        raise ValueError(f"secrets.{name}: expected keys, headers and proxy")
    texts = [*keys, *headers, *headers.values()]
    if not all(isinstance(text, str) and text.isprintable() and text.isascii() for text in texts):
        raise ValueError(f"secrets.{name}: only printable ASCII can be sent")
    return Secrets(tuple(keys), tuple(headers.items()), proxy)


class LiveRoutes:
    """`routes` and the `trust` that follows from them change together; `error` says why a newer file is not in force.

    The constructor raises ValueError or OSError when there is nothing to start from.
    """

    def __init__(self, path: Path, salt: str = "") -> None:
        self._path = path
        self._salt = salt
        self.secrets: Mapping[str, Secrets] = {}
        self.secrets_digest = ""
        self._stamp = self._look()
        self.error: str | None = None
        self.reloads = {
            "taken": 0,
            "kept": 0,
        }  # times that the file was read again, by whether the new routes were taken
        self.routes: Routes
        self.trust: Trust
        self._replace(path.read_bytes())

    def poll(self) -> None:
        """Read the file again if it has been touched since the last time."""
        if self._look() != self._stamp:
            self.reload()

    def take(self, raw: Any) -> None:
        """Ask providers with these secrets from now on; raises ValueError and keeps the old ones where they are bad."""
        self.secrets = read_secrets(raw)
        self.secrets_digest = hashlib.sha256(f"{self._salt}{canonical(raw)}".encode()).hexdigest() if raw else ""

    def secret_values(self) -> list[str]:
        """Everything that is shown to targets and must be shown to nobody else."""
        shown = [text for one in self.secrets.values() for text in (*one.keys, *(value for _, value in one.headers))]
        return [*shown, *(target.key for target in self.routes.targets() if target.key)]

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
        self.reloads["taken"] += 1
        if (before.host, before.port) != (self.routes.host, self.routes.port):
            log("warning", "listen-change-ignored", host=self.routes.host, port=self.routes.port)
        log("info", "routes-in-force", serial=self.routes.serial, digest=self.routes.digest)

    def _replace(self, data: bytes) -> None:
        routes = load(data)
        trust = guards.trust(routes)
        self.routes, self.trust = routes, trust

    def _keep(self, error: str) -> None:
        self.error = error
        self.reloads["kept"] += 1
        log("error", "routes-kept", serial=self.routes.serial, reason=error)

    def _look(self) -> Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)
