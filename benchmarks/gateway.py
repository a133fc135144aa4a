"""What the gateway costs a request and a stream, beside nginx as a plain reverse proxy, and LiteLLM, to one upstream.

All of it in one run, in alternating rounds, so that whatever else the machine does meets all. Each proxy has one
process on one core. Where the load generator's core is the limit, requests per second say less than CPU time per
request does.

LiteLLM takes part where `python -m benchmarks.litellm` has installed it. llama-server's own router does not: it starts
its models itself, as children of its own program, and asks nobody else, so this upstream cannot stand in for them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import litellm, proxies, sse
from benchmarks.measure import Failed, call, compile_bytecode, cpu_seconds, program, resident_mib, table
from tests.support.processes import free_port

PATH = "/v1/chat/completions"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "whole",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "w " * 60}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100},
        "system_fingerprint": "benchmark",
    }
)
QUESTION = json.dumps(
    {
        "model": "whole",
        "temperature": 0.2,
        "max_tokens": 64,
        "messages": [
            {"role": "system", "content": "You answer in one sentence. " * 3},
            {"role": "user", "content": "Why is the sky blue, and the sea? " * 2},
        ],
    }
)
LUA = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %s"
wrk.body = [==[%s]==]
done = function(summary, latency)
    local e = summary.errors
    local bad = e.connect + e.read + e.write + e.status + e.timeout
    io.write(string.format("RESULT %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration,
        latency:percentile(50), latency:percentile(99), bad))
end
"""


CLIENTS = (1, 8, 32, 128)
SLOW_CLIENTS, SLOW_STREAMS = 32, 8  # as many as LiteLLM has been seen to bear


@dataclass(frozen=True, slots=True)
class Way:
    """A way to the upstream: the port to ask, and the proxy's pid where there is one.

    `whole` says whether it takes part in the whole answers; `start` is how many seconds it took to listen.
    """

    name: str
    port: int
    pid: int | None
    stream_port: int
    stream_path: str
    model: str = "stream"
    whole: bool = True
    slow: bool = False
    start: float = 0.0

    def cpu(self) -> float:
        return cpu_seconds(self.pid) if self.pid else 0.0

    @property
    def clients(self) -> tuple[int, ...]:
        return tuple(each for each in CLIENTS if not self.slow or each <= SLOW_CLIENTS)

    @property
    def streams(self) -> int:
        return SLOW_STREAMS if self.slow else sse.STREAMS


@dataclass(frozen=True, slots=True)
class Sample:
    """`rate` per second; `p50` and `p99` in ms; `cpu` of the proxy in µs a request or chunk."""

    rate: float
    p50: float
    p99: float
    cpu: float


def run(quick: bool) -> str:
    rounds, seconds = (1, 1) if quick else (3, 4)
    compile_bytecode()
    with tempfile.TemporaryDirectory(prefix="reconciler-benchmark-") as name, ExitStack() as stack:
        folder = Path(name)
        ways = _start(folder, stack)
        parts = [_requests(ways, folder, rounds, seconds), _streams(ways, rounds, seconds + 1)]
        memory = (f"{way.name} {resident_mib(way.pid):.1f} MiB" for way in ways if way.pid and way.whole)
        parts.append(f"Resident memory after this: {', '.join(memory)}.")
        starts = (f"{way.name} {way.start:.2f} s" for way in ways if way.pid and way.whole)
        parts.append(f"From its start until it listens: {', '.join(starts)}.")
    return "\n\n".join(parts)


def _start(folder: Path, stack: ExitStack) -> list[Way]:
    """Upstreams and proxies, all running."""

    def start(core: int, argv: list[str], port: int, seconds: float = 20) -> tuple[int, float]:
        begun = time.perf_counter()
        log = folder / f"{port}.log"
        return stack.enter_context(proxies.running(core, argv, port, log, seconds)), time.perf_counter() - begun

    whole, stream = free_port(), free_port()
    start(proxies.LOAD_CORE, [sys.executable, "-m", "benchmarks.sse", "serve", str(stream)], stream)
    ways = [Way("direct", whole, None, stream, "/stream/")]
    if proxies.NGINX:
        start(proxies.LOAD_CORE, proxies.nginx_upstream(folder / "upstream", whole, ANSWER), whole)
        port = free_port()
        pid, took = start(proxies.PROXY_CORE, proxies.nginx_proxy(folder / "nginx", port, whole, stream), port)
        ways.append(Way("nginx", port, pid, port, "/stream/", start=took))
    port = free_port()
    pid, took = start(proxies.PROXY_CORE, proxies.gateway(folder / "gateway", port, whole, stream), port)
    proxies.hand_over(folder / "gateway")
    ways.append(Way("gateway", port, pid, port, PATH, start=took))
    ways.append(
        Way("gateway, messages on chat", port, pid, port, "/v1/messages", model="far-stream/stream", whole=False)
    )
    if (program := litellm.found()) is not None:
        port = free_port()
        argv = litellm.proxy(program, folder / "litellm", port, whole, stream)
        pid, took = start(proxies.PROXY_CORE, argv, port, litellm.START_SECONDS)
        ways.append(Way("LiteLLM", port, pid, port, PATH, slow=True, start=took))
    return ways


# -- whole answers ----------------------------------------------------------------------------------------------------


def _requests(ways: list[Way], folder: Path, rounds: int, seconds: int) -> str:
    if not proxies.NGINX or not shutil.which("wrk"):
        return (
            "Whole answers: left out, because nginx (the upstream, and what is compared with) or wrk is not installed."
        )
    script = folder / "wrk.lua"
    script.write_text(LUA % (sse.KEY, QUESTION), encoding="utf-8")
    ways = [way for way in ways if way.whole]
    for way in ways:
        _first(way)
        _wrk(way, 8, 1, script)  # connections and caches warm up
    rows = []
    for clients in CLIENTS:
        samples: dict[str, list[Sample]] = {way.name: [] for way in ways if clients in way.clients}
        for _ in range(rounds):
            for way in ways:
                if clients in way.clients:
                    samples[way.name].append(_wrk(way, clients, seconds, script))
        medians = {name: _median(taken) for name, taken in samples.items()}
        direct = medians["direct"]
        for name, s in medians.items():
            row = [f"{clients} · {name}", f"{s.rate:.0f}"]
            if name == "direct":
                rows.append([*row, "–", f"{s.p50:.2f}", f"{s.p99:.2f}", "–", "–", "–"])
                continue
            added = (f"{s.p50 - direct.p50:.2f}", f"{s.p99 - direct.p99:.2f}")
            ratio = f"{s.rate / medians['nginx'].rate:.2f}"
            rows.append([*row, ratio, f"{s.p50:.2f}", f"{s.p99:.2f}", *added, f"{s.cpu:.0f}"])
    head = ["connections · way", "req/s", "× nginx", "p50 ms", "p99 ms", "added p50", "added p99", "CPU µs/request"]
    text = table(head, rows)
    sizes = f"request body {len(QUESTION)} B, answer {len(ANSWER)} B"
    return f"{text}\n\nWhole answers: {sizes}, keep-alive; medians of {rounds} alternating rounds of {seconds} s."


def _first(way: Way) -> None:
    """One request, however long it takes: some proxies import what they need when they need it."""
    connection = http.client.HTTPConnection("127.0.0.1", way.port, timeout=60)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {sse.KEY}"}
        connection.request("POST", PATH, QUESTION, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise Failed(f"{way.name} answered {answer.status}: {answer.read()[:300]!r}")


def _wrk(way: Way, clients: int, seconds: int, script: Path) -> Sample:
    argv = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "15s", "-s", str(script)]
    before = way.cpu()
    _, said = call(proxies.pinned(proxies.LOAD_CORE, [*argv, f"http://127.0.0.1:{way.port}{PATH}"]))
    used = way.cpu() - before
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", said)
    if found is None:
        raise Failed(f"wrk said nothing about {way.name}:\n{said}")
    count, duration, p50, p99, bad = map(int, found.groups())
    if bad or not count:
        raise Failed(f"{bad} of {count} requests through {way.name} failed:\n{said}")
    return Sample(count / duration * 1e6, p50 / 1e3, p99 / 1e3, used / count * 1e6)


# -- streams ----------------------------------------------------------------------------------------------------------


def _streams(ways: list[Way], rounds: int, seconds: int) -> str:
    samples: dict[str, list[Sample]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            samples[way.name].append(_listen(way, seconds))
    medians = {name: _median(taken) for name, taken in samples.items()}
    rows = []
    direct = medians["direct"]
    for way in ways:
        s = medians[way.name]
        row = [f"{way.streams} · {way.name}", f"{s.rate:.0f}", f"{s.p50:.3f}", f"{s.p99:.3f}"]
        added = (f"{s.p50 - direct.p50:.3f}", f"{s.p99 - direct.p99:.3f}", f"{s.cpu:.0f}")
        rows.append([*row, *(added if way.pid else ("–", "–", "–"))])
    head = ["streams · way", "chunks/s", "p50 ms", "p99 ms", "added p50 ms", "added p99 ms", "CPU µs/chunk"]
    text = table(head, rows)
    event = len(sse.EVENT % (0.0, sse.PAD))
    note = f"an event of {event} B every {sse.PERIOD * 1000:.0f} ms in each, from sent to arrived"
    missing = "" if proxies.NGINX else " nginx is not installed, so its rows are missing."
    return f"{text}\n\nStreams: {note}; medians of {rounds} alternating rounds of {seconds} s.{missing}"


def _listen(way: Way, seconds: int) -> Sample:
    argv = [sys.executable, "-m", "benchmarks.sse", "listen", str(way.stream_port), way.stream_path, way.model]
    before = way.cpu()
    _, said = call(proxies.pinned(proxies.LOAD_CORE, [*argv, str(way.streams), str(seconds)]))
    used = way.cpu() - before
    got = json.loads(said)
    rate = got["chunks"] / (seconds + sse.WARM)
    return Sample(rate, got["p50"] * 1e3, got["p99"] * 1e3, used / got["chunks"] * 1e6)


def _median(samples: list[Sample]) -> Sample:
    return Sample(*(median(getattr(s, field) for s in samples) for field in ("rate", "p50", "p99", "cpu")))


if __name__ == "__main__":
    program(run)
