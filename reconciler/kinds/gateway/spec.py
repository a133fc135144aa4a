"""What the manifest may say of the gateway, and what is made of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, Tag, model_validator

from reconciler.core.ids import digest_of
from reconciler.core.section import (
    SHAPE,
    Budget,
    Duration,
    Entry,
    Family,
    Later,
    Name,
    Rate,
    Reference,
    Section,
    Size,
    Truth,
    default,
    duration,
    size,
)

FORMAT = 2  # of routes.json: the one place that says which


class ApiKey(Section):
    """One client's key. Only its sha256 ever reaches the disk."""

    name: Name
    """Who it belongs to; appears in logs."""
    key: Reference
    """Where the key is: env:NAME, file:PATH, keyring:NAME or command:PROGRAM. Never the key itself."""
    allow: tuple[Family, ...] | None = None
    """The models and routes that it may ask for; with a `*` at the end all that begin so: `openai/*`. Default: all."""
    rate: Rate | None = None
    """How many requests it may make: `60/min`. Default: as many as it likes."""
    tokens: Budget | None = None
    """How many tokens it may use, in and out: `1M/day`. Default: as many as it likes."""
    priority: Annotated[int, Field(ge=-1000, le=1000, strict=True)] = 0
    """Whose requests have their turn first where something takes only so many `at_once`: the highest."""


def _an_origin(text: str) -> str:
    """As a browser says it: a host that there can be, and a port that there can be."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
        right = bool(ipaddress.IPv6Address(host)) if ":" in host else all(host.split("."))
    except ValueError:
        right = False
    if not right or text.endswith(":"):
        raise ValueError("an origin is written https://host or https://host:port")
    return text


Origin = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$"), AfterValidator(_an_origin)]


class Cors(Section):
    """Web pages of other origins, which a browser keeps from asking unless they are named."""

    origins: tuple[Origin, ...] = ()
    """Origins such as https://app.example.com. A `*` for all is not possible."""


class Timeouts(Section):
    """How long to wait for a server or provider. A stream as a whole may take as long as it likes."""

    connect: Duration = default("5s", duration)
    """For a connection."""
    first_byte: Duration = default("600s", duration)
    """For the beginning of an answer."""
    idle: Duration = default("120s", duration)
    """Between two pieces of a stream."""


class WeightedTarget(Section):
    """One target among several that share the requests of a route."""

    to: Family
    """A model, an alias, another route, or provider/model."""
    weight: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1
    """Its share, relative to the weights of the others."""


Target = Annotated[Annotated[Family, Tag("plain")] | Annotated[WeightedTarget, Tag("mapping")], SHAPE]
Trouble = Literal["unavailable", "overloaded", "timeout"]


def _of_one_kind(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    if len({isinstance(target, str) for target in targets}) > 1:
        raise ValueError("targets are tried in order, or share by weight: give all of them a weight, or none")
    return targets


class RouteSection(Entry):
    """A name that clients may ask for, and who answers: one after the other, or by weight."""

    targets: Annotated[tuple[Target, ...], Field(min_length=1), AfterValidator(_of_one_kind)]
    """Models, aliases, other routes or provider/model in the order in which they are tried, or each as `{to, weight}`.
    Where the route's own name ends in `*`, one that does so too is asked for the rest of the name that was asked
    for."""
    on: Annotated[tuple[Trouble, ...], Field(min_length=1)] = ("unavailable", "overloaded", "timeout")
    """What makes the next one be tried, as long as nothing was answered."""


class GatewaySection(Section):
    """The one local API."""

    host: str = "127.0.0.1"
    """The address to listen on. Other than loopback only with `api_keys`."""
    port: Annotated[int, Field(ge=1, le=65535, strict=True)] = 1337
    """The port to listen on."""
    prefix: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._-]+)+$")] = "/v1"
    """The path that the OpenAI-compatible API starts with."""
    api_keys: tuple[ApiKey, ...] = ()
    """Keys that clients must show. Without any, everyone on this machine may ask."""
    trusted_hosts: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\[\]_-]+$")], ...] = ("localhost", "127.0.0.1")
    """Host names that requests may be addressed to; others are refused (DNS rebinding)."""

    cors: Cors = Cors()
    """Which web pages may ask."""
    timeouts: Timeouts = Timeouts()
    """How long to wait for a server or provider."""
    body_limit: Size = default("64MiB", size)
    """The largest request that is taken."""
    keep_responses: Truth = True
    """Whether answers of /responses are kept on disk, for 30 days and up to 256 MiB, so that a request can go on from
    one by `previous_response_id`. They belong to the key that asked."""
    workers: Annotated[Annotated[int, Field(ge=1, le=64, strict=True)] | Literal["auto"], Later()] = "auto"
    """Processes that share the port."""
    override: Truth = False
    """Whether these keys win over the same keys in another file."""

    @model_validator(mode="after")
    def _guarded(self) -> GatewaySection:
        if not self.api_keys and (problem := exposed(self.host)):
            raise ValueError(problem)
        if len({k.name for k in self.api_keys}) < len(self.api_keys):
            raise ValueError("two api_keys have the same name")
        return self


def exposed(host: str) -> str:
    """What is wrong with listening there without keys; empty where nothing is."""
    return "" if loopback(host) else f"listening on {host} without api_keys would offer the models to everybody"


def loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """One model as clients see it; `context` is 0 where nobody tells its server. Its server is server/NAME.

    `request` is what is changed in requests to it (JSON, or empty).
    """

    name: str
    aliases: tuple[str, ...]
    task: str
    context: int
    request: str = ""


@dataclass(frozen=True, slots=True)
class UpstreamSpec:
    """One provider as the gateway asks it; what models it has is known of provider/NAME, as it is observed.

    `speaks` leads from a dialect to its base URL, `headers` are plain ones, `timeouts` seconds by name, `quirks` and
    `request` JSON (or empty). `keys`, `secret_headers` and `secret_proxy` are references. `named` are the models
    that the manifest itself names.
    """

    name: str
    speaks: tuple[tuple[str, str], ...]
    auth: str
    headers: tuple[tuple[str, str], ...] = ()
    private: bool = False
    proxy: str = ""
    timeouts: tuple[tuple[str, float], ...] = ()
    request: str = ""
    quirks: str = ""
    named: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    secret_headers: tuple[tuple[str, str], ...] = ()
    secret_proxy: str = ""


@dataclass(frozen=True, slots=True)
class ForkSpec:
    """A name of `routes`: (target, weight or None) pairs, in their order, and what makes the next one be tried."""

    name: str
    targets: tuple[tuple[str, int | None], ...]
    on: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GrantSpec:
    """What the client with the key of this name may do; None where there is no bound. Amounts are (count, seconds)."""

    name: str
    allow: tuple[str, ...] | None = None
    rate: tuple[int, float] | None = None
    tokens: tuple[int, float] | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """`api_keys` are (name, reference) pairs; `models`, `providers` and `routes` are sorted by name. `bounds` are bytes
    for `body`, and seconds for what ends in `_seconds`."""

    host: str
    port: int
    prefix: str
    trusted_hosts: tuple[str, ...]
    api_keys: tuple[tuple[str, str], ...]
    models: tuple[RouteSpec, ...]
    providers: tuple[UpstreamSpec, ...] = ()
    routes: tuple[ForkSpec, ...] = ()
    grants: tuple[GrantSpec, ...] = ()
    origins: tuple[str, ...] = ()
    bounds: tuple[tuple[str, float], ...] = ()  # not `limits`, by which those of a process are known
    keep_responses: bool = True

    @property
    def digest(self) -> str:
        return digest_of(self)

    @property
    def url(self) -> str:
        """The base URL for clients."""
        host = f"[{self.host.strip('[]')}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.prefix}"

    @property
    def listening(self) -> str:
        """The digest of what only a new process can change; all else is reloaded.

        One that an earlier version started does not read what is written now.
        """
        return digest_of([self.host, self.port, FORMAT])


def resolve(
    section: GatewaySection,
    models: tuple[RouteSpec, ...],
    providers: tuple[UpstreamSpec, ...] = (),
    routes: tuple[ForkSpec, ...] = (),
) -> GatewaySpec:
    times = section.timeouts
    bounds = {"body": section.body_limit, "connect_seconds": times.connect}
    bounds |= {"first_byte_seconds": times.first_byte, "idle_seconds": times.idle}
    return GatewaySpec(
        host=section.host,
        port=section.port,
        prefix=section.prefix,
        trusted_hosts=section.trusted_hosts,
        api_keys=tuple((k.name, k.key) for k in section.api_keys),
        models=models,
        providers=providers,
        routes=routes,
        grants=tuple(
            GrantSpec(k.name, k.allow, k.rate, k.tokens, k.priority)
            for k in section.api_keys
            if (k.allow, k.rate, k.tokens, k.priority) != (None, None, None, 0)
        ),
        origins=section.cors.origins,
        bounds=tuple(sorted(bounds.items())),
        keep_responses=section.keep_responses,
    )


def fork(name: str, section: RouteSection, left_out: Collection[str] = ()) -> ForkSpec:
    """`left_out` are targets that are not for this machine."""
    pairs = [(t, None) if isinstance(t, str) else (t.to, t.weight) for t in section.targets]
    return ForkSpec(name, tuple((to, weight) for to, weight in pairs if to not in left_out), section.on)
