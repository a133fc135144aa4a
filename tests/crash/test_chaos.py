"""Processes are killed at random under load from real clients, and nothing is lost that was not being killed itself.

For RECONCILER_CHAOS seconds (35; ten minutes in the nightly profile) the controller, the gateway and servers are ended
with SIGKILL, servers are stopped with SIGSTOP for a while and let go on, in an order that RECONCILER_SEED decides. A
dead controller is brought back by `reconcile apply`, as a person would, who also asks for what is not back after four
seconds: three kills in ten minutes are Contested, and left alone. Meanwhile the official client asks: two with its own
retries and two without, whole answers and streams, of models of which memory has room for all but one.

A request may fail in three ways, each held against the times at which we did something; all else is counted as failed,
also a stream that ends without its end and an answer that is not the right one:

- *away*: no connection to the gateway, from its kill until its port takes connections again.
- *told*: 503 with a Retry-After for a server that is not there, from its kill until the routes lead to another one. (Of
  a model that loads on demand: until they no longer lead to the dead one; from then on a request waits.)
- *cut*: in any other way, where the gateway, or a server of its model, was killed between its beginning and its end.

Meanwhile and at the end: a process without a row in the ledger is a stray, two processes of one resource that are not
being retired are duplicates, and what runs after `down` is an orphan.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.error import HTTPError

import pytest
from openai import DEFAULT_MAX_RETRIES, APIConnectionError, APIStatusError, OpenAI, OpenAIError
from openai.types.chat import ChatCompletionUserMessageParam

from reconciler.host.process import NONCE, ROOT, alive
from reconciler.store.ledger import Ledger, ProcessRow
from tests.crash.harness import NIGHTLY, SEED, wait_until
from tests.e2e.stage import Stage
from tests.support.engines import wrapper
from tests.support.processes import alive as process_alive
from tests.support.processes import children_with_env
from tests.support.tiny_gguf import tiny_gguf

SECONDS = float(os.environ.get("RECONCILER_CHAOS") or (600 if NIGHTLY else 35))
SLACK = 0.35  # seconds that a look of ours, and the gateway's reload, may be late
DYING = 0.1  # seconds between a SIGKILL and the end of what it is for, on a busy machine
PATIENCE = 4.0  # seconds after which a person does something about what has not come back
BAG = ("controller", "gateway", "always", "on_demand", "pause")
LIMITS = "{memory: 128MiB}"  # each is estimated at 40.3 MB: there is room for three
MODELS = {
    "always-one": "start: always, env: {FAKE_ENGINE: 'chunk-ms=15'}",
    "always-two": "start: always, env: {FAKE_ENGINE: 'chunk-ms=15,fork-grandchildren'}",
    "demand-one": "start: on_demand, idle_timeout: 2s, env: {FAKE_ENGINE: 'chunk-ms=15,slow-ready=0.3'}",
    "demand-two": "start: on_demand, idle_timeout: 3s, env: {FAKE_ENGINE: 'chunk-ms=15'}",
}


@dataclass
class Span:
    """From a kill until what was killed serves again; `until` is set by who sees that."""

    subject: str  # controller, gateway, or the name of a model
    pid: int
    at: float
    until: float = float("inf")

    @property
    def open(self) -> bool:
        """Whether it has not come back; what has not died yet has not."""
        return self.until == float("inf")

    def holds(self, when: float) -> bool:
        return self.at <= when <= self.until + SLACK


@dataclass(frozen=True)
class Request:
    """One request of a client, with all its retries; `wrong` is empty where it was answered as it should be."""

    model: str
    patient: bool
    streamed: bool
    sent: float
    ended: float
    wrong: str = ""
    false: bool = False  # it was answered as if all were well, and is not what was asked for
    refused: bool = False  # it could not connect
    told: bool = False  # 503 with a Retry-After, for a server that is not there


@dataclass
class Record:
    """What happened, for all threads."""

    requests: list[Request] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    blows: Counter[str] = field(default_factory=Counter)

    def verdict(self, request: Request) -> str:
        """ok, cut, away, told or failed."""
        if not request.wrong:
            return "ok"
        if request.false:
            return "failed"
        spans = [span for span in self.spans if span.subject in ("gateway", request.model)]
        if request.refused:
            away = [span for span in spans if span.subject == "gateway" and span.holds(request.ended)]
            return "away" if away else "failed"
        if request.told and any(span.subject == request.model and span.holds(request.ended) for span in spans):
            return "told"
        if any(request.sent <= span.at + DYING and span.at <= request.ended for span in spans):
            return "cut"
        return "failed"


class Client(threading.Thread):
    """Asks until it is told to stop."""

    def __init__(self, stage: Stage, record: Record, number: int, patient: bool, stop: threading.Event) -> None:
        super().__init__(name=f"client {number}")
        self.record, self.patient, self.stop_ = record, patient, stop
        self.random = random.Random(SEED * 1000 + number)
        retries = DEFAULT_MAX_RETRIES if patient else 0
        self.openai = OpenAI(base_url=f"{stage.url}/v1", api_key="none", timeout=60, max_retries=retries)

    def run(self) -> None:
        with self.openai:
            pause = 0.0
            while not self.stop_.wait(pause):
                asked = self._ask()
                self.record.requests.append(asked)
                pause = self.random.uniform(0, 0.15) + (0.25 if asked.wrong else 0.0)

    def _ask(self) -> Request:
        model, streamed = self.random.choice(list(MODELS)), self.random.random() < 0.5
        count = self.random.randint(1, 20)
        sent = time.time()
        false = refused = told = False
        try:
            found = self._words(model, streamed, count)
            wanted = "".join(f"w{n} " for n in range(count))
            false = found.strip() != wanted.strip()
            wrong = f"{found!r} instead of {count} words" if false else ""
        except APIStatusError as error:
            wrong = f"{error.status_code} {error.code} {error.message}"
            told = error.code in ("model_not_ready", "upstream_restarting") and "Retry-After" in error.response.headers
        except OpenAIError as error:
            wrong = repr(error.__cause__ or error)
            refused = isinstance(error, APIConnectionError) and wrong.startswith("ConnectError")
        except Exception as error:  # noqa: BLE001 - a broken stream is told by what reads it
            wrong = repr(error)
        return Request(model, self.patient, streamed, sent, time.time(), wrong, false, refused, told)

    def _words(self, model: str, streamed: bool, count: int) -> str:
        message: ChatCompletionUserMessageParam = {"role": "user", "content": "hi"}
        if not streamed:
            done = self.openai.chat.completions.create(model=model, max_tokens=count, messages=[message])
            return done.choices[0].message.content or ""
        text = finish = ""
        chunks = self.openai.chat.completions.create(model=model, max_tokens=count, messages=[message], stream=True)
        for chunk in chunks:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        return text if finish else f"{text} (no end)"


class Witness(threading.Thread):
    """Looks at the world all the time: who serves again, and what should not be there."""

    def __init__(self, stage: Stage, record: Record, stop: threading.Event) -> None:
        super().__init__(name="witness")
        self.stage, self.record, self.stop_ = stage, record, stop

    def run(self) -> None:
        looked = 0.0
        while not self.stop_.wait(0.02):
            self._controlled()
            self._models()
            if time.time() - looked > 0.5:
                self._strays()
                looked = time.time()

    def _open(self) -> list[Span]:
        return [span for span in self.record.spans if span.open and not process_alive(span.pid)]

    def _controlled(self) -> None:
        for span in self._open():
            if span.subject == "controller" and self.stage.snapshot():
                span.until = time.time()
            elif span.subject == "gateway":
                with suppress(OSError), socket.create_connection(("127.0.0.1", self.stage.port), 1):
                    span.until = time.time()

    def _models(self) -> None:
        if not (spans := [span for span in self._open() if span.subject in MODELS]):
            return
        routes = json.loads((self.stage.root / "run" / "routes.json").read_text())["models"]
        living = {row.nonce for row in self._rows() if row.identity is not None and alive(row.identity)}
        for span in spans:
            target = routes[span.subject]["target"]
            serves = target is not None and target["id"].partition("#")[2] in living
            if serves or (target is None and "on_demand" in MODELS[span.subject]):
                span.until = time.time()

    def _rows(self) -> list[ProcessRow]:
        with Ledger.read(self.stage.root / "ledger.db") as ledger:
            return list(ledger.processes())

    def _strays(self) -> None:
        """What is wrong counts only where it still is on a second look: the two are never read at one moment."""
        leaders = [p for p in children_with_env(ROOT, str(self.stage.root)) if p.leads]
        rows = self._rows()
        for process in leaders:
            if process.environ.get(NONCE) not in {row.nonce for row in rows} and process_alive(process.pid):
                rows = self._rows()
                nonce = process.environ.get(NONCE)
                if nonce not in {row.nonce for row in rows} and process_alive(process.pid):
                    self.record.problems.append(f"stray: pid {process.pid}, nonce {nonce}")
        serving = Counter(
            str(row.ref) for row in rows if row.retiring is None and row.identity is not None and alive(row.identity)
        )
        self.record.problems += [f"duplicate: {n} of {ref}" for ref, n in serving.items() if n > 1]


class Chaos:
    """Does what a bad day does, in an order that is the seed's."""

    def __init__(self, stage: Stage, record: Record) -> None:
        self.stage, self.record = stage, record
        self.random = random.Random(SEED)
        self.paused: list[tuple[float, int]] = []  # (when it goes on, pid)

    def run(self, seconds: float) -> None:
        end = time.time() + seconds
        bag: list[str] = []
        while time.time() < end:
            bag = bag or self.random.sample(BAG, len(BAG))
            self._strike(bag.pop())
            self._wait(self.random.uniform(0.2, 2.0))
            if time.time() - self.away() > PATIENCE:
                self.apply()
        self._wait(PATIENCE)  # longer than any pause

    def away(self) -> float:
        """Since when something has not come back by itself; now where all has."""
        return min((span.at for span in self.record.spans if span.open), default=time.time())

    def _strike(self, what: str) -> None:
        if what == "controller":
            self._kill(what, what, [self.stage.controller])
            if self.random.random() < 0.4:  # so that there is nobody who could notice
                self._strike(self.random.choice(("gateway", "always", "on_demand")))
            self._wait(self.random.uniform(0, 1.0))
            self.apply()
        elif what == "gateway":
            self._kill(what, "gateway", self._pids("gateway/main"))
        else:
            start = "on_demand" if what == "on_demand" or (what == "pause" and self.random.random() < 0.5) else "always"
            name = self.random.choice([name for name in MODELS if start in MODELS[name]])
            pids = self._pids(f"server/{name}")
            if what == "pause":
                self._pause(pids)
            else:
                self._kill(what, name, pids)

    def _kill(self, what: str, subject: str, pids: list[int]) -> None:
        for pid in pids:
            self.record.spans.append(Span(subject, pid, time.time()))
            self.record.blows[what] += _signal(pid, signal.SIGKILL)

    def _pause(self, pids: list[int]) -> None:
        for pid in pids:
            self.record.blows["pause"] += _signal(pid, signal.SIGSTOP)
            self.paused.append((time.time() + self.random.uniform(0.3, 3.0), pid))

    def _wait(self, seconds: float) -> None:
        end = time.time() + seconds
        while (now := time.time()) < end:
            for when, pid in [one for one in self.paused if one[0] <= now]:
                _signal(pid, signal.SIGCONT)
                self.paused.remove((when, pid))
            time.sleep(0.02)

    def apply(self) -> None:
        self.record.blows["apply"] += 1
        done = self.stage.run("apply", "--no-wait", code=None)
        if done.returncode:
            self.record.problems.append(f"apply exited with {done.returncode}: {done.stderr}")

    def _pids(self, ref: str) -> list[int]:
        with Ledger.read(self.stage.root / "ledger.db") as ledger:
            rows = [row for row in ledger.processes() if str(row.ref) == ref and row.identity is not None]
        return [row.identity.pid for row in rows if row.identity is not None and alive(row.identity)]


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    wrapper(tmp_path / "engine")
    tiny_gguf(tmp_path / "hello.gguf")
    lines = [f'  {name}: {{source: "file:hello.gguf", engine: fake, {more}}}' for name, more in MODELS.items()]
    head = ["version: 1", "name: chaos", "engines: {fake: {type: llama.cpp, path: ./engine}}", f"limits: {LIMITS}"]
    stage.write("\n".join([*head, f"gateway: {{port: {stage.port}}}", "models:", *lines, ""]))
    try:
        stage.run("apply")
        yield stage
    finally:
        stage.close()


@pytest.mark.timeout(SECONDS + 240)
def test_nothing_fails_but_what_was_killed(stage: Stage, record_property: Callable[[str, object], None]) -> None:
    record, stop, seen = Record(), threading.Event(), threading.Event()
    clients = [Client(stage, record, number, patient=number % 2 == 0, stop=stop) for number in range(4)]
    witness, chaos = Witness(stage, record, seen), Chaos(stage, record)
    for thread in (*clients, witness):
        thread.start()
    try:
        chaos.run(SECONDS)
    finally:
        stop.set()
        for client in clients:
            client.join()
    chaos.apply()
    wait_until(lambda: stage.snapshot().get("ready"), 60, f"not ready again\n{stage.log()}")
    wait_until(lambda: not [span for span in record.spans if span.open], 30, "something is still away")
    seen.set()
    witness.join()
    settled(stage, record)
    stage.run("down")
    orphans = children_with_env(ROOT, str(stage.root))
    counts = tally(record, len(orphans))
    record_property("count:chaos", json.dumps(counts))
    print(f"seed {SEED}, {SECONDS:g} s: {counts}\n" + "\n".join(told(record)))
    assert record.requests, "nobody asked for anything"
    assert min(record.blows[what] for what in ("controller", "gateway")) > 0, "nothing was tried"
    assert not record.problems
    assert not orphans
    failed = [request for request in record.requests if record.verdict(request) == "failed"]
    assert not failed, "\n".join(f"{request}" for request in failed) + "\n" + "\n".join(map(str, record.spans))


def settled(stage: Stage, record: Record) -> None:
    """One process for each row and one row for each process, each model answers, and what died left nothing behind."""
    for name in MODELS:
        try:
            assert stage.ask(name, max_tokens=2)["choices"]
        except HTTPError as error:
            record.problems.append(f"at the end: {name} is refused with {error.read().decode()}")
    wait_until(lambda: stage.snapshot().get("ready"), 30, "not ready after it was asked")
    with Ledger.read(stage.root / "ledger.db") as ledger:
        rows = {row.nonce for row in ledger.processes()}
    found = children_with_env(ROOT, str(stage.root))
    record.problems += [f"stray at the end: {p.pid} {p.argv}" for p in found if p.environ.get(NONCE) not in rows]
    serving = Counter(p.environ.get(NONCE, "") for p in found if p.leads)
    record.problems += [f"no process of {nonce}" for nonce in rows - serving.keys()]


def tally(record: Record, orphans: int) -> dict[str, object]:
    """The counts, with and without the client's retries."""
    verdicts = {patient: Counter[str]() for patient in (True, False)}
    for request in record.requests:
        verdicts[request.patient][record.verdict(request)] += 1
    kinds = [problem.split()[0].rstrip(":") for problem in record.problems]
    return {
        "failed": sum(v["failed"] for v in verdicts.values()),
        "orphans": orphans,
        "duplicates": kinds.count("duplicate"),
        "strays": kinds.count("stray"),
        "requests": len(record.requests),
        **{f"with retries, {k}": verdicts[True][k] for k in ("ok", "cut", "away", "told")},
        **{f"without, {k}": verdicts[False][k] for k in ("ok", "cut", "away", "told")},
        **{f"kills of {k}" if k in BAG[:4] else k: n for k, n in sorted(record.blows.items())},
        **absences(record),
    }


def absences(record: Record) -> dict[str, str]:
    """How long what was killed was away, by whether a controller was there to notice."""
    found: dict[str, list[float]] = {}
    headless = [span for span in record.spans if span.subject == "controller"]
    for span in record.spans:
        who = span.subject if span.subject in ("controller", "gateway") else "server"
        alone = who != "controller" and any(h.at < span.until and span.at < h.until for h in headless)
        found.setdefault(f"{who} away{', no controller there' if alone else ''}", []).append(span.until - span.at)
    return {name: f"p50 {median(s):.2f} max {max(s):.2f} s of {len(s)}" for name, s in sorted(found.items())}


def told(record: Record) -> list[str]:
    """What was said to those who failed, each once."""
    seen = Counter((record.verdict(r), r.patient, r.streamed, r.wrong[:160]) for r in record.requests if r.wrong)
    return [f"{n} × {v}, retries {p}, stream {s}: {w}" for (v, p, s, w), n in seen.most_common(40)]
