"""Manifest → desired: one spec a resource, every default filled in. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.core.ids import Ref
from reconciler.core.state import Declared, HostFacts
from reconciler.kinds.engine import spec as engine
from reconciler.kinds.gateway import spec as gateway
from reconciler.kinds.model import spec as model
from reconciler.kinds.server import spec as server
from reconciler.manifest.lock import Lock
from reconciler.manifest.parse import Manifest

GATEWAY = Ref("gateway", "main")
NOWHERE, EMPTY = HostFacts(), Lock()


def resolve(manifest: Manifest, python: str, host: HostFacts = NOWHERE, lock: Lock = EMPTY) -> Mapping[Ref, Declared]:
    """`python` is the tag of the interpreter that virtual environments are made with (`cp311`)."""
    stack, base, platform = manifest.stack, str(manifest.path.parent), f"{host.os}-{host.arch}"
    out: dict[Ref, Declared] = {}
    sections = dict(stack.engines)
    used = {m.engine for m in stack.models.values()}
    if engine.EMBEDDED in used and engine.EMBEDDED not in sections:
        sections[engine.EMBEDDED] = engine.EmbeddedEngine(type="embedded")
    for name, section in sections.items():
        ref = Ref("engine", name)
        where = manifest.where("engines", name) if name in stack.engines else None
        out[ref] = Declared(ref, engine.resolve(section, base, python, platform, lock.pins), where=where)
    for name, entry in stack.models.items():
        bytes_, runs, process = Ref("model", name), Ref("engine", entry.engine), Ref("server", name)
        where = manifest.where("models", name)
        out[bytes_] = Declared(bytes_, model.resolve(entry, lock.pins), where=where)
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
        )
        out[process] = Declared(process, spec, needs=(runs, bytes_), where=where)
    routes = tuple(
        gateway.RouteSpec(name, entry.aliases, entry.task, entry.context)
        for name, entry in sorted(stack.models.items())
    )
    servers = tuple(Ref("server", name) for name in sorted(stack.models))
    spec_ = gateway.resolve(stack.gateway, routes)
    where = manifest.where("gateway") if "gateway" in stack.model_fields_set else None
    out[GATEWAY] = Declared(GATEWAY, spec_, needs=servers, where=where)
    return out
