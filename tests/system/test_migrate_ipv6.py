# SPDX-License-Identifier: Apache-2.0
"""A container with IPv6 moves: its address, its connections, and what is sent meanwhile."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from insula.kernel.netlink import namespace_entered
from insula.model.errors import NetworkNotFound
from insula.network.firewall import can_filter_ipv6
from two_hosts import (
    LAN,
    SERVER,
    Conversation,
    Counter,
    Pair,
    start_pair,
    wait_until,
)
from waiting import DEADLINE_S

pytestmark = pytest.mark.skipif(not can_filter_ipv6(), reason="no IPv6 on this host, or its nft is too old")

SIX = replace(LAN, prefix6="fd00:99:1")
BOTH = SERVER.replace(
    'socket.create_server(("0.0.0.0", 7000))',
    'socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True)',
)
#: Answers each datagram with the same words.
ECHO = """
import socket, threading
echo = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
echo.bind(("::", 7001))
def answer_all():
    while True:
        words, sender = echo.recvfrom(2048)
        echo.sendto(words, sender)
threading.Thread(target=answer_all, daemon=True).start()
"""


#: An address that a router of the LAN offered could not be used: the port lets the container's own through only.
HEARS_ROUTERS = "answer = open('/proc/sys/net/ipv6/conf/eth0/accept_ra').read().strip()"


@pytest.fixture(scope="module")
def module_pair() -> Iterator[Pair]:
    yield from start_pair(lan=SIX)


def address6_of(pair: Pair, host: str) -> str:
    found = pair.find(host, "c")
    assert found is not None
    return str(found["attachment"]["address6"])


def test_connections_of_both_kinds_go_there_and_back(pair: Pair) -> None:
    four = pair.run("c", program=ECHO + BOTH)
    six = address6_of(pair, "alpha")
    assert six.startswith("fd00:99:1:")
    old, counter = Conversation(pair.world, six), Counter(pair.world, four)
    with namespace_entered(pair.world.outside):
        udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with udp:
        udp.settimeout(DEADLINE_S)
        udp.connect((six, 7001))
        counter.wait_for_more()
        for source, target in (("alpha", "beta"), ("beta", "alpha")):
            assert old.run("answer = 1") == 1
            pair.act(source, "c", "migrate", target=target, max_pause_ms=60_000)
            assert address6_of(pair, target) == six
            assert old.run(HEARS_ROUTERS) == "0"
            udp.send(b"still there?")
            assert udp.recv(100) == b"still there?"
            fresh = Conversation(pair.world, six)
            assert fresh.run("answer = 3") == 3
            fresh.close()
    counter.wait_for_more()
    counter.finish()
    old.close()


def test_a_datagram_sent_in_the_pause_is_answered(pair: Pair) -> None:
    pair.run("c", program=ECHO + BOTH)
    six = address6_of(pair, "alpha")
    Conversation(pair.world, six).close()
    with namespace_entered(pair.world.outside):
        udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with udp:
        udp.connect((six, 7001))
        sender = Sender(udp)
        sender.wait_for(20)
        pair.act("alpha", "c", "migrate", target="beta", max_pause_ms=60_000)
        sender.wait_for(sender.heard + 20)
        assert sender.finish() == []


class Sender:
    """Sends numbered datagrams and keeps the answers."""

    def __init__(self, udp: socket.socket) -> None:
        self._udp = udp
        self._sent = 0
        self._answers: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def heard(self) -> int:
        return len(self._answers)

    def _run(self) -> None:
        while not self._over.wait(0.02):  # what comes in a pause of seconds has room in the socket
            self._udp.send(b"%d" % self._sent)
            self._sent += 1
            self._hear()

    def _hear(self) -> None:
        self._udp.setblocking(False)
        try:
            while True:
                self._answers.add(int(self._udp.recv(100)))
        except BlockingIOError:
            return

    def wait_for(self, count: int) -> None:
        assert wait_until(lambda: self.heard >= count)

    def finish(self) -> list[int]:
        """Return the numbers that were never answered."""
        self._over.set()
        self._thread.join()

        def is_complete() -> bool:
            self._hear()
            return self.heard == self._sent

        wait_until(is_complete)
        return sorted(set(range(self._sent)) - self._answers)


def test_a_target_whose_network_has_another_prefix_is_refused(pair: Pair) -> None:
    for host, prefix in (("alpha", "fd00:1::/64"), ("beta", "fd00:2::/64")):
        body = {"name": "six", "subnet": "10.77.0.0/24", "subnet6": prefix}
        pair.client(host).call("POST", "/v1/networks", body=body)
    body = {"image": "host", "name": "c", "network": "six", "user": "0", "command": ["/bin/sleep", "1000"]}
    pair.client("alpha").call("POST", "/v1/containers", body=body)
    pair.client("alpha").call("POST", "/v1/containers/c/start")
    with pytest.raises(
        NetworkNotFound, match="has IPv6 subnet fd00:1::/64 there and fd00:2::/64 here"
    ) as caught:
        pair.act("alpha", "c", "migrate", target="beta", max_pause_ms=60_000)
    assert "--subnet fd00:1::/64" in caught.value.hint
    assert pair.status("alpha", "c") == "running"
    pair.remove("c")
    for host in ("alpha", "beta"):
        pair.client(host).call("DELETE", "/v1/networks/six")
