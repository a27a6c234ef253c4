# SPDX-License-Identifier: Apache-2.0
"""The address pool: what is handed out is free, fits, and rests after use."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import AddressPoolExhausted, Conflict, InvalidSpec, SubnetOverlaps
from insula.network import pool

POOL = pool.DEFAULT_POOL
PREFIXES = st.integers(pool.SHORTEST_PREFIX, pool.LONGEST_PREFIX)
SUBNETS = st.builds(
    lambda value, prefix: IPv4Network((value, prefix), strict=False),
    st.integers(0x0A000000, 0x0AFFFFFF),
    PREFIXES,
)
SMALL = st.builds(
    lambda value, prefix: IPv4Network((value, prefix), strict=False),
    st.integers(0x0A000000, 0x0AFFFFFF),
    st.integers(26, 30),
)


@given(st.lists(SUBNETS, max_size=12), st.text())
def test_a_chosen_subnet_overlaps_nothing(used: list[IPv4Network], seed: str) -> None:
    try:
        chosen = pool.choose_subnet(POOL, used=used, seed=seed)
    except AddressPoolExhausted:
        free = [
            each for each in POOL.subnets(new_prefix=24) if not any(each.overlaps(other) for other in used)
        ]
        assert free == []
        return
    assert chosen.subnet_of(POOL)
    assert chosen.prefixlen == 24
    assert not any(chosen.overlaps(other) for other in used)


def test_subnets_run_out_with_a_clear_error() -> None:
    small = IPv4Network("10.1.0.0/23")
    used = [pool.choose_subnet(small, used=[], seed="a")]
    used.append(pool.choose_subnet(small, used=used, seed="a"))
    with pytest.raises(AddressPoolExhausted, match=r"10\.1\.0\.0/23"):
        pool.choose_subnet(small, used=used, seed="a")


def test_chosen_subnet_tells_nothing_of_other_networks() -> None:
    alone = pool.choose_subnet(POOL, used=[], seed="anna\0web")
    others = [each for each in POOL.subnets(new_prefix=24) if each != alone][:2000]
    assert pool.choose_subnet(POOL, used=others, seed="anna\0web") == alone
    assert pool.choose_subnet(POOL, used=[], seed="bert\0web") != alone


@given(SMALL, st.data())
def test_all_addresses_are_handed_out_once_then_none(subnet: IPv4Network, data: st.DataObject) -> None:
    gateway = data.draw(st.sampled_from(list(subnet.hosts())))
    last = data.draw(st.none() | st.sampled_from(list(subnet)))
    taken: list[IPv4Address] = []
    for _ in range(subnet.num_addresses - 3):
        last = pool.choose_address(subnet, gateway=gateway, taken=taken, last=last)
        assert last not in taken
        assert pool.check_address(str(last), subnet=subnet, gateway=gateway, taken=taken) == last
        taken.append(last)
    with pytest.raises(AddressPoolExhausted):
        pool.choose_address(subnet, gateway=gateway, taken=taken, last=last)


@given(st.integers(2, 253))
def test_a_freed_address_is_not_the_next_one(number: int) -> None:
    subnet = IPv4Network("10.64.0.0/24")
    freed = subnet.network_address + number
    chosen = pool.choose_address(subnet, gateway=subnet.network_address + 1, taken=[], last=freed)
    assert chosen != freed


@given(st.text(max_size=40))
def test_any_words_are_a_subnet_or_refused(words: str) -> None:
    try:
        subnet = pool.parse_subnet(words)
    except InvalidSpec:
        return
    assert pool.choose_gateway(subnet) in subnet


@given(st.text(max_size=40))
def test_any_words_are_an_address_or_refused(words: str) -> None:
    subnet = IPv4Network("10.64.0.0/24")
    try:
        assert pool.parse_address(words, subnet=subnet) in subnet
    except InvalidSpec as error:
        assert words in error.message


@pytest.mark.parametrize(
    "words", ["10.0.0.1/24", "127.0.0.0/8", "224.0.0.0/24", "0.0.0.0/8", "10.0.0.0/31", "::/64"]
)
def test_subnets_that_are_not_for_hosts(words: str) -> None:
    with pytest.raises(InvalidSpec):
        pool.parse_subnet(words)


@pytest.mark.parametrize("words", ["10.64.0.0", "10.64.0.255", "10.64.0.1", "10.65.0.2"])
def test_wished_addresses_that_cannot_be(words: str) -> None:
    subnet = IPv4Network("10.64.0.0/24")
    with pytest.raises(InvalidSpec):
        pool.check_address(words, subnet=subnet, gateway=IPv4Address("10.64.0.1"), taken=[])


def test_conflicts_are_named() -> None:
    subnet = IPv4Network("10.64.0.0/24")
    taken = [IPv4Address("10.64.0.9")]
    with pytest.raises(Conflict, match=r"10\.64\.0\.9"):
        pool.check_address("10.64.0.9", subnet=subnet, gateway=IPv4Address("10.64.0.1"), taken=taken)
    with pytest.raises(SubnetOverlaps, match=r"10\.64\.0\.0/24"):
        pool.check_subnet(subnet, used=[IPv4Network("10.64.0.0/16")])


@given(SMALL, st.text(min_size=1, max_size=64))
def test_hardware_addresses_are_local_unicast_and_stable(subnet: IPv4Network, owner: str) -> None:
    macs = [pool.mac_of(address, owner=owner) for address in subnet.hosts()]
    assert len(set(macs)) == len(macs)
    assert macs == [pool.mac_of(address, owner=owner) for address in subnet.hosts()]
    for mac in [*macs, pool.mac_of_bridge(owner)]:
        assert int(mac[:2], 16) & 0b11 == 0b10
        assert len(mac) == 17


@given(SMALL, st.text(min_size=1, max_size=20))
def test_hosts_begin_within_the_subnet(subnet: IPv4Network, host: str) -> None:
    assert pool.first_rest(subnet, host_name=host) in list(subnet.hosts())
