# SPDX-License-Identifier: Apache-2.0
"""IPv6 of networks on the real kernel: who reaches whom, who does not, and who may say what about whom."""

import secrets
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.kernel import packet
from insula.kernel.announce import announce
from insula.kernel.netlink import Route, namespace_entered, pack_address, pack_mac
from insula.model.errors import InvalidSpec, PortInUse, SubnetOverlaps, Unsupported
from insula.model.record import Attachment, NetworkRecord
from insula.model.spec import Ipv6, NetworkWish, PortMapping
from insula.network import firewall, ipv6
from insula.network.attach import Networks
from insula.network.hosts import hosts_entries
from insula.network.relay import Gone
from netns import MemoryStore, World, can_connect, connect, converses, listener, world
from waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.skipif(
    not firewall.can_filter_ipv6(), reason="no IPv6 on this host, or its nft is too old"
)

OUTSIDE, NEAR = "2001:db8::2", "2001:db8::1"
_BRIDGED_FILTER = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
_DISABLE = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")


class Host:
    """One host with its networks, in the namespace of the test."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.networks = Networks("alpha", MemoryStore())

    def start(self, network: NetworkRecord) -> tuple[str, Attachment, int]:
        """Start a stand-in for a container: its id, its place, its namespace."""
        container = secrets.token_hex(32)
        attachment = self.networks.lease(network, container)
        self.networks.activate(attachment, container_id=container)
        return container, attachment, self.world.join(attachment)

    def outside(self) -> int:
        beyond = self.world.outside(host_address="192.0.2.1", address="192.0.2.2")
        with Route() as route:
            route.add_address("wan0", NEAR, 64)
        with Route.in_namespace(beyond) as route:
            route.add_address("eth0", OUTSIDE, 64)
        return beyond


@pytest.fixture(params=["0", "1"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with world() as made:
        if _BRIDGED_FILTER.exists():
            _BRIDGED_FILTER.write_text(str(request.param), encoding="ascii")
        yield Host(made)


def test_two_hosts_give_the_same_network_the_same_prefix(host: Host) -> None:
    network = host.networks.default_for("anna")
    with world() as made:
        other = Host(made).networks.default_for("anna")
    assert network.subnet6 == other.subnet6
    assert network.subnet6.startswith("fd") and network.subnet6.endswith("/64")
    assert host.networks.default_for("bert").subnet6 != network.subnet6


def test_containers_of_a_network_reach_each_other_and_their_gateway(host: Host) -> None:
    network = host.networks.default_for("anna")
    _, _, one = host.start(network)
    _, place, other = host.start(network)
    with listener(other, port=80, address="::") as server:
        converses(one, place.address6, port=80, server=server)
    assert f"{place.address6}\tweb\n" in hosts_entries(place, hostname="web")


@pytest.mark.parametrize("tenant", ["anna", "bert"])
def test_containers_of_different_networks_do_not(host: Host, tenant: str) -> None:
    beyond = host.outside()
    _, _, one = host.start(host.networks.default_for("anna"))
    _, place, other = host.start(host.networks.create(tenant, NetworkWish(name="second")))
    with Route.in_namespace(beyond) as route:
        route.add_route(f"{place.address6}/128", gateway=NEAR)
    with listener(other, port=80, address="::"):
        assert not can_connect(one, place.address6, port=80, timeout_s=0.5)
        assert not can_connect(beyond, place.address6, port=80, timeout_s=0.5)


def test_a_published_port_is_reached_from_everywhere(host: Host) -> None:
    beyond = host.outside()
    network = host.networks.default_for("anna")
    container, place, inside = host.start(network)
    _, _, sibling = host.start(network)
    _, _, stranger = host.start(host.networks.default_for("bert"))
    [mapping] = host.networks.publish(place, [PortMapping(container_port=80)], container_id=container)
    with listener(inside, port=80, address="::") as server:
        reach = {
            "outside": converses(beyond, NEAR, port=mapping.host_port, server=server),
            "sibling": converses(sibling, NEAR, port=mapping.host_port, server=server),
            "stranger": converses(stranger, NEAR, port=mapping.host_port, server=server),
            "host": converses(host.world.host, NEAR, port=mapping.host_port, server=server),
        }
        with pytest.raises(ConnectionRefusedError):  # at once, so that `localhost` goes on to 127.0.0.1
            connect(host.world.host, "::1", port=mapping.host_port)
    assert reach["outside"] == OUTSIDE
    host.networks.unpublish(container)
    assert not can_connect(beyond, NEAR, port=mapping.host_port, timeout_s=0.5)


def test_a_connection_to_one_that_has_moved_away_is_reset(host: Host) -> None:
    beyond = host.outside()
    container, place, inside = host.start(host.networks.default_for("anna"))
    ports = [PortMapping(host_port=8080, container_port=80)]
    host.networks.publish(place, ports, container_id=container)
    with listener(inside, port=80, address="::") as server, connect(beyond, NEAR, port=8080) as old:
        accepted, _ = server.accept()
        with accepted:
            host.networks.deactivate(container)
            with Route() as route:
                route.delete(place.interface)
            host.networks.relay(
                Gone(container_id=container, address=place.address, address6=place.address6, relays=())
            )
            old.settimeout(DEADLINE_S)
            old.sendall(b"still there?")
            with pytest.raises(ConnectionResetError):
                old.recv(1)


def test_a_port_at_one_ipv6_address_and_one_that_is_taken(host: Host) -> None:
    beyond = host.outside()
    container, place, inside = host.start(host.networks.default_for("anna"))
    with socket.create_server(("::", 8081), family=socket.AF_INET6), pytest.raises(PortInUse):
        host.networks.publish(place, [PortMapping(host_port=8081, container_port=80)], container_id=container)
    wish = PortMapping(host_address=NEAR, host_port=8080, container_port=80)
    host.networks.publish(place, [wish], container_id=container)
    with listener(inside, port=80, address="::") as server:
        converses(beyond, NEAR, port=8080, server=server)
    assert not can_connect(beyond, "192.0.2.1", port=8080, timeout_s=0.5)


def test_outside_is_reached_by_nat_but_not_from_an_internal_network(host: Host) -> None:
    beyond = host.outside()
    _, _, inside = host.start(host.networks.default_for("anna"))
    _, _, shut = host.start(host.networks.create("anna", NetworkWish(name="shut", internal=True)))
    with listener(beyond, port=80, address="::") as server:
        assert converses(inside, OUTSIDE, port=80, server=server) == NEAR
        assert not can_connect(shut, OUTSIDE, port=80, timeout_s=0.5)


def test_services_of_the_host_are_out_of_reach_except_dns(host: Host) -> None:
    _, place, inside = host.start(host.networks.default_for("anna"))
    with listener(host.world.host, port=22, address="::"), listener(host.world.host, port=53, address="::"):
        assert not can_connect(inside, place.gateway6, port=22, timeout_s=0.5)
        wait_until(lambda: can_connect(inside, place.gateway6, port=53, timeout_s=0.5), what="DNS")
        with Route.in_namespace(inside) as route, Route() as near:
            index = route.index_of("eth0")
            bridge = ipv6.link_local_of(next(each.mac for each in near.links() if each.name == place.bridge))
        with namespace_entered(inside):
            client = socket.socket(socket.AF_INET6)
        with client:
            client.settimeout(0.5)
            with pytest.raises(OSError):
                client.connect((str(bridge), 22, 0, index))


def send_raw(namespace: int, frame: bytes) -> None:
    with namespace_entered(namespace), packet.sender("eth0") as sender:
        sender.send(frame)


def icmp(kind: int, body: bytes, *, mac: str, source: str, target: str = "ff02::1") -> bytes:
    """Return a frame with an ICMPv6 message of that kind."""
    near, far = pack_address(source)[1], pack_address(target)[1]
    length = 4 + len(body)
    words = near + far + struct.pack("!II", length, 58) + struct.pack("!BBH", kind, 0, 0) + body
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = struct.pack("!BBH", kind, 0, total ^ 0xFFFF) + body
    header = struct.pack("!IHBB", 6 << 28, length, 58, 255) + near + far
    return bytes.fromhex("333300000001") + pack_mac(mac) + struct.pack("!H", 0x86DD) + header + message


def test_a_spoofed_source_a_false_place_and_a_false_router_are_dropped(host: Host) -> None:
    network = host.networks.default_for("anna")
    _, victim, _ = host.start(network)
    _, place, liar = host.start(network)
    _, _, watcher = host.start(network)
    with Route.in_namespace(liar) as route:
        route.add_address("eth0", victim.address6, 64)
    with listener(watcher, port=80, address="::"):
        assert not can_connect(liar, _of(host, watcher), port=80, timeout_s=0.5, source=victim.address6)
        assert can_connect(liar, _of(host, watcher), port=80, timeout_s=DEADLINE_S, source=place.address6)
    with namespace_entered(watcher), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as seen:
        seen.bind(("eth0", 0x86DD))
        seen.settimeout(DEADLINE_S)
        link = str(ipv6.link_local_of(place.mac))
        prefix = struct.pack("!BBHII", 64, 0, 1800, 0, 0)
        send_raw(liar, icmp(134, prefix, mac=place.mac, source=link))
        send_raw(liar, icmp(137, bytes(36), mac=place.mac, source=link))
        with namespace_entered(liar):
            announce("eth0", mac=place.mac, address=victim.address6)
            announce("eth0", mac=victim.mac, address=victim.address6)
        false_place = struct.pack("!I", 0x20000000) + pack_address(victim.address6)[1]
        send_raw(liar, icmp(136, false_place, mac=place.mac, source=place.address6))
        with namespace_entered(liar):
            announce("eth0", mac=place.mac, address=place.address6)
        kinds = []
        while True:
            frame = seen.recv(2048)
            if frame[6:12] == pack_mac(place.mac) and frame[20] == 58:
                kinds.append((frame[54], frame[62:78]))
                if kinds[-1] == (136, pack_address(place.address6)[1]):
                    break
    assert all(kind not in (134, 137) for kind, _ in kinds)
    assert all(where != pack_address(victim.address6)[1] for kind, where in kinds if kind == 136)


def _of(host: Host, namespace: int) -> str:
    with Route.in_namespace(namespace) as route:
        found = [each.address for each in route.addresses("eth0") if each.address.startswith("fd")]
    return found[0]


def test_the_host_still_hears_its_own_router(host: Host) -> None:
    host.outside()
    hears = Path("/proc/sys/net/ipv6/conf/wan0/accept_ra")
    assert hears.read_text().strip() == "1"
    host.networks.default_for("anna")
    assert hears.read_text().strip() == "2"
    assert Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text().strip() == "1"


def test_wishes_are_checked(host: Host) -> None:
    create = host.networks.create
    made = create("anna", NetworkWish(name="a", subnet6="2001:db8:1::/64", gateway6="2001:db8:1::5"))
    assert (made.subnet6, made.gateway6) == ("2001:db8:1::/64", "2001:db8:1::5")
    assert create("anna", NetworkWish(name="b", ipv6=Ipv6.OFF)).subnet6 == ""
    with pytest.raises(SubnetOverlaps):
        create("anna", NetworkWish(name="c", subnet6="2001:db8:1::/80"))
    for subnet6 in ("fe80::/64", "ff00::/64", "fd00::/120", "fd00::1/64", "::/64", "10.0.0.0/24", "words"):
        with pytest.raises(InvalidSpec):
            create("anna", NetworkWish(name="c", subnet6=subnet6))
    wish = NetworkWish(name="c", subnet="10.9.0.0/24", subnet6="fd00::/64", gateway6="fd00::a09:3")
    with pytest.raises(InvalidSpec, match=r"a container of 10\.9\.0\.0/24 would have it"):
        create("anna", wish)


def test_a_host_without_ipv6_goes_on_without(host: Host) -> None:
    before = host.networks.default_for("anna")
    _DISABLE.write_text("1", encoding="ascii")
    there = Host(host.world)
    there.networks._store.save_network(before)  # noqa: SLF001
    _, place, inside = there.start(before)
    _, other_place, _ = there.start(there.networks.create("anna", NetworkWish(name="n")))
    assert place.address6 == other_place.address6 == ""
    with listener(inside, port=80) as server:
        converses(there.world.host, place.address, port=80, server=server)
    with pytest.raises(Unsupported, match="this host has none"):
        there.networks.create("anna", NetworkWish(name="six", ipv6=Ipv6.ON))
