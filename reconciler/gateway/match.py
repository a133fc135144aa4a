"""Match: who may answer for a name, in the order in which they are asked.

PURE. A name is, in this order: a model or its alias, a route (whole, then by the longest `prefix*`), or
`provider/model`, of which the provider is told only the model. What it is not, it is not by accident: the answer does
not depend on the order of any table. Only the shares of a route by weight need a number that the caller draws.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from reconciler.gateway import errors
from reconciler.gateway.errors import Refusal
from reconciler.gateway.routes import TROUBLES, ApiKey, Bound, Model, Provider, Rewrite, Route, Routes

NAMES_LISTED = 10
DEPTH = 8  # routes that lead to routes


class Candidate(NamedTuple):
    """One who may answer: a declared model, or a provider's. `name` is what it is asked for by."""

    name: str
    model: Model | None
    provider: Provider | None

    @property
    def rewrite(self) -> Rewrite:
        one = self.model or self.provider
        assert one is not None
        return one.rewrite

    @property
    def bound(self) -> Bound | None:
        one = self.model or self.provider
        assert one is not None
        return one.bound


class Match(NamedTuple):
    """All who may answer, and the troubles of one that have the next one asked."""

    candidates: tuple[Candidate, ...]
    on: tuple[str, ...]


def match(routes: Routes, name: str, draw: Callable[[], float], key: ApiKey | None = None) -> Match:
    """Who may answer for `name`; `draw` gives a number from 0 to below 1. Raises `Refusal` 403 or 404."""
    if not allowed(routes, name, key):
        raise errors.not_allowed(name[:200], key.name if key else "")
    if (model := routes.names.get(name)) is not None:
        return Match((Candidate(name, model, None),), TROUBLES)
    route = _route(routes, name)
    found = tuple(_one_each(_follow(routes, route, name, draw, DEPTH))) if route else tuple(_offered(routes, name))
    if not found:
        raise unknown(name, offered(routes, key))
    return Match(found, route.on if route else TROUBLES)


def offered(routes: Routes, key: ApiKey | None) -> list[str]:
    """Every name that the key may ask for, sorted; a route with a `*` and an open provider have no list."""
    elsewhere = (f"{p.name}/{model}" for p in routes.providers.values() for model in p.models)
    names = sorted({*routes.names, *(name for name in routes.routes if "*" not in name), *elsewhere})
    return names if key is None or key.allow is None else [name for name in names if allowed(routes, name, key)]


def unknown(name: str, known: list[str]) -> Refusal:
    """404 for a name that is not among those known, with the nearest."""
    nearest = difflib.get_close_matches(name[:200], known, n=1, cutoff=0.5)
    shown = known[:NAMES_LISTED]
    return errors.model_not_found(name[:200], nearest[0] if nearest else None, shown, len(known) - len(shown))


def allowed(routes: Routes, name: str, key: ApiKey | None) -> bool:
    """Whether the key may ask for that name: it, or `prefix*`, is on its list, or an alias of the same model is."""
    if key is None or key.allow is None:
        return True
    model = routes.names.get(name)
    names = {name} if model is None else {name, model.name}
    return any(one in names or (one.endswith("*") and name.startswith(one[:-1])) for one in key.allow)


def _route(routes: Routes, name: str) -> Route | None:
    if (whole := routes.routes.get(name)) is not None:
        return whole
    prefixes = [r for r in routes.routes.values() if r.name.endswith("*") and name.startswith(r.name[:-1])]
    return max(prefixes, key=lambda r: len(r.name), default=None)


def _follow(routes: Routes, route: Route, asked: str, draw: Callable[[], float], depth: int) -> Iterator[Candidate]:
    rest = asked[len(route.name) - 1 :] if route.name.endswith("*") else ""
    for to in _ordered(route, draw):
        name = to[:-1] + rest if to.endswith("*") else to
        if (model := routes.names.get(name)) is not None:
            yield Candidate(name, model, None)
        elif depth and (inner := routes.routes.get(name)) is not None:
            yield from _follow(routes, inner, name, draw, depth - 1)
        else:
            yield from _offered(routes, name)


def _ordered(route: Route, draw: Callable[[], float]) -> list[str]:
    """In order; by weight, one drawn after the other, so that what fails falls to the others by their shares."""
    left = list(route.targets)
    if any(share.weight is None for share in left):
        return [share.to for share in left]
    out = []
    while left:
        point = draw() * sum(share.weight or 0 for share in left)
        for share in left:
            point -= share.weight or 0
            if point < 0:
                break
        left.remove(share)
        out.append(share.to)
    return out


def _offered(routes: Routes, name: str) -> Iterator[Candidate]:
    """The provider that `provider/model` names, where it has that model or may have it."""
    head, slash, rest = name.partition("/")
    provider = routes.providers.get(head)
    if slash and rest and provider is not None and (provider.open or rest in provider.models):
        yield Candidate(rest, None, provider)


def _one_each(candidates: Iterator[Candidate]) -> Iterator[Candidate]:
    seen = set()
    for one in candidates:
        ident = (one.model.name if one.model else one.name, one.provider.name if one.provider else "")
        if ident not in seen:
            seen.add(ident)
            yield one
