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
        yield from _aliases(document, name, _mapping(model), claimed, providers)
    for name in routes:
        if name in claimed:
            yield _twice(document, ("routes", name), name, claimed[name], key=True)
        elif owner := _of_provider(name, providers):
            yield _twice(document, ("routes", name), name, owner, key=True)
    asked = {**claimed, **routes}
    exact = [name for name in asked if isinstance(name, str) and not name.endswith("*")]
    for name, route in routes.items():
        for path, target in _targets(name, route):
            yield from _target(document, path, str(name), target, exact, providers)
    yield from _circles(document, {name: route for name, route in routes.items() if name not in claimed})
    for i, key in enumerate(_list(gateway.get("api_keys"))):
        for j, allowed in enumerate(_list(_mapping(key).get("allow"))):
            if isinstance(allowed, str) and allowed not in routes:
                path = ("gateway", "api_keys", i, "allow", j)
                yield from _unknown(document, path, allowed, exact, providers)
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


def _aliases(
    document: Document, name: str, model: dict[str, Any], claimed: dict[str, str], providers: dict[str, Any]
) -> Iterator[Diagnostic]:
    """Claims the aliases of a model."""
    for i, alias in enumerate(_list(model.get("aliases"))):
        if not isinstance(alias, str):
            continue
        if alias in claimed:
            yield _twice(document, ("models", name, "aliases", i), alias, claimed[alias])
        elif owner := _of_provider(alias, providers):
            yield _twice(document, ("models", name, "aliases", i), alias, owner)
        claimed.setdefault(alias, f"the model {name!r}")


def _of_provider(name: Any, providers: dict[str, Any]) -> str:
    """Whose model a name already stands for, by its first part; empty where nobody's."""
    first, slash, _ = name.partition("/") if isinstance(name, str) else ("", "", "")
    return f"the provider {first!r}" if slash and first in providers else ""


def _targets(name: Any, route: Any) -> Iterator[tuple[Path, str]]:
    """Where each target of a route stands, and what it names."""
    for i, target in enumerate(_list(_mapping(route).get("targets"))):
        path: Path = ("routes", name, "targets", i)
        if isinstance(target, dict):
            path, target = (*path, "to"), target.get("to")
        if isinstance(target, str):
            yield path, target


def _target(
    document: Document, path: Path, route: str, target: str, known: Collection[str], providers: dict[str, Any]
) -> Iterator[Diagnostic]:
    if target.endswith("*") and not route.endswith("*"):
        problem = f"{target!r} stands for many names, and the route {route!r} for one"
        yield _nothing(document, path, problem, "name one target, or let the name of the route end in `*`, too")
    else:
        yield from _unknown(document, path, target, known, providers)


def _circles(document: Document, routes: dict[str, Any]) -> Iterator[Diagnostic]:
    """Routes that lead back to themselves, each told once, where it begins."""
    leads = {
        name: [(path, target) for path, target in _targets(name, route) if target in routes]
        for name, route in routes.items()
    }
    told: set[str] = set()
    done: set[str] = set()
    for first in leads:
        trail: list[str] = [first]
        todo = [iter(leads[first])]
        while todo:
            step = next(todo[-1], None)
            if step is None:
                todo.pop()
                done.add(trail.pop())
                continue
            path, target = step
            if target in trail:
                circle = trail[trail.index(target) :]
                if told.isdisjoint(circle):
                    said = " → ".join([*circle, target])
                    yield _nothing(
                        document, path, f"the routes lead in a circle: {said}", "let one of them end elsewhere"
                    )
                told.update(circle)
            elif target not in done:
                trail.append(target)
                todo.append(iter(leads[target]))


def _unknown(
    document: Document, path: Path, name: str, known: Collection[str], providers: dict[str, Any]
) -> Iterator[Diagnostic]:
    """The fault of a name that requests cannot be sent to, if it is none of `known` and no provider/model.

    One that ends in `*` is right where it may stand for something.
    """
    start, star, _ = name.partition("*")
    provider, slash, model = start.partition("/")
    if name in known or (star and any(each.startswith(start) for each in (*known, *(f"{p}/" for p in providers)))):
        return
    if not slash:
        hint = nearest(name, known)
        if provider in providers:
            hint = f"a model of the provider is written {provider}/MODEL"
        yield _nothing(document, path, f"there is no model or route named {name!r}", hint)
    elif provider not in providers:
        hint = nearest(provider, sorted(providers)) or "name it in `providers`"
        yield _nothing(document, path, f"there is no provider named {provider!r}", hint)
    elif isinstance(offered := _mapping(providers[provider]).get("models"), list):
        names = [m for m in offered if isinstance(m, str)]
        if star and not any(m.startswith(model) for m in names):
            problem = f"the provider {provider!r} lists no model that begins with {model!r}"
            yield _nothing(document, path, problem, nearest(model, names))
        elif not star and model not in names:
            problem = f"the provider {provider!r} does not list the model {model!r}"
            yield _nothing(document, path, problem, nearest(model, names))


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
