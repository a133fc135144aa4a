"""Server: puts the parts together, keeps time for them, and ends well.

One task group owns everything that runs. The public port is bound before the control socket, so a second gateway
on the same port gives up without touching the first one's socket.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import time
from pathlib import Path

from reconciler import __version__
from reconciler.gateway.access import AccessLog
from reconciler.gateway.control import ControlServer, ControlSocket
from reconciler.gateway.exchange import Exchange
from reconciler.gateway.listener import Listener
from reconciler.gateway.live import LiveRoutes
from reconciler.gateway.loader import Loader
from reconciler.gateway.log import log
from reconciler.gateway.match import offered, unknown
from reconciler.gateway.metrics import Metrics, Now, known_as
from reconciler.gateway.pool import Pool
from reconciler.gateway.proxy import Proxy
from reconciler.gateway.record import Record
from reconciler.gateway.responses_store import ResponsesStore
from reconciler.gateway.spans import spans
from reconciler.gateway.surface import Surface
from reconciler.gateway.tap import Taps

TICK_SECONDS = 0.25
POLL_SECONDS = 1.0
BACKLOG = 1024


class CannotStart(Exception):
    """The gateway cannot serve; the text is for a person."""


async def serve(
    routes_path: Path,
    socket_path: Path,
    controller: Path | None,
    kept: Path | None,
    drain_seconds: float,
    access: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then for at most `drain_seconds` what is under way; raises `CannotStart`.

    `controller` is the socket of who loads models on demand, `kept` the folder for answers that are gone on from,
    `access` the file of the access log.
    """
    loop = asyncio.get_running_loop()
    live = _first_routes(routes_path, os.environ.get("RECONCILER_NONCE", ""))
    pool = Pool(loop)
    proxy = Proxy(pool)
    loader = Loader(controller)
    store = ResponsesStore(kept)
    exchange, taps, traced = Exchange(live, proxy, loader, store), Taps(live.secret_values), spans()
    metrics = Metrics(
        lambda: Now(listener.running, _by_target(proxy.inflight), loader.waiting(), exchange.cooling(), live.reloads)
    )
    requests = _access_log(access)
    done = [metrics.take, _tell_taps, *([requests.take] if requests else ()), *([traced.take] if traced else ())]
    surface = Surface(live, exchange, metrics, taps, traced)
    listener = Listener(surface.answer, lambda: live.routes.limits, done)
    public = await _bind_public(listener, live)
    host, port = public.sockets[0].getsockname()[:2]
    started = round(time.time(), 3)

    def state() -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "nonce": os.environ.get("RECONCILER_NONCE"),
            "digest": live.routes.digest,
            "serial": live.routes.serial,
            "error": live.error,
            "secrets": live.secrets_digest,
            "inflight": dict(proxy.inflight),
            "used": proxy.last_used(live.routes.targets()),
            "waiting": loader.waiting(),
            "listen": {"host": host, "port": port},
            "started": started,
        }

    def reload(told: object) -> None:
        if isinstance(told, dict) and "secrets" in told:
            live.take(told["secrets"])
        live.reload()

    control = ControlServer(state, reload, taps, lambda name: _check_name(live, name))
    try:
        control_socket = ControlSocket(socket_path)
    except OSError as error:
        public.close()
        raise CannotStart(f"cannot make the control socket {socket_path}: {error.strerror or error}") from None
    try:
        private = await loop.create_unix_server(control, sock=control_socket.socket)
        log("info", "listening", host=host, port=port, version=__version__, serial=live.routes.serial)
        async with asyncio.TaskGroup() as tasks:
            clock = tasks.create_task(_keep_time(loop, listener, pool, live, requests))
            await _signalled(loop)
            log("info", "stopping", inflight=sum(proxy.inflight.values()))
            public.close()
            await listener.drain(drain_seconds)
            clock.cancel()
        private.close()
        await control.shutdown(0.2)
    finally:
        control_socket.remove()
        pool.close()
        store.close()
        if requests is not None:
            requests.close()
        if traced is not None:
            await asyncio.to_thread(traced.close)
    log("info", "stopped")


def raise_file_limit() -> None:
    """Each stream takes two descriptors, and the usual soft limit of 1024 would end before the connection cap does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _first_routes(path: Path, salt: str) -> LiveRoutes:
    try:
        return LiveRoutes(path, salt)
    except OSError as error:
        raise CannotStart(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CannotStart(str(error)) from None


async def _bind_public(listener: Listener, live: LiveRoutes) -> asyncio.Server:
    host, port = live.routes.host, live.routes.port
    try:
        return await asyncio.get_running_loop().create_server(
            listener, host.strip("[]"), port, backlog=BACKLOG, reuse_address=True
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotStart(f"port {port} is already in use") from None
        raise CannotStart(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


def _access_log(path: Path | None) -> AccessLog | None:
    try:
        return AccessLog(path) if path is not None else None
    except OSError as error:
        log("error", "no-access-log", path=path, reason=error.strerror or error)
        return None


def _tell_taps(record: Record, seconds: float) -> None:
    if record.copy is not None:
        record.copy.done(record, seconds)


def _by_target(inflight: dict[str, int]) -> dict[str, int]:
    """By what people call them: two processes of one server count together."""
    out: dict[str, int] = {}
    for ident, number in inflight.items():
        label = ident.partition("#")[0]
        out[label] = out.get(label, 0) + number
    return out


def _check_name(live: LiveRoutes, name: str) -> None:
    """Raise `Refusal` 404 for a name that nobody is asked by."""
    if known_as(live.routes, name) == "unknown":
        raise unknown(name, offered(live.routes, None))


async def _keep_time(
    loop: asyncio.AbstractEventLoop, listener: Listener, pool: Pool, live: LiveRoutes, requests: AccessLog | None
) -> None:
    next_poll = loop.time() + POLL_SECONDS
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = loop.time()
        pool.tick(now)
        listener.tick(now)
        if requests is not None:
            requests.flush()
        if now >= next_poll:
            next_poll = now + POLL_SECONDS
            live.poll()


async def _signalled(loop: asyncio.AbstractEventLoop) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
