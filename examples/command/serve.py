"""The least that an engine has to do: listen where it is told, say when it is ready, answer who shows the key.

It does not compute anything: it says which file it serves, and how large that is.
"""

from __future__ import annotations

import argparse
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """One request. `name` and `weights` are set by main()."""

    name = ""
    weights = Path()
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.say(200 if self.path == "/up" else 404, {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization") != f"Bearer {os.environ['RECONCILER_API_KEY']}":
            return self.say(401, {"error": {"message": "only the gateway may ask"}})
        if asked["model"] != self.name:
            return self.say(404, {"error": {"message": f"this is {self.name}"}})
        text = (
            f"{os.environ['GREETING']}, I have {self.weights.stat().st_size} bytes of weights and do nothing with them."
        )
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return self.say(200, {"object": "chat.completion", "model": self.name, "choices": [choice]})

    def say(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("--weights", "--name", "--at"):
        parser.add_argument(flag, required=True)
    told = parser.parse_args()
    Handler.name, Handler.weights = told.name, Path(told.weights)
    host, _, port = told.at.rpartition(":")
    ThreadingHTTPServer((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
