"""Servers with flags of their own, started by an engine's template: what fills it in, what they get, when they serve.

What is needed later, while the engine may already be another one, is noted with the process: where it says that it is
well, how long that may take, and what it calls its model.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from reconciler.core.ids import Ref
from reconciler.host import secrets
from reconciler.host.probes import listening
from reconciler.host.process import Identity
from reconciler.kinds.base import Tools
from reconciler.kinds.carried import CALLS, HTTP, WITHIN
from reconciler.kinds.server.spec import ServerSpec
from reconciler.kinds.workload import Launch, key_of
from reconciler.store.ledger import ProcessRow
from reconciler.supervise.readiness import PLAIN, Health, wait_ready

KEYS = ("RECONCILER_API_KEY", "LLAMA_API_KEY", "VLLM_API_KEY")  # as kinds/engine/spec.py keeps them from `env`
TELLING = 4  # characters from which on a secret is looked for in what a process said


@dataclass(frozen=True, slots=True)
class Bound:
    """What is known only when a server starts: its model's path, its address, nonce and key, what it is made from."""

    model: str
    host: str
    port: int
    nonce: str
    key: str = field(repr=False)
    inputs: Mapping[str, str]


def health_of(row: ProcessRow, tools: Tools) -> Health:
    """Where a process says that it is well."""
    return Health(row.inputs[HTTP], key_of(row.nonce, tools)) if HTTP in row.inputs else PLAIN


async def launch_of(ref: Ref, digest: str, spec: ServerSpec, template: Any, bound: Bound, tools: Tools) -> Launch:
    """A server by its engine's template. Raises Fault for a secret that is not there."""
    values = {
        "model_path": bound.model,
        "model_name": spec.name,
        "host": bound.host,
        "port": str(bound.port),
        "context": str(spec.context),
    }
    env, hidden = await asyncio.to_thread(_environment, template.env, tools.base)
    health = Health(template.http, bound.key)

    async def ready(identity: Identity, log: Path, log_start: int) -> None:
        tools.progress(ref, "loading", 0, None)
        host, port, limit = bound.host, bound.port, spec.limits.memory
        await wait_ready(tools.processes, identity, host, port, template.timeout, log, log_start, limit, health)
        await _tell_exposed(ref, identity, port, tools)

    return Launch(
        ref,
        digest,
        template.filled(values),
        {**env, **dict(spec.env), **dict.fromkeys(KEYS, bound.key)},
        bound.host,
        bound.port,
        {**bound.inputs, HTTP: template.http, WITHIN: f"{template.timeout:g}", CALLS: template.called(values)},
        bound.nonce,
        bound.key,
        ready,
        spec.limits,
        hidden,
        tools.base,
    )


def _environment(env: tuple[tuple[str, str], ...], base: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """What an engine's `env` says, with its secrets, and these alone. May take long. Raises Fault."""
    said = {name: value for name, value in env if not _refers(value)}
    kept = {name: secrets.resolve(value, base) for name, value in env if _refers(value)}
    return said | kept, tuple(value for value in kept.values() if len(value) >= TELLING)


def _refers(value: str) -> bool:
    return re.match(r"(env|file|keyring|command):", value) is not None


async def _tell_exposed(ref: Ref, identity: Identity, port: int, tools: Tools) -> None:
    """A server is for the gateway alone; one that listens to the whole network is told of."""
    where = await asyncio.to_thread(listening, identity.pid, port)
    if open_to := [address for address in where or () if not ip_address(address.partition("%")[0]).is_loopback]:
        told = f"it listens on {', '.join(open_to)}, for the whole network: pass {{host}} on in `argv` of its engine"
        tools.ledger.event(str(ref), "Exposed", told)
