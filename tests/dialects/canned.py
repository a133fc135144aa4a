"""A server that gives one answer, for the official clients to read.

with answering(200, "application/json", b"{}") as served:
    OpenAI(base_url=f"{served.base}/v1", api_key="k", max_retries=0)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EVENTS = "text/event-stream"
JSON = "application/json"


@dataclass
class Served:
    """Where it is, and what it was asked: (path, document)."""

    base: str
    asked: list[tuple[str, Any]] = field(default_factory=list)


@contextmanager
def answering(status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> Iterator[Served]:
    """Serve the answer to every request, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            served.asked.append((self.path, json.loads(self.rfile.read(length) or b"null")))
            self.answer()

        def do_GET(self) -> None:
            served.asked.append((self.path, None))
            self.answer()

        def answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
