"""A model that is not loaded: from the request to the first token, and how long it takes when another has to leave.

Beside the same llama-server started by hand (from its start to the first token of a request sent once it is ready), and
beside llama-server's own router, which is asked as our gateway is. `make llama-server` builds one.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.estimate import smollm
from benchmarks.measure import ENVIRONMENT, RECONCILE, Failed, call, compile_bytecode, ms, percentile, program, table
from reconciler.client import Client
from reconciler.host.layout import Layout
from tests.support import llama_server
from tests.support.processes import free_port, listeners, wait_until
from tests.support.tiny_gguf import tiny_gguf

MANIFEST = """\
version: 1
name: cold
engines: {{llama: {{type: llama.cpp, path: {server}}}}}
limits: {{memory: {room}}}
gateway: {{port: {port}}}
models:
  one: {{source: "file:models/one.gguf", engine: llama, context: 1k, start: on_demand, idle_timeout: 1h}}
  two: {{source: "file:models/two.gguf", engine: llama, context: 1k, start: on_demand, idle_timeout: 1h}}
"""
OURS = ("--model", "--alias", "--host", "--port")  # flags that are not the same for the others


@dataclass(frozen=True)
class Case:
    """A model, and how much memory has room for one of it and not for two."""

    title: str
    file: Path
    room: str


@dataclass(frozen=True)
class Door:
    """Where models are asked for by name, and how one is unloaded there."""

    port: int
    unload: Callable[[str], None]


def run(quick: bool) -> str:
    server = llama_server.found()
    if server is None:
        return f"Not measured: {llama_server.WITHOUT}."
    compile_bytecode()
    rounds, rows = (3 if quick else 15), []
    with tempfile.TemporaryDirectory(prefix="reconciler-benchmark-") as name:
        folder = Path(name)
        cases = [Case("tiny model, 0.4 MB", tiny_gguf(folder / "tiny.gguf"), "64MiB")]
        if not quick and (real := smollm()) is not None:
            cases.append(Case("SmolLM2-135M Q4_1, 98 MB", real, "320MiB"))
        for number, case in enumerate(cases):
            place = folder / str(number)
            (place / "models").mkdir(parents=True)
            for model in ("one", "two"):
                shutil.copyfile(case.file, place / "models" / f"{model}.gguf")
            rows += _compared(case, server, place, rounds)
    text = table(["model · way", "min ms", "median ms", "p95 ms", "× by hand"], rows)
    return f"{text}\n\n{rounds} interleaved rounds each; context 1024, the first token of a streamed chat answer."


def _compared(case: Case, server: Path, folder: Path, rounds: int) -> list[list[str]]:
    samples: dict[str, list[float]] = {}

    def note(way: str, begin: float) -> None:
        samples.setdefault(way, []).append(time.perf_counter() - begin)

    with ExitStack() as stack:
        ours, flags = stack.enter_context(_ours(case, server, folder))
        router = stack.enter_context(_router(server, folder, flags))
        doors = {"ours": ours, "router": router}
        for turn in range(rounds + 1):
            if turn == 1:
                samples.clear()  # the first one warms the disk cache
            begin = time.perf_counter()
            with _by_hand(server, folder / "models" / "one.gguf", flags) as port:
                _first_token(port, "one")
                note("started by hand", begin)
            for way, door in doors.items():
                door.unload("one")
                door.unload("two")
                begin = time.perf_counter()
                _first_token(door.port, "one")
                note(f"{way}, nothing loaded", begin)
                begin = time.perf_counter()
                _first_token(door.port, "two")
                note(f"{way}, another leaves for it", begin)
                begin = time.perf_counter()
                _first_token(door.port, "two")
                note(f"{way}, loaded", begin)
    hand = median(samples["started by hand"])
    order = [way for what in ("", "nothing", "another", ", loaded") for way in samples if _is(way, what)]
    return [
        [f"{case.title} · {way}", ms(min(s)), ms(median(s)), ms(percentile(s, 95)), f"{median(s) / hand:.2f}"]
        for way in order
        for s in (samples[way],)
    ]


def _is(way: str, what: str) -> bool:
    return what in way if what else "," not in way


def _first_token(port: int, model: str, key: str = "") -> None:
    """Ask for a streamed answer and read it to its first word; the rest is read, too, so that the server is idle."""
    body = {"model": model, "stream": True, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    if answer.status != 200 or '"content":"' not in text.replace('"content":""', ""):
        raise Failed(f"{model} at port {port}: {answer.status} {text[:300]}")


@contextmanager
def _ours(case: Case, server: Path, folder: Path) -> Iterator[tuple[Door, list[str]]]:
    """Our gateway with both models, and the flags that its servers are started with."""
    port = free_port()
    (folder / "stack.yaml").write_text(MANIFEST.format(server=server, room=case.room, port=port), encoding="utf-8")
    layout = Layout(folder / "state")
    call([RECONCILE, "apply"], cwd=folder)
    try:
        with Client(layout) as client:

            def unload(model: str) -> None:
                client.unload(model)

            _first_token(port, "one")
            (running,) = (p for p in psutil.process_iter(["cmdline"]) if _serves(p, layout.root))
            yield Door(port, unload), _shared(running.cmdline())
    finally:
        call([RECONCILE, "down"], cwd=folder)


def _serves(process: psutil.Process, root: Path) -> bool:
    line = process.info["cmdline"] or []
    return "--model" in line and line[line.index("--model") + 1].startswith(str(root))


def _shared(argv: list[str]) -> list[str]:
    """What of our own command line the others are started with as well."""
    rest, out = iter(argv[1:]), []
    for word in rest:
        if word in OURS:
            next(rest)
        else:
            out.append(word)
    return out


@contextmanager
def _router(server: Path, folder: Path, flags: list[str]) -> Iterator[Door]:
    argv = ["--models-dir", str(folder / "models"), "--models-max", "1", *flags]
    with _started(server, argv, folder / "router.log") as port:

        def unload(model: str) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/models/unload", json.dumps({"model": model}))
            connection.getresponse().read()  # one that is not loaded is refused
            wait_until(lambda: _state(port, model) == "unloaded", 20, f"the router unloads {model}")

        yield Door(port, unload)


def _state(port: int, model: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/models")
    known = json.load(connection.getresponse())["data"]
    return next((str(m["status"]["value"]) for m in known if m["id"] == model), "")


@contextmanager
def _by_hand(server: Path, model: Path, flags: list[str]) -> Iterator[int]:
    with _started(server, ["--model", str(model), *flags], model.parent.with_name("hand.log")) as port:
        yield port


@contextmanager
def _started(server: Path, argv: list[str], log: Path) -> Iterator[int]:
    """A llama-server that says that it is ready → its port. Stopped at the end, with its children."""
    port = free_port()
    with log.open("ab") as out:
        argv = [str(server), "--host", "127.0.0.1", "--port", str(port), *argv]
        process = subprocess.Popen(argv, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=out, stderr=out)
    try:
        _until_healthy(process, port, log)
        yield port
    finally:
        process.terminate()
        process.wait(20)
        if listeners(port):
            raise Failed(f"something still listens on {port}")


def _until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    raise Failed(f"{process.args!r} is not ready: {log.read_text()[-500:]}")


if __name__ == "__main__":
    os.environ.pop("RECONCILER_DATA_ROOT", None)
    program(run)
