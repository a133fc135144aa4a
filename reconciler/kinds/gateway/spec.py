"""What the manifest may say of the gateway, and what is made of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from reconciler.core.ids import digest_of
from reconciler.core.section import REFERENCE, Name, Section


class ApiKey(Section):
    """One client's key. Only its sha256 ever reaches the disk."""

    name: Name
    """Who it belongs to; appears in logs."""
    key: Annotated[str, Field(pattern=REFERENCE, examples=["env:GATEWAY_KEY", "file:~/.config/gateway.key"])]
    """Where the key is: env:NAME or file:PATH. Never the key itself."""


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
    """One model as clients see it. Its server is server/NAME."""

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
