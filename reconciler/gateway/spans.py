"""Spans: one OpenTelemetry span for each request, where that is asked for and installed.

It is asked for by OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, and comes with the extra `otel`.
Attributes are those of the GenAI conventions; none of them holds content. A trace that a client is part of goes on, and
targets are told of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reconciler import __version__
from reconciler.gateway.log import log
from reconciler.gateway.record import Record

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
CLOSE_SECONDS = 2.0
_DOES = {"chat/completions": "chat", "messages": "chat", "responses": "chat", "completions": "text_completion",
         "embeddings": "embeddings"}  # fmt: skip


class Span:
    """One that is open, and the header by which a target goes on with it."""

    def __init__(self, inner: Any, traceparent: str) -> None:
        self.inner = inner
        self.traceparent = traceparent


class Spans:
    """Makes spans and sends them, in the background."""

    def __init__(self, provider: Any, tracer: Tracer) -> None:
        self._provider = provider
        self._tracer = tracer

    def begin(self, record: Record, headers: Mapping[str, str]) -> Span:
        """The span of a request whose operation and model are known."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        propagator = TraceContextTextMapPropagator()
        context = propagator.extract(carrier)
        does = _DOES.get(record.operation, record.operation)
        attributes = {"gen_ai.operation.name": does, "gen_ai.request.model": record.known}
        span = self._tracer.start_span(f"{does} {record.known}", context, kind=SpanKind.SERVER, attributes=attributes)
        told = span.get_span_context()
        parent = f"00-{told.trace_id:032x}-{told.span_id:016x}-{int(told.trace_flags):02x}"
        return Span(span, parent)

    def take(self, record: Record, seconds: float) -> None:
        """End the span of a request that is over."""
        from opentelemetry.trace import StatusCode

        if record.span is None:
            return
        span = record.span.inner
        span.set_attribute("http.response.status_code", record.status)
        span.set_attribute("gen_ai.provider.name", record.target.removeprefix("provider/"))
        span.set_attribute("reconciler.attempts", record.attempts)
        if record.read is not None:
            span.set_attribute("gen_ai.usage.input_tokens", record.read)
        if record.written is not None:
            span.set_attribute("gen_ai.usage.output_tokens", record.written)
        if record.broke:
            span.set_attribute("error.type", record.broke)
            span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what is left; where the collector does not take it in time, it is lost."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(CLOSE_SECONDS)


def spans() -> Spans | None:
    """Those of this process; None where nobody asked for any, or nothing is installed that could make them."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log("warning", "no-spans", reason="opentelemetry is not installed; install reconciler[otel]")
        return None
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "reconciler-gateway"}
    provider = TracerProvider(
        resource=Resource.create({**named, "service.version": __version__}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=5)))
    return Spans(provider, provider.get_tracer("reconciler.gateway", __version__))
