"""A client of the controller's control API, as the command line uses it. Blocking, standard library only."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reconciler.host.layout import Layout


class NoController(Exception):
    """Nobody answers on the control socket."""


class Client:
    """One connection. Use as a context manager. Raises NoController where none answers, or when it goes away."""

    def __init__(self, layout: Layout, timeout: float | None = 10.0) -> None:
        self._path, self._timeout = layout.control_socket, timeout

    def __enter__(self) -> Client:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(self._timeout)
        try:
            self._socket.connect(str(self._path))
        except OSError as error:
            self._socket.close()
            raise NoController(str(error)) from error
        self._lines = self._socket.makefile("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def hello(self) -> dict[str, Any]:
        """Who answers: api, version, pid, and the manifest's path."""
        return self._ask("hello")

    def status(self) -> dict[str, Any]:
        """The snapshot of everything."""
        return self._ask("status")

    def apply(self, manifest: Path, *, allow_empty: bool = False) -> dict[str, Any]:
        """Have the manifest read now → the snapshot of the turn that read it, with its number as `turn`."""
        return self._ask("apply", manifest=str(manifest), allow_empty=allow_empty)

    def shutdown(self) -> dict[str, Any]:
        """Stop the controller; workloads go on."""
        return self._ask("shutdown")

    def follow(self) -> Iterator[dict[str, Any]]:
        """Snapshots and events as they come; ends when the controller does."""
        return self._stream("follow")

    def down(self, *, purge: bool) -> Iterator[dict[str, Any]]:
        """Stop everything that is owned, then the controller; yields as `follow` does."""
        return self._stream("down", purge=purge)

    def _send(self, method: str, **values: Any) -> None:
        try:
            self._socket.sendall(json.dumps({"method": method, **values}).encode() + b"\n")
        except OSError as error:
            raise NoController(str(error)) from error

    def _line(self) -> dict[str, Any] | None:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise NoController(str(error)) from error
        answer: dict[str, Any] | None = json.loads(line) if line else None
        return answer

    def _ask(self, method: str, **values: Any) -> dict[str, Any]:
        self._send(method, **values)
        answer = self._line()
        if answer is None:
            raise NoController("it went away without an answer")
        return answer

    def _stream(self, method: str, **values: Any) -> Iterator[dict[str, Any]]:
        self._send(method, **values)
        self._socket.settimeout(None)
        while (message := self._line()) is not None:
            yield message
