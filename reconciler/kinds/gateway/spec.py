"""What the manifest may say of the gateway, and what is made of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Tag, model_validator

from reconciler.core.ids import digest_of
from reconciler.core.section import (
    SHAPE,
    Alias,
    Duration,
    Entry,
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


class ApiKey(Section):
    """One client's key. Only its sha256 ever reaches the disk."""

    name: Name
    """Who it belongs to; appears in logs."""
    key: Reference
    """Where the key is: env:NAME, file:PATH, keyring:NAME or command:PROGRAM. Never the key itself."""
    allow: Annotated[tuple[Alias, ...] | None, Later()] = None
    """The models and routes that it may ask for. Default: all."""
    rate: Annotated[Rate | None, Later()] = None
    """How many requests it may make: `60/min`. Default: as many as it likes."""


class Cors(Section):
    """Web pages of other origins, which a browser keeps from asking unless they are named."""

    origins: tuple[Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$")], ...] = ()
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

    to: Alias
    """A model, an alias, or provider/model."""
    weight: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1
    """Its share, relative to the weights of the others."""


Target = Annotated[Annotated[Alias, Tag("plain")] | Annotated[WeightedTarget, Tag("mapping")], SHAPE]
Trouble = Literal["unavailable", "overloaded", "timeout"]


def _of_one_kind(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    if len({isinstance(target, str) for target in targets}) > 1:
        raise ValueError("targets are tried in order, or share by weight: give all of them a weight, or none")
    return targets


class RouteSection(Entry):
    """A name that clients may ask for, and who answers: one after the other, or by weight."""

    targets: Annotated[tuple[Target, ...], Field(min_length=1), AfterValidator(_of_one_kind)]
    """Models, aliases or provider/model in the order in which they are tried, or each as `{to, weight}`."""
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

    cors: Annotated[Cors, Later()] = Cors()
    """Which web pages may ask."""
    timeouts: Annotated[Timeouts, Later()] = Timeouts()
    """How long to wait for a server or provider."""
    body_limit: Annotated[Size, Later()] = default("64MiB", size)
    """The largest request that is taken."""
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
    """One model as clients see it; `context` is 0 where nobody tells its server. Its server is server/NAME."""

    name: str
    aliases: tuple[str, ...]
    task: str
    context: int


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """`api_keys` are (name, reference) pairs; `models` are sorted by name."""

    host: str
    port: int
    prefix: str
    trusted_hosts: tuple[str, ...]
    api_keys: tuple[tuple[str, str], ...]
    models: tuple[RouteSpec, ...]

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
        """The digest of what only a new process can change; all else is reloaded."""
        return digest_of([self.host, self.port])


def resolve(section: GatewaySection, models: tuple[RouteSpec, ...]) -> GatewaySpec:
    keys = tuple((k.name, k.key) for k in section.api_keys)
    return GatewaySpec(section.host, section.port, section.prefix, section.trusted_hosts, keys, models)
