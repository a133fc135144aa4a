"""Exchange: one request of a client, from its name for a model to an answer of somebody who serves it.

Those who may answer are asked one after the other, until one does; nothing has been written to the client before that.
Who lately failed is asked last. Within a provider its keys are tried in turn. What is told in the end is what the last
one said, in the client's dialect.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.compose import Composed
from reconciler.dialects.kept import Kept
from reconciler.dialects.responses_fix import ResponsesFix
from reconciler.dialects.responses_on_chat import ResponsesOnChat, references
from reconciler.gateway import bridges, errors, gather, payload
from reconciler.gateway.bridges import Remembered, Way
from reconciler.gateway.errors import Refusal
from reconciler.gateway.health import Health
from reconciler.gateway.live import LiveRoutes, Secrets
from reconciler.gateway.loader import Loader
from reconciler.gateway.log import log
from reconciler.gateway.match import Candidate, Match, match
from reconciler.gateway.metrics import known_as
from reconciler.gateway.operations import Operation
from reconciler.gateway.proxy import Call, Failure, Proxy
from reconciler.gateway.reply import JSON, Reply
from reconciler.gateway.responses_store import ResponsesStore
from reconciler.gateway.routes import ApiKey, Base, Limits, Model, Target
from reconciler.gateway.turns import Turns
from reconciler.gateway.usage import wants_usage, with_usage

LOADS = 8  # times that a request has its model loaded
SAY_EVERY = 5.0  # seconds between two comments in a stream that waits for its model
ANTHROPIC_VERSION = "2023-06-01"
PAUSE = 0.25  # seconds before somebody elsewhere, whom nobody can stand in for, is asked once more
_KEY_TROUBLE = frozenset((401, 402, 403, 429))
_TROUBLE = {408: "timeout", 504: "timeout", 429: "overloaded", 503: "overloaded", 529: "overloaded"}


class Asked(NamedTuple):
    """What a client asks for. `document` is what `body` says; `headers` are its own that may go along.

    `encoded` makes the body of a document that was changed.
    """

    operation: Operation
    name: str
    document: dict[str, Any]
    body: bytes
    headers: Mapping[str, str]
    query: str
    key: ApiKey | None
    request_id: str
    encoded: Callable[[dict[str, Any]], bytes] = payload.encoded

    @property
    def streamed(self) -> bool:
        return self.document.get("stream") is True


class Exchange:
    """Answers what clients ask of models."""

    def __init__(self, live: LiveRoutes, proxy: Proxy, loader: Loader, store: ResponsesStore) -> None:
        self.store = store
        self._kept = Kept()
        self._live = live
        self._proxy = proxy
        self._loader = loader
        self._health = Health()
        self.turns = Turns()
        self._random = random.Random()  # noqa: S311 - it spreads load and hides nothing

    async def carry(self, asked: Asked, reply: Reply) -> None:
        """Write the answer to `reply`, or raise `Refusal`."""
        found = match(self._live.routes, asked.name, self._random.random, asked.key)
        order = self._ordered(found)
        for number, candidate in enumerate(order, 1):
            last = number == len(order)
            try:
                await self._ask(candidate, asked, reply, number, last)
            except Refusal as refusal:
                if last or refusal.trouble not in found.on or (reply.started and not reply.opened):
                    raise
                trouble = refusal.trouble
            except Failure as failure:
                trouble = _trouble(failure.status, candidate)
                if last or trouble not in found.on:
                    _tell(failure, asked, reply)
                    return
            else:
                return
            reply.record.fallback(_label(candidate), trouble)
            log("warning", "next-target", model=asked.name, after=_label(candidate), trouble=trouble)

    def cooling(self) -> dict[str, float]:
        """For how many seconds targets, and keys of providers, are passed over; never which key."""
        now, out = asyncio.get_running_loop().time(), dict[str, float]()
        for ident, seconds in self._health.cooling(now).items():
            target, _, rest = ident.partition(" ")
            provider = target.removeprefix("provider/")
            if provider != target:
                name = known_as(self._live.routes, f"{provider}/{rest.partition(' ')[0]}")
            else:
                name = f"{target.partition('#')[0]}" if "/" in target else f"key/{target.partition('#')[0]}"
            out[name] = max(seconds, out.get(name, 0.0))
        return out

    async def native(self, asked: Asked, model: Model, path: str, reply: Reply) -> None:
        """Pass on what an engine of this machine is asked in its own words; raises `Refusal`."""
        reply.record.target = f"server/{model.name}"
        target = await self._loaded(Candidate(asked.name, model, None), asked, reply)
        body, document = asked.body, asked.document
        if "model" in document and target.model not in (None, document["model"]):
            body = asked.encoded({**document, "model": target.model})
        call = Call(
            target=target,
            base=Base(target.speaks["openai"].peer, ""),
            path=f"{path}?{asked.query}" if asked.query else path,
            headers=_lines(asked.headers),
            body=body,
            key=target.key,
            dialect=asked.operation.dialect,
            told=b"x-reconciler-target: %b\r\n" % target.label.encode(),
            method=asked.operation.method,
        )
        try:
            await self._proxy.carry(call, reply)
        except Failure as failure:
            _tell(failure, asked, reply)

    def _ordered(self, found: Match) -> list[Candidate]:
        """Those who are well first; the others in the order in which they may be asked again."""
        if len(found.candidates) == 1:
            return list(found.candidates)
        now = asyncio.get_running_loop().time()
        return sorted(found.candidates, key=lambda one: self._health.cools(_ident(one), now))

    async def _ask(self, candidate: Candidate, asked: Asked, reply: Reply, number: int, last: bool) -> None:
        """Have one of them answer; raises `Refusal` or `Failure`, and remembers how it went."""
        ident, record = _ident(candidate), reply.record
        record.target = _label(candidate)
        if record.copy is not None:
            record.copy.reach(*_served_as(candidate))
        now = asyncio.get_running_loop().time
        key, priority = (asked.key.name, asked.key.priority) if asked.key is not None else ("", 0)
        try:
            async with self.turns.turn(_label(candidate), candidate.bound, key, priority):
                if candidate.provider is not None:
                    await self._ask_provider(candidate, asked, reply, number, last)
                else:
                    await self._ask_engine(candidate, asked, reply, number, last)
        except Refusal as refusal:
            if refusal.trouble:
                record.trouble(record.target, refusal.trouble)
                self._health.failed(ident, now())
            raise
        except Failure as failure:
            record.trouble(record.target, _trouble(failure.status, candidate) or "refused")
            if _trouble(failure.status, candidate):
                self._health.failed(ident, now(), failure.retry_after)
            raise
        self._health.succeeded(ident)

    async def _ask_engine(self, candidate: Candidate, asked: Asked, reply: Reply, number: int, last: bool) -> None:
        target = await self._loaded(candidate, asked, reply)
        call = _call(asked, candidate, target, target.key, await self._remembered(asked), number, last)
        await self._proxy.carry(self._remembering(asked, call), reply)

    async def _loaded(self, candidate: Candidate, asked: Asked, reply: Reply) -> Target:
        """The engine process that serves it, loaded if need be; raises `Refusal`."""
        assert candidate.model is not None
        routes, model = self._live.routes, candidate.model
        if asked.operation.generates and model.task in ("embedding", "rerank"):
            raise errors.wrong_task(asked.name, model.task)
        for _ in range(LOADS):  # one that was loaded may have been let go again before we came to ask it
            if model.target is not None or not model.on_demand:
                break
            await self._load(model.name, routes.limits, reply if asked.streamed else None)
            routes = self._live.routes
            if (now := routes.models.get(model.name)) is None:
                raise errors.model_not_ready(asked.name, "it is not declared any more")
            model = now
        if model.target is None:
            raise errors.model_not_ready(asked.name, model.reason)
        return model.target

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

    async def _ask_provider(self, candidate: Candidate, asked: Asked, reply: Reply, number: int, last: bool) -> None:
        """Ask with one of its keys after the other, while it is the key that is refused."""
        provider = candidate.provider
        assert provider is not None
        if provider.reason:
            raise errors.provider_down(provider.name, provider.reason)
        secrets = self._live.secrets.get(provider.name)
        if secrets is None:
            raise errors.provider_down(provider.name, "what it is asked with has not been handed over yet")
        keys, target = self._keys(provider.name, secrets), secrets.applied(provider.target)
        remembered = await self._remembered(asked)
        again = last
        while True:
            place, key = keys[0]
            call = _call(asked, candidate, target, key, remembered, number, last and len(keys) == 1)
            try:
                await self._proxy.carry(self._remembering(asked, call), reply)
            except Failure as failure:
                if failure.status not in _KEY_TROUBLE:
                    raise
                self._health.failed(place, asyncio.get_running_loop().time(), failure.retry_after)
                if len(keys) == 1:
                    if failure.status in (401, 403):
                        raise errors.target_refused_key(provider.target.label, failure.status) from None
                    raise
                keys = keys[1:]
                reply.record.rotation(provider.name, failure.status)
                log("warning", "next-key", provider=provider.name, status=failure.status)
            except Refusal as refusal:
                if not (again and refusal.trouble == "unavailable") or reply.started:
                    raise
                again = False
                await asyncio.sleep(PAUSE * (1 + self._random.random()))
            else:
                self._health.succeeded(place)
                return

    async def _remembered(self, asked: Asked) -> Remembered:
        """What an earlier exchange left that this one goes on from."""
        if asked.operation.path != "/responses" or not self._live.routes.keep_responses:
            return Remembered(self._kept)
        owner = asked.key.name if asked.key is not None else None
        before, referred = asked.document.get("previous_response_id"), references(asked.document)
        history = await asyncio.to_thread(self.store.history, before, owner) if isinstance(before, str) else None
        items = await asyncio.to_thread(self.store.items, referred, owner) if referred else {}
        return Remembered(self._kept, history, items)

    def _remembering(self, asked: Asked, call: Call) -> Call:
        """The call, whose answer is kept if the client may want to go on from it: before it is told the end of it."""
        bridge = call.bridge.first if isinstance(call.bridge, Composed) else call.bridge
        if not isinstance(bridge, ResponsesFix | ResponsesOnChat) or not bridge.store:
            return call
        if not self._live.routes.keep_responses:
            return call
        owner = asked.key.name if asked.key is not None else None

        async def keep() -> None:
            if (answer := bridge.answer) is not None:
                output = answer["output"]
                put = self.store.put
                await asyncio.to_thread(put, answer["id"], bridge.previous, owner, bridge.items, output, None, answer)

        return call._replace(before_end=keep)

    def _keys(self, name: str, secrets: Secrets) -> list[tuple[str, str | None]]:
        """(what it is known as here, the key), the ones that work first."""
        now = asyncio.get_running_loop().time()
        known = ((f"{name}#{hashlib.sha256(key.encode()).hexdigest()[:12]}", key) for key in secrets.keys)
        keys: list[tuple[str, str | None]] = list(known)
        keys = keys or [(f"{name}#", None)]
        return sorted(keys, key=lambda pair: self._health.cools(pair[0], now))


def _served_as(candidate: Candidate) -> tuple[str, ...]:
    """Its names as clients say them."""
    if candidate.provider is not None:
        return (f"{candidate.provider.name}/{candidate.name}",)
    assert candidate.model is not None
    return (candidate.name, candidate.model.name)


def _label(candidate: Candidate) -> str:
    if candidate.provider is not None:
        return f"provider/{candidate.provider.name}"
    assert candidate.model is not None
    return f"server/{candidate.model.name}"


def _ident(candidate: Candidate) -> str:
    """What its health is known by: one of a provider's models; an engine that was started anew is another."""
    if candidate.provider is not None:
        speaks = candidate.provider.target.speaks.values()
        return " ".join([_label(candidate), candidate.name, *(base.peer.authority + base.path for base in speaks)])
    assert candidate.model is not None
    return candidate.model.target.id if candidate.model.target is not None else _label(candidate)


def _trouble(status: int, candidate: Candidate) -> str:
    """Of what kind the trouble of a target is that answers so; empty where it is the request's own fault."""
    if status in (401, 402, 403, 404):
        return "unavailable" if candidate.provider is not None else ""
    return _TROUBLE.get(status, "unavailable" if status >= 500 else "")


def _tell(failure: Failure, asked: Asked, reply: Reply) -> None:
    """The target's own error, in the client's dialect."""
    status, body = bridges.error(failure.status, failure.body, asked.operation.dialect, asked.request_id)
    headers = failure.headers if body is failure.body else JSON + _without_type(failure.headers)
    reply.record.broke = "upstream_error"
    reply.whole(status, headers, body)


def _without_type(headers: bytes) -> bytes:
    of_the_body = (b"content-type:", b"content-encoding:")
    return b"".join(line for line in headers.splitlines(keepends=True) if not line.lower().startswith(of_the_body))


def _along(asked: Asked, way: Way) -> bytes:
    """The client's own headers that concern the target, as ready lines."""
    headers = dict(asked.headers)
    if way.bridge is not None or not headers.get("content-type"):
        headers["content-type"] = "application/json"
    if way.api == "anthropic":
        headers.setdefault("anthropic-version", ANTHROPIC_VERSION)
    foreign = "openai-" if way.api == "anthropic" else "anthropic-"
    return _lines({name: value for name, value in headers.items() if not name.startswith(foreign)})


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("utf-8", "surrogateescape")


def _call(
    asked: Asked,
    candidate: Candidate,
    target: Target,
    key: str | None,
    remembered: Remembered,
    number: int,
    early: bool,
) -> Call:
    """What goes out: the client's own bytes where nothing is to be changed, else a translated or rewritten document."""
    name = candidate.name if candidate.provider is not None else target.model
    document = payload.rewritten(asked.document, candidate.rewrite, name)
    context = candidate.model.context if candidate.model is not None else None
    try:
        way = bridges.way(asked.operation, document, target, remembered, asked.request_id, context)
    except Unmappable as error:
        raise errors.field_refused(error.field, str(error)) from None
    told = [b"x-reconciler-target: %b\r\n" % target.label.encode()]
    if number > 1:
        told.append(b"x-reconciler-attempts: %d\r\n" % number)
    if way.ignored:
        told.append(b"x-reconciler-ignored: %b\r\n" % ", ".join(way.ignored).encode("ascii", "replace")[:1000])
    hide = way.bridge is None and _hides_usage(asked, candidate, target, way)
    sent = with_usage(way.document) if hide else way.document
    body = asked.body if sent is asked.document else asked.encoded(sent)
    streamed = None
    if not target.provider and target.model is None and way.bridge is None:  # a llama-server
        streamed = gather.as_stream(way.path, way.document, body)
    query = asked.query if asked.query and way.api == asked.operation.api == "anthropic" else ""
    return Call(
        target=target,
        base=target.speaks[way.api],
        path=f"{way.path}?{query}" if query else way.path,
        headers=_along(asked, way),
        body=body if streamed is None else streamed,
        key=key,
        dialect=asked.operation.dialect,
        gather=streamed is not None,
        bridge=way.bridge,
        told=b"".join(told),
        early=early and candidate.provider is None,
        hide_usage=hide,
    )


def _hides_usage(asked: Asked, candidate: Candidate, target: Target, way: bridges.Way) -> bool:
    """Whether a stream has to tell its usage for the sake of the key's budget alone."""
    if not asked.streamed or asked.key is None or asked.key.tokens is None or not target.quirks.stream_options:
        return False
    if "stream_options" in candidate.rewrite.strip:
        return False
    return way.path in ("/chat/completions", "/completions") and not wants_usage(way.document)
