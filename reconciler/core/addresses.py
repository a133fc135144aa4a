"""Which addresses may be asked when a name leads there: the guard against being sent to where nobody meant to go.

A provider's name comes from a manifest, but what it resolves to comes from whoever answers for that name. So the
address itself is judged, the one that is really connected to. PURE: it resolves nothing.

Ranges are those of RFC 6890 and the registries that follow it; addresses of metadata services are those that clouds
document.
"""

from __future__ import annotations

import ipaddress

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(*texts: str) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# Where a cloud tells a machine its own credentials.
_METADATA = _networks(
    "169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32", "168.63.129.16/32", "100.100.100.200/32",
    "192.0.0.192/32", "fd00:ec2::254/128", "fd00:ec2::23/128", "fd20:ce::254/128",
)  # fmt: skip
_LINK_LOCAL = _networks("169.254.0.0/16", "fe80::/10")
_PRIVATE = _networks(
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10", "64:ff9b:1::/48"
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


def forbidden(address: str, private: bool) -> str:
    """Why an IP address (text, perhaps with a %zone) may not be asked; empty where it may.

    `private` allows this machine, private networks and link-local ones. Metadata services, multicast, unspecified and
    reserved addresses are never allowed, and no address that wraps one that is not (mapped, 6to4, NAT64, Teredo).
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"{address!r} is not an IP address"
    if why := _why(found, private):
        return f"{found} is {why}"
    for inner in _wrapped(found):
        if why := _why(inner, private):
            return f"{found} leads to {inner}, which is {why}"
    return ""


def near(host: str) -> bool:
    """Whether a host is written as an address of this machine or a private network, and so surely meant."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return bool(forbidden(name, private=False)) and not forbidden(name, private=True)


def _why(found: _Address, private: bool) -> str:
    if _within(found, _METADATA):
        return "where a cloud keeps this machine's credentials"
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return ""  # what it stands for is judged instead
    if found.is_unspecified:
        return "no address of anybody"
    if found.is_multicast:
        return "a multicast address"
    if found.is_loopback:
        return "" if private else "this machine"
    if _within(found, _LINK_LOCAL):
        return "" if private else "a link-local address"
    if _within(found, _PRIVATE):
        return "" if private else "an address of a private network"
    if isinstance(found, ipaddress.IPv6Address) and any(True for _ in _wrapped(found)):
        return ""
    return "" if found.is_global else "not a public address"


def _wrapped(found: _Address) -> list[ipaddress.IPv4Address]:
    """The addresses that an IPv6 address leads on to."""
    if not isinstance(found, ipaddress.IPv6Address):
        return []
    if found.ipv4_mapped is not None:
        return [found.ipv4_mapped]
    if found.sixtofour is not None:
        return [found.sixtofour]
    if found.teredo is not None:
        return list(found.teredo)
    last = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    if found in _NAT64 or (found in _COMPATIBLE and int(found) > 0xFFFF):
        return [last]
    return []


def _within(found: _Address, networks: tuple[_Network, ...]) -> bool:
    return any(found.version == network.version and found in network for network in networks)
