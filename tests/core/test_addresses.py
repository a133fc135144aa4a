"""Which addresses may be asked, also where one is wrapped in another."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.addresses import forbidden, near

PUBLIC = ["8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.1", "192.167.1.1", "100.63.255.255", "100.128.0.1",
          "2606:4700:4700::1111", "::ffff:8.8.8.8", "2002:808:808::1", "64:ff9b::808:808", "::8.8.8.8"]  # fmt: skip
OWN = ["127.0.0.1", "127.8.9.1", "::1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
       "169.254.1.1", "fe80::1", "fe80::1%eth0", "fd00::1", "fc00::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:10.1.2.3",
       "2002:7f00:1::", "2002:c0a8:101::5", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::a00:1",
       "::127.0.0.1", "::ffff:169.254.1.1"]  # fmt: skip
NEVER = ["169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254",
         "::ffff:169.254.169.254", "2002:a9fe:a9fe::", "64:ff9b::a9fe:a9fe", "0.0.0.0", "::", "224.0.0.1", "ff02::1",
         "255.255.255.255", "240.0.0.1", "::ffff:0.0.0.0", "::ffff:224.0.0.1", "", "localhost", "127.1", "0x7f000001",
         "2001:0:a9fe:a9fe:0:0:0:0"]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_asked(address: str) -> None:
    assert forbidden(address, private=False) == forbidden(address, private=True) == ""


@pytest.mark.parametrize("address", OWN)
def test_this_machine_and_private_networks_only_where_they_are_meant(address: str) -> None:
    assert forbidden(address, private=False)
    assert forbidden(address, private=True) == ""


@pytest.mark.parametrize("address", NEVER)
def test_others_never(address: str) -> None:
    assert forbidden(address, private=True)
    assert forbidden(address, private=False)


def test_a_reason_names_the_address_and_what_it_leads_to() -> None:
    assert forbidden("10.0.0.1", private=False) == "10.0.0.1 is an address of a private network"
    told = forbidden("2002:7f00:1::", private=False)
    assert told == "2002:7f00:1:: leads to 127.0.0.1, which is this machine"
    assert forbidden("169.254.169.254", private=True) == (
        "169.254.169.254 is where a cloud keeps this machine's credentials"
    )


def _teredo(server: int, client: int) -> str:
    return str(ipaddress.IPv6Address((0x20010000 << 96) | (server << 64) | (client ^ 0xFFFFFFFF)))


WRAPS = [
    lambda v: str(ipaddress.IPv6Address((0xFFFF << 32) | v)),
    lambda v: str(ipaddress.IPv6Address((0x2002 << 112) | (v << 80))),
    lambda v: str(ipaddress.IPv6Address((0x0064FF9B << 96) | v)),
    lambda v: _teredo(v, 0x08080808),
    lambda v: _teredo(0x08080808, v),
]


@given(st.ip_addresses(v=4), st.booleans())
@settings(max_examples=300, derandomize=True, deadline=None, database=None)
def test_no_wrapping_makes_a_forbidden_address_allowed(address: ipaddress.IPv4Address, private: bool) -> None:
    if not forbidden(str(address), private):
        return
    for wrap in WRAPS:
        assert forbidden(wrap(int(address)), private), wrap(int(address))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "[::1]", "10.0.0.7", "fd00::7"]
)
def test_a_host_that_is_written_as_an_own_address_is_near(host: str) -> None:
    assert near(host)


@pytest.mark.parametrize("host", ["example.com", "8.8.8.8", "169.254.169.254", "0.0.0.0", "nas.local", "224.0.0.1", ""])
def test_a_name_or_a_public_address_is_not(host: str) -> None:
    assert not near(host)
