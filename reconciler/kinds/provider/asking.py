"""Asks a provider for its models: bounded in time and size, at no address that is not meant, one key after another.

No message holds a key, nor anything that the provider answered: some repeat the key that they refuse.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from reconciler.core.addresses import forbidden
from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.core.retry import ACTIONS
from reconciler.kinds.credentials import Credentials
from reconciler.kinds.provider.listing import MOST, Page, page
from reconciler.kinds.provider.rules import KEY_REFUSED, address
from reconciler.kinds.provider.spec import ProviderSpec

if TYPE_CHECKING:
    import httpx2

DEADLINE = 20.0  # seconds for everything
CONNECT = 5.0  # seconds for a connection, where the manifest says nothing
TRIES = 3
MOST_BYTES = 8 << 20  # of one answer, unpacked
PAGES = 20
REDIRECTS = 3
ADDRESSES = 3  # of one name, tried in their order
_MOVED = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Asked:
    """`models` in the order of their names; `how` they came, for people."""

    models: tuple[str, ...]
    how: str


async def ask(spec: ProviderSpec, shown: Credentials) -> Asked:
    """The list of a provider's models. Raises Fault."""
    try:
        async with asyncio.timeout(DEADLINE):
            return await _patiently(spec, shown)
    except TimeoutError:
        raise Fault("STALLED", f"{_where(spec)} took more than {DEADLINE:.0f} s to list its models") from None


async def _patiently(spec: ProviderSpec, shown: Credentials) -> Asked:
    """A few tries, where another one may help soon."""
    began = asyncio.get_running_loop().time()
    async with _client(spec, shown) as client:
        for count in range(1, TRIES + 1):
            try:
                return await _with_any_key(client, spec, shown)
            except Fault as fault:
                wait = max(fault.after, ACTIONS.delay(Ref("provider", spec.name), count))
                left = DEADLINE - (asyncio.get_running_loop().time() - began)
                if fault.kind is not FaultClass.TRANSIENT or count == TRIES or wait > left / 2:
                    raise
                await asyncio.sleep(wait)
    raise AssertionError("not reached")


async def _with_any_key(client: httpx2.AsyncClient, spec: ProviderSpec, shown: Credentials) -> Asked:
    """With the first key that is taken. Raises the Fault that the first of them met where none is."""
    first: Fault | None = None
    for key in shown.keys or ("",):
        try:
            return await _pages(client, spec, shown, key)
        except Fault as fault:
            if fault.code not in (KEY_REFUSED, "LIST_REFUSED", "RATE_LIMITED"):
                raise
            first = first or fault
    assert first is not None
    raise first


async def _pages(client: httpx2.AsyncClient, spec: ProviderSpec, shown: Credentials, key: str) -> Asked:
    url = f"{address(spec)}/models"
    headers = {name.lower(): value for name, value in (*spec.headers, *shown.headers)} | _auth(spec.auth, key)
    headers |= {"accept": "application/json", "accept-encoding": "gzip, identity", "user-agent": "reconciler"}
    found: dict[str, None] = {}
    after = ""
    for _ in range(PAGES):
        more = ("?limit=1000" + (f"&after_id={quote(after)}" if after else "")) if spec.lists == "anthropic" else ""
        one = _understood(await _get(client, spec, url + more, headers), url)
        before = len(found)
        found |= dict.fromkeys(one.models)
        if not one.after or one.after == after or len(found) == before or len(found) >= MOST:
            break
        after = one.after
    return Asked(tuple(sorted(found))[:MOST], f"GET {url}")


def _understood(body: bytes, url: str) -> Page:
    try:
        return page(body)
    except ValueError as error:
        raise Fault("NO_LIST", f"GET {url}: {error}", hint=_NAME_THEM, kind=FaultClass.PERMANENT) from None


def _auth(how: str, key: str) -> dict[str, str]:
    if not key or how == "none":
        return {}
    return {"authorization": f"Bearer {key}"} if how == "bearer" else {how: key}


# --- one question ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _client(spec: ProviderSpec, shown: Credentials) -> AsyncIterator[httpx2.AsyncClient]:
    import httpx2

    connect = dict(spec.timeouts).get("connect_seconds", CONNECT)
    try:
        trusted = await asyncio.to_thread(httpx2.create_ssl_context)
    except OSError as error:
        hint = "correct SSL_CERT_FILE or SSL_CERT_DIR in the environment"
        problem = f"the certificates cannot be loaded: {error}"
        raise Fault("BAD_CERTIFICATES", problem, hint=hint, kind=FaultClass.NEEDS_HUMAN) from None
    try:
        client = httpx2.AsyncClient(
            verify=trusted,
            trust_env=False,
            follow_redirects=False,
            proxy=shown.proxy or spec.proxy or None,
            timeout=httpx2.Timeout(DEADLINE, connect=connect),
        )
    except (ValueError, ImportError, httpx2.InvalidURL):
        problem = "its `proxy` is not an address such as http://proxy:3128"
        raise Fault("BAD_PROXY", problem, kind=FaultClass.NEEDS_HUMAN) from None
    async with client:
        yield client


async def _get(client: httpx2.AsyncClient, spec: ProviderSpec, url: str, headers: dict[str, str]) -> bytes:
    """The body of a good answer. Follows redirects within one origin only."""
    through = bool(spec.proxy or spec.secret_proxy)
    start = url
    for _ in range(REDIRECTS + 1):
        status, about, body = await _reached(client, spec, url, headers, through)
        if status not in _MOVED or "location" not in about:
            if status == 200:
                return body
            raise _refused(status, about, start)
        target = urljoin(url, about["location"])
        if _origin(target) != _origin(url):
            problem = f"GET {start} is sent on to another place, {_place(target)}"
            hint = "name that address itself as `base_url` if it is the one you mean"
            raise Fault("FOREIGN_REDIRECT", problem, hint=hint, kind=FaultClass.NEEDS_HUMAN)
        url = target
    raise Fault("TOO_MANY_REDIRECTS", f"GET {start} is sent on without end", kind=FaultClass.PERMANENT)


async def _reached(
    client: httpx2.AsyncClient, spec: ProviderSpec, url: str, headers: dict[str, str], through: bool
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) from the first of its addresses that takes the connection."""
    import httpx2

    host = urlsplit(url).hostname or ""
    failed: Fault | None = None
    for numeric in [""] if through else await _addresses(url, spec.private):
        more = {"host": _authority(url)} if numeric else {}
        aim = str(httpx2.URL(url).copy_with(host=numeric)) if numeric else url
        # The certificate is to be that of the name, though the connection is to the address that was judged.
        extensions = {"sni_hostname": host} if numeric else {}
        try:
            async with client.stream("GET", aim, headers={**headers, **more}, extensions=extensions) as response:
                about = {key.lower(): value for key, value in response.headers.items()}
                body = await _body(response, url) if response.status_code == 200 else b""
                return response.status_code, about, body
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            failed = _unreachable(url, error)
        except httpx2.TimeoutException:
            raise Fault("STALLED", f"GET {_place(url)}: the server fell silent") from None
        except httpx2.ProxyError:
            problem, hint = f"GET {_place(url)}: the proxy refused", "check `proxy`, and its user and password"
            raise Fault("PROXY_REFUSED", problem, hint=hint) from None
        except (httpx2.TransportError, httpx2.InvalidURL, ValueError) as error:
            raise Fault("CUT_SHORT", f"GET {_place(url)}: no whole answer ({type(error).__name__})") from None
    assert failed is not None
    raise failed


async def _addresses(url: str, private: bool) -> list[str]:
    """The IP addresses of a host that may be asked. Raises Fault where there are none."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Fault("UNKNOWN_HOST", f"there is no host {host}", hint="check `base_url`, and the network") from None
    numeric = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    why = [forbidden(each, private) for each in numeric]
    good = [each for each, said in zip(numeric, why, strict=True) if not said]
    if not good:
        hint = "" if private else "if that is meant, say `private: true`"
        problem = f"{host} is not asked: {next(iter(why), 'it has no address')}"
        raise Fault("FORBIDDEN_ADDRESS", problem, hint=hint, kind=FaultClass.NEEDS_HUMAN)
    return good[:ADDRESSES]


async def _body(response: httpx2.Response, url: str) -> bytes:
    """At most so much of an answer, packed or not. Raises Fault."""
    coding = response.headers.get("content-encoding", "identity").lower()
    if coding not in ("identity", "gzip", ""):
        raise _unreadable(url, f"its answer is packed in a way that was not asked for ({coding[:20]})")
    unpack: Callable[[bytes], bytes] = bytes
    if coding == "gzip":
        packed = zlib.decompressobj(16 + zlib.MAX_WBITS)

        def unpack(piece: bytes) -> bytes:
            return packed.decompress(piece, MOST_BYTES + 1)

    out = bytearray()
    async for piece in response.aiter_raw():
        try:
            out += unpack(piece)
        except zlib.error:
            raise _unreadable(url, "its answer cannot be unpacked") from None
        if len(out) > MOST_BYTES:
            raise _unreadable(url, f"its answer goes on beyond {MOST_BYTES} bytes")
    return bytes(out)


# --- what went wrong -------------------------------------------------------------------------------------------------

_NAME_THEM = "name its models yourself: `models: [NAME]`"


def _refused(status: int, about: dict[str, str], url: str) -> Fault:
    said = f"GET {url} answered {status}"
    if status == 401:
        hint = "check its `api_key`"
        return Fault(KEY_REFUSED, f"{said}: the key is not taken", hint=hint, kind=FaultClass.NEEDS_HUMAN)
    if status == 403:
        problem = f"{said}: the key may not list models"
        return Fault("LIST_REFUSED", problem, hint=_NAME_THEM, kind=FaultClass.NEEDS_HUMAN)
    if status in (404, 405, 501):
        return Fault("NO_LIST", f"{said}: it lists no models there", hint=_NAME_THEM, kind=FaultClass.PERMANENT)
    after = _after(about)
    if status == 429:
        return Fault("RATE_LIMITED", f"{said}: it is asked too often", after=after)
    if status >= 500:
        return Fault("PROVIDER_FAILED", said, after=after)
    return Fault("PROVIDER_REFUSED", said, hint="check `base_url`", kind=FaultClass.NEEDS_HUMAN)


def _after(about: dict[str, str]) -> float:
    """Seconds of Retry-After, of the kinds that are numbers; at most an hour."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(about.get(name, "")) * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return min(seconds, 3600.0)
    return 0.0


def _unreachable(url: str, error: BaseException) -> Fault:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            problem = f"{_place(url)}: its certificate is not trusted: {cause.verify_message}"
            hint = "name your own authority's certificate in SSL_CERT_FILE"
            return Fault("UNTRUSTED_CERTIFICATE", problem, hint=hint, kind=FaultClass.NEEDS_HUMAN)
        cause = cause.__cause__ or cause.__context__
    return Fault("UNREACHABLE", f"{_place(url)} cannot be reached", hint="check that it runs, and `base_url`")


def _unreadable(url: str, why: str) -> Fault:
    return Fault("NO_LIST", f"GET {_place(url)}: {why}", hint=_NAME_THEM, kind=FaultClass.PERMANENT)


def _where(spec: ProviderSpec) -> str:
    return _place(address(spec))


def _place(url: str) -> str:
    """Scheme, host and port: a query may hold what is not for logs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{_authority(url)}"


def _authority(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, _PORTS.get(parts.scheme)) else f"{host}:{parts.port}"


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)
