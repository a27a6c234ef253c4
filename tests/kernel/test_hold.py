# SPDX-License-Identifier: Apache-2.0
"""Frames that come while a container moves: none is lost, with real TCP, UDP, ICMP and ARP, there and back again."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.kernel import hold
from insula.kernel.announce import announce, announce_inside
from insula.kernel.hold import Hold, replay
from insula.kernel.netlink import Route, namespace_entered
from insula.model.record import Attachment
from netns import World, connect, listener, world
from waiting import DEADLINE_S, wait_until

ADDRESS, ADDRESS6, MAC = "10.9.0.3", "fd00:9::3", "02:00:00:00:00:03"
HERE, THERE = "in-here", "in-there"


@dataclass
class Lan:
    """Two bridges with a wire between them; a client on the first; a container on the first, its room on the second."""

    made: World
    client: int
    container: int
    room: int


def _attachment(bridge: str, *, interface: str, address: str, mac: str) -> Attachment:
    return Attachment(
        network="n", network_name="n", address=address, prefix_length=24, gateway="", mac=mac,
        bridge=bridge, interface=interface, address6=f"fd00:9::{address.rpartition('.')[2]}", prefix_length6=64,
    )  # fmt: skip


@pytest.fixture
def lan() -> Iterator[Lan]:
    with world() as made:
        with Route() as route:
            route.create_bridge(HERE, mac="02:00:00:00:00:f1")
            route.create_bridge(THERE, mac="02:00:00:00:00:f2")
            own = made.host
            route.create_veth("wire0", peer="wire1", peer_netns_fd=own, master=HERE)
            route.set_master("wire1", THERE)
            for name in ("wire1", HERE, THERE):
                route.set_up(name)
            route.add_address(HERE, "10.9.0.1", 24)
        client = made.join(_attachment(HERE, interface="client", address="10.9.0.2", mac="02:00:00:00:00:02"))
        container = made.join(_attachment(HERE, interface="old", address=ADDRESS, mac=MAC))
        room = made.join(_attachment(THERE, interface="new", address=ADDRESS, mac=MAC))
        with Route() as route:
            route.set_master("new", None)
        _wait_for_wire(made, client)
        yield Lan(made, client, container, room)


def _wait_for_wire(made: World, client: int) -> None:
    """A new port forwards only when the kernel has seen its carrier, up to a second later."""
    far = made.join(_attachment(THERE, interface="far", address="10.9.0.4", mac="02:00:00:00:00:04"))
    with _udp(far, port=96) as receiver, _udp(client) as sender:
        receiver.setblocking(False)

        def is_through() -> bool:
            sender.sendto(b"?", ("10.9.0.4", 96))
            try:
                return bool(receiver.recv(1))
            except BlockingIOError:
                return False

        wait_until(is_through, what="the wire carries")


def _udp(namespace: int, *, port: int = 0) -> socket.socket:
    with namespace_entered(namespace):
        made = socket.socket(type=socket.SOCK_DGRAM)
    made.settimeout(DEADLINE_S)
    if port:
        made.bind(("0.0.0.0", port))
    return made


class Stream(threading.Thread):
    """Sends 100 numbered datagrams a second."""

    def __init__(self, namespace: int, *, count: int) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self._count = count
        self._socket = _udp(namespace)

    def run(self) -> None:
        ticker = threading.Event()
        for number in range(self._count):
            self._socket.sendto(struct.pack("!I", number), (ADDRESS, 99))
            self.sent = number + 1
            ticker.wait(0.01)
        self._socket.close()


def _numbers(receiver: socket.socket) -> list[int]:
    receiver.settimeout(1.0)
    found = []
    try:
        while True:
            found.append(struct.unpack("!I", receiver.recv(16))[0])
    except TimeoutError:
        return found


def _pause(stream: Stream) -> None:
    """The 300 ms in which nothing runs: 30 more datagrams."""
    aim = stream.sent + 30
    wait_until(lambda: stream.sent >= aim, what="the pause is over")


def test_no_datagram_is_lost_when_a_pause_ends_where_it_began(lan: Lan) -> None:
    with (
        _udp(lan.container, port=99) as receiver,
        Hold(HERE, mac=MAC, address=ADDRESS) as held,
        Route() as route,
    ):
        held.stop()
        stream = Stream(lan.client, count=80)
        stream.start()
        wait_until(lambda: stream.sent >= 10, what="it flows")
        held.start()
        route.set_master("old", None)
        _pause(stream)
        route.set_master("old", HERE)
        done = replay(held.frames(), "old")
        stream.join()
        assert (done.lost, held.lost) == (0, 0)
        assert done.delivered >= 30
        assert sorted(set(_numbers(receiver))) == list(range(80))


def test_no_datagram_is_lost_when_the_container_goes_elsewhere(lan: Lan) -> None:
    with _udp(lan.container, port=99) as before, _udp(lan.room, port=99) as after, Route() as route:
        stream = Stream(lan.client, count=80)
        stream.start()
        wait_until(lambda: stream.sent >= 10, what="it flows")
        with Hold(HERE, mac=MAC, address=ADDRESS) as held:
            route.set_master("old", None)
            _pause(stream)
            sent = hold.unpack(hold.pack(held.frames()))  # over the wire
            route.set_master("new", THERE)
            announce_inside(lan.room, "eth0", mac=MAC, address=ADDRESS)
            assert replay(sent, "new").lost == 0
            replay(held.frames(), "new")  # what still came to the old place
        stream.join()
        assert sorted(set(_numbers(before)) | set(_numbers(after))) == list(range(80))


def test_tcp_goes_on_at_once_and_large_frames_keep_their_form(lan: Lan) -> None:
    with listener(lan.container, port=80) as server, connect(lan.client, ADDRESS, port=80) as client:
        accepted, _ = server.accept()
        with accepted, Route() as route, Hold(HERE, mac=MAC, address=ADDRESS) as held:
            accepted.settimeout(DEADLINE_S)
            client.sendall(b"warm")
            assert accepted.recv(4) == b"warm"
            held.frames()
            route.set_master("old", None)
            client.sendall(bytes(50_000))
            frames: list[bytes] = []
            wait_until(lambda: bool(frames.extend(held.frames()) or frames), what="frames are held")
            route.set_master("old", HERE)
            assert replay(frames, "old").lost == 0
            got = 0
            while got < 50_000:
                got += len(accepted.recv(65536)) or 50_000
            assert got == 50_000


def test_questions_by_arp_pings_and_the_hosts_own_words_are_held(lan: Lan) -> None:
    with Route() as route, Hold(HERE, mac=MAC, address=ADDRESS) as held:
        route.set_master("old", None)
        with _udp(lan.client) as fresh, _udp(lan.made.host) as own:
            fresh.sendto(b"who has it?", (ADDRESS, 99))
            own.sendto(b"from the host", (ADDRESS, 99))
            frames: list[bytes] = []
            wait_until(lambda: len(frames.extend(held.frames()) or frames) >= 2, what="both ask")
            assert {frame[22:24] for frame in frames} == {b"\x08\x06"}
            with _udp(lan.container, port=99) as receiver:
                route.set_master("old", HERE)
                assert replay(frames, "old").lost == 0
                receiver.settimeout(DEADLINE_S)
                assert {receiver.recv(32), receiver.recv(32)} == {b"who has it?", b"from the host"}
        _ping(lan, route, held)


def test_ipv6_datagrams_and_neighbour_solicitations_are_held_and_answered_elsewhere(lan: Lan) -> None:
    with namespace_entered(lan.client):
        fresh = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with namespace_entered(lan.room):
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with Route() as route, fresh, receiver, Hold(HERE, mac=MAC, address=ADDRESS, address6=ADDRESS6) as held:
        route.set_master("old", None)
        receiver.bind(("::", 99))
        receiver.settimeout(DEADLINE_S)
        fresh.sendto(b"who has it?", (ADDRESS6, 99))
        frames: list[bytes] = []
        wait_until(lambda: bool(frames.extend(held.frames()) or frames), what="the solicitation is held")
        assert {(frame[22:24], frame[64]) for frame in frames} == {(b"\x86\xdd", 135)}
        route.set_master("new", THERE)
        announce_inside(lan.room, "eth0", mac=MAC, address=ADDRESS6)
        assert replay(frames, "new").lost == 0
        assert receiver.recv(32) == b"who has it?"
        route.set_master("new", None)
        fresh.sendto(b"to its hardware address", (ADDRESS6, 99))
        frames.clear()
        wait_until(
            lambda: any(b"hardware" in each for each in frames.extend(held.frames()) or frames), what="held"
        )
        route.set_master("new", THERE)
        replay(frames, "new")
        wait_until(
            lambda: b"hardware" in receiver.recv(32), what="it has come; the first may have come twice"
        )


def test_solicitations_for_others_are_not_held(lan: Lan) -> None:
    with Hold(HERE, mac=MAC, address=ADDRESS, address6="fd00:9::33") as held:
        with namespace_entered(lan.client):
            fresh = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with fresh:
            fresh.sendto(b"one", ("fd00:9::44", 99))
            fresh.sendto(b"two", ("fd00:9::33", 99))
        frames: list[bytes] = []
        wait_until(lambda: bool(frames.extend(held.frames()) or frames), what="the one is held")
        assert {frame[72:88] for frame in frames} == {socket.inet_pton(socket.AF_INET6, "fd00:9::33")}


def _ping(lan: Lan, route: Route, held: Hold) -> None:
    with namespace_entered(lan.client):
        ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with ping:
        ping.settimeout(DEADLINE_S)
        held.frames()
        route.set_master("old", None)
        ping.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FD, 1, 1), (ADDRESS, 0))
        frames: list[bytes] = []
        wait_until(lambda: bool(frames.extend(held.frames()) or frames), what="the echo request is held")
        route.set_master("old", HERE)
        replay(frames, "old")
        assert ping.recv(100)[20] == 0


def test_others_frames_and_its_own_are_not_held(lan: Lan) -> None:
    with Hold(HERE, mac=MAC, address=ADDRESS) as held:
        with _udp(lan.container) as own, _udp(lan.made.host, port=98) as host:
            own.sendto(b"out", ("10.9.0.1", 98))
            assert host.recv(8) == b"out"
        held.frames()
        with _udp(lan.client) as other, _udp(lan.made.host, port=97) as host:
            other.sendto(b"elsewhere", ("10.9.0.1", 97))
            assert host.recv(16) == b"elsewhere"
        with namespace_entered(lan.container):
            announce("eth0", mac=MAC, address=ADDRESS)
        assert [frame for frame in held.frames() if frame[16:22] == bytes.fromhex("020000000003")] == []


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, ADDRESS), (socket.AF_INET6, ADDRESS6)], ids=["v4", "v6"]
)
def test_at_first_only_callers_are_held_and_then_everything(
    lan: Lan, family: socket.AddressFamily, address: str
) -> None:
    def sockets(kind: socket.SocketKind, namespace: int) -> socket.socket:
        with namespace_entered(namespace):
            made = socket.socket(family, kind)
        made.settimeout(DEADLINE_S)
        return made

    with (
        sockets(socket.SOCK_STREAM, lan.container) as door,
        sockets(socket.SOCK_DGRAM, lan.client) as sender,
        Hold(HERE, mac=MAC, address=ADDRESS, address6=ADDRESS6) as held,
    ):
        held.stop()
        door.bind((address, 99))
        door.listen()
        held.start_with_callers()
        with sockets(socket.SOCK_STREAM, lan.client) as caller:
            caller.connect((address, 99))
            caller.sendall(b"hello")
            accepted, _ = door.accept()
            with accepted:
                assert accepted.recv(8) == b"hello"
                sender.sendto(b"a datagram", (address, 98))
                held.start()
                caller.sendall(b"and on")
                assert accepted.recv(8) == b"and on"
            frames: list[bytes] = []
            wait_until(
                lambda: any(b"and on" in each for each in frames.extend(held.frames()) or frames), what="held"
            )
    header = hold.VNET_HEADER + 14 + (20 if family == socket.AF_INET else 40)
    assert frames[0][header + 13] & 0x12 == 0x02, "SYN"
    assert not any(b"hello" in each or b"datagram" in each for each in frames)
    assert sum(each[header + 13 : header + 14] == b"\x02" for each in frames) == 1


def test_a_hold_is_bounded_and_says_what_it_lost(lan: Lan) -> None:
    with Hold(HERE, mac=MAC, address=ADDRESS, limit_bytes=65536) as held, _udp(lan.client) as sender:
        sender.sendto(b"first", (ADDRESS, 99))
        end = time.monotonic() + DEADLINE_S
        while not held.lost and time.monotonic() < end:
            for _ in range(500):
                sender.sendto(bytes(1000), (ADDRESS, 99))
            assert len(held.frames(limit=5)) <= 5
        assert held.lost > 0


def test_it_may_be_stopped_twice_and_started_again(lan: Lan) -> None:
    held = Hold(HERE, mac=MAC, address=ADDRESS)
    assert held.frames() == []
    held.stop()
    for _ in range(2):
        held.start()
        assert held.fileno() >= 0
    held.stop()
    held.stop()
    with pytest.raises(OSError, match="nope"):
        Hold("nope", mac=MAC, address=ADDRESS).start()


@given(frames=st.lists(st.binary(min_size=hold.MIN_FRAME, max_size=100), max_size=20))
def test_frames_come_over_the_wire_as_they_were(frames: list[bytes]) -> None:
    assert hold.unpack(hold.pack(frames)) == frames


@given(data=st.binary(max_size=200))
def test_a_peers_words_never_break_anything(data: bytes) -> None:
    try:
        found = hold.unpack(data)
    except ValueError:
        return
    assert hold.pack(found) == data
