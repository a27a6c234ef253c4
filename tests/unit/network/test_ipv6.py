# SPDX-License-Identifier: Apache-2.0
"""Prefixes and addresses of networks."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from insula.network import ipv6

SUBNET = IPv4Network("10.64.0.0/24")


def test_a_prefix_is_unique_local_and_the_same_each_time() -> None:
    found = ipv6.choose_subnet("anna", "default", subnet=SUBNET, used=())
    assert found.subnet_of(IPv6Network("fd00::/8")) and found.prefixlen == 64
    assert found == ipv6.choose_subnet("anna", "default", subnet=SUBNET, used=())
    assert found != ipv6.choose_subnet("bert", "default", subnet=SUBNET, used=())
    assert found != ipv6.choose_subnet("anna", "default", subnet=SUBNET, used=[found])


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_two_containers_never_have_one_address(one: int, other: int) -> None:
    subnet = IPv6Network("fd00:1::/64")
    first, second = (ipv6.address_of(subnet, IPv4Address(each)) for each in (one, other))
    assert (first == second) == (one == other)
    assert first in subnet


def test_a_link_local_address_is_the_kernel_s() -> None:
    assert ipv6.link_local_of("02:00:5e:10:00:01") == IPv6Address("fe80::5eff:fe10:1")
