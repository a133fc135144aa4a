"""Guards: may this request be looked at, and by whom was it sent?

PURE. Everything here works on the raw request target and the raw header values: nothing is percent-decoded,
so that no second spelling of a path or host can pass a check that the first one failed.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from reconciler.gateway.errors import Refusal
from reconciler.gateway.routes import ApiKey, Routes

_AUTHORITY = re.compile(
    r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.?)(?::([0-9]{1,5}))?", re.ASCII
)
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.ASCII | re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Authority:
    """A host, lower case and without trailing dot, and the port where one was written."""

    host: str
    port: int | None


@dataclass(frozen=True, slots=True, eq=False)  # eq=False: hashed by identity, which is what the cache below wants
class Trust:
    """The hosts that requests may be addressed to. An entry without a port stands for every port.

    `origins` are those of other web pages that may call, as browsers write them.
    """

    entries: frozenset[Authority]
    origins: frozenset[str] = frozenset()

    def covers(self, authority: Authority, default_port: int = 80) -> bool:
        if Authority(authority.host, None) in self.entries:
            return True
        return Authority(authority.host, authority.port or default_port) in self.entries


def parse_authority(text: str) -> Authority | None:
    """`host[:port]` as Host and Origin write it; None when it is anything else (userinfo, path, blanks, empty)."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    literal, name, port_text = found.groups()
    port = int(port_text) if port_text else None
    if port is not None and port > 65535:
        return None
    if literal is None:
        return Authority(name.lower(), port)
    try:
        return Authority(str(ipaddress.IPv6Address(literal)), port)
    except ValueError:
        return None


def trust(routes: Routes) -> Trust:
    """What `routes` trusts, and the address it listens on where that is loopback; raises ValueError."""
    entries: set[Authority] = set()
    for entry in routes.trusted_hosts:
        parsed = parse_authority(entry) or parse_authority(f"[{entry}]")
        if parsed is None:
            raise ValueError(f"routes.json.trusted_hosts: {entry!r} is not a host")
        entries.add(parsed)
    if is_loopback(routes.host):
        own = parse_authority(routes.host) or parse_authority(f"[{routes.host}]")
        if own is not None:
            entries.add(own)
    origins = {text: parse_origin(text) for text in routes.origins}
    for text, origin in origins.items():
        if origin is None:
            raise ValueError(f"routes.json.cors.origins: {text!r} is not http(s)://host[:port]")
    return Trust(frozenset(entries), frozenset(origin for origin in origins.values() if origin is not None))


def parse_origin(text: str) -> str | None:
    """`http(s)://host[:port]` as browsers write it, or None. A host that ends in a dot is another host."""
    found = _ORIGIN.fullmatch(text)
    scheme = found[1].lower() if found else ""
    if found is None or scheme not in _DEFAULT_PORTS or found[2].partition(":")[0].endswith("."):
        return None
    authority = parse_authority(found[2])
    if authority is None:
        return None
    host = f"[{authority.host}]" if ":" in authority.host else authority.host
    usual = authority.port in (None, _DEFAULT_PORTS[scheme])
    return f"{scheme}://{host}" if usual else f"{scheme}://{host}:{authority.port}"


def is_loopback(host: str) -> bool:
    """True for localhost and loopback addresses."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_target(raw: str) -> str:
    """The path of a request target, still encoded; raises `Refusal` 400 for absolute, authority and `*` form."""
    if not raw.startswith("/"):
        raise Refusal(400, "The request target must be a path", code="bad_request_target", close=True)
    return raw.partition("?")[0]


def check_framing(version: tuple[int, int], transfer_encodings: Sequence[str]) -> None:
    """HTTP/1.0 or 1.1 with a body that nobody could cut otherwise; raises `Refusal` 505 or 400.

    The parser takes any version that is written like one, and any coding before the last `chunked`.
    """
    if version not in ((1, 0), (1, 1)):
        raise Refusal(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here", code="bad_version", close=True)
    if transfer_encodings and (version == (1, 0) or [v.strip().lower() for v in transfer_encodings] != ["chunked"]):
        raise Refusal(400, "Only Transfer-Encoding: chunked of HTTP/1.1 is read", code="bad_http", close=True)


def check_host(values: Sequence[str], trusted: Trust) -> None:
    """Exactly one well-formed, trusted Host; raises `Refusal` 400 or 403."""
    if len(values) != 1:
        raise Refusal(400, "Exactly one Host header is needed", code="bad_host", close=True)
    known = _is_trusted_host(values[0], trusted)
    if known is None:
        raise Refusal(400, "The Host header is malformed", code="bad_host", close=True)
    if not known:
        raise Refusal(
            403, "This Host is not served here; add it to trusted_hosts", kind="permission_error", code="foreign_host"
        )


@lru_cache(maxsize=256)
def _is_trusted_host(text: str, trusted: Trust) -> bool | None:
    authority = parse_authority(text)
    return None if authority is None else trusted.covers(authority)


def check_origin(values: Sequence[str], trusted: Trust) -> str | None:
    """Pass no Origin, one that is listed, or one whose host is trusted; raises `Refusal` 403 for a foreign web page.

    Returns the listed one, whose page may also read what is answered.
    """
    if not values:
        return None
    if len(values) == 1 and (origin := parse_origin(values[0])) in trusted.origins:
        return origin
    found = _ORIGIN.fullmatch(values[0])
    if len(values) == 1 and found is not None:
        authority = parse_authority(found[2])
        if authority is not None and trusted.covers(authority, _DEFAULT_PORTS.get(found[1].lower(), 80)):
            return None
    raise Refusal(403, "Web pages of this Origin may not call this API", kind="permission_error", code="foreign_origin")


def check_key(keys: Sequence[ApiKey], authorization: Sequence[str], x_api_key: Sequence[str]) -> ApiKey | None:
    """The client's key, from `Authorization: Bearer` or `x-api-key`; None where none is needed. Raises `Refusal` 401.

    All given keys are compared with all known ones, in constant time and without an early exit, so the time
    taken says nothing about which of them is right. A repeated header is refused: two readers may pick
    different ones.
    """
    if not keys:
        return None
    given = [*_bearers(authorization), *x_api_key]
    known: ApiKey | None = None
    for secret in given:
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        for key in keys:
            if hmac.compare_digest(digest, key.digest):
                known = key
    if known is not None and len(authorization) <= 1 and len(x_api_key) <= 1:
        return known
    missing = not authorization and not x_api_key
    message = "An API key is needed: send Authorization: Bearer KEY" if missing else "This API key is not known here"
    headers = {"WWW-Authenticate": "Bearer"}
    raise Refusal(401, message, kind="authentication_error", code="invalid_api_key", headers=headers)


def _bearers(values: Iterable[str]) -> Iterable[str]:
    for value in values:
        scheme, _, secret = value.partition(" ")
        if scheme.lower() == "bearer":
            yield secret.strip()
