"""The public surface: which path does what, behind the guards.

Everything is decided on the raw path, by the table in `operations`. Routes are looked at once per request, so a reload
never changes a request that is under way.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from reconciler import __version__
from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.model_list import model_object, models_page
from reconciler.gateway import cors, docs_page, errors, guards, multipart, openapi, payload, upstream_paths
from reconciler.gateway.errors import Refusal
from reconciler.gateway.exchange import Asked, Exchange
from reconciler.gateway.listener import read_body
from reconciler.gateway.live import LiveRoutes
from reconciler.gateway.match import allowed, offered, unknown
from reconciler.gateway.metrics import TYPE as METRICS_TYPE
from reconciler.gateway.metrics import Metrics, known_as
from reconciler.gateway.operations import Operation, Place, mapped, served
from reconciler.gateway.quota import Quota
from reconciler.gateway.record import Record
from reconciler.gateway.reply import JSON, Reply
from reconciler.gateway.responses_store import PAGE
from reconciler.gateway.routes import ApiKey, Model, Routes
from reconciler.gateway.spans import Spans
from reconciler.gateway.tap import Taps

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
        routes, trust = self._live.routes, self._live.trust
        headers, record = request.headers, reply.record
        record.path = path = guards.check_target(request.raw_path)
        place = mapped(routes.prefix, routes.keep_responses).find(path)
        operation = place.operation(request.method) if place is not None else None
        record.operation = _named(operation)
        if "anthropic-version" in headers or (place is not None and place.dialect == "anthropic"):
            reply.dialect = "anthropic"
        guards.check_framing(request.version, headers.getall("Transfer-Encoding", ()))
        guards.check_host(headers.getall("Host", ()), trust)
        if trust.origins:
            reply.also(b"Vary: Origin\r\n")
        if (origin := guards.check_origin(headers.getall("Origin", ()), trust)) is not None:
            reply.also(cors.readable(origin))
        if "Upgrade" in headers:
            if headers["Upgrade"].lower() != "h2c":  # which is an offer that may be ignored
                raise Refusal(400, "Only plain HTTP is spoken here", code="bad_upgrade", close=True)
            reply.keep_alive = False  # what follows such an offer is not parsed as HTTP
        if origin is not None and place is not None and cors.is_preflight(request.method, headers):
            reply.whole(200, cors.preflight(place.methods, headers.getall(cors.ASKED_HEADERS, ())), b"")
            return
        key = None
        if operation is None or not operation.keyless:
            key = self._key(request)
            record.key = key.name if key is not None else "none"
        if place is None:
            raise errors.no_such_path(path, routes.prefix, _nearest(path, routes))
        if operation is None:
            raise errors.wrong_method(request.method, place.methods)
        await self._do(request, operation, place, key, reply)

    async def _do(
        self, request: web.BaseRequest, operation: Operation, place: Place, key: ApiKey | None, reply: Reply
    ) -> None:
        routes, parts = self._live.routes, place.parts
        match operation.does:
            case "ask" | "form":
                self._spend(key)
                await self._carry(request, operation, routes, key, reply)
            case "native":
                await self._native(request, operation, parts, key, reply)
            case "models":
                _json(reply, _models(routes, key, reply.dialect, request.query))
            case "model":
                _json(reply, _model(routes, key, unquote(parts["model"]), reply.dialect))
            case "kept" | "kept_items":
                await self._kept(request, parts["response_id"], operation.does == "kept_items", key, reply)
            case "front":
                _json(reply, _front(routes))
            case "health":
                _json(reply, _health(routes))
            case "ready":
                self._ready(request, routes, reply)
            case "description":
                _json(reply, openapi.describe(routes, offered(routes, key), __version__))
            case "metrics":
                if key is not None and key.allow is not None:
                    raise errors.not_for_all(key.name)
                reply.whole(200, METRICS_TYPE, await self._metrics.text())
            case "docs":
                _page(reply, parts.get("file", ""), request.headers.get("Accept-Encoding", ""))

    def _key(self, request: web.BaseRequest) -> ApiKey | None:
        headers = request.headers
        shown, own = headers.getall("Authorization", ()), headers.getall("x-api-key", ())
        return guards.check_key(self._live.routes.api_keys, shown, own)

    def _ready(self, request: web.BaseRequest, routes: Routes, reply: Reply) -> None:
        """What is missing is told by name to those who may ask for it; a probe without a key learns how many."""
        key: ApiKey | None = None
        known = True
        try:
            key = self._key(request)
        except Refusal:
            known = False
        waiting = [m for m in routes.models.values() if m.target is None and not (m.on_demand or m.by_hand)]
        told = [m for m in waiting if known and allowed(routes, m.name, key)]
        document = {
            "status": "waiting" if waiting else "ready",
            "version": __version__,
            "serial": routes.serial,
            "waiting": len(waiting),
            "missing": {m.name: m.reason or "it is being started" for m in told},
        }
        _json(reply, document, 503 if waiting else 200, b"Retry-After: 2\r\n" if waiting else b"")

    async def _kept(self, request: web.BaseRequest, ident: str, part: bool, key: ApiKey | None, reply: Reply) -> None:
        """A response that was kept, what it was made from, or an end to keeping it."""
        owner, store = key.name if key is not None else None, self._exchange.store
        found: object
        if part:
            query = request.query
            limit, order = query.get("limit", ""), query.get("order", "desc")
            right = not limit or (limit.isascii() and limit.isdigit() and len(limit) < 6 and 1 <= int(limit) <= PAGE)
            if not right or order not in ("asc", "desc"):
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
        body = await _body(request, routes)
        kind = headers.get("Content-Type") or "application/json"
        document: dict[str, Any]
        if operation.does == "form":
            form = multipart.parse(kind, body)
            document, encoded = form.document, form.encoded
        else:
            payload.check_charset(kind)
            document, encoded = payload.parse(body), payload.encoded
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
            encoded=encoded,
        )
        try:
            await self._exchange.carry(asked, reply)
        finally:
            self._charge(key, reply.record)

    async def _native(
        self, request: web.BaseRequest, operation: Operation, parts: dict[str, str], key: ApiKey | None, reply: Reply
    ) -> None:
        """What an engine of this machine serves of its own."""
        routes = self._live.routes
        upstream_paths.check_path(request.raw_path.partition("?")[0])
        name, query = upstream_paths.model_name(parts["model"]), request.raw_path.partition("?")[2]
        path = upstream_paths.path_at(operation.upstream, parts)
        upstream_paths.check_query(operation.upstream, query)
        model = _local(routes, name, key)
        body = await _body(request, routes)
        document: dict[str, Any] = {}
        if operation.method == "POST" and (body or "{slot}" not in operation.upstream):
            found = payload.decoded(body)
            upstream_paths.check_body(operation.upstream, found)
            document = found if isinstance(found, dict) else {}
        elif body:
            raise Refusal(400, "A body is not expected here", code="unexpected_body", close=True)
        self._spend(key)
        sent = {"content-type": "application/json"} if body else {}
        sent |= {"accept": request.headers["accept"]} if "accept" in request.headers else {}
        reply.record.model = reply.record.known = name
        reply.record.received = len(body)
        asked = Asked(operation, name, document, body, sent, query, key, reply.request_id)
        try:
            await self._exchange.native(asked, model, path, reply)
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


def _named(operation: Operation | None) -> str:
    """What is asked for, as one of a few words."""
    if operation is None:
        return "other"
    if operation.does in ("ask", "form"):
        return operation.path[1:]
    return {"model": "models", "kept": "responses", "kept_items": "responses", "native": "upstream"}.get(
        operation.does, operation.does
    )


def _along(headers: Mapping[str, str], record: Record) -> dict[str, str]:
    """The client's own headers that may go along, and by which its spans are put together."""
    out = {name: headers[name] for name in (*_ALONG, "traceparent") if name in headers}
    return out if record.span is None else out | {"traceparent": record.span.traceparent}


async def _body(request: web.BaseRequest, routes: Routes) -> bytes:
    encoding = request.headers.get("Content-Encoding")
    if encoding is not None and encoding.lower() != "identity":
        raise Refusal(415, "Send the body without Content-Encoding", code="unsupported_encoding")
    return await read_body(request, routes.limits)


def _local(routes: Routes, name: str, key: ApiKey | None) -> Model:
    """A model that an engine of this machine serves; raises `Refusal` 403 or 404."""
    if not allowed(routes, name, key):
        raise errors.not_allowed(name[:200], key.name if key else "")
    if (model := routes.names.get(name)) is not None:
        return model
    known = offered(routes, key)
    if name in known:
        text = f"'{name}' is not a model of an engine here; only those can be asked in an engine's own words"
        raise Refusal(404, text, param="model", code="not_local")
    raise unknown(name, [each for each in known if each in routes.names])


def _nearest(path: str, routes: Routes) -> list[str]:
    """The paths that are written most like one that is not served."""
    there = dict.fromkeys(each.whole(routes.prefix) for each in served(routes.keep_responses))
    return difflib.get_close_matches(path[:200], list(there), n=2, cutoff=0.6)


def _page(reply: Reply, name: str, accepted: str) -> None:
    packed = any(word.strip().lower() in ("gzip", "gzip;q=1", "gzip;q=1.0") for word in accepted.split(","))
    if name not in docs_page.FILES:
        raise Refusal(404, f"The page has no file {name[:100]}", code="not_found")
    page = docs_page.page(name, packed)
    reply.whole(200, page.headers, page.body)


def _json(reply: Reply, document: object, status: int = 200, lines: bytes = b"") -> None:
    reply.whole(status, JSON + lines, json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))


def _model(routes: Routes, key: ApiKey | None, name: str, dialect: str) -> dict[str, Any]:
    if name not in (known := offered(routes, key)):
        raise unknown(name, known)
    entry = _entry(routes, name)
    return model_object(entry) if dialect == "anthropic" else entry


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
