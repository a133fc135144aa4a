"""Requests over HTTP that keep secrets at home, and what each failure is called.

Promises: a token goes to its own host only, and no more once a redirect has left the place it was first sent to; a
redirect leads neither from https to http nor from a public address to one of this machine or its network. Proxies
(HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) and certificates (SSL_CERT_FILE, SSL_CERT_DIR) are those of the
environment when the first request is made. Every failure is a Fault, and none shows what an address may hide.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.fetch.threads import in_thread

if TYPE_CHECKING:
    import httpx2

PIECE = 1 << 18  # bytes of one read: what asyncio takes from a socket at once
REDIRECTS = 10
CONNECT = 15.0  # seconds
_MOVED = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Access:
    """A token, and the one host (with its port, as in an address) that may see it.

    For the scheme "Basic" the token is user and password as that scheme encodes them.
    """

    token: str = field(default="", repr=False)
    host: str = ""
    scheme: str = "Bearer"


OPEN = Access()


@dataclass(frozen=True, slots=True)
class Place:
    """An address, and whether the way to it never left the place where it began: only then the token goes along."""

    url: str
    home: bool = True


class Wire:
    """The connections of one Fetch. `stall`: seconds that a server may be silent."""

    def __init__(self, stall: float) -> None:
        self._stall = stall
        self._client: httpx2.AsyncClient | None = None

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def ask(
        self, method: str, place: Place, access: Access, headers: Mapping[str, str]
    ) -> tuple[httpx2.Response, Place]:
        """The answer, of whatever status but a redirect, and where it came from. To be closed by the caller."""
        client = await self._opened()
        start = place.url
        for _ in range(REDIRECTS + 1):
            with named(place.url):
                request = client.build_request(method, place.url, headers=dict(headers) | _token(place, access))
                response = await client.send(request, stream=True)
            if response.status_code not in _MOVED or "location" not in response.headers:
                return response, place
            target = response.headers["location"]
            await response.aclose()
            place = await _followed(place, target)
        raise Fault("TOO_MANY_REDIRECTS", f"{shown(start)} redirects without end", kind=FaultClass.PERMANENT)

    async def _opened(self) -> httpx2.AsyncClient:
        if self._client is None:
            client = await in_thread(_client, self._stall)  # certificates take a while to load
            if self._client is None:
                self._client = client
        return self._client


def _client(stall: float) -> httpx2.AsyncClient:
    import httpcore2
    import httpx2

    httpcore2.AsyncHTTP11Connection.READ_NUM_BYTES = PIECE  # the usual quarter of it costs half as much CPU again
    try:
        return httpx2.AsyncClient(
            timeout=httpx2.Timeout(stall, connect=min(stall, CONNECT), pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=15.0),
            follow_redirects=False,
        )
    except OSError as error:  # an ssl.SSLError too
        raise Fault(
            "BAD_CERTIFICATES",
            f"the certificates cannot be loaded: {error}",
            hint="correct SSL_CERT_FILE or SSL_CERT_DIR in the environment",
            kind=FaultClass.NEEDS_HUMAN,
        ) from error
    except (ValueError, ImportError, httpx2.InvalidURL) as error:
        raise Fault(
            "BAD_PROXY",
            "the environment names a proxy that cannot be used",
            hint="HTTP_PROXY, HTTPS_PROXY and ALL_PROXY are addresses such as http://proxy:3128",
            kind=FaultClass.NEEDS_HUMAN,
        ) from error


async def _followed(place: Place, target: str) -> Place:
    """Where a redirect leads. Raises Fault where it must not be followed."""
    import httpx2

    with named(place.url):
        url = str(httpx2.URL(place.url).join(target))
        before, after = urlsplit(place.url), urlsplit(url)
        _ = after.port  # raises for one that is none
    if after.scheme not in _PORTS or not after.hostname:
        raise _impossible(place.url)
    if before.scheme == "https" and after.scheme != "https":
        raise Fault(
            "INSECURE_REDIRECT",
            f"{shown(place.url)} redirects to unencrypted {shown(url)}",
            kind=FaultClass.PERMANENT,
        )
    if origin(url) == origin(place.url):
        return Place(url, place.home)
    if await _private(url) and not await _private(place.url):
        raise Fault(
            "UNSAFE_REDIRECT",
            f"{shown(place.url)} redirects to {shown(url)}, which is not a public address",
            hint="name that address itself if it is the one you mean",
            kind=FaultClass.PERMANENT,
        )
    return Place(url, home=False)


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)


def _token(place: Place, access: Access) -> dict[str, str]:
    if not access.token or not place.home:
        return {}
    scheme = urlsplit(place.url).scheme
    if origin(place.url) != origin(f"{scheme}://{access.host}"):
        return {}
    return {"Authorization": f"{access.scheme} {access.token}"}


async def _private(url: str) -> bool:
    """Whether an address is of this machine or its network; a name is looked up unless a proxy does that."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    literal = _literal(host)
    if literal is not None:
        return not literal.is_global
    if parts.scheme in (proxies := getproxies()) or "all" in proxies:
        return False
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, parts.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(not _plain(str(entry[4][0])).is_global for entry in found)


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, in any of the forms that the system takes (`127.1`, `0x7f000001`)."""
    try:
        return _plain(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address.partition("%")[0])
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


# --- what went wrong -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def named(url: str) -> Iterator[None]:
    """Turn what the HTTP library raises before there is an answer into faults."""
    import httpx2

    try:
        yield
    except httpx2.TimeoutException as error:
        if isinstance(error, httpx2.ConnectTimeout):
            raise _unreachable(url, error) from error
        raise _stalled(url) from error
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, ValueError, ExceptionGroup) as error:
        raise _impossible(url) from error  # a port beyond 65535 comes as a group
    except httpx2.ProxyError as error:
        raise Fault(
            "PROXY_REFUSED",
            f"{shown(url)}: the proxy refused: {error}",
            hint="check HTTP_PROXY, HTTPS_PROXY and NO_PROXY, and the proxy's user and password",
            kind=FaultClass.NEEDS_HUMAN if "407" in str(error) else FaultClass.TRANSIENT,
        ) from error
    except httpx2.TransportError as error:
        if _untrusted(error):
            raise Fault(
                "UNTRUSTED_CERTIFICATE",
                f"{shown(url)}: the server's certificate is not trusted: {error}",
                hint="name your own authority's certificate in SSL_CERT_FILE",
                kind=FaultClass.NEEDS_HUMAN,
            ) from error
        raise _unreachable(url, error) from error


async def body(response: httpx2.Response, url: str) -> AsyncGenerator[bytes, None]:
    """The pieces of an answer, as they come. Raises Fault CUT_SHORT or STALLED where it breaks off."""
    import httpx2

    pieces = response.aiter_raw()
    async with contextlib.aclosing(pieces):
        try:
            async for piece in pieces:
                yield piece
        except httpx2.TimeoutException as error:
            raise _stalled(url) from error
        except httpx2.TransportError as error:
            raise Fault("CUT_SHORT", f"{shown(url)}: the connection ended in the middle of the file") from error


def _untrusted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _stalled(url: str) -> Fault:
    return Fault("STALLED", f"{shown(url)}: the server fell silent")


def _unreachable(url: str, error: Exception) -> Fault:
    return Fault(
        "NETWORK_UNREACHABLE",
        f"{shown(url)} cannot be reached: {error or type(error).__name__}",
        hint="check the network, and the proxy settings (HTTPS_PROXY, SSL_CERT_FILE) if there is one",
    )


def _impossible(url: str) -> Fault:
    return Fault("BAD_ADDRESS", f"{shown(url)} is, or leads to, an impossible address", kind=FaultClass.PERMANENT)


def status_fault(url: str, status: int, headers: Mapping[str, str]) -> Fault:
    """The fault that a status is which brings no file."""
    what = f"{shown(url)} answered {status}"
    if status in (401, 403, 407):
        return Fault(
            "ACCESS_DENIED", what, hint="the source wants credentials or is not public", kind=FaultClass.NEEDS_HUMAN
        )
    if status in (404, 410):
        return Fault("NOT_FOUND", what, hint="check the source in the manifest", kind=FaultClass.PERMANENT)
    if status in (408, 425, 429) or status >= 500:
        return Fault("SOURCE_BUSY", what, after=retry_after(headers))
    if status == 416:
        return Fault("RANGE_REFUSED", f"{what}: the rest of the file is not to be had; it is begun again")
    return Fault("SOURCE_REFUSED", what, kind=FaultClass.PERMANENT)


def retry_after(headers: Mapping[str, str]) -> float:
    """Retry-After in seconds, from its number or date form; at most an hour, 0 where it is absent or odd."""
    text = headers.get("retry-after", "")
    try:
        seconds = (
            float(text) if text.replace(".", "", 1).isdigit() else parsedate_to_datetime(text).timestamp() - time()
        )
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), 3600.0)


def shown(url: str) -> str:
    """A URL for people: without user, password, query and fragment, where secrets like to be."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the address"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
