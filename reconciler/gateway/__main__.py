"""`python -m reconciler.gateway --routes FILE --socket PATH`: exits 0 when told to stop, 1 with one line on stderr."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from pathlib import Path

from aiohttp import http_parser

from reconciler.gateway import log, server


def main(argv: list[str] | None = None) -> int:
    """Run the gateway; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m reconciler.gateway", allow_abbrev=False)
    parser.add_argument("--routes", type=Path, required=True, help="routes.json, written by the controller")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket for the controller")
    parser.add_argument("--controller", type=Path, help="unix socket of the controller, who loads models on demand")
    parser.add_argument("--kept", type=Path, help="folder for answers that are gone on from; else none is kept")
    parser.add_argument("--access", type=Path, help="file for one JSON line a request; else none is written")
    parser.add_argument(
        "--drain-seconds", type=float, default=10.0, help="how long running replies may go on at the end"
    )
    arguments = parser.parse_args(argv)
    log.capture_libraries()
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        log.log("error", "cannot-start", reason="aiohttp runs without its C extensions; its Python parser is not safe")
        return 1
    server.raise_file_limit()
    gc.freeze()  # what was imported stays: looking through it again and again would halt every stream for 10 ms
    try:
        asyncio.run(
            server.serve(
                arguments.routes,
                arguments.socket,
                arguments.controller,
                arguments.kept,
                arguments.drain_seconds,
                arguments.access,
            )
        )
    except server.CannotStart as error:
        log.log("error", "cannot-start", reason=error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
