"""The gateway: its process, and routes.json, which is all it ever learns."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref, canonical, digest_of
from reconciler.core.plan import Action
from reconciler.core.state import Declared, Found, Observation
from reconciler.host import secrets
from reconciler.host.probes import bindable, holder_of, unix_request
from reconciler.host.process import Identity, alive
from reconciler.kinds.base import Tools
from reconciler.kinds.credentials import credentials
from reconciler.kinds.gateway.rules import GatewayRules, GatewayState, Offer, Process, Target, content
from reconciler.kinds.gateway.spec import GatewaySpec
from reconciler.kinds.workload import Launch, new_nonce, row_phase, start, stop
from reconciler.store.ledger import ProcessRow
from reconciler.supervise.exits import meaning
from reconciler.supervise.logs import tail
from reconciler.supervise.machine import Phase as Life

START_BUDGET = 20.0  # seconds
# What the gateway gets of our environment: whom to trust, and where spans are sent to.
CARRIED = (
    "SSL_CERT_FILE", "SSL_CERT_DIR", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
)  # fmt: skip
GRACE = 15.0  # seconds; it gives running streams ten of them


class GatewayKind:
    name = "gateway"
    rules = GatewayRules()

    def observe(self, refs: Iterable[Ref], desired: Mapping[Ref, Declared], tools: Tools) -> dict[Ref, Observation]:
        return {ref: Found(_look(ref, desired.get(ref), tools)) for ref in refs}

    async def apply(self, action: Action, ref: Ref, declared: Declared | None, tools: Tools) -> None:
        match action.verb:
            case "start":
                assert declared is not None
                await _start(ref, declared.spec, action, tools)
            case "await":
                await _await(_row(action, tools), tools)
            case "route":
                assert declared is not None
                await asyncio.to_thread(_route, declared.spec, action, tools)
                tools.ledger.own(ref, declared.digest, declared.spec)
            case "stop":
                if (row := _row(action, tools)) is not None:
                    await stop(row, tools, GRACE)
            case "release":
                tools.files.remove(tools.layout.routes)
                tools.ledger.disown(ref)

    async def answers(self, row: ProcessRow, tools: Tools) -> bool:
        state = await asyncio.to_thread(unix_request, tools.layout.gateway_socket, "GET", "/state", 5.0)
        # Another one answers there while the gateway moves to another port: nothing is known against this one.
        return state is not None


def _row(action: Action, tools: Tools) -> ProcessRow | None:
    return next((row for row in tools.ledger.processes() if row.nonce == action.args["nonce"]), None)


def _look(ref: Ref, declared: Declared | None, tools: Tools) -> GatewayState:
    rows = [row for row in tools.ledger.processes() if row.ref == ref]
    processes = tuple(Process(r.nonce, r.digest, row_phase(r, tools), r.host, r.port) for r in rows)
    state = unix_request(tools.layout.gateway_socket, "GET", "/state") if rows else None
    digest, routed, torn = _served(state, any(p.life is not Life.GONE for p in processes), tools)
    keys, problem = _keys(declared.spec, tools) if declared is not None else ((), "")
    holder = ""
    if declared is not None and not any(p.listening == declared.spec.listening for p in processes):
        spec: GatewaySpec = declared.spec
        holder = holder_of(spec.port) if bindable(spec.host, spec.port) else ""
    inflight = {nonce: int(n) for nonce, n in _by_nonce(state, "inflight")}
    used = {nonce: float(at) for nonce, at in _by_nonce(state, "used")}
    started = float((state or {}).get("started") or 0.0)
    untold = declared is not None and state is not None and _untold(declared.spec, state, tools)
    return GatewayState(processes, digest, routed, inflight, keys, problem, holder, used, started, torn, untold)


def _by_nonce(state: Mapping[str, Any] | None, name: str) -> list[tuple[str, Any]]:
    """What the gateway tells by the ids of targets (`server/chat#nonce`)."""
    return [(str(ident).partition("#")[2], value) for ident, value in ((state or {}).get(name) or {}).items()]


def _served(state: Mapping[str, Any] | None, living: bool, tools: Tools) -> tuple[str, frozenset[str], bool]:
    """(digest of the routes in force, nonces they lead to, whether those on disk are others).

    Nothing is in force where no gateway lives; one that lives and does not answer may lead to any of ours.
    """
    if state is None:
        return "", frozenset(row.nonce for row in tools.ledger.processes()) if living else frozenset(), False
    digest = str(state.get("digest", ""))
    try:
        stamp = tools.layout.routes.stat()
        written, routed = _written(tools.layout.routes, (stamp.st_mtime_ns, stamp.st_size, stamp.st_ino))
    except (OSError, ValueError):
        written, routed = "", frozenset()
    if written != digest:  # what is in force is not what is on disk: it may lead to any of ours
        return digest, frozenset(row.nonce for row in tools.ledger.processes()), True
    return digest, routed, False


@lru_cache(maxsize=1)  # it is looked at often, and holds all models
def _written(path: Path, stamp: tuple[int, int, int]) -> tuple[str, frozenset[str]]:
    """(digest, nonces that it leads to) of the routes on disk; raises OSError or ValueError."""
    document = json.loads(path.read_text())
    targets = (model["target"] for model in document["models"].values())
    return str(document["digest"]), frozenset(str(t["id"]).partition("#")[2] for t in targets if t)


def _keys(spec: GatewaySpec, tools: Tools) -> tuple[tuple[tuple[str, str], ...], str]:
    """The sha256 of every client key, and what is wrong with one that cannot be resolved."""
    out = []
    for name, reference in spec.api_keys:
        try:
            out.append((name, hashlib.sha256(secrets.resolve(reference, tools.base).encode()).hexdigest()))
        except Fault as fault:
            return (), fault.message
    return tuple(out), ""


def _secrets(spec: GatewaySpec, tools: Tools) -> dict[str, Any]:
    """What the gateway is to show to providers, as far as it can be resolved: what is missing is theirs to tell."""
    out = {}
    for provider in spec.providers:
        shown, _ = credentials(provider.keys, provider.secret_headers, provider.secret_proxy, tools.base)
        out[provider.name] = shown.told()
    return out


def _untold(spec: GatewaySpec, state: Mapping[str, Any], tools: Tools) -> bool:
    """Whether the running gateway has other secrets than those of now. It tells only their salted digest."""
    if "secrets" not in state:
        return False
    wanted = _secrets(spec, tools)
    if not wanted and not state["secrets"]:
        return False
    return bool(state["secrets"] != fingerprint(wanted, str(state.get("nonce", ""))))


def fingerprint(told: Mapping[str, Any], nonce: str) -> str:
    """The digest by which a gateway says which secrets it has: sha256 (hex) of its nonce and their canonical JSON."""
    return hashlib.sha256((nonce + canonical(told)).encode()).hexdigest()


def _write_routes(spec: GatewaySpec, action: Action, tools: Tools) -> str:
    """Write routes.json and return its digest. Raises Fault for a key that cannot be resolved."""
    aim: Mapping[str, Target] = action.args["targets"]
    has: Mapping[str, Offer] = action.args["offers"]
    for _, reference in spec.api_keys:
        secrets.resolve(reference, tools.base)
    keys, _ = _keys(spec, tools)
    document = content(spec, aim, keys, has)
    digest = digest_of(document)
    for model in document["models"].values():
        model["created"] = int(time.time())
        if model["target"] is not None:
            nonce = model["target"]["id"].partition("#")[2]
            try:
                model["target"]["key"] = tools.layout.key(nonce).read_text()
            except FileNotFoundError:
                model["target"] = None  # nobody may ask a server whose key is lost; it is being replaced
    document |= {"serial": time.time_ns(), "digest": digest}
    tools.files.write(tools.layout.routes, json.dumps(document, indent=1).encode())
    return digest


def _route(spec: GatewaySpec, action: Action, tools: Tools) -> None:
    digest = _write_routes(spec, action, tools)
    told = _secrets(spec, tools)
    body = json.dumps({"secrets": told}).encode()
    answer = unix_request(tools.layout.gateway_socket, "POST", "/reload", timeout=5.0, body=body)
    if answer is None or answer.get("digest") != digest:
        why = (answer or {}).get("error") or "it does not answer"
        raise Fault("ROUTES_REFUSED", f"the gateway did not take its routes: {why}")
    has = answer.get("secrets")
    if has is not None and (told or has) and has != fingerprint(told, str(answer.get("nonce", ""))):
        raise Fault("KEYS_REFUSED", "the gateway did not take the keys of its providers")


async def _start(ref: Ref, spec: GatewaySpec, action: Action, tools: Tools) -> None:
    if why := bindable(spec.host, spec.port):
        raise _port_fault(spec, why)
    socket = tools.layout.gateway_socket
    tools.files.private_folder(socket.parent)
    await asyncio.to_thread(_write_routes, spec, action, tools)
    nonce = new_nonce()
    argv = [sys.executable, "-P", "-m", "reconciler.gateway"]
    argv += ["--routes", str(tools.layout.routes), "--socket", str(socket)]
    argv += ["--controller", str(tools.layout.control_socket), "--kept", str(tools.layout.responses)]
    argv += ["--access", str(tools.layout.access)]

    async def ready(identity: Identity, log: Path, log_start: int) -> None:
        try:
            await _answers(identity, nonce, log, log_start, tools)
        except Fault as fault:
            if why := bindable(spec.host, spec.port):
                raise _port_fault(spec, why) from fault
            raise

    trusted = {name: os.environ[name] for name in CARRIED if name in os.environ}
    told = os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "")  # they may hold a token
    launch = Launch(
        ref, spec.listening, argv, trusted, spec.host, spec.port, {}, nonce, "", ready, hidden=(told,) if told else ()
    )
    await start(launch, tools)


async def _answers(identity: Identity, nonce: str, log: Path, log_start: int, tools: Tools) -> None:
    """Return once the process with this nonce says that it listens."""
    deadline = time.monotonic() + START_BUDGET
    while True:
        state = await asyncio.to_thread(unix_request, tools.layout.gateway_socket, "GET", "/state")
        if state is not None and state.get("nonce") == nonce:
            return
        if not alive(identity):
            raise meaning(tools.processes.exit_code(identity), tail(log, 20, log_start))
        if time.monotonic() > deadline:
            raise Fault("GATEWAY_TIMED_OUT", f"the gateway did not answer within {START_BUDGET:.0f} s")
        await asyncio.sleep(0.03)


async def _await(row: ProcessRow | None, tools: Tools) -> None:
    if row is None or row.identity is None:
        raise Fault("PROCESS_EXITED", "the process is gone")
    try:
        await _answers(row.identity, row.nonce, Path(row.log), 0, tools)
    except Fault:
        await stop(row, tools, GRACE)
        raise
    tools.ledger.record_ready(row.nonce)


def _port_fault(spec: GatewaySpec, why: str) -> Fault:
    if "in use" not in why.lower():
        return Fault(
            "CANNOT_LISTEN",
            f"{spec.host}:{spec.port} cannot be listened on: {why}",
            hint="choose another gateway.host or gateway.port",
            kind=FaultClass.NEEDS_HUMAN,
        )
    return Fault(
        "PORT_IN_USE",
        f"port {spec.port} is held by {holder_of(spec.port)}",
        hint="stop it, or set gateway.port to a free port",
        kind=FaultClass.NEEDS_HUMAN,
    )
