# SPDX-License-Identifier: Apache-2.0
"""rtnetlink, announcements on the real kernel, in throwaway namespaces."""

import errno
import socket
from collections.abc import Iterator

import pytest

from insula.kernel import nft
from insula.kernel.announce import announce
from insula.kernel.netlink import Route, namespace_entered
from insula.model.record import Attachment
from netns import World, connect, listener, world
from waiting import DEADLINE_S, wait_until

BRIDGE = "in-01234567"
MACS = ("02:00:00:00:00:02", "02:00:00:00:00:03")


@pytest.fixture
def two() -> Iterator[tuple[World, int, int]]:
    """Two namespaces on a bridge: 10.9.0.2 and 10.9.0.3."""
    with world() as made:
        with Route() as route:
            route.create_bridge(BRIDGE, mac="02:00:00:00:00:01")
        inside = [
            made.join(
                Attachment(
                    network="n",
                    network_name="n",
                    address=f"10.9.0.{number}",
                    prefix_length=24,
                    gateway="",
                    mac=mac,
                    bridge=BRIDGE,
                    interface=f"iv{number:011x}",
                )
            )
            for number, mac in enumerate(MACS, start=2)
        ]
        yield made, inside[0], inside[1]


def test_a_pair_is_made_in_one_message(two: tuple[World, int, int]) -> None:
    _, one, _ = two
    with Route() as route:
        links = {link.name: link for link in route.links()}
        port = links["iv00000000002"]
        assert (port.up, port.master, port.kind) == (True, links[BRIDGE].ifindex, "veth")
    with Route.in_namespace(one) as route:
        [eth0] = [link for link in route.links() if link.name == "eth0"]
        assert (eth0.mac, eth0.up) == (MACS[0], True)
        assert "10.9.0.2" in [each.address for each in route.addresses("eth0")]


def test_refusals_name_request_and_interface(two: tuple[World, int, int]) -> None:
    with Route() as route:
        with pytest.raises(OSError, match="RTM_GETLINK `nope`: No such device"):
            route.index_of("nope")
        with pytest.raises(OSError, match="RTM_NEWLINK `iv00000000002`: File exists"):
            route.create_veth("iv00000000002", peer="other")
        with pytest.raises(OSError, match="Network is unreachable") as refused:
            route.add_default_route("10.77.0.1")
        assert refused.value.errno == errno.ENETUNREACH


def test_interfaces_are_changed(two: tuple[World, int, int]) -> None:
    _, one, _ = two
    with Route() as route:
        route.create_veth("a0", peer="a1", mtu=1400)
        route.set_down("a0")
        route.rename("a0", "b0")
        route.set_mac("b0", "02:00:00:00:00:aa")
        route.set_master("b0", BRIDGE)
        route.set_port("b0", isolated=True, hairpin=True)
        route.set_mtu("b0", 1300)
        route.move_to_namespace("a1", one)
        route.add_address(BRIDGE, "10.9.0.1", 24)
        route.add_address(BRIDGE, "fd00::1", 64)
        route.add_route("10.10.0.0/16", gateway="10.9.0.2")
        found = {link.name: link for link in route.links()}["b0"]
        assert (found.mac, found.up, found.master > 0) == ("02:00:00:00:00:aa", False, True)
        assert ("10.10.0.0/16", "10.9.0.2") in [(each.destination, each.gateway) for each in route.routes()]
        route.delete_address(BRIDGE, "10.9.0.1", 24)
        addresses = [each.address for each in route.addresses(BRIDGE)]
        assert "fd00::1" in addresses
        assert "10.9.0.1" not in addresses
        route.set_master("b0", None)
        route.delete("b0")
    with Route.in_namespace(one) as inside:
        assert "a1" not in [link.name for link in inside.links()]


def test_counters_grow(two: tuple[World, int, int]) -> None:
    _, one, other = two
    with Route() as route:
        before = route.counters("iv00000000002")
        with listener(other, port=80):
            connect(one, "10.9.0.3", port=80).close()
        after = route.counters("iv00000000002")
    assert after.rx_bytes > before.rx_bytes
    assert after.tx_packets > before.tx_packets


@pytest.mark.parametrize("address", ["10.9.0.2", "fd00::2"])
def test_an_announcement_moves_an_address(two: tuple[World, int, int], address: str) -> None:
    _, one, other = two
    if ":" in address:
        for number, inside in ((2, one), (3, other)):
            with Route.in_namespace(inside) as route:
                route.add_address("eth0", f"fd00::{number}", 64)
    target = "10.9.0.3" if "." in address else "fd00::3"
    family = socket.AF_INET if "." in address else socket.AF_INET6
    with namespace_entered(one), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((address, 0))
        with namespace_entered(other), socket.socket(family, socket.SOCK_DGRAM) as receiver:
            receiver.bind((target, 99))
            receiver.settimeout(DEADLINE_S)
            sender.sendto(b"x", (target, 99))
            _, origin = receiver.recvfrom(8)
            receiver.sendto(b"y", origin)
    with Route.in_namespace(other) as route:
        assert _mac_of(route, address) == MACS[0]
        with namespace_entered(one):
            announce("eth0", mac="02:00:00:00:00:77", address=address)
        wait_until(lambda: _mac_of(route, address) == "02:00:00:00:00:77", what="it is learned")


def _mac_of(route: Route, address: str) -> str:
    [found] = [each.mac for each in route.neighbours() if each.address == address]
    return found


def _datagrams(namespace: int) -> socket.socket:
    with namespace_entered(namespace):
        made = socket.socket(type=socket.SOCK_DGRAM)
    made.settimeout(DEADLINE_S)
    return made


def test_nft_refuses_as_a_whole_and_elements_come_and_go() -> None:
    with world():
        nft.apply("table inet insula_t {\n set s { type ipv4_addr; }\n}\n")
        element = nft.Element(nft.Family.INET, "insula_t", "s", bytes([10, 0, 0, 1]))
        nft.add_elements([element])
        nft.add_elements([element])
        assert "10.0.0.1" in nft.list_table(nft.Family.INET, "insula_t")
        with pytest.raises(nft.NftRefused, match="nft: "):
            nft.apply("add table inet insula_u\nadd rule inet insula_u nowhere accept\n")
        with pytest.raises(nft.NftRefused):
            nft.list_table(nft.Family.INET, "insula_u")
        other = element._replace(key=bytes([10, 0, 0, 2]))
        nft.delete_elements([other, element])
        assert "10.0.0.1" not in nft.list_table(nft.Family.INET, "insula_t")
        nft.delete_table(nft.Family.INET, "insula_t")
        nft.delete_table(nft.Family.INET, "insula_t")


def test_a_batch_of_thousands_of_elements() -> None:
    with world():
        nft.apply("table inet insula_t {\n set s { type ipv4_addr; }\n}\n")
        element = nft.Element(nft.Family.INET, "insula_t", "s", b"")
        elements = [element._replace(key=bytes([10, 0, number >> 8, number & 255])) for number in range(4096)]
        nft.add_elements(elements)
        assert "10.0.15.255" in nft.list_table(nft.Family.INET, "insula_t")
        nft.delete_elements(elements)
        assert "10.0." not in nft.list_table(nft.Family.INET, "insula_t")
