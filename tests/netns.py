# SPDX-License-Identifier: Apache-2.0
"""Throwaway network namespaces for tests: a host, containers behind its bridges, a world outside.

The machine's own interfaces and rules are never touched: everything stands in namespaces that vanish with their descriptors.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from insula.kernel import libc
from insula.kernel.netlink import CLONE_NEWNET, Route, configure_inside, namespace_entered
from insula.model.record import Attachment, Lease, NetworkRecord
from waiting import DEADLINE_S


class MemoryStore:
    """What `NetworkStore` promises, for the length of a test."""

    def __init__(self) -> None:
        self.networks: dict[str, NetworkRecord] = {}
        self.leases: dict[tuple[str, str], Lease] = {}

    def list_networks(self) -> list[NetworkRecord]:
        return list(self.networks.values())

    def save_network(self, network: NetworkRecord) -> None:
        self.networks[network.id] = network

    def delete_network(self, network_id: str) -> None:
        self.networks.pop(network_id, None)

    def list_leases(self, network_id: str) -> list[Lease]:
        return [lease for (network, _), lease in self.leases.items() if network == network_id]

    def save_lease(self, lease: Lease) -> None:
        self.leases[(lease.network, lease.address)] = lease

    def delete_lease(self, network_id: str, address: str) -> None:
        self.leases.pop((network_id, address), None)


def new_namespace() -> int:
    """Make a network namespace; it lives as long as the descriptor (and what refers to it)."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.unshare(CLONE_NEWNET)
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            libc.setns(own, CLONE_NEWNET)
    finally:
        os.close(own)


@dataclass
class World:
    """Namespaces of one test; `host` is the one in which the test itself runs."""

    host: int
    descriptors: list[int] = field(default_factory=list)

    def namespace(self) -> int:
        made = new_namespace()
        self.descriptors.append(made)
        with Route.in_namespace(made) as route:
            route.set_up("lo")
        return made

    def join(self, attachment: Attachment, *, gateway: bool = True) -> int:
        """Do what a start does: the pair, and the container's end configured.  Returns the container's namespace."""
        inside = self.namespace()
        with Route() as route:
            route.create_veth(
                attachment.interface,
                peer="eth0",
                peer_netns_fd=inside,
                master=attachment.bridge,
                peer_mac=attachment.mac,
            )
        with Route.in_namespace(inside) as route:
            configure_inside(
                route,
                interface="eth0",
                address=attachment.address,
                prefix_length=attachment.prefix_length,
                gateway=attachment.gateway if gateway else "",
                address6=attachment.address6,
                prefix_length6=attachment.prefix_length6,
                gateway6=attachment.gateway6 if gateway else "",
            )
        return inside

    def outside(self, *, host_address: str, address: str, name: str = "wan0") -> int:
        """Make a neighbour of the host on a /24 of its own, without any route to containers."""
        beyond = self.namespace()
        with Route() as route:
            route.create_veth(name, peer="eth0", peer_netns_fd=beyond)
            route.add_address(name, host_address, 24)
        with Route.in_namespace(beyond) as route:
            configure_inside(route, interface="eth0", address=address, prefix_length=24)
        return beyond


@contextmanager
def world() -> Iterator[World]:
    """Enter a new host's namespace; the calling thread is back in its own afterwards."""
    host = new_namespace()
    made = World(host=host, descriptors=[host])
    try:
        with namespace_entered(host):
            with Route() as route:
                route.set_up("lo")
            yield made
    finally:
        for descriptor in made.descriptors:
            os.close(descriptor)


@contextmanager
def listener(namespace: int, *, port: int, address: str = "0.0.0.0") -> Iterator[socket.socket]:
    """Listen by TCP in a namespace."""
    with namespace_entered(namespace):
        made = socket.socket(_family(address))
    with made as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen()
        server.settimeout(DEADLINE_S)
        yield server


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def connect(
    namespace: int, address: str, *, port: int, timeout_s: float = DEADLINE_S, source: str = ""
) -> socket.socket:
    """Connect by TCP from a namespace.  Raises: OSError as the kernel says."""
    with namespace_entered(namespace):
        client = socket.socket(_family(address))
    try:
        client.settimeout(timeout_s)
        if source:
            client.bind((source, 0))
        client.connect((address, port))
    except OSError:
        client.close()
        raise
    return client


def can_connect(namespace: int, address: str, *, port: int, timeout_s: float = 3.0, source: str = "") -> bool:
    try:
        connect(namespace, address, port=port, timeout_s=timeout_s, source=source).close()
    except OSError:
        return False
    return True


def converses(namespace: int, address: str, *, port: int, server: socket.socket) -> str:
    """Say a word each way over TCP; returns the address from which the server saw the client come."""
    with connect(namespace, address, port=port) as client:
        accepted, peer = server.accept()
        with accepted:
            accepted.settimeout(DEADLINE_S)
            client.sendall(b"ping")
            if accepted.recv(4) != b"ping":
                raise AssertionError("the word did not come through")
            accepted.sendall(b"pong")
            if client.recv(4) != b"pong":
                raise AssertionError("the answer did not come through")
            return str(peer[0])
