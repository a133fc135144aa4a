"""Names of a manifest that point at nothing, and names that are claimed twice. Pure.

It works on raw values, so that these faults come along with all others of the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from reconciler.core.diagnostics import Diagnostic
from reconciler.kinds.engine.spec import EMBEDDED
from reconciler.kinds.gateway.spec import exposed
from reconciler.manifest.faults import nearest
from reconciler.manifest.read import Document

Path = tuple[str | int, ...]


def dangling(document: Document) -> Iterator[Diagnostic]:
    values = _mapping(document.values)
    models, routes = _mapping(values.get("models")), _mapping(values.get("routes"))
    providers, gateway = _mapping(values.get("providers")), _mapping(values.get("gateway"))
    engines, tools = {EMBEDDED, *_mapping(values.get("engines"))}, set(_mapping(values.get("mcp_servers")))
    claimed = {name: f"the model {name!r}" for name in models}
    for name, model in models.items():
        yield from _of_model(document, name, _mapping(model), engines, tools)
        yield from _aliases(document, name, _mapping(model), claimed)
    for name in routes:
        if name in claimed:
            yield _twice(document, ("routes", name), name, claimed[name], key=True)
    for name, route in routes.items():
        for i, target in enumerate(_list(_mapping(route).get("targets"))):
            path: Path = ("routes", name, "targets", i)
            if isinstance(target, dict):
                path, target = (*path, "to"), target.get("to")
            if isinstance(target, str):
                yield from _unknown(document, path, target, claimed, providers)
    asked = {**claimed, **routes}
    for i, key in enumerate(_list(gateway.get("api_keys"))):
        for j, allowed in enumerate(_list(_mapping(key).get("allow"))):
            if isinstance(allowed, str):
                yield from _unknown(document, ("gateway", "api_keys", i, "allow", j), allowed, asked, providers)
    if not gateway.get("api_keys") and isinstance(host := gateway.get("host"), str) and (problem := exposed(host)):
        yield Diagnostic(problem, document.where(("gateway",)), "name `api_keys`, or listen on 127.0.0.1", "gateway")


def _of_model(
    document: Document, name: str, model: dict[str, Any], engines: set[str], tools: set[str]
) -> Iterator[Diagnostic]:
    engine = model.get("engine", EMBEDDED)
    if isinstance(engine, str) and engine not in engines:
        problem = f"there is no engine named {engine!r}"
        yield _nothing(document, ("models", name, "engine"), problem, nearest(engine, sorted(engines)))
    for i, server in enumerate(_list(model.get("mcp"))):
        if isinstance(server, str) and server not in tools:
            problem = f"there is no MCP server named {server!r}"
            hint = nearest(server, sorted(tools)) or "name it in `mcp_servers`"
            yield _nothing(document, ("models", name, "mcp", i), problem, hint)


def _aliases(document: Document, name: str, model: dict[str, Any], claimed: dict[str, str]) -> Iterator[Diagnostic]:
    """Claims the aliases of a model."""
    for i, alias in enumerate(_list(model.get("aliases"))):
        if not isinstance(alias, str):
            continue
        if alias in claimed:
            yield _twice(document, ("models", name, "aliases", i), alias, claimed[alias])
        claimed.setdefault(alias, f"the model {name!r}")


def _unknown(
    document: Document, path: Path, name: str, known: Collection[str], providers: dict[str, Any]
) -> Iterator[Diagnostic]:
    """The fault of a name that requests cannot be sent to, if it is none of `known` and no provider/model."""
    provider, slash, model = name.partition("/")
    if name in known:
        return
    if not slash:
        yield _nothing(document, path, f"there is no model or route named {name!r}", nearest(name, known))
    elif provider not in providers:
        hint = nearest(provider, sorted(providers)) or "name it in `providers`"
        yield _nothing(document, path, f"there is no provider named {provider!r}", hint)
    elif isinstance(offered := _mapping(providers[provider]).get("models"), list) and model not in offered:
        hint = nearest(model, [m for m in offered if isinstance(m, str)])
        yield _nothing(document, path, f"the provider {provider!r} does not list the model {model!r}", hint)


def _nothing(document: Document, path: Path, problem: str, hint: str) -> Diagnostic:
    return Diagnostic(problem, document.where(path), hint, ".".join(str(part) for part in path))


def _twice(document: Document, path: Path, name: str, owner: str, key: bool = False) -> Diagnostic:
    dotted = ".".join(str(part) for part in path if not isinstance(part, int))
    hint = "clients could not tell them apart; remove one"
    return Diagnostic(f"the name {name!r} already belongs to {owner}", document.where(path, key=key), hint, dotted)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
