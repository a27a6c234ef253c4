# SPDX-License-Identifier: Apache-2.0
"""The ruleset as text.  What it does is shown on the real kernel, in tests/kernel/test_networks.py."""

import re

import pytest
from msgspec.structs import replace

from insula.model.record import Attachment, NetworkRecord
from insula.model.spec import PortMapping
from insula.network import bridge, firewall

NETWORK = NetworkRecord(
    id="n", name="a", tenant="t", subnet="10.64.0.0/24", gateway="10.64.0.1", bridge="in-01234567"
)
PLACE = Attachment(
    network="n",
    network_name="a",
    address="10.64.0.2",
    prefix_length=24,
    gateway="10.64.0.1",
    mac="02:00:00:00:00:01",
    bridge="in-01234567",
    interface="iv0123456789abc",
)


def _render(*networks: NetworkRecord, ports: tuple[PortMapping, ...] = ()) -> str:
    published = (firewall.Publication(attachment=PLACE, ports=ports),) if ports else ()
    state = firewall.State(host_name="alpha", networks=networks, attachments=(PLACE,), publications=published)
    return firewall.render(state)


def test_the_same_state_gives_the_same_text() -> None:
    assert _render(NETWORK) == _render(NETWORK)
    assert "%" not in _render(NETWORK)


def test_a_network_stands_in_its_sets() -> None:
    text = _render(NETWORK)
    assert 'set bridges { type ifname; elements = { "in-01234567" } }' in text
    assert '"in-01234567" . 10.64.0.1' in text
    assert '"iv0123456789abc" . 02:00:00:00:00:01 . 10.64.0.2' in text
    assert "set internal { type ifname;  }" in text


SIX = replace(NETWORK, subnet6="fd00:1::/64", gateway6="fd00:1::1")
PLACE_SIX = replace(PLACE, address6="fd00:1::a40:2", prefix_length6=64, gateway6="fd00:1::1")


def test_ipv6_stands_in_sets_of_its_own() -> None:
    ports = (PortMapping(host_port=80, container_port=8080),)
    published = (firewall.Publication(attachment=PLACE_SIX, ports=ports),)
    state = firewall.State(
        host_name="alpha", networks=(SIX,), attachments=(PLACE_SIX,), publications=published, has_ipv6=True
    )
    text = firewall.render(state)
    assert '"in-01234567" . fd00:1::1' in text
    assert "tcp . 80 : fd00:1::a40:2 . 8080" in text
    assert '"iv0123456789abc" . 02:00:00:00:00:01 . fe80::ff:fe00:1' in text
    assert '"iv0123456789abc" . 0xfd00000100000000000000000a400002' in text
    assert "set locals6 { type ipv6_addr; flags interval; elements = { fd00:1::/64 } }" in text


def test_a_public_prefix_goes_out_as_it_is() -> None:
    network = replace(SIX, subnet6="2001:db8::/64", gateway6="2001:db8::1")
    text = firewall.render(firewall.State(host_name="alpha", networks=(network,), has_ipv6=True))
    assert "set locals6 { type ipv6_addr; flags interval;  }" in text


def test_without_ipv6_no_rule_speaks_of_it() -> None:
    text = firewall.render(firewall.State(host_name="alpha", networks=(SIX,)))
    assert not [line for line in text.splitlines() if "6|" in line or "ip6" in line or "ipv6" in line]
    assert len(firewall.attachment_elements(PLACE, host_name="alpha")) == 1
    assert len(firewall.attachment_elements(PLACE_SIX, host_name="alpha")) == 5


@pytest.mark.parametrize(
    ("address", "maps"),
    [
        ("0.0.0.0", ["ports", "ports6"]),
        ("::", ["ports6"]),
        ("192.0.2.1", ["ports_at"]),
        ("2001:db8::1", ["ports6_at"]),
    ],
)
def test_a_host_address_chooses_the_maps(address: str, maps: list[str]) -> None:
    ports = (PortMapping(host_address=address, host_port=80, container_port=80),)
    published = firewall.Publication(attachment=PLACE_SIX, ports=ports)
    assert [each.set_name for each in firewall.port_elements(published, host_name="alpha")] == maps


def test_an_uplink_network_is_neither_routed_nor_translated() -> None:
    text = _render(NetworkRecord(**{**_fields(NETWORK), "uplink": "eth1"}))
    assert "in-01234567" not in text
    assert "10.64.0.0/24" not in text


def test_ranges_become_one_element_each() -> None:
    text = _render(NETWORK, ports=(PortMapping(host_port=8000, container_port=80, count=3, protocol="udp"),))
    assert re.findall(r"udp \. (\d+) : 10\.64\.0\.2 \. (\d+)", text) == [
        ("8000", "80"),
        ("8001", "81"),
        ("8002", "82"),
    ]


def test_elements_say_what_the_text_says() -> None:
    mapping = PortMapping(host_address="127.0.0.1", host_port=8088, container_port=80)
    [element] = firewall.port_elements(
        firewall.Publication(attachment=PLACE, ports=(mapping,)), host_name="alpha"
    )
    assert element.set_name == "ports_at"
    assert element.key == bytes([127, 0, 0, 1, 6, 0, 0, 0]) + (8088).to_bytes(2) + bytes(2)
    assert element.data == bytes([10, 64, 0, 2]) + (80).to_bytes(2) + bytes(2)
    assert "127.0.0.1 . tcp . 8088 : 10.64.0.2 . 80" in _render(NETWORK, ports=(mapping,))


@pytest.mark.parametrize("field", ["bridge", "subnet", "gateway"])
def test_no_word_from_a_record_is_formatted_in_unparsed(field: str) -> None:
    evil = NetworkRecord(**{**_fields(NETWORK), field: 'x" } ; flush ruleset #'})
    with pytest.raises(ValueError):
        _render(evil)


def test_hosts_do_not_share_names() -> None:
    assert firewall.table_name("alpha") != firewall.table_name("beta")
    name = bridge.interface_name("alpha", "f" * 64)
    assert name.startswith(bridge.interface_prefix("alpha"))
    assert len(name) == 15


def _fields(network: NetworkRecord) -> dict[str, str]:
    return {name: getattr(network, name) for name in ("id", "name", "tenant", "subnet", "gateway", "bridge")}
