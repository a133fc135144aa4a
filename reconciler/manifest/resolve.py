"""Manifest → desired: one spec a resource, every default filled in. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.core.ids import Ref
from reconciler.core.limits import Limits
from reconciler.core.section import Entry
from reconciler.core.state import Declared, Denial, Drift, HostFacts
from reconciler.kinds.engine import spec as engine
from reconciler.kinds.gateway import spec as gateway
from reconciler.kinds.model import spec as model
from reconciler.kinds.model.spec import ModelSection
from reconciler.kinds.provider import spec as provider
from reconciler.kinds.rewriting import rewriting
from reconciler.kinds.server import spec as server
from reconciler.manifest.later import Path, unsupported
from reconciler.manifest.lock import Lock
from reconciler.manifest.parse import Manifest
from reconciler.manifest.unheard import folders, heard, told_context
from reconciler.manifest.when import dropped

GATEWAY = Ref("gateway", "main")
NOWHERE, EMPTY = HostFacts(), Lock()


def resolve(manifest: Manifest, python: str, host: HostFacts = NOWHERE, lock: Lock = EMPTY) -> Mapping[Ref, Declared]:
    """`python` is the tag of the interpreter that virtual environments are made with (`cp311`)."""
    stack, base = manifest.stack, str(manifest.path.parent)
    out: dict[Ref, Declared] = {}
    left_out = dropped(stack, host, manifest.document)
    no = denials(manifest, left_out)
    models = {name: entry for name, entry in stack.models.items() if ("models", name) not in left_out}
    sections = {name: entry for name, entry in stack.engines.items() if ("engines", name) not in left_out}
    _refuse_unmet(manifest, models, sections)
    used = {m.engine for m in models.values()}
    if engine.EMBEDDED in used and engine.EMBEDDED not in sections:
        sections[engine.EMBEDDED] = engine.EmbeddedEngine(type="embedded")
    for name, section in sections.items():
        ref = Ref("engine", name)
        where = manifest.where("engines", name) if name in stack.engines else None
        if ref not in no:
            spec_ = engine.resolve(section, base, python, host, lock.pins)
            out[ref] = Declared(ref, spec_, (), where, section.protect, _drift(section))
    for name, entry in models.items():
        bytes_, runs, process = Ref("model", name), Ref("engine", entry.engine), Ref("server", name)
        where = manifest.where("models", name)
        if process in no or runs not in out:
            continue
        made = model.resolve(heard(entry, sections.get(entry.engine)), lock.pins, stack.hub)
        made[""] = replace(made[""], folders=folders(sections.get(entry.engine)))
        beside = {suffix: Ref("model", f"{name}{suffix}") for suffix in made}
        for suffix, spec_of in made.items():
            kept = (where, entry.protect, _drift(entry), entry.priority)
            out[beside[suffix]] = Declared(beside[suffix], spec_of, (), *kept)
        spec = server.ServerSpec(
            name=name,
            engine=entry.engine,
            engine_digest=out[runs].digest,
            model=name,
            model_digest=out[bytes_].digest,
            task=entry.task,
            context=entry.context,
            parallel=entry.parallel,
            gpu_layers=-1 if entry.gpu_layers == "auto" else entry.gpu_layers,
            cache_k=entry.cache_type.k,
            cache_v=entry.cache_type.v,
            options=server.sorted_pairs(entry.options),
            env=tuple(sorted(entry.env.items())),
            extras=tuple(
                server.Extra(f"{name}{suffix}", part.role, out[beside[suffix]].digest, model.scale(entry, suffix))
                for suffix, part in made.items()
                if suffix
            ),
            at_most=entry.memory.at_most or 0,
            force=entry.force,
            limits=Limits(
                entry.nice,
                entry.limits.memory or 0,
                entry.limits.open_files or 0,
                tuple(sorted(set(entry.limits.cpus))),
            ),
            start=entry.start,
            idle_timeout=entry.idle_timeout,
            priority=entry.priority,
            shrink=entry.memory.shrink,
            keep_cache=entry.keep_cache,
        )
        out[process] = Declared(process, spec, (runs, *beside.values()), where, entry.protect, _drift(entry))
    providers = {
        name: provider.resolve(name, entry)
        for name, entry in sorted(stack.providers.items())
        if ("providers", name) not in left_out
    }
    for name, asked in providers.items():
        ref, entry_ = Ref("provider", name), stack.providers[name]
        out[ref] = Declared(ref, asked, (), manifest.where("providers", name), entry_.protect, _drift(entry_))
    led = tuple(
        gateway.RouteSpec(
            name,
            entry.aliases,
            entry.task,
            told_context(entry, sections.get(entry.engine)),
            rewriting(entry.request),
        )
        for name, entry in sorted(models.items())
    )
    forks = _forks(manifest, left_out)
    servers = tuple(Ref("server", name) for name in sorted(models))
    where = manifest.where("gateway") if "gateway" in stack.model_fields_set else None
    upstreams = tuple(_upstream(asked) for asked in providers.values())
    out[GATEWAY] = Declared(GATEWAY, gateway.resolve(stack.gateway, led, upstreams, forks), servers, where)
    return out


def _upstream(asked: provider.ProviderSpec) -> gateway.UpstreamSpec:
    """What the gateway needs to know of a provider."""
    return gateway.UpstreamSpec(
        name=asked.name,
        speaks=asked.speaks,
        auth=asked.auth,
        headers=asked.headers,
        private=asked.private,
        proxy=asked.proxy,
        timeouts=asked.timeouts,
        request=asked.request,
        quirks=asked.quirks,
        named=asked.named,
        keys=asked.keys,
        secret_headers=asked.secret_headers,
        secret_proxy=asked.secret_proxy,
    )


def _forks(manifest: Manifest, left_out: Collection[Path]) -> tuple[gateway.ForkSpec, ...]:
    """The routes of this machine, without the targets that `when` leaves out here. Raises Refused for one that is left
    with none."""
    stack = manifest.stack
    gone = {name for section, name in left_out if section == "routes"}
    for section, name in left_out:
        if section == "models":
            gone |= {name, *stack.models[str(name)].aliases}
    away = {str(name) for section, name in left_out if section == "providers"}
    out, faults = [], []
    for name, entry in sorted(stack.routes.items()):
        if ("routes", name) in left_out:
            continue
        named = {t if isinstance(t, str) else t.to for t in entry.targets}
        here = gateway.fork(name, entry, {to for to in named if to in gone or to.partition("/")[0] in away})
        out.append(here)
        if not here.targets:
            summary = "none of its targets is for this machine (`when` leaves them out here)"
            where, hint = manifest.where("routes", name), "give the route the same `when`, or another target"
            faults.append(Diagnostic(summary, where, hint, f"routes.{name}"))
    if faults:
        raise Refused(faults)
    return tuple(out)


def denials(manifest: Manifest, left_out: Collection[Path] = ()) -> Mapping[Ref, Denial]:
    """What of the manifest cannot be carried out here yet, by resource, and why.

    `left_out` are the (section, name) of entries that are not for this machine: nothing is denied of them.
    """
    out: dict[Ref, Denial] = {}
    for path, sentence in unsupported(manifest.stack):
        if path[:2] in left_out:
            continue
        ref = _resource(path)
        said = f"{out[ref].reason}; {sentence}" if ref in out else sentence
        out[ref] = Denial(said, manifest.where(*path))
    for name, entry in manifest.stack.models.items():
        process, runs = Ref("server", name), Ref("engine", entry.engine)
        if runs in out and process not in out and ("models", name) not in left_out:
            out[process] = Denial(f"it needs {runs}", manifest.where("models", name, "engine"))
        if process in out:
            out[Ref("model", name)] = Denial("")  # told once
    return out


KINDS = {"engines": "engine", "models": "server", "providers": "provider", "routes": "route", "mcp_servers": "mcp"}


def _resource(path: tuple[str | int, ...]) -> Ref:
    """The resource that a key of the manifest is about: models.chat.start → server/chat."""
    if path[0] == "gateway":
        return GATEWAY
    named = len(path) > 1 and path[0] in KINDS
    return Ref(KINDS[str(path[0])], str(path[1])) if named else Ref("manifest", ".".join(str(p) for p in path))


def _drift(entry: Entry) -> Drift | None:
    return Drift(entry.drift) if entry.drift is not None else None


def _refuse_unmet(manifest: Manifest, models: Mapping[str, ModelSection], engines: Mapping[str, Entry]) -> None:
    """A model of this machine may not need an engine that `when` leaves out here."""
    faults = [
        Diagnostic(
            f"its engine {entry.engine!r} is not for this machine (when: {manifest.stack.engines[entry.engine].when})",
            manifest.where("models", name, "engine"),
            "give the model the same `when`, or another engine",
            f"models.{name}.engine",
        )
        for name, entry in models.items()
        if entry.engine in manifest.stack.engines and entry.engine not in engines
    ]
    if faults:
        raise Refused(faults)
