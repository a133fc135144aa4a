"""The control API without the client: what any program can say on the socket, right or wrong."""

from __future__ import annotations

import json
import socket
from typing import Any

from reconciler.host.layout import Layout
from tests.e2e.stage import Stage


class Wire:
    """One connection. Every wait ends after `patience` seconds with TimeoutError."""

    def __init__(self, stage: Stage, patience: float = 20.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(patience)
        self.socket.connect(str(Layout(stage.root).control_socket))
        self._lines = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.socket.close()

    def say(self, line: bytes) -> None:
        self.socket.sendall(line)

    def hear(self) -> Any:
        """The next line; None at the end."""
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            return None
        return json.loads(line) if line else None

    def ask(self, request: Any) -> Any:
        """Say one line, the request as JSON or as it is, and hear one."""
        self.say((request if isinstance(request, bytes) else json.dumps(request).encode()) + b"\n")
        return self.hear()
