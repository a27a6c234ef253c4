# SPDX-License-Identifier: Apache-2.0
"""A22, A23: what a container reaches, and whose frames pass its port.  Judged on the host's side of the cable."""

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from hosted import Host, wait_until
from insula.kernel.netlink import Route, configure_inside, namespace_entered
from netns import listener, new_namespace
from security import frames
from waiting import DEADLINE_S

SEND = """
import json, socket, sys
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sender.bind(("eth0", 0))
for frame in json.load(open(0)):
    try:
        sender.send(bytes.fromhex(frame))
    except OSError as error:
        print(error, file=sys.stderr)
"""
CONNECT = """
import socket, sys
made = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
made.settimeout(2)
made.connect((sys.argv[1], int(sys.argv[2])))
print("reached")
"""
ETH_P_ALL = 3
WAN, BEYOND, METADATA = "192.0.2.1", "192.0.2.2", "169.254.169.254"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Two of alice's containers and one of bob's; a world outside, with a metadata service."""

    host: Host
    outside: int
    attachments: dict[str, dict[str, str]]
    gateway_mac: str

    def place(self, name: str) -> frames.Place:
        return frames.Place.of(self.attachments[name])

    @property
    def gateway(self) -> frames.Place:
        return frames.Place.of({"mac": self.gateway_mac, "address": self.attachments["attacker"]["gateway"]})

    def send(self, *each: bytes) -> None:
        """Have the attacker send whole frames."""
        data = json.dumps([frame.hex() for frame in each]).encode()
        self.host.alice("exec", "-i", "attacker", "python3", "-ISc", SEND, data=data)

    def reaches(self, address: str, port: int) -> bool:
        done = self.host.alice.give("exec", "attacker", "python3", "-ISc", CONNECT, address, str(port))
        return done.out.strip() == "reached"


@pytest.fixture(scope="module")
def scene(the_host: Host) -> Iterator[Scene]:
    for person, name in ((the_host.alice, "attacker"), (the_host.alice, "victim"), (the_host.bob, "other")):
        person("run", "-d", "--name", name, "host", "sleep", "1000")
    people = {"attacker": the_host.alice, "victim": the_host.alice, "other": the_host.bob}
    attachments = {name: person.look(name)["attachment"] for name, person in people.items()}
    outside = new_namespace()
    with ExitStack() as held:
        held.callback(os.close, outside)
        with Route.in_namespace(the_host.network) as route:
            route.create_veth("wan0", peer="eth0", peer_netns_fd=outside)
            held.callback(_delete, the_host, "wan0")
            route.add_address("wan0", WAN, 24)
            route.add_default_route(BEYOND)
            bridge = next(link for link in route.links() if link.name == attachments["attacker"]["bridge"])
        with Route.in_namespace(outside) as route:
            configure_inside(route, interface="eth0", address=BEYOND, prefix_length=24, gateway=WAN)
            route.add_address("eth0", METADATA, 16)
        yield Scene(host=the_host, outside=outside, attachments=attachments, gateway_mac=bridge.mac)
    the_host.remove_all()


def _delete(host: Host, link: str) -> None:
    with Route.in_namespace(host.network) as route:
        route.delete(link)


@contextmanager
def _ears(scene: Scene) -> Iterator[list[socket.socket]]:
    """Listen to all that reaches the bridge itself and the victim's port."""
    with ExitStack() as held, namespace_entered(scene.host.network):
        found = []
        for name in (scene.attachments["attacker"]["bridge"], scene.attachments["victim"]["interface"]):
            ear = held.enter_context(
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            )
            ear.bind((name, ETH_P_ALL))
            ear.setblocking(False)
            found.append(ear)
        yield found


def _heard(ears: list[socket.socket]) -> bytes:
    heard = b""
    for ear in ears:
        while True:
            try:
                heard += ear.recv(65536)
            except BlockingIOError:
                break
    return heard


_NOBODY = frames.Place(mac=bytes(6), address=bytes(4))


@pytest.mark.parametrize("name", frames.hostile(_NOBODY, _NOBODY, _NOBODY, mark=b""))
def test_a23_frame_is_dropped_at_the_port(scene: Scene, name: str) -> None:
    mark, fence = secrets.token_bytes(16), secrets.token_bytes(16)
    own, victim = scene.place("attacker"), scene.place("victim")
    frame = frames.hostile(own, victim, scene.gateway, mark=mark)[name]
    honest = frames.ethernet(own.mac, 0x0800, frames.udp(own.address, frames.ALL, fence))
    heard = b""
    with _ears(scene) as ears:
        scene.send(frame, honest)

        def came() -> bool:
            nonlocal heard
            heard += _heard(ears)
            return heard.count(fence) >= 2

        wait_until(came, what="the honest frame comes through")
    assert mark not in heard


def test_a23_neighbours_and_routes_of_the_host_stay(scene: Scene) -> None:
    def known() -> tuple[list[str], dict[str, str]]:
        with Route.in_namespace(scene.host.network) as route:
            return sorted(map(str, route.routes())), {
                each.address: each.mac for each in route.neighbours() if each.mac
            }

    assert scene.reaches(BEYOND, 9) is False  # so that the gateway knows the attacker's place
    routes, neighbours = known()
    own, victim = scene.place("attacker"), scene.place("victim")
    scene.send(*frames.hostile(own, victim, scene.gateway, mark=bytes(16)).values())
    after_routes, after = known()
    assert after_routes == routes
    assert {address: after.get(address, mac) for address, mac in neighbours.items()} == neighbours


def test_a22_outside_is_reached_and_the_metadata_address_is_not(scene: Scene) -> None:
    with listener(scene.outside, port=80):
        wait_until(lambda: scene.reaches(BEYOND, 80), what="a way out")
        assert not scene.reaches(METADATA, 80)


@pytest.mark.parametrize("where", ["gateway", "wan", "every address"])
def test_a22_services_of_the_host_are_not_reached(scene: Scene, where: str) -> None:
    gateway = scene.attachments["attacker"]["gateway"]
    address = {"gateway": gateway, "wan": WAN, "every address": "0.0.0.0"}[where]
    with listener(scene.host.network, port=18123, address=address):
        for target in (gateway, WAN):
            assert not scene.reaches(target, 18123), target


def test_a22_loopback_of_the_host_is_not_reached_by_frames(scene: Scene) -> None:
    own, home = scene.place("attacker"), socket.inet_aton("127.0.0.1")
    bridge = scene.attachments["attacker"]["bridge"]
    setting = f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet"
    with namespace_entered(scene.host.network):
        with open(setting) as file:
            before = file.read()
        with open(setting, "w") as file:
            file.write("1")
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        with ear:
            ear.bind(("127.0.0.1", 0))
            ports = (9, ear.getsockname()[1])
            for source in (own.address, home):
                packet = frames.udp(source, home, b"knock", ports=ports)
                scene.send(frames.ethernet(own.mac, 0x0800, packet, to=scene.gateway.mac))
            scene.reaches(scene.attachments["attacker"]["gateway"], 9)
            ear.setblocking(False)
            with pytest.raises(BlockingIOError):
                ear.recv(64)
    finally:
        with namespace_entered(scene.host.network), open(setting, "w") as file:
            file.write(before)


def test_a22_ipv6_of_the_host_is_not_reached(scene: Scene) -> None:
    bridge = scene.attachments["attacker"]["bridge"]
    with Route.in_namespace(scene.host.network) as route:
        found = [each.address for each in route.addresses(bridge) if each.address.startswith("fe80")]
    with namespace_entered(scene.host.network):
        server = socket.create_server(("::", 18124), family=socket.AF_INET6)
    with server:
        for address in (*found, "ff02::1"):
            assert not scene.reaches(f"{address}%eth0", 18124)


def test_a22_another_tenants_container_is_not_reached(scene: Scene) -> None:
    other = scene.attachments["other"]["address"]
    serve = "import socket; s = socket.create_server(('', 8080)); print('ready', flush=True)\nwhile True: s.accept()"
    with scene.host.bob.begin("exec", "other", "python3", "-c", serve) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        with scene.host.connect(other, 8080):
            pass  # it is there, for the host
        assert not scene.reaches(other, 8080)
        scene.host.bob("kill", "other")
        server.communicate(timeout=DEADLINE_S)
    scene.host.bob.wait_for("other", status="exited")
    scene.host.bob("start", "other")


def test_a22_what_another_tenant_publishes_at_loopback_is_not_reached(scene: Scene) -> None:
    serve = "import socket; s = socket.create_server(('', 80)); print('ready', flush=True)\nwhile True: s.accept()"
    scene.host.bob("run", "-d", "--name", "shy", "-p", "127.0.0.1:18125:80", "host", "python3", "-c", serve)
    wait_until(lambda: "ready" in scene.host.bob("logs", "shy"), what="it listens")
    with scene.host.connect("127.0.0.1", 18125):
        pass
    gateway = scene.attachments["attacker"]["gateway"]
    assert not scene.reaches(gateway, 18125)
    assert not scene.reaches(WAN, 18125)
    scene.host.bob("rm", "-f", "shy")


def test_a22_another_network_of_the_tenant_is_not_reached_by_its_gateway(scene: Scene) -> None:
    alice = scene.host.alice
    alice("network", "create", "elsewhere")
    gateway = alice.json("network", "inspect", "elsewhere")[0]["gateway"]
    with listener(scene.host.network, port=18126, address=gateway):
        assert not scene.reaches(gateway, 18126)
    alice("network", "rm", "elsewhere")
