"""`reconcile tap MODEL [--count N] [--seconds S] [--headers-only]`."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from reconciler.cli.place import SECONDS, Place, verb
from reconciler.core.diagnostics import Diagnostic, Refused

HEAD_LIMIT = 64 << 10  # bytes of an answer's head, or of a refusal


@click.argument("model")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many answers.")
@click.option("--seconds", type=SECONDS, metavar="TIME", help="End after this time: 30s, 5m.")
@click.option("--headers-only", is_flag=True, help="Leave out what was asked and said.")
@verb("tap")
def command(place: Place, model: str, count: int | None, seconds: float | None, headers_only: bool) -> None:
    """MODEL is what clients ask for: a model, a route or provider/model. Keys are masked; nothing is kept. JSON is one
    entry a line.
    """
    deadline = time.monotonic() + seconds if seconds is not None else None
    target = f"/tap?model={quote(model, safe='')}&bodies={0 if headers_only else 1}"
    left = count
    with contextlib.closing(_entries(place.layout().gateway_socket, target, deadline)) as entries:
        for entry in entries:
            click.echo(json.dumps(entry, ensure_ascii=False) if place.json else _shown(entry))
            if entry.get("event") == "answer" and left is not None:
                left -= 1
                if not left:
                    return


def _entries(path: Path, target: str, deadline: float | None) -> Generator[dict[str, Any], None, None]:
    """What the gateway tells, until the deadline (monotonic) or its end. Raises Refused."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
            sock.sendall(f"GET {target} HTTP/1.0\r\nHost: gateway\r\n\r\n".encode())
        except OSError as error:
            text = f"no gateway answers at {path}: {error.strerror or error}"
            raise Refused(
                [Diagnostic(text, hint="`reconcile apply` starts it; `reconcile status` says how it is")]
            ) from None
        head, held = _until(sock, b"\r\n\r\n", b"", deadline)
        if not head:
            return
        if b" 200 " not in head[:20]:
            raise _refusal(held, sock)
        while True:
            line, held = _until(sock, b"\n", held, deadline)
            if not line:
                return
            yield json.loads(line)


def _until(sock: socket.socket, mark: bytes, held: bytes, deadline: float | None) -> tuple[bytes, bytes]:
    """(what stands before the mark, what has come after it); nothing before it where the time or the stream is over."""
    pieces, size = [held], len(held)
    looked = held
    while mark not in looked:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return b"", b""
        sock.settimeout(left)
        try:
            piece = sock.recv(1 << 16)
        except TimeoutError:
            return b"", b""
        except OSError:
            piece = b""
        if not piece:
            return b"", b"".join(pieces)
        looked = looked[-len(mark) :] + piece
        pieces.append(piece)
        size += len(piece)
    before, _, after = b"".join(pieces).partition(mark)
    return before, after


def _refusal(held: bytes, sock: socket.socket) -> Refused:
    sock.settimeout(5.0)
    with contextlib.suppress(OSError):
        while len(held) < HEAD_LIMIT and (piece := sock.recv(1 << 16)):
            held += piece
    try:
        return Refused([Diagnostic(str(json.loads(held)["error"]["message"]))])
    except (ValueError, KeyError, TypeError):
        return Refused([Diagnostic("the gateway does not know this; is it of another version?")])


def _shown(entry: dict[str, Any]) -> str:
    match entry.get("event"):
        case "request":
            first = f"{_clock(entry)} → {entry['model']}  {entry['path']}  key {entry['key']}  {entry['client']}"
            headers = "  ".join(f"{name}: {value}" for name, value in entry["headers"].items())
            return "\n".join((click.style(_plain(first), bold=True), _plain(f"    {headers}"), *_body(entry)))
        case "answer":
            told = [f"{entry['status']}", str(entry["target"]), f"{entry['ms']:g} ms"]
            told += [f"{entry['tokens_in']} tokens in"] if entry["tokens_in"] is not None else []
            told += [f"{entry['tokens_out']} out"] if entry["tokens_out"] is not None else []
            told += [str(entry["broke"])] if entry["broke"] else []
            first = f"{_clock(entry)} ← {'  '.join(told)}"
            colour = "red" if entry["status"] >= 400 or entry["broke"] else "green"
            return "\n".join((click.style(_plain(first), fg=colour), *_body(entry)))
        case _:
            return f"… {entry.get('entries')} entries were lost: they came faster than they were read"


def _body(entry: dict[str, Any]) -> list[str]:
    if "body" not in entry:
        return []
    body = entry["body"]
    if isinstance(body, list):  # the events of a stream
        lines = [json.dumps(event, ensure_ascii=False) if not isinstance(event, str) else event for event in body]
    else:
        text = body if isinstance(body, str) else json.dumps(body, indent=2, ensure_ascii=False)
        lines = text.splitlines()
    return [_plain(f"    {line}") for line in (*lines, *(["… cut"] if entry.get("body_cut") else []))]


def _clock(entry: dict[str, Any]) -> str:
    at = float(entry["at"])
    return f"{time.strftime('%H:%M:%S', time.localtime(at))}.{int(at * 1000) % 1000:03}  {entry['id']}"


def _plain(text: str) -> str:
    """Without what would move a terminal's cursor, or worse."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
