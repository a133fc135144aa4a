"""Routes: what the controller wrote down, checked once, and the answer to "who serves this model?".

PURE: bytes in, frozen values out. It reads no file and knows no clock.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from reconciler.gateway import errors

FORMAT = 2
READ = (1, 2)  # what a later format says beyond an earlier one is left alone
NAMES_LISTED = 10
_HEX256 = re.compile(r"[0-9a-fA-F]{64}")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_ASCII = re.compile(r"[\x21-\x7e]+")


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
class Target:
    """One engine process. `id` changes with each process; `label` is the part of it that people know.

    `model` is what requests must call its model; None for a llama-server, which does not mind.
    """

    id: str
    host: str
    port: int
    key: str | None
    model: str | None = None

    @property
    def label(self) -> str:
        return self.id.partition("#")[0]


@dataclass(frozen=True, slots=True)
class Model:
    """A declared model. `target` is None while nothing serves it, and `reason` then says why.

    One that is `on_demand` is loaded when it is asked for.
    """

    name: str
    owned_by: str
    created: int
    context: int | None
    task: str
    target: Target | None
    reason: str
    on_demand: bool = False


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that clients may use, known only by its sha256."""

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Routes:
    """One routes.json. `names` maps every name and alias to its model."""

    serial: int
    digest: str
    host: str
    port: int
    prefix: str
    trusted_hosts: tuple[str, ...]
    api_keys: tuple[ApiKey, ...]
    limits: Limits
    models: Mapping[str, Model]
    names: Mapping[str, Model]


def match(routes: Routes, name: str) -> Model:
    """The model that `name` stands for; raises `Refusal` 404 with the nearest names."""
    model = routes.names.get(name)
    if model is not None:
        return model
    known = sorted(routes.names)
    nearest = difflib.get_close_matches(name[:200], known, n=1, cutoff=0.5)
    listed = known[:NAMES_LISTED]
    raise errors.model_not_found(name[:200], nearest[0] if nearest else None, listed, len(known) - len(listed))


def load(data: bytes) -> Routes:
    """Parse routes.json; raises ValueError that says which part is wrong, never with a key in it."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"routes.json is not JSON: {error}") from None
    top = _Part("routes.json", raw)
    if top.raw.get("format") not in READ:
        raise ValueError(f"routes.json: format is {top.raw.get('format')!r}, this gateway reads format {FORMAT}")
    listen = top.part("listen")
    models = {name: _model(name, part) for name, part in top.parts("models")}
    return Routes(
        serial=top.integer("serial"),
        digest=top.text("digest"),
        host=listen.text("host"),
        port=listen.integer("port", most=65535),
        prefix=_prefix(top.text("prefix", "/v1")),
        trusted_hosts=top.texts("trusted_hosts"),
        api_keys=tuple(_api_key(part) for part in top.items("api_keys")),
        limits=_limits(top.part("limits") if "limits" in top.raw else _Part("limits", {})),
        models=models,
        names=_names(top.part("names"), models),
    )


def _model(name: str, part: _Part) -> Model:
    target = None if part.raw.get("target") is None else _target(part.part("target"))
    return Model(
        name=name,
        owned_by=part.text("owned_by", "reconciler"),
        created=part.integer("created", 0),
        context=None if part.raw.get("context") is None else part.integer("context"),
        task=part.text("task", "chat"),
        target=target,
        reason=part.text("reason", "") if part.raw.get("reason") is not None else "",
        on_demand=part.raw.get("on_demand") is True,
    )


def _target(part: _Part) -> Target:
    key = None if part.raw.get("key") is None else part.text("key")
    host, ident = part.text("host"), part.text("id")
    # These three become parts of an HTTP head, so they must not be able to end a line.
    for field, value in (("key", key), ("host", host), ("id", ident)):
        if value is not None and not _ASCII.fullmatch(value):
            raise ValueError(f"{part.where}.{field}: only printable ASCII without spaces is allowed")
    calls = None if part.raw.get("model") is None else part.text("model")
    return Target(id=ident, host=host, port=part.integer("port", least=1, most=65535), key=key, model=calls)


def _api_key(part: _Part) -> ApiKey:
    digest = part.text("sha256")
    if not _HEX256.fullmatch(digest):
        raise ValueError(f"{part.where}.sha256: expected 64 hex digits")
    return ApiKey(name=part.text("name"), digest=bytes.fromhex(digest))


def _limits(part: _Part) -> Limits:
    known = [field.name for field in fields(Limits)]
    return Limits(**{name: part.number(name) for name in known if name in part.raw})


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

    def parts(self, name: str) -> list[tuple[str, _Part]]:
        inner = self.part(name)
        return [(key, inner.part(key)) for key in inner.raw]

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
