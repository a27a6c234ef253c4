# SPDX-License-Identifier: Apache-2.0
"""Ports that lead to other machines, on the real kernel: into a LAN, and after a container that has gone."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.kernel.netlink import Route
from insula.model.errors import InvalidSpec
from insula.model.record import Attachment, NetworkRecord
from insula.model.spec import NetworkWish, PortMapping
from insula.network.attach import Networks, Running
from insula.network.firewall import Relay
from insula.network.relay import Gone
from netns import MemoryStore, World, can_connect, connect, converses, listener, world
from waiting import DEADLINE_S


class Host:
    """One host with its networks, in the namespace of the test."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.networks = Networks("alpha", MemoryStore())
        self.lan = made.outside(host_address="198.51.100.1", address="198.51.100.2", name="lan0")
        self.beyond = made.outside(host_address="192.0.2.1", address="192.0.2.2")

    def start(self, network: NetworkRecord) -> tuple[str, Attachment, int]:
        container = secrets.token_hex(32)
        attachment = self.networks.lease(network, container)
        self.networks.activate(attachment, container_id=container)
        return container, attachment, self.world.join(attachment)


@pytest.fixture
def host() -> Iterator[Host]:
    with world() as made:
        yield Host(made)


def gone_to_the_lan(place: Attachment, container: str, *, port: int = 8080) -> Gone:
    relay = Relay(protocol="tcp", host_port=port, address="198.51.100.2", port=9090)
    return Gone(container_id=container, address=place.address, relays=(relay,))


def test_visitors_are_led_on_to_where_a_container_has_gone(host: Host) -> None:
    network = host.networks.default_for("anna")
    container, place, inside = host.start(network)
    other, beside, sibling = host.start(network)
    running = Running(container_id=other, attachment=beside)
    wish = PortMapping(host_port=8080, container_port=80)
    host.networks.publish(place, [wish], container_id=container)
    with listener(inside, port=80) as server, connect(host.beyond, "192.0.2.1", port=8080) as old:
        accepted, _ = server.accept()
        accepted.close()
        host.networks.deactivate(container)
        with Route() as route:
            route.delete(place.interface)
        host.networks.relay(gone_to_the_lan(place, container))
        with listener(host.lan, port=9090) as there:
            for _ in range(2):
                assert converses(host.beyond, "192.0.2.1", port=8080, server=there) == "198.51.100.1"
                assert converses(sibling, "192.0.2.1", port=8080, server=there) == "198.51.100.1"
                assert converses(host.world.host, "192.0.2.1", port=8080, server=there) == "198.51.100.1"
                host.networks.restore_all([running], gone=[gone_to_the_lan(place, container)])
            with pytest.raises(ConnectionRefusedError):
                connect(host.world.host, "127.0.0.1", port=8080)
            host.networks.end_relay(container)
            assert not can_connect(host.beyond, "192.0.2.1", port=8080, timeout_s=0.5)
        old.close()


def test_an_old_connection_is_reset_and_does_not_hang(host: Host) -> None:
    container, place, inside = host.start(host.networks.default_for("anna"))
    host.networks.publish(place, [PortMapping(host_port=8080, container_port=80)], container_id=container)
    with listener(inside, port=80) as server, connect(host.beyond, "192.0.2.1", port=8080) as old:
        accepted, _ = server.accept()
        with accepted:
            host.networks.deactivate(container)
            with Route() as route:
                route.delete(place.interface)
            host.networks.relay(gone_to_the_lan(place, container))
            old.settimeout(DEADLINE_S)
            old.sendall(b"still there?")
            with pytest.raises(ConnectionResetError):
                old.recv(1)


def test_a_relay_gives_way_to_a_container_that_wants_its_port_or_its_address(host: Host) -> None:
    network = host.networks.default_for("anna")
    container, place, inside = host.start(network)
    gone = Gone(
        container_id="0" * 64,
        address=place.address,
        relays=gone_to_the_lan(place, "0" * 64).relays,
    )
    host.networks.relay(gone)
    wish = PortMapping(host_port=8080, container_port=80)
    host.networks.publish(place, [wish], container_id=container)
    with listener(inside, port=80) as server, listener(host.lan, port=9090):
        converses(host.beyond, "192.0.2.1", port=8080, server=server)
        running = Running(container_id=container, attachment=place, ports=(wish,))
        host.networks.restore_all([running], gone=[gone])
        converses(host.beyond, "192.0.2.1", port=8080, server=server)


def test_who_gets_the_address_of_one_that_has_gone_is_not_taken_for_it(host: Host) -> None:
    container, place, inside = host.start(host.networks.default_for("anna"))
    host.networks.relay(gone_to_the_lan(place, "0" * 64, port=9000))
    wish = PortMapping(host_port=8080, container_port=80)
    host.networks.activate(place, container_id=container)
    host.networks.publish(place, [wish], container_id=container)
    with listener(inside, port=80) as server:
        converses(host.beyond, "192.0.2.1", port=8080, server=server)


def test_a_picked_port_is_none_that_leads_on(host: Host) -> None:
    container, place, _ = host.start(host.networks.default_for("anna"))
    host.networks.relay(gone_to_the_lan(place, "0" * 64, port=61000))
    (made,) = host.networks.publish(place, [PortMapping(container_port=80)], container_id=container)
    assert made.host_port == 61001


def test_a_port_of_a_container_in_a_lan_is_published_here_too(host: Host) -> None:
    lan = host.world.namespace()
    with Route() as route:
        route.create_veth("wan9", peer="eth0", peer_netns_fd=lan)
    with Route.in_namespace(lan) as route:
        route.add_address("eth0", "203.0.113.2", 24)
        route.set_up("eth0")
    wish = NetworkWish(name="lan", uplink="wan9", subnet="203.0.113.0/24", gateway="203.0.113.2")
    network = host.networks.create("anna", wish, is_admin=True)
    container, place, inside = host.start(network)
    ports = [PortMapping(host_port=8080, container_port=80)]
    with pytest.raises(InvalidSpec, match="no address or route in"):
        host.networks.publish(place, ports, container_id=container)
    with Route() as route:
        route.add_address(network.bridge, "203.0.113.1", 24)
    host.networks.publish(place, ports, container_id=container)
    with listener(inside, port=80) as server:
        assert converses(host.beyond, "192.0.2.1", port=8080, server=server) == "203.0.113.1"
    running = Running(container_id=container, attachment=place, ports=tuple(ports))
    host.networks.restore_all([running])
    with listener(inside, port=80) as server:
        converses(host.beyond, "192.0.2.1", port=8080, server=server)
    # Else the LAN would reach what this host serves at 127.0.0.1.
    setting = Path(f"/proc/sys/net/ipv4/conf/{network.bridge}/route_localnet")
    assert setting.read_text().strip() == "0"
    host.networks.deactivate(container)
    assert not can_connect(host.beyond, "192.0.2.1", port=8080, timeout_s=0.5)
