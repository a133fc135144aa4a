"""Dial: opens one connection to a peer, plain or with TLS, straight or through a proxy.

A name is looked up once, every address is judged, and one that was judged is connected to: a name that means something
else a moment later leads nowhere. Redirects are not followed by anybody here.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import ssl
from functools import lru_cache
from urllib.parse import SplitResult, unquote, urlsplit

from reconciler.core.addresses import forbidden
from reconciler.gateway.routes import Peer

PROXY_HEAD = 16 * 1024


class Unreachable(Exception):
    """No connection could be made; the text is for a person, and holds no secret."""


async def dial(loop: asyncio.AbstractEventLoop, peer: Peer, protocol: asyncio.Protocol) -> None:
    """Connect `protocol` to the peer; raises `Unreachable`."""
    try:
        if peer.proxy:
            await _through_proxy(loop, peer, protocol)
        elif peer.engine:
            await loop.create_connection(lambda: protocol, peer.host, peer.port)
        else:
            await _to_one_of(await _addresses(loop, peer), loop, peer, protocol)
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(f"its certificate is not trusted: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise Unreachable(f"TLS failed: {error.reason or type(error).__name__}") from None
    except socket.gaierror:
        raise Unreachable(f"the name {peer.host} is not known") from None
    except OSError as error:
        raise Unreachable(error.strerror or type(error).__name__) from None


async def _addresses(loop: asyncio.AbstractEventLoop, peer: Peer) -> list[str]:
    """Where it may be connected to; raises `Unreachable` where all that its name means is forbidden."""
    try:
        found = [str(ipaddress.ip_address(peer.host))]
    except ValueError:
        infos = await loop.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
        found = [str(info[4][0]) for info in infos]
    judged = [(address, forbidden(address, peer.private)) for address in found]
    if may := [address for address, why in judged if not why]:
        return may
    raise Unreachable(f"it may not be asked: {judged[0][1]}")


async def _to_one_of(
    addresses: list[str], loop: asyncio.AbstractEventLoop, peer: Peer, protocol: asyncio.Protocol
) -> None:
    secure = peer.scheme == "https"
    tls, name = (_tls(), peer.host) if secure else (None, None)
    for address in addresses[:-1]:
        try:
            await loop.create_connection(lambda: protocol, address, peer.port, ssl=tls, server_hostname=name)
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                raise
            continue
        return
    await loop.create_connection(lambda: protocol, addresses[-1], peer.port, ssl=tls, server_hostname=name)


async def _through_proxy(loop: asyncio.AbstractEventLoop, peer: Peer, protocol: asyncio.Protocol) -> None:
    """A tunnel, over which TLS is spoken with the peer itself: the proxy sees no request."""
    proxy = urlsplit(peer.proxy)
    secure = proxy.scheme == "https"
    port = proxy.port or (443 if secure else 3128)
    transport, tunnel = await loop.create_connection(
        lambda: _Tunnel(loop.create_future()), proxy.hostname or "", port, ssl=_tls() if secure else None
    )
    try:
        where = f"[{peer.host}]:{peer.port}" if ":" in peer.host else f"{peer.host}:{peer.port}"
        transport.write(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{_credentials(proxy)}\r\n".encode())
        status = await tunnel.answered
        if status != b"200":
            raise Unreachable(f"the proxy answered {status.decode('ascii', 'replace') or 'nonsense'}")
        inner: asyncio.BaseTransport | None = transport
        if peer.scheme == "https":
            inner = await loop.start_tls(transport, protocol, _tls(), server_hostname=peer.host)
        else:
            transport.set_protocol(protocol)
        if inner is None:
            raise Unreachable("the proxy went away")
        protocol.connection_made(inner)
    except BaseException:
        transport.close()
        raise


class _Tunnel(asyncio.Protocol):
    """Hears what a proxy says to CONNECT: `answered` becomes the status, or b"" for nonsense."""

    def __init__(self, answered: asyncio.Future[bytes]) -> None:
        self.answered = answered
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        whole = self._head.endswith(b"\r\n\r\n")
        if not self.answered.done() and (whole or b"\r\n\r\n" in self._head or len(self._head) > PROXY_HEAD):
            status = self._head.split(b" ", 2)[1:2]  # what follows a head before we spoke is no tunnel's
            self.answered.set_result(status[0][:3] if whole and status else b"")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_result(b"")


def _credentials(proxy: SplitResult) -> str:
    if proxy.username is None:
        return ""
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n"


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
