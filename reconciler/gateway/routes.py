"""Routes: what the controller wrote down, checked once.

PURE: bytes in, frozen values out. It reads no file and knows no clock. Who serves a name is `match`'s business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlsplit

from reconciler.dialects.quirks import LOCAL, PLAIN, Quirks, read_quirks

FORMAT = 2
_HEX256 = re.compile(r"[0-9a-fA-F]{64}")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_ASCII = re.compile(r"[\x21-\x7e]+")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LINE = re.compile(r"[\t\x20-\x7e]*")
_PORTS = {"http": 80, "https": 443}
DIALECTS = ("openai", "anthropic")
AUTHS = ("bearer", "x-api-key", "api-key", "none")
TROUBLES = ("unavailable", "overloaded", "timeout")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes for `body`, seconds for what ends in `_seconds`, a count for `connections`."""

    body: int = 64 * 1024 * 1024
    header_seconds: float = 20
    idle_seconds: float = 120
    connect_seconds: float = 5
    first_byte_seconds: float = 600
    connections: int = 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom a connection leads to: an `engine` of this machine, or somebody elsewhere, maybe through a `proxy` (a URL).

    `private`: it may lie at a private or loopback address.
    """

    scheme: str
    host: str
    port: int
    engine: bool = False
    private: bool = False
    proxy: str = ""

    @property
    def authority(self) -> str:
        """As the Host header says it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Base:
    """Where an API is: `path` stands before the path of each operation."""

    peer: Peer
    path: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What is changed in each request: fields that are `set`, those given where there is none, those taken out."""

    set: Mapping[str, Any] = field(default_factory=dict)
    default: Mapping[str, Any] = field(default_factory=dict)
    strip: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.set or self.default or self.strip)


@dataclass(frozen=True, slots=True)
class Bound:
    """How many requests something takes `at_once`, and how many may wait for their turn."""

    at_once: int
    queue: int = 128


@dataclass(frozen=True, slots=True)
class Target:
    """Who can answer: an engine process, or a provider. `id` changes with each process; `label` is what people know.

    `speaks` leads from a dialect to where it is spoken. `key` is the session key of an engine; a provider's keys are
    not in the routes. `model` is what requests must call its model; None for a llama-server, which does not mind.
    """

    id: str
    speaks: Mapping[str, Base]
    key: str | None = None
    model: str | None = None
    auth: str = "bearer"
    headers: tuple[tuple[str, str], ...] = ()
    quirks: Quirks = PLAIN
    provider: str = ""
    limits: Limits = Limits()

    @property
    def label(self) -> str:
        return self.id.partition("#")[0]


@dataclass(frozen=True, slots=True)
class Model:
    """A declared model. `target` is None while nothing serves it, and `reason` then says why.

    One that is `on_demand` is loaded when it is asked for, one that is `by_hand` when a person says so.
    """

    name: str
    owned_by: str
    created: int
    context: int | None
    task: str
    target: Target | None
    reason: str
    on_demand: bool = False
    by_hand: bool = False
    rewrite: Rewrite = Rewrite()
    bound: Bound | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """An AI service elsewhere. One that is `open` is asked for any model; `reason` says why it cannot be asked."""

    name: str
    target: Target
    models: tuple[str, ...]
    open: bool
    reason: str
    rewrite: Rewrite = Rewrite()
    bound: Bound | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """One target of a route by name. `weight` is None where targets are tried in order."""

    to: str
    weight: int | None


@dataclass(frozen=True, slots=True)
class Route:
    """A further name. `on` says which troubles of one target have the next one tried."""

    name: str
    targets: tuple[Share, ...]
    on: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` in `seconds`."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that clients may use, known only by its sha256. `allow` is None where it may ask for every model."""

    name: str
    digest: bytes
    allow: frozenset[str] | None = None
    rate: Rate | None = None
    tokens: Rate | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Routes:
    """One routes.json. `names` maps every name and alias to its model."""

    serial: int
    digest: str
    host: str
    port: int
    prefix: str
    trusted_hosts: tuple[str, ...]
    origins: tuple[str, ...]
    api_keys: tuple[ApiKey, ...]
    limits: Limits
    models: Mapping[str, Model]
    names: Mapping[str, Model]
    providers: Mapping[str, Provider]
    routes: Mapping[str, Route]
    keep_responses: bool

    def targets(self) -> list[Target]:
        """Everyone who can be asked now."""
        local = [m.target for m in self.models.values() if m.target is not None]
        return [*local, *(p.target for p in self.providers.values())]


def load(data: bytes) -> Routes:
    """Parse routes.json; raises ValueError that says which part is wrong, never with a key in it."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"routes.json is not JSON: {error}") from None
    top = _Part("routes.json", raw)
    if top.raw.get("format") != FORMAT:
        raise ValueError(f"routes.json: format is {top.raw.get('format')!r}, this gateway reads format {FORMAT}")
    listen = top.part("listen")
    limits = _limits(top.some("limits"), Limits())
    models = {name: _model(name, part, limits) for name, part in top.parts("models")}
    return Routes(
        serial=top.integer("serial"),
        digest=top.text("digest"),
        host=listen.text("host"),
        port=listen.integer("port", most=65535),
        prefix=_prefix(top.text("prefix", "/v1")),
        trusted_hosts=top.texts("trusted_hosts"),
        origins=top.some("cors").texts("origins"),
        api_keys=tuple(_api_key(part) for part in top.items("api_keys")),
        limits=limits,
        models=models,
        names=_names(top.part("names"), models),
        providers={name: _provider(name, part, limits) for name, part in top.some("providers").every()},
        keep_responses=top.raw.get("keep_responses", True) is True,
        routes={name: _route(name, part) for name, part in top.some("routes").every()},
    )


def base_of(url: str, where: str, private: bool, proxy: str = "") -> Base:
    """Where a URL leads; raises ValueError that names `where`, never what stands before an @."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"{where}: it is not a URL") from None
    host = parts.hostname or ""
    if parts.scheme not in _PORTS or not host or not _ASCII.fullmatch(url):
        raise ValueError(f"{where}: expected http://HOST… or https://HOST…")
    if parts.username is not None or parts.password is not None or parts.fragment or parts.query:
        raise ValueError(f"{where}: no user, query or fragment is allowed in it")
    peer = Peer(parts.scheme, host, port or _PORTS[parts.scheme], private=private, proxy=proxy)
    return Base(peer, parts.path.rstrip("/"))


def _model(name: str, part: _Part, limits: Limits) -> Model:
    target = None if part.raw.get("target") is None else _target(part.part("target"), limits)
    return Model(
        name=name,
        owned_by=part.text("owned_by", "reconciler"),
        created=part.integer("created", 0),
        context=None if part.raw.get("context") is None else part.integer("context"),
        task=part.text("task", "chat"),
        target=target,
        reason=part.text("reason", "") if part.raw.get("reason") is not None else "",
        on_demand=part.raw.get("on_demand") is True,
        by_hand=part.raw.get("by_hand") is True,
        rewrite=_rewrite(part.some("request")),
        bound=_bound(part.some("request")),
    )


def _target(part: _Part, limits: Limits) -> Target:
    key = None if part.raw.get("key") is None else part.text("key")
    host, ident = part.text("host"), part.text("id")
    # These three become parts of an HTTP head, so they must not be able to end a line.
    for name, value in (("key", key), ("host", host), ("id", ident)):
        if value is not None and not _ASCII.fullmatch(value):
            raise ValueError(f"{part.where}.{name}: only printable ASCII without spaces is allowed")
    calls = None if part.raw.get("model") is None else part.text("model")
    base = Base(Peer("http", host, part.integer("port", least=1, most=65535), engine=True, private=True), "/v1")
    # A llama-server speaks every dialect itself; another engine is only known to speak OpenAI's.
    spoken = ("openai",) if calls is not None else ("openai", "anthropic", "responses")
    return Target(ident, dict.fromkeys(spoken, base), key, calls, quirks=LOCAL, limits=limits)


def _provider(name: str, part: _Part, limits: Limits) -> Provider:
    private, proxy = part.raw.get("private") is True, part.text("proxy", "") if part.raw.get("proxy") else ""
    spoken = part.part("speaks")
    if not spoken.raw or not set(spoken.raw) <= {*DIALECTS, "responses"}:
        raise ValueError(f"{spoken.where}: expected addresses for some of {', '.join(DIALECTS)}")
    speaks = {d: base_of(spoken.text(d), f"{spoken.where}.{d}", private, proxy) for d in spoken.raw}
    headers = part.some("headers")
    target = Target(
        id=f"provider/{name}",
        speaks=speaks,
        auth=_one_of(part, "auth", AUTHS),
        headers=tuple(_header(headers, key, headers.text(key)) for key in headers.raw),
        quirks=_quirks(part.some("quirks")),
        provider=name,
        limits=_limits(part.some("timeouts"), limits),
    )
    request, is_open, reason = part.some("request"), part.raw.get("open") is True, part.text("reason", "")
    return Provider(name, target, part.texts("models"), is_open, reason, _rewrite(request), _bound(request))


def _header(part: _Part, name: str, value: str) -> tuple[str, str]:
    if not _TOKEN.fullmatch(name) or not _LINE.fullmatch(value):
        raise ValueError(f"{part.where}.{name[:40]!r}: it is no HTTP header")
    return name, value


def _quirks(part: _Part) -> Quirks:
    try:
        return read_quirks(part.raw)
    except ValueError as error:
        raise ValueError(f"{part.where}: {error}") from None


def _route(name: str, part: _Part) -> Route:
    shares = []
    for item in part.items("targets"):
        weight = None if item.raw.get("weight") is None else item.integer("weight", least=1)
        shares.append(Share(item.text("to"), weight))
    on = part.texts("on")
    if not shares or not set(on) <= set(TROUBLES):
        raise ValueError(f"{part.where}: expected targets, and for `on` some of {', '.join(TROUBLES)}")
    return Route(name, tuple(shares), on)


def _rewrite(part: _Part) -> Rewrite:
    return Rewrite(part.some("set").raw, part.some("default").raw, part.texts("strip"))


def _bound(part: _Part) -> Bound | None:
    if part.raw.get("at_once") is None:
        return None
    return Bound(part.integer("at_once", least=1), part.integer("queue", Bound(1).queue))


def _one_of(part: _Part, name: str, allowed: tuple[str, ...]) -> str:
    value = part.text(name)
    if value not in allowed:
        raise ValueError(f"{part.where}.{name}: expected one of {', '.join(allowed)}")
    return value


def _api_key(part: _Part) -> ApiKey:
    digest = part.text("sha256")
    if not _HEX256.fullmatch(digest):
        raise ValueError(f"{part.where}.sha256: expected 64 hex digits")
    allow = None if part.raw.get("allow") is None else frozenset(part.texts("allow"))
    priority = part.integer("priority", 0, least=-1000)
    return ApiKey(part.text("name"), bytes.fromhex(digest), allow, _rate(part, "rate"), _rate(part, "tokens"), priority)


def _rate(part: _Part, name: str) -> Rate | None:
    if part.raw.get(name) is None:
        return None
    inner = part.part(name)
    return Rate(inner.integer("count", least=1), inner.number("seconds"))


def _limits(part: _Part, default: Limits) -> Limits:
    known = [each.name for each in fields(Limits)]
    return replace(default, **{name: part.number(name) for name in known if name in part.raw})


def _names(part: _Part, models: Mapping[str, Model]) -> Mapping[str, Model]:
    for name, model in part.raw.items():
        if not isinstance(model, str) or model not in models:
            raise ValueError(f"{part.where}: {name!r} names a model that is not in models")
    return {name: models[model] for name, model in part.raw.items()}


def _prefix(text: str) -> str:
    prefix = text.rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"routes.json.prefix: {text!r} is not a plain path")
    return prefix


class _Part:
    """One object of the document, with the place it stands at for messages."""

    def __init__(self, where: str, raw: Any) -> None:
        if not isinstance(raw, dict):
            raise ValueError(f"{where}: expected an object")
        self.where = where
        self.raw: dict[str, Any] = raw

    def part(self, name: str) -> _Part:
        return _Part(f"{self.where}.{name}", self.raw.get(name))

    def some(self, name: str) -> _Part:
        """The object of that name, or an empty one."""
        return self.part(name) if self.raw.get(name) is not None else _Part(f"{self.where}.{name}", {})

    def parts(self, name: str) -> list[tuple[str, _Part]]:
        return self.part(name).every()

    def every(self) -> list[tuple[str, _Part]]:
        """Each of its objects by name."""
        return [(key, self.part(key)) for key in self.raw]

    def items(self, name: str) -> list[_Part]:
        return [_Part(f"{self.where}.{name}[{i}]", item) for i, item in enumerate(self._list(name))]

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._list(name)
        if not all(isinstance(value, str) and value for value in values):
            raise ValueError(f"{self.where}.{name}: expected a list of strings")
        return tuple(values)

    def text(self, name: str, default: str | None = None) -> str:
        value = self.raw.get(name, default)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}.{name}: expected a string")
        return value

    def integer(self, name: str, default: int | None = None, *, least: int = 0, most: int | None = None) -> int:
        value = self.raw.get(name, default)
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or value < least
            or (most is not None and value > most)
        ):
            raise ValueError(f"{self.where}.{name}: expected a whole number{'' if most is None else f' up to {most}'}")
        return value

    def number(self, name: str) -> Any:
        value = self.raw[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise ValueError(f"{self.where}.{name}: expected a positive number")
        return value

    def _list(self, name: str) -> list[Any]:
        values = self.raw.get(name, [])
        if not isinstance(values, list):
            raise ValueError(f"{self.where}.{name}: expected a list")
        return values
