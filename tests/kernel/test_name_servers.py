# SPDX-License-Identifier: Apache-2.0
"""The name server on a bridge's gateway, asked from inside a container's namespace."""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.message
import dns.rcode
import dns.rrset
import pytest

from insula.kernel.netlink import Route, namespace_entered
from insula.model.spec import NetworkWish
from insula.network.attach import Networks
from insula.network.names import NameServers
from insula.network.zone import Zone
from netns import MemoryStore, world
from waiting import DEADLINE_S, wait_until


@contextmanager
def served(host: int, zone: Zone, *, resolv_conf: Path) -> Iterator[None]:
    """Run the name servers in a thread whose namespace is the host's, as a daemon does."""
    loop_ready: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def main() -> None:
        task = asyncio.create_task(NameServers(zone, resolv_conf=resolv_conf).run())
        loop_ready.append((asyncio.get_running_loop(), task))
        try:
            await task
        except asyncio.CancelledError:
            return

    def run() -> None:
        with namespace_entered(host):
            asyncio.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: bool(loop_ready), what="the loop runs")
    try:
        yield
    finally:
        loop, task = loop_ready[0]
        loop.call_soon_threadsafe(task.cancel)
        thread.join(DEADLINE_S)


def ask(namespace: int, server: str, name: str, *, by_stream: bool = False) -> dns.message.Message | None:
    question = dns.message.make_query(name, "A").to_wire()
    with namespace_entered(namespace):
        client = socket.socket(type=socket.SOCK_STREAM if by_stream else socket.SOCK_DGRAM)
    with client:
        client.settimeout(10)
        try:
            client.connect((server, 53))
            client.send(struct.pack("!H", len(question)) + question if by_stream else question)
            answer = client.recv(4096)
        except OSError:
            return None
    return dns.message.from_wire(answer[2:] if by_stream else answer)


def addresses(answer: dns.message.Message | None) -> list[str]:
    return [str(record) for rrset in answer.answer for record in rrset] if answer else []


@pytest.mark.parametrize("by_stream", [False, True])
def test_a_sibling_is_found_and_the_rest_forwarded(tmp_path: Path, by_stream: bool) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 192.0.2.2\n", encoding="ascii")
    with world() as made:
        beyond = made.outside(host_address="192.0.2.1", address="192.0.2.2")
        networks = Networks("alpha", MemoryStore())
        network = networks.create("anna", NetworkWish(name="blue"))
        place = networks.lease(network, "a" * 64)
        networks.activate(place, container_id="a" * 64)
        inside = made.join(place)
        networks.set_running_names("b" * 64, place, names=("web", "b" * 12))
        with served(made.host, networks.zone, resolv_conf=resolv_conf), _upstream(beyond):
            wait_until(
                lambda: addresses(ask(inside, place.gateway, "web.", by_stream=by_stream)) == [place.address],
                what="the container is found by name",
            )
            if not by_stream:
                assert addresses(ask(inside, place.gateway, "www.example.org.")) == ["203.0.113.9"]
            networks.zone.forget("b" * 64)
            answer = ask(inside, place.gateway, "web.", by_stream=by_stream)
            assert answer is not None
            assert answer.rcode() == dns.rcode.NXDOMAIN
        with Route() as route:
            assert network.bridge in [link.name for link in route.links()]


@contextmanager
def _upstream(namespace: int) -> Iterator[None]:
    with namespace_entered(namespace):
        server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", 53))
    server.settimeout(DEADLINE_S)

    def answer_one() -> None:
        try:
            question, client = server.recvfrom(4096)
        except OSError:
            return
        response = dns.message.make_response(dns.message.from_wire(question))
        name = response.question[0].name
        response.answer.append(dns.rrset.from_text(name, 5, "IN", "A", "203.0.113.9"))
        server.sendto(response.to_wire(), client)

    thread = threading.Thread(target=answer_one)
    thread.start()
    try:
        yield
    finally:
        with namespace_entered(namespace), socket.socket(type=socket.SOCK_DGRAM) as waker:
            waker.sendto(dns.message.make_query("end.", "A").to_wire(), ("127.0.0.1", 53))
        thread.join(DEADLINE_S)
        server.close()
