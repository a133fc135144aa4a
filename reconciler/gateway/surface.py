"""The public surface: which path does what, behind the guards.

Everything is decided on the raw path. Routes are looked at once per request, so a reload never changes a request
that is under way.
"""

from __future__ import annotations

import json
from urllib.parse import unquote

from aiohttp import web

from reconciler import __version__
from reconciler.gateway import errors, gather, guards, payload
from reconciler.gateway.errors import Refusal
from reconciler.gateway.listener import read_body
from reconciler.gateway.live import LiveRoutes
from reconciler.gateway.loader import Loader
from reconciler.gateway.proxy import Call, Proxy
from reconciler.gateway.reply import JSON, Reply
from reconciler.gateway.routes import Limits, Model, Routes, match

LOADS = 8  # times that a request has its model loaded
SAY_EVERY = 5.0  # seconds between two comments in a stream that waits for its model
_READ = ("GET", "HEAD")
_WRITE = ("POST",)
_FORWARDED = {
    "/chat/completions": "/v1/chat/completions",
    "/completions": "/v1/completions",
    "/embeddings": "/v1/embeddings",
}
_GENERATION = frozenset(("/chat/completions", "/completions"))
_NOT_GENERATIVE = frozenset(("embedding", "rerank"))


class Surface:
    """Answers requests."""

    def __init__(self, live: LiveRoutes, proxy: Proxy, loader: Loader) -> None:
        self._live = live
        self._proxy = proxy
        self._loader = loader

    async def answer(self, request: web.BaseRequest, reply: Reply) -> None:
        """Write the response to `reply`, or raise `Refusal`."""
        routes = self._live.routes
        headers = request.headers
        path = guards.check_target(request.raw_path)
        guards.check_host(headers.getall("Host", ()), self._live.trust)
        guards.check_origin(headers.getall("Origin", ()), self._live.trust)
        if "Upgrade" in headers and headers["Upgrade"].lower() != "h2c":  # h2c is an offer that may be ignored
            raise Refusal(400, "Only plain HTTP is spoken here", code="bad_upgrade", close=True)
        if path in ("/", "/health") and request.method in _READ:
            _json(reply, _front(routes) if path == "/" else _health(routes))
            return
        guards.check_key(routes.api_keys, headers.getall("Authorization", ()), headers.getall("x-api-key", ()))
        inner = path[len(routes.prefix) :] if path.startswith(routes.prefix + "/") else ""
        if inner in _FORWARDED:
            _allow(request, _WRITE)
            await self._forward(request, routes, inner, reply)
        elif inner == "/models":
            _allow(request, _READ)
            _json(reply, {"object": "list", "data": [_entry(name, model) for name, model in routes.names.items()]})
        elif inner.startswith("/models/"):
            _allow(request, _READ)
            name = unquote(inner.removeprefix("/models/"))
            _json(reply, _entry(name, match(routes, name)))
        elif path in ("/", "/health"):
            _allow(request, _READ)
        else:
            raise errors.no_such_path(path, routes.prefix)

    async def _forward(self, request: web.BaseRequest, routes: Routes, inner: str, reply: Reply) -> None:
        headers = request.headers
        encoding = headers.get("Content-Encoding")
        if encoding is not None and encoding.lower() != "identity":
            raise Refusal(415, "Send the body without Content-Encoding", code="unsupported_encoding")
        body = await read_body(request, routes.limits)
        document = payload.parse(body)
        name = document["model"]
        # A long upload may outlive the routes that it began under.
        routes = self._live.routes
        model = match(routes, name)
        if inner in _GENERATION and model.task in _NOT_GENERATIVE:
            raise Refusal(
                400,
                f"The model '{name}' is for {model.task}; it does not generate text",
                param="model",
                code="wrong_task",
            )
        for _ in range(LOADS):  # one that was loaded may have been let go again before we came to ask it
            if model.target is not None or not model.on_demand:
                break
            await self._load(model.name, routes.limits, reply if document.get("stream") is True else None)
            routes = self._live.routes
            model = match(routes, name)
        if model.target is None:
            raise errors.model_not_ready(name, model.reason)
        streamed = None
        if (calls := model.target.model) is None:
            streamed = gather.as_stream(inner, document, body)
        elif calls != name:
            body = payload.renamed(document, calls)
        call = Call(
            target=model.target,
            path=_FORWARDED[inner],
            content_type=headers.get("Content-Type", ""),
            accept=headers.get("Accept", ""),
            body=body if streamed is None else streamed,
            gather=streamed is not None,
        )
        await self._proxy.carry(call, routes.limits, reply)

    async def _load(self, name: str, limits: Limits, stream: Reply | None) -> None:
        """Return once the routes lead to the model; a `stream` is told now and then that it is being loaded.

        Raises `Refusal` where it cannot be loaded, or not in time.
        """
        async with self._loader.load(name, limits.first_byte_seconds) as loading:
            waited = 0.0
            while not await loading.ended(SAY_EVERY):
                waited += SAY_EVERY
                if stream is not None:
                    stream.say(b"loading %b, %d s" % (name.encode(), waited))


def _allow(request: web.BaseRequest, methods: tuple[str, ...]) -> None:
    if request.method not in methods:
        raise errors.wrong_method(request.method, methods)


def _json(reply: Reply, document: object) -> None:
    reply.whole(200, JSON, json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))


def _front(routes: Routes) -> dict[str, object]:
    return {"service": "reconciler", "version": __version__, "api": f"{routes.prefix}/"}


def _health(routes: Routes) -> dict[str, object]:
    ready = sum(model.target is not None for model in routes.models.values())
    return {"status": "ok", "version": __version__, "models": {"ready": ready, "total": len(routes.models)}}


def _entry(name: str, model: Model) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "ready": model.target is not None,
        "context_length": model.context,
    }
