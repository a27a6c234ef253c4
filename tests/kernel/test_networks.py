# SPDX-License-Identifier: Apache-2.0
"""Networks of a host on the real kernel: who reaches whom, and who does not."""

import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from insula.kernel import nft
from insula.kernel.announce import announce
from insula.kernel.netlink import Route, namespace_entered
from insula.model.errors import Conflict, Denied, InUse, NetworkNotFound, PortInUse, SubnetOverlaps
from insula.model.record import Attachment, NetworkRecord
from insula.model.spec import NetworkWish, PortMapping
from insula.network import firewall
from insula.network.attach import Networks, Running
from netns import (
    MemoryStore,
    World,
    can_connect,
    connect,
    converses,
    listener,
    world,
)
from waiting import DEADLINE_S, wait_until


class Host:
    """One host with its networks, in the namespace of the test."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.store = MemoryStore()
        self.networks = Networks("alpha", self.store)

    def start(self, network: NetworkRecord) -> tuple[str, Attachment, int]:
        """Start a stand-in for a container: its id, its place, its namespace."""
        container = secrets.token_hex(32)
        attachment = self.networks.lease(network, container)
        self.networks.activate(attachment, container_id=container)
        return container, attachment, self.world.join(attachment)


#: Of the namespace: whether bridged frames pass the inet hooks (br_netfilter).  Rules must be right in both cases.
_BRIDGED_FILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


@pytest.fixture(params=["0", "1"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with world() as made:
        if _BRIDGED_FILTER.exists():
            _BRIDGED_FILTER.write_text(str(request.param), encoding="ascii")
        yield Host(made)


def test_containers_of_a_network_reach_each_other(host: Host) -> None:
    network = host.networks.default_for("anna")
    _, _, one = host.start(network)
    _, place, other = host.start(network)
    with listener(other, port=80) as server:
        converses(one, place.address, port=80, server=server)


@pytest.mark.parametrize("tenant", ["anna", "bert"])
def test_containers_of_different_networks_do_not(host: Host, tenant: str) -> None:
    _, _, one = host.start(host.networks.default_for("anna"))
    _, place, other = host.start(host.networks.create(tenant, NetworkWish(name="second")))
    with listener(other, port=80):
        assert not can_connect(one, place.address, port=80, timeout_s=0.5)
        assert not can_connect(
            host.world.outside(host_address="192.0.2.1", address="192.0.2.2"), place.address, port=80
        )


def test_a_published_port_is_reached_from_everywhere(host: Host) -> None:
    beyond = host.world.outside(host_address="192.0.2.1", address="192.0.2.2")
    network = host.networks.default_for("anna")
    container, place, inside = host.start(network)
    _, _, sibling = host.start(network)
    _, _, stranger = host.start(host.networks.default_for("bert"))
    [mapping] = host.networks.publish(
        place, [PortMapping(container_port=80)], container_id=container, name="web"
    )
    with listener(inside, port=80) as server:
        reach = {
            "outside": converses(beyond, "192.0.2.1", port=mapping.host_port, server=server),
            "host": converses(host.world.host, "192.0.2.1", port=mapping.host_port, server=server),
            "loopback": converses(host.world.host, "127.0.0.1", port=mapping.host_port, server=server),
            "itself": converses(inside, place.gateway, port=mapping.host_port, server=server),
            "sibling": converses(sibling, place.gateway, port=mapping.host_port, server=server),
            "stranger": converses(stranger, "192.0.2.1", port=mapping.host_port, server=server),
        }
        assert reach["outside"] == "192.0.2.2", "the visitor's own address is seen"
        host.networks.unpublish(container)
        assert not can_connect(beyond, "192.0.2.1", port=mapping.host_port, timeout_s=0.5)


def test_a_published_udp_range_at_one_address(host: Host) -> None:
    beyond = host.world.outside(host_address="192.0.2.1", address="192.0.2.2")
    container, place, inside = host.start(host.networks.default_for("anna"))
    wished = PortMapping(
        host_address="192.0.2.1", host_port=7000, container_port=700, count=3, protocol="udp"
    )
    host.networks.publish(place, [wished], container_id=container)
    with namespace_entered(inside), socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 702))
        server.settimeout(DEADLINE_S)
        with namespace_entered(beyond), socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(DEADLINE_S)
            client.connect(("192.0.2.1", 7002))
            client.send(b"ping")
            word, sender = server.recvfrom(16)
            server.sendto(b"pong", sender)
            assert (word, client.recv(16)) == (b"ping", b"pong")


def test_a_port_of_another_container_or_of_the_host_is_refused(host: Host) -> None:
    network = host.networks.default_for("anna")
    first, place, _ = host.start(network)
    second, other, _ = host.start(network)
    wish = [PortMapping(host_port=8080, container_port=80)]
    host.networks.publish(place, wish, container_id=first, name="web")
    with pytest.raises(PortInUse, match="container `web`"):
        host.networks.publish(other, wish, container_id=second)
    with listener(host.world.host, port=9090), pytest.raises(PortInUse, match="program of this host"):
        host.networks.publish(other, [PortMapping(host_port=9090, container_port=80)], container_id=second)


def test_a_port_is_handed_on_while_its_holder_leaves(host: Host) -> None:
    """The kernel lets go of a port 20 ms after its container has gone from the list: the next one waits for it."""
    network = host.networks.default_for("anna")
    holder, place, _ = host.start(network)
    other, other_place, _ = host.start(network)
    wish = [PortMapping(host_port=8080, container_port=80)]
    host.networks.publish(place, wish, container_id=holder)
    with ThreadPoolExecutor(1) as leaving:
        for _ in range(20):
            left = leaving.submit(host.networks.deactivate, holder)
            wait_until(lambda gone=holder: not host.networks.is_active(gone), what="it leaves")
            host.networks.publish(other_place, wish, container_id=other)
            left.result(DEADLINE_S)
            holder, place, other, other_place = other, other_place, holder, place
            host.networks.activate(other_place, container_id=other)


def test_a_port_error_names_the_holder_as_it_is_called_now(host: Host) -> None:
    network = host.networks.default_for("anna")
    first, place, _ = host.start(network)
    second, other, _ = host.start(network)
    wish = [PortMapping(host_port=8080, container_port=80)]
    host.networks.publish(place, wish, container_id=first, name="web")
    host.networks.rename(first, "shop")
    with pytest.raises(PortInUse, match="container `shop`"):
        host.networks.publish(other, wish, container_id=second)


def test_outside_is_reached_by_nat_but_not_from_an_internal_network(host: Host) -> None:
    beyond = host.world.outside(host_address="192.0.2.1", address="192.0.2.2")
    _, _, inside = host.start(host.networks.default_for("anna"))
    _, _, shut = host.start(host.networks.create("anna", NetworkWish(name="shut", internal=True)))
    with listener(beyond, port=80) as server:
        assert converses(inside, "192.0.2.2", port=80, server=server) == "192.0.2.1"
        assert not can_connect(shut, "192.0.2.2", port=80, timeout_s=0.5)


def test_services_of_the_host_are_out_of_reach_except_dns(host: Host) -> None:
    container, place, inside = host.start(host.networks.default_for("anna"))
    host.networks.publish(place, [PortMapping(container_port=80)], container_id=container)
    with listener(host.world.host, port=22), listener(host.world.host, port=53):
        assert not can_connect(inside, place.gateway, port=22, timeout_s=0.5)
        assert can_connect(inside, place.gateway, port=53, timeout_s=DEADLINE_S)
        with Route.in_namespace(inside) as route:
            route.delete_address("lo", "127.0.0.1", 8)
            route.add_route("127.0.0.0/8", gateway=place.gateway)
        with namespace_entered(inside):
            Path("/proc/sys/net/ipv4/conf/eth0/route_localnet").write_text("1", encoding="ascii")
        assert not can_connect(inside, "127.0.0.1", port=22, timeout_s=0.5, source=place.address)


def test_a_spoofed_source_is_dropped(host: Host) -> None:
    network = host.networks.default_for("anna")
    _, _, one = host.start(network)
    _, place, other = host.start(network)
    nobodys = str(IPv4Network(network.subnet).network_address + 200)
    with Route.in_namespace(one) as route:
        route.add_address("eth0", nobodys, 24)
    with listener(other, port=80):
        assert can_connect(one, place.address, port=80, timeout_s=DEADLINE_S)
        assert not can_connect(one, place.address, port=80, timeout_s=0.5, source=nobodys)
        with Route.in_namespace(one) as route:
            route.set_mac("eth0", "02:00:00:00:00:99")
        assert not can_connect(one, place.address, port=80, timeout_s=0.5)


def test_an_uplink_puts_containers_into_the_lan(host: Host) -> None:
    lan = host.world.namespace()
    with Route() as route:
        route.create_veth("wan0", peer="eth0", peer_netns_fd=lan)
    with Route.in_namespace(lan) as route:
        route.add_address("eth0", "192.0.2.2", 24)
        route.set_up("eth0")
    wish = NetworkWish(name="lan", uplink="wan0", subnet="192.0.2.0/24", gateway="192.0.2.2")
    with pytest.raises(Denied):
        host.networks.create("anna", wish)
    network = host.networks.create("anna", wish, is_admin=True)
    _, place, inside = host.start(network)
    with listener(inside, port=80) as server, listener(lan, port=80) as peer:
        assert converses(lan, place.address, port=80, server=server) == "192.0.2.2"
        assert converses(inside, "192.0.2.2", port=80, server=peer) == place.address
    with Route.in_namespace(lan) as route:
        before = {each.address: each.mac for each in route.neighbours()}
        assert before[place.address] == place.mac
        announce_from = "02:00:00:00:00:77"
        with namespace_entered(host.world.host):
            announce("wan0", mac=announce_from, address=place.address)
        wait_until(
            lambda: {each.address: each.mac for each in route.neighbours()}[place.address] == announce_from,
            what="the neighbour learns the new place",
        )


def test_a_network_in_use_is_not_removed_and_names_are_checked(host: Host) -> None:
    network = host.networks.create("anna", NetworkWish(name="blue", subnet="10.80.0.0/24"))
    with pytest.raises(SubnetOverlaps):
        host.networks.create("anna", NetworkWish(name="green", subnet="10.80.0.128/25"))
    container, place, _ = host.start(network)
    with pytest.raises(Conflict):
        host.networks.lease(network, "f" * 64, wished_address=place.address)
    with pytest.raises(InUse):
        host.networks.remove("anna", "blue")
    host.networks.deactivate(container)
    host.networks.release(container)
    host.networks.remove("anna", "blue")
    with pytest.raises(NetworkNotFound):
        host.networks.get("anna", "blue")
    with Route() as route:
        assert network.bridge not in [link.name for link in route.links()]


def test_flushed_rules_and_a_deleted_bridge_come_back(host: Host) -> None:
    network = host.networks.default_for("anna")
    container, place, inside = host.start(network)
    wished = host.networks.publish(place, [PortMapping(container_port=80)], container_id=container)
    nft.apply("flush ruleset")
    again = Networks("alpha", host.store)
    again.restore_all([Running(container_id=container, attachment=place, ports=wished, names=("web",))])
    with listener(inside, port=80) as server:
        converses(host.world.host, "127.0.0.1", port=wished[0].host_port, server=server)
    nft.apply("flush ruleset")
    _, second, other = host.start(network)
    assert second.address in nft.list_table(nft.Family.BRIDGE, firewall.table_name("alpha"))
    with listener(other, port=80) as server:
        converses(inside, second.address, port=80, server=server)
    again.remove_all()
    with Route() as route:
        assert [link.name for link in route.links() if link.kind == "bridge"] == []


def test_connections_outlive_a_new_ruleset(host: Host) -> None:
    beyond = host.world.outside(host_address="192.0.2.1", address="192.0.2.2")
    container, place, inside = host.start(host.networks.default_for("anna"))
    [mapping] = host.networks.publish(place, [PortMapping(container_port=80)], container_id=container)
    with (
        listener(inside, port=80) as server,
        connect(beyond, "192.0.2.1", port=mapping.host_port) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            host.networks.create("bert", NetworkWish(name="more"))
            accepted.settimeout(DEADLINE_S)
            client.sendall(b"still here")
            assert accepted.recv(16) == b"still here"
