"""Both ends of many event streams: an upstream that stamps each event with the clock, a client that reads it off.

    python -m benchmarks.sse serve PORT
    python -m benchmarks.sse listen PORT PATH MODEL STREAMS SECONDS    prints {"p50": …, "p99": …, "chunks": …}

Times are in seconds.

The clock is the machine's monotonic one, which is the same in all processes (Linux, macOS).
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from itertools import count

from benchmarks.measure import percentile

PERIOD = 0.020
STREAMS = 64  # streams begin this many steps apart within a period, so that events do not come in bursts
EVENT = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"stream","choices":[{"index":0,'
    '"delta":{"content":"sent=%017.6f %s"},"finish_reason":null}]}\n\n'
)
PAD = "x" * 20
KEY = "sk-benchmark-6b1f0d7e92c44aa58f3c"  # for a proxy that insists on one; the others do not look at it
WARM = 0.5  # seconds whose events do not count

_SENT = re.compile(rb"sent=([0-9.]+) ")  # in what the model says, which every translation keeps
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Upstream(asyncio.Protocol):
    """Answers whatever is asked with an event each PERIOD until the client leaves."""

    _numbers = count()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self._timer is None and b"\r\n\r\n" in data:
            self._transport.write(_HEAD)
            self._schedule(asyncio.get_running_loop().time() + PERIOD * (next(self._numbers) % STREAMS) / STREAMS)

    def _schedule(self, when: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, self._tick, when)

    def _tick(self, when: float) -> None:
        event = (EVENT % (time.monotonic(), PAD)).encode()
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._schedule(when + PERIOD)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Listener(asyncio.Protocol):
    """One stream. `delays` are seconds from sent to here, `chunks` counts also those before `since`."""

    def __init__(self, request: bytes, since: float) -> None:
        self._request, self._since = request, since
        self._rest = b""
        self.head = b""
        self.delays: list[float] = []
        self.chunks = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.head = self.head or data[:300]
        data = self._rest + data
        end = data.rfind(b"\n\n") + 1
        self._rest = data[end:]
        for sent in _SENT.findall(data, 0, end):
            self.chunks += 1
            if now >= self._since:
                self.delays.append(now - float(sent))

    def close(self) -> None:
        self._transport.abort()


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=STREAMS * 2)
    async with server:
        await server.serve_forever()


async def listen(port: int, path: str, model: str, streams: int, seconds: float) -> dict[str, float]:
    messages = [{"role": "user", "content": "hi"}]
    body = json.dumps({"model": model, "stream": True, "max_tokens": 9, "messages": messages})
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {KEY}\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    loop, since = asyncio.get_running_loop(), time.monotonic() + WARM
    listeners = [Listener(request, since) for _ in range(streams)]
    for listener in listeners:
        await loop.create_connection(lambda made=listener: made, "127.0.0.1", port)
    await asyncio.sleep(WARM + seconds)
    for listener in listeners:
        listener.close()
    if silent := [listener.head for listener in listeners if not listener.delays]:
        sys.exit(f"{len(silent)} of {streams} streams brought nothing, the first one: {silent[0]!r}")
    delays = [delay for listener in listeners for delay in listener.delays]
    chunks = sum(listener.chunks for listener in listeners)
    return {"p50": percentile(delays, 50), "p99": percentile(delays, 99), "chunks": chunks}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port]:
            asyncio.run(serve(int(port)))
        case ["listen", port, path, model, streams, seconds]:
            print(json.dumps(asyncio.run(listen(int(port), path, model, int(streams), float(seconds)))))
        case _:
            sys.exit(__doc__)
