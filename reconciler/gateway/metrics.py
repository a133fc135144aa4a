"""Metrics: what happened, as numbers, in Prometheus' text.

A request costs a few sums in plain tables; Prometheus' own library is loaded, and the text made, when somebody asks,
beside the loop. What clients make up never becomes a label, and each table has a bounded number of rows: what comes
when it is full is counted in one row "other". No key and no content is ever part of it.
"""

from __future__ import annotations

import asyncio
import platform
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from reconciler import __version__
from reconciler.gateway.record import GONE, Record
from reconciler.gateway.routes import Routes

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

TYPE = b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
MOST_ROWS = 300  # of one table
MOST_SPREADS = 60  # rows of a table of spreads, each of which is a line for each bound
OTHER = "other"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
PACES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 250.0, 500.0, 1000.0)
_CLASSES = {0: "none", 1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}

Labels = tuple[str, ...]


class Now(NamedTuple):
    """How things stand at one moment: requests under way in all and by target, those that wait by model, seconds for
    which targets are passed over, and reloads by how they ended."""

    running: int
    inflight: Mapping[str, int]
    waiting: Mapping[str, int]
    cooling: Mapping[str, float]
    reloads: Mapping[str, int]


class Sums:
    """One sum for each row of labels."""

    def __init__(self, most: int = MOST_ROWS) -> None:
        self.rows: dict[Labels, float] = {}
        self._most = most

    def add(self, labels: Labels, amount: float) -> None:
        rows = self.rows
        if labels not in rows and len(rows) >= self._most:
            labels = (OTHER,) * len(labels)
        rows[labels] = rows.get(labels, 0) + amount


class Spreads:
    """For each row of labels how many values lie under each bound, and their sum, which is the last number."""

    def __init__(self, bounds: tuple[float, ...], most: int = MOST_SPREADS) -> None:
        self.bounds = bounds
        self.rows: dict[Labels, list[float]] = {}
        self._most = most

    def add(self, labels: Labels, value: float) -> None:
        row = self.rows.get(labels)
        if row is None:
            if len(self.rows) >= self._most:
                labels = (OTHER,) * len(labels)
            row = self.rows.setdefault(labels, [0.0] * (len(self.bounds) + 2))
        row[bisect_left(self.bounds, value)] += 1
        row[-1] += value


class Metrics:
    """What the gateway counts. `now` tells how things stand when somebody asks."""

    def __init__(self, now: Callable[[], Now]) -> None:
        self._now = now
        self._requests = Sums()
        self._tokens = Sums()
        self._fallbacks = Sums()
        self._rotations = Sums()
        self._troubles = Sums()
        self._gone = Sums(20)
        self._first = Spreads(SECONDS)
        self._whole = Spreads(SECONDS)
        self._pace = Spreads(PACES)

    def take(self, record: Record, seconds: float) -> None:
        """Count a request that is over, after so many seconds."""
        named = (record.operation, record.known)
        row = (*named, record.key, record.target, _CLASSES.get(record.status // 100, OTHER))
        self._requests.add(row, 1)
        self._whole.add(named, seconds)
        if record.first:
            self._first.add(named, record.first - record.began)
        if record.read:
            self._tokens.add((record.known, record.key, record.target, "in"), record.read)
        if record.written:
            self._tokens.add((record.known, record.key, record.target, "out"), record.written)
            if record.pace:
                self._pace.add((record.known, record.target), record.pace)
        if record.broke == GONE:
            self._gone.add((record.operation,), 1)
        for trouble in record.troubles or ():
            self._troubles.add(trouble, 1)
        for fallback in record.fallbacks or ():
            self._fallbacks.add(fallback, 1)
        for rotation in record.rotations or ():
            self._rotations.add(rotation, 1)

    async def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        tables = self._tables()
        return await asyncio.to_thread(_text, tables)

    def _tables(self) -> list[_Table]:
        """Copies: the loop goes on counting while the text is made."""
        now, build = self._now(), (__version__, platform.python_version())
        asked, served = ("operation", "model"), ("model", "key", "target")
        return [
            _sums("requests", "Requests that are over.", (*asked, "key", "target", "status"), self._requests),
            _sums("tokens", "Tokens, as the targets tell them.", (*served, "direction"), self._tokens),
            _sums("fallbacks", "Times that the next target was asked.", ("model", "after", "kind"), self._fallbacks),
            _sums("key_rotations", "Times that a provider's next key was tried.", ("provider", "status"),
                  self._rotations),
            _sums("upstream_errors", "Failures of targets.", ("target", "kind"), self._troubles),
            _sums("client_disconnects", "Clients that left before the end.", ("operation",), self._gone),
            _Table("reloads", "counter", "Times that the routes were read.", ("result",), _rows(now.reloads)),
            _spreads("request_first_byte_seconds", "Until the first byte of the answer's body.", asked, self._first),
            _spreads("request_seconds", "Until the answer was over.", asked, self._whole),
            _spreads("output_tokens_per_second", "How fast streams were written.", ("model", "target"), self._pace),
            _Table("in_flight", "gauge", "Requests under way.", (), {(): now.running}),
            _Table("target_in_flight", "gauge", "Requests under way at a target.", ("target",), _rows(now.inflight)),
            _Table("waiting", "gauge", "Requests that wait for a model to be loaded.", ("model",), _rows(now.waiting)),
            _Table("cooling_seconds", "gauge", "For how long a target that failed is passed over.", ("target",),
                   _rows(now.cooling)),
            _Table("build", "info", "What this gateway is.", ("version", "python"), {build: 1}),
        ]  # fmt: skip


def known_as(routes: Routes, name: str) -> str:
    """The name as a label: itself where the routes name it, what it falls under, or "unknown"."""
    if name in routes.names or name in routes.routes:
        return name
    prefixes = [each for each in routes.routes if each.endswith("*") and name.startswith(each[:-1])]
    if prefixes:
        return max(prefixes, key=len)
    head, slash, rest = name.partition("/")
    provider = routes.providers.get(head) if slash and rest else None
    if provider is None:
        return "unknown"
    if rest in provider.models:
        return name
    return f"{head}/*" if provider.open else "unknown"


class _Table(NamedTuple):
    """One metric: its rows by the values of its labels."""

    name: str
    kind: str
    about: str
    labels: Labels
    rows: Mapping[Labels, float | list[float]]
    bounds: tuple[float, ...] = ()


def _sums(name: str, about: str, labels: Labels, sums: Sums) -> _Table:
    return _Table(name, "counter", about, labels, dict(sums.rows))


def _spreads(name: str, about: str, labels: Labels, spreads: Spreads) -> _Table:
    return _Table(name, "histogram", about, labels, {k: list(v) for k, v in spreads.rows.items()}, spreads.bounds)


def _rows(values: Mapping[str, float]) -> dict[Labels, float]:
    """One row a name, and one for all beyond the bound."""
    sums = Sums()
    for name, value in values.items():
        sums.add((name,), value)
    return sums.rows


def _text(tables: list[_Table]) -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest

    class Collector:
        def collect(self) -> Iterable[Metric]:
            yield from map(_family, tables)
            yield from _process()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


def _family(table: _Table) -> Metric:
    from prometheus_client import core

    name, labels = f"reconciler_{table.name}", table.labels
    if table.kind == "histogram":
        spread = core.HistogramMetricFamily(name, table.about, labels=labels)
        for row, numbers in table.rows.items():
            assert isinstance(numbers, list)
            spread.add_metric(row, _buckets(table.bounds, numbers), numbers[-1])
        return spread
    family: core.GaugeMetricFamily | core.CounterMetricFamily
    if table.kind == "info":
        family = core.GaugeMetricFamily(f"{name}_info", table.about, labels=labels)
    elif table.kind == "counter":
        family = core.CounterMetricFamily(name, table.about, labels=labels)
    else:
        family = core.GaugeMetricFamily(name, table.about, labels=labels)
    for row, value in table.rows.items():
        assert not isinstance(value, list)
        family.add_metric(row, value)
    return family


def _buckets(bounds: tuple[float, ...], numbers: list[float]) -> list[tuple[str, float]]:
    """(bound, how many lie at or below it), up to infinity."""
    out, below = [], 0.0
    for bound, number in zip((*map(str, bounds), "+Inf"), numbers, strict=False):
        below += number
        out.append((bound, below))
    return out


def _process() -> Iterable[Metric]:
    import psutil
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        yield GaugeMetricFamily(
            "process_resident_memory_bytes", "Resident memory size in bytes.", process.memory_info().rss
        )
        yield CounterMetricFamily("process_cpu_seconds", "CPU time spent in seconds.", times.user + times.system)
        yield GaugeMetricFamily("process_start_time_seconds", "Start time since 1970.", process.create_time())
        if sys.platform != "win32":
            yield GaugeMetricFamily("process_open_fds", "Number of open file descriptors.", process.num_fds())
