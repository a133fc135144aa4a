"""The public surface: which path does what, behind the guards.

Everything is decided on the raw path. Routes are looked at once per request, so a reload never changes a request
that is under way.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from reconciler import __version__
from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.model_list import model_object, models_page
from reconciler.gateway import errors, guards, payload
from reconciler.gateway.errors import Refusal
from reconciler.gateway.exchange import Asked, Exchange
from reconciler.gateway.listener import read_body
from reconciler.gateway.live import LiveRoutes
from reconciler.gateway.match import offered, unknown
from reconciler.gateway.metrics import TYPE as METRICS_TYPE
from reconciler.gateway.metrics import Metrics, known_as
from reconciler.gateway.operations import OPERATIONS, Operation
from reconciler.gateway.quota import Quota
from reconciler.gateway.record import Record
from reconciler.gateway.reply import JSON, Reply
from reconciler.gateway.responses_store import PAGE
from reconciler.gateway.routes import ApiKey, Routes
from reconciler.gateway.spans import Spans
from reconciler.gateway.tap import Taps

_READ = ("GET", "HEAD")
_WRITE = ("POST",)
# What a client says about itself, and a target that speaks its dialect may need to know. Never a key.
_ALONG = ("content-type", "accept", "anthropic-version", "anthropic-beta", "openai-beta")


class Surface:
    """Answers requests."""

    def __init__(
        self, live: LiveRoutes, exchange: Exchange, metrics: Metrics, taps: Taps, spans: Spans | None = None
    ) -> None:
        self._metrics = metrics
        self._taps = taps
        self._spans = spans
        self._live = live
        self._exchange = exchange
        self._quota = Quota()

    async def answer(self, request: web.BaseRequest, reply: Reply) -> None:
        """Write the response to `reply`, or raise `Refusal`."""
        routes = self._live.routes
        headers, record = request.headers, reply.record
        record.path = path = guards.check_target(request.raw_path)
        inner = path[len(routes.prefix) :] if path.startswith(routes.prefix + "/") else ""
        operation = OPERATIONS.get(inner)
        if "anthropic-version" in headers or (operation is not None and operation.dialect == "anthropic"):
            reply.dialect = "anthropic"
        guards.check_host(headers.getall("Host", ()), self._live.trust)
        guards.check_origin(headers.getall("Origin", ()), self._live.trust)
        if "Upgrade" in headers and headers["Upgrade"].lower() != "h2c":  # h2c is an offer that may be ignored
            raise Refusal(400, "Only plain HTTP is spoken here", code="bad_upgrade", close=True)
        record.operation = _named(path, inner)
        if path in ("/", "/health") and request.method in _READ:
            _json(reply, _front(routes) if path == "/" else _health(routes))
            return
        key = guards.check_key(routes.api_keys, headers.getall("Authorization", ()), headers.getall("x-api-key", ()))
        record.key = key.name if key is not None else "none"
        if operation is not None:
            _allow(request, _WRITE)
            self._spend(key)
            await self._carry(request, operation, routes, key, reply)
        elif inner == "/models":
            _allow(request, _READ)
            _json(reply, _models(routes, key, reply.dialect, request.query))
        elif inner.startswith("/models/"):
            _allow(request, _READ)
            name = unquote(inner.removeprefix("/models/"))
            if name not in (known := offered(routes, key)):
                raise unknown(name, known)
            entry = _entry(routes, name)
            _json(reply, model_object(entry) if reply.dialect == "anthropic" else entry)
        elif inner.startswith("/responses/") and routes.keep_responses:
            await self._kept(request, inner.removeprefix("/responses/"), key, reply)
        elif path == "/metrics":
            _allow(request, _READ)
            if key is not None and key.allow is not None:
                raise errors.not_for_all(key.name)
            reply.whole(200, METRICS_TYPE, await self._metrics.text())
        elif path in ("/", "/health"):
            _allow(request, _READ)
        else:
            raise errors.no_such_path(path, routes.prefix)

    async def _kept(self, request: web.BaseRequest, rest: str, key: ApiKey | None, reply: Reply) -> None:
        """A response that was kept, what it was made from, or an end to keeping it."""
        ident, _, part = rest.partition("/")
        owner, store = key.name if key is not None else None, self._exchange.store
        if part not in ("", "input_items"):
            raise errors.no_such_path(request.path, self._live.routes.prefix)
        _allow(request, ("GET", "HEAD") if part else ("GET", "HEAD", "DELETE"))
        found: object
        if part:
            query = request.query
            limit, order = query.get("limit", ""), query.get("order", "desc")
            if (limit and not 1 <= int(limit if limit.isascii() and limit.isdigit() else 0) <= PAGE) or order not in (
                "asc",
                "desc",
            ):
                raise Refusal(400, f"limit is a number from 1 to {PAGE}, order is asc or desc", code="invalid_query")
            found = await asyncio.to_thread(
                lambda: store.input_items(ident, owner, after=query.get("after"), limit=int(limit or 20), order=order)
            )
        elif request.method == "DELETE":
            gone = await asyncio.to_thread(store.delete, ident, owner)
            found = {"id": ident, "object": "response", "deleted": True} if gone else None
        else:
            found = await asyncio.to_thread(store.get, ident, owner)
        if found is None:
            raise Refusal(404, f"There is no response {ident[:100]} here", param="response_id", code="not_found")
        _json(reply, found)

    def _spend(self, key: ApiKey | None) -> None:
        """Count one request of the key; raises `Refusal` 429 where it has used up what it may."""
        if key is None:
            return
        now = time.monotonic()
        for what, rate in (("tokens", key.tokens), ("requests", key.rate)):
            if rate is None:
                continue
            bucket = self._quota.bucket(key.name, what, rate, now)
            if (seconds := bucket.wait(now)) > 0:
                text = f"The key '{key.name}' has used up its {rate.count} {what} in {rate.seconds:g} s"
                raise errors.too_many_requests(text, seconds)
            if what == "requests":
                bucket.use(1, now)

    async def _carry(
        self, request: web.BaseRequest, operation: Operation, routes: Routes, key: ApiKey | None, reply: Reply
    ) -> None:
        headers = request.headers
        encoding = headers.get("Content-Encoding")
        if encoding is not None and encoding.lower() != "identity":
            raise Refusal(415, "Send the body without Content-Encoding", code="unsupported_encoding")
        body = await read_body(request, routes.limits)
        document = payload.parse(body)
        payload.refuse_addresses(document)
        self._note(reply.record, document, body, request, routes)
        asked = Asked(
            operation=operation,
            name=document["model"],
            document=document,
            body=body,
            headers=_along(headers, reply.record),
            query=request.raw_path.partition("?")[2],
            key=key,
            request_id=reply.request_id,
        )
        try:
            await self._exchange.carry(asked, reply)
        finally:
            self._charge(key, reply.record)

    def _note(
        self, record: Record, document: dict[str, Any], body: bytes, request: web.BaseRequest, routes: Routes
    ) -> None:
        """What is asked for, for those who count and those who look on."""
        record.model, record.known = document["model"], known_as(routes, document["model"])
        record.received, record.streamed = len(body), document.get("stream") is True
        if self._spans is not None:
            record.span = self._spans.begin(record, request.headers)
        if self._taps.open:
            record.copy = self._taps.copy(record, record.path, request.headers, document, body)
            if record.copy is not None:
                record.copy.reach(record.model, record.known)

    def _charge(self, key: ApiKey | None, record: Record) -> None:
        """Take what the answer took from what the key may use."""
        used = (record.read or 0) + (record.written or 0)
        if used and key is not None and key.tokens is not None:
            now = time.monotonic()
            self._quota.bucket(key.name, "tokens", key.tokens, now).use(used, now)


def _named(path: str, inner: str) -> str:
    """What is asked for, as one of a few words."""
    if inner in OPERATIONS:
        return inner[1:]
    name = (inner or path)[1:].partition("/")[0]
    return name if name in ("models", "responses", "metrics", "health") else "other"


def _along(headers: Mapping[str, str], record: Record) -> dict[str, str]:
    """The client's own headers that may go along, and by which its spans are put together."""
    out = {name: headers[name] for name in (*_ALONG, "traceparent") if name in headers}
    return out if record.span is None else out | {"traceparent": record.span.traceparent}


def _allow(request: web.BaseRequest, methods: tuple[str, ...]) -> None:
    if request.method not in methods:
        raise errors.wrong_method(request.method, methods)


def _json(reply: Reply, document: object) -> None:
    reply.whole(200, JSON, json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))


def _models(routes: Routes, key: ApiKey | None, dialect: str, query: Mapping[str, str]) -> dict[str, Any]:
    entries = [_entry(routes, name) for name in offered(routes, key)]
    if dialect != "anthropic":
        return {"object": "list", "data": entries}
    try:
        return models_page(entries, query)
    except Unmappable as error:
        raise errors.field_refused(error.field, str(error)) from None


def _front(routes: Routes) -> dict[str, object]:
    return {"service": "reconciler", "version": __version__, "api": f"{routes.prefix}/"}


def _health(routes: Routes) -> dict[str, object]:
    ready = sum(model.target is not None for model in routes.models.values())
    return {"status": "ok", "version": __version__, "models": {"ready": ready, "total": len(routes.models)}}


def _entry(routes: Routes, name: str) -> dict[str, Any]:
    model = routes.names.get(name)
    if model is None:
        return _elsewhere(routes, name)
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "ready": model.target is not None,
        "context_length": model.context,
    }


def _elsewhere(routes: Routes, name: str) -> dict[str, Any]:
    """A route, or a provider's model."""
    owner = "reconciler" if name in routes.routes else name.partition("/")[0]
    provider = routes.providers.get(owner)
    return {"id": name, "object": "model", "created": 0, "owned_by": owner, "ready": not (provider and provider.reason)}
