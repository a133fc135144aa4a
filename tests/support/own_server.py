#!/usr/bin/env python3
"""A small OpenAI-compatible server that has nothing in common with llama-server but the API.

Promises: standard library only, one process, and manners of its own: flags that no other program has; it must be asked
for its model by the one name that it knows it by; unknown fields of a request (`stream_options`) are refused, too; all
paths but --ready want the key from RECONCILER_API_KEY where there is one. An answer is a JSON text of what the server
was told, so that a test can see it through the gateway; a secret only as its sha256.

    --at HOST:PORT --weights PATH   where it listens, what it serves
    --served NAME                   what it calls its model (default: the path)
    --window N                      the context
    --ready PATH                    answers 200 (default: /up); with --guarded only to who shows the key
    --slow SECONDS                  before it listens; --heavy SECONDS: listens, but is not ready for so long
    --dies CODE                     at once, with the secret as its last words; --dies-later CODE: the same on SIGUSR1
    --tells HOST:PORT               says its port there, and never listens
    --pace SECONDS                  before each word of an answer
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FIELDS = {"model", "messages", "max_tokens", "stream", "input"}


def said() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for flag in ("--at", "--weights", "--tells", "--served", "--window"):
        parser.add_argument(flag, default="")
    parser.add_argument("--ready", default="/up")
    parser.add_argument("--guarded", action="store_true")
    for flag in ("--slow", "--heavy", "--pace"):
        parser.add_argument(flag, type=float, default=0.0)
    for flag in ("--dies", "--dies-later"):
        parser.add_argument(flag, type=int, default=-1)
    return parser.parse_args()


def known(options: argparse.Namespace) -> dict[str, Any]:
    """What it was told."""
    token = os.environ.get("TOKEN", "")
    return {
        "weights": options.weights,
        "window": options.window,
        "token": hashlib.sha256(token.encode()).hexdigest() if token else "",
        "plain": os.environ.get("PLAIN", ""),
        "folder": str(Path.cwd()),
        "keys": len({os.environ.get(name) for name in ("RECONCILER_API_KEY", "LLAMA_API_KEY", "VLLM_API_KEY")}),
    }


class Handler(BaseHTTPRequestHandler):
    options: argparse.Namespace
    ready_at = 0.0
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == self.options.ready:
            if self.options.guarded and not self.admitted():
                return self.json({"error": "who is it?"}, 401)
            return self.json({"up": True}, 200 if time.monotonic() >= self.ready_at else 503)
        return self.json({"error": "no such path"}, 404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.admitted():
            return self.json({"error": "who is it?"}, 401)
        if unknown := asked.keys() - FIELDS:
            return self.json({"error": {"message": f"unknown: {sorted(unknown)}"}}, 422)
        if asked["model"] != (served := self.options.served or self.options.weights):
            return self.json({"error": {"message": f"no model {asked['model']}, only {served}"}}, 404)
        text = json.dumps(known(self.options))
        if asked.get("stream"):
            return self.stream(text)
        time.sleep(self.options.pace)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return self.json({"id": "1", "object": "chat.completion", "model": served, "choices": [choice]})

    def admitted(self) -> bool:
        key = os.environ.get("RECONCILER_API_KEY", "")
        return not key or self.headers.get("Authorization") == f"Bearer {key}"

    def stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for word in text.split(" "):
            time.sleep(self.options.pace)
            choice = {"index": 0, "delta": {"content": word + " "}, "finish_reason": None}
            event = {"id": "1", "object": "chat.completion.chunk", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def json(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        print("own:", self.command, self.path, *args[1:2], file=sys.stderr, flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = True


def farewell() -> None:
    print(f"own: cannot go on with {os.environ.get('TOKEN')}", file=sys.stderr, flush=True)


def main() -> int:
    options = said()
    if options.dies >= 0:
        farewell()
        return int(options.dies)
    if options.dies_later >= 0:
        signal.signal(signal.SIGUSR1, lambda *_: (farewell(), os._exit(options.dies_later)))
    host, _, port = options.at.rpartition(":")
    if options.tells:
        there, _, their = options.tells.rpartition(":")
        with socket.create_connection((there, int(their))) as line:
            line.sendall(port.encode())
        threading.Event().wait()
    time.sleep(options.slow)
    Handler.options, Handler.ready_at = options, time.monotonic() + options.heavy
    Server((host, int(port)), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
