"""What the gateway of a manifest offers to clients: where it answers, and which names may be asked for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from reconciler.clients.offer import Model
from reconciler.core.diagnostics import Refused, nearest
from reconciler.kinds.gateway.spec import ApiKey, GatewaySection, loopback
from reconciler.kinds.provider.spec import ProviderSection
from reconciler.manifest.stack import Stack
from reconciler.manifest.unheard import told_context

LeftOut = Collection[tuple[str, str]]  # (section, name) of entries that are not for this machine


def url(gateway: GatewaySection) -> str:
    """The base of the OpenAI API as clients on this machine reach it."""
    host = gateway.host.strip("[]")
    if host in ("0.0.0.0", "::"):  # noqa: S104  (told to listen everywhere, it answers here, too)
        near = ("127.0.0.1", "localhost") if host == "0.0.0.0" else ("localhost", "127.0.0.1")  # noqa: S104
        host = next((name for name in near if name in gateway.trusted_hosts), near[0])
    return f"http://{f'[{host}]' if ':' in host else host}:{gateway.port}{gateway.prefix}"


def distrusted(gateway: GatewaySection) -> str:
    """What is wrong with asking it there; empty where nothing is."""
    host = url(gateway).removeprefix("http://").removesuffix(f":{gateway.port}{gateway.prefix}")
    if loopback(host) or {host, host.strip("[]")} & {name.rsplit(":", 1)[0] for name in gateway.trusted_hosts}:
        return ""
    return f"requests addressed to {host} are refused until it is in gateway.trusted_hosts"


def models(stack: Stack, left_out: LeftOut) -> list[Model]:
    """Every name that clients may ask for, those that need no telling first: models that run or load by themselves,
    routes, models of providers, then those that a person loads; aliases after all of them."""
    here = {name: entry for name, entry in stack.models.items() if ("models", name) not in left_out}
    known = {n: Model(n, e.task, told_context(e, stack.engines.get(e.engine))) for n, e in here.items()}
    aliases = [Model(a, known[n].task, known[n].context) for n, entry in here.items() for a in entry.aliases]
    by_name = {model.name: model for model in (*known.values(), *aliases)}
    routes = [_route(stack, name, by_name) for name in stack.routes if ("routes", name) not in left_out]
    by_hand = [known[name] for name, entry in here.items() if entry.start == "manual"]
    itself = [known[name] for name, entry in here.items() if entry.start != "manual"]
    return [*itself, *routes, *_elsewhere(stack, left_out), *by_hand, *aliases]


def own(stack: Stack, left_out: LeftOut) -> list[Model]:
    """Those of `models` that are no second names of others: what a client is to list."""
    aliases = {alias for entry in stack.models.values() for alias in entry.aliases}
    return [model for model in models(stack, left_out) if model.name not in aliases]


def choose(stack: Stack, left_out: LeftOut, name: str, key: ApiKey | None, task: str = "chat") -> Model:
    """The model of that name, or the first for the task; where a key is limited, among those that it may ask for.

    Raises Refused.
    """
    known = [m for m in models(stack, left_out) if key is None or key.allow is None or m.name in key.allow]
    if name:
        return _named(name, stack, left_out, known, key)
    found = next((model for model in known if model.task == task), None)
    if found is None:
        what = f" that key {key.name!r} may ask for" if key is not None and key.allow is not None else ""
        hint = "add one below `models`" if not known else f"or name one with --model: {nearest('', _names(known))}"
        raise Refused(f"the manifest has no {task} model{what}", hint=hint)
    return found


def choose_key(gateway: GatewaySection, name: str) -> ApiKey | None:
    """The key of that name, or the first; None where the gateway wants none. Raises Refused."""
    if not name:
        return gateway.api_keys[0] if gateway.api_keys else None
    for key in gateway.api_keys:
        if key.name == name:
            return key
    names = [key.name for key in gateway.api_keys]
    raise Refused(f"gateway.api_keys has none called {name!r}", hint=nearest(name, names) or "leave out --key")


def _named(name: str, stack: Stack, left_out: LeftOut, known: list[Model], key: ApiKey | None) -> Model:
    found = next((model for model in known if model.name == name), None)
    if found is not None:
        return found
    if key is not None and key.allow is not None and name not in key.allow:
        raise Refused(f"key {key.name!r} may not ask for {name!r}", hint=nearest(name, key.allow))
    provider, slash, rest = name.partition("/")
    section = stack.providers.get(provider)
    if (
        slash
        and rest
        and section is not None
        and section.models == "discover"
        and ("providers", provider) not in left_out
    ):
        return Model(name)
    raise Refused(f"the gateway has no model {name!r}", hint=nearest(name, _names(known)))


def _names(known: list[Model]) -> list[str]:
    return [model.name for model in known]


def _route(stack: Stack, name: str, by_name: dict[str, Model]) -> Model:
    """A route is what its first target is; its window that of the smallest, as any of them may answer."""
    targets = [target if isinstance(target, str) else target.to for target in stack.routes[name].targets]
    found = [by_name[target] for target in targets if target in by_name]
    contexts = [model.context for model in found]
    whole = len(found) == len(targets) and all(contexts)
    return Model(name, found[0].task if found else "chat", min(contexts) if whole else 0)


def _elsewhere(stack: Stack, left_out: LeftOut) -> Iterator[Model]:
    for name, section in stack.providers.items():
        if ("providers", name) not in left_out:
            yield from (Model(f"{name}/{model}") for model in _listed(section))


def _listed(section: ProviderSection) -> tuple[str, ...]:
    return () if section.models == "discover" else section.models
