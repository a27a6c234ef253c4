# SPDX-License-Identifier: Apache-2.0
"""Servers with a connection for each request are moved: nobody has to try again, is turned away, or misses the end of an answer."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from insula.kernel.netlink import namespace_entered
from insula.migrate.fault import Point
from two_hosts import PORT, Pair, mended_after, show_log, wait_until
from waiting import DEADLINE_S

CLIENTS = 4
MOVES = 3
SLOW_SERVER = f"""
import socket, time
listener = socket.create_server(("0.0.0.0", {PORT}), backlog=64)
count = 0
while True:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(30)
        line = connection.makefile("rb").readline()
        count += 1
        connection.sendall(b"%d\\n" % count)
    time.sleep(0.005)
"""
#: Has nobody wait, and closes at once.
QUICK_SERVER = SLOW_SERVER.replace("    time.sleep(0.005)\n", "")
ANSWER_BYTES = 200_000
LONG_SERVER = f"""
import socket
listener = socket.create_server(("0.0.0.0", {PORT}))
while True:
    connection, _ = listener.accept()
    with connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        connection.sendall(bytes({ANSWER_BYTES}))
"""


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    yield from mended_after(module_pair)


class Caller(threading.Thread):
    """Calls again and again, each time on a connection of its own."""

    def __init__(self, pair: Pair, address: str) -> None:
        super().__init__(daemon=True)
        self._pair = pair
        self._address = address
        self._over = threading.Event()
        self.answers = 0
        self.problems: list[str] = []
        self.start()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                self._call()
                self.answers += 1
            except (OSError, ValueError) as error:
                self.problems.append(f"{type(error).__name__}: {error}")

    def _call(self) -> None:
        with namespace_entered(self._pair.world.outside):
            connection = socket.create_connection((self._address, PORT), timeout=DEADLINE_S)
        with connection, connection.makefile("rb") as file:
            connection.sendall(b"hello\n")
            json.loads(file.readline())

    def finish(self) -> None:
        self._over.set()
        self.join()


@pytest.mark.parametrize(
    ("server", "clients", "moves"),
    [(SLOW_SERVER, CLIENTS, MOVES), (QUICK_SERVER, 1, 10)],
    ids=["slow", "quick"],
)
def test_a_server_with_a_connection_for_each_request_is_moved(
    pair: Pair, server: str, *, clients: int, moves: int
) -> None:
    address = pair.run("c", program=server)

    def is_open() -> bool:
        with (
            suppress(OSError),
            namespace_entered(pair.world.outside),
            socket.create_connection((address, PORT), timeout=DEADLINE_S),
        ):
            return True
        return False

    assert wait_until(is_open)
    callers = [Caller(pair, address) for _ in range(clients)]
    assert wait_until(lambda: all(each.answers > 3 for each in callers)), [each.problems for each in callers]
    here, there = "alpha", "beta"
    for _ in range(moves):
        pair.migrate("c", here, there)
        here, there = there, here
        before = [each.answers for each in callers]
        assert wait_until(
            lambda seen=before: all(each.answers > 3 + was for each, was in zip(callers, seen, strict=True))
        ), ([each.problems for each in callers], show_log(pair))
    for each in callers:
        each.finish()
    assert not [problem for each in callers for problem in each.problems]


def test_an_answer_that_is_on_its_way_when_its_connection_is_closed_is_heard_to_the_end(
    pair: Pair, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    pair.restart("alpha", fault=f"{Point.SOURCE_ROUND}=wait:{gate}")
    address = pair.run("c", program=LONG_SERVER)
    heard = bytearray()
    client = connected(pair, address)
    mover = threading.Thread(target=pair.migrate, args=("c", "alpha", "beta"))
    mover.start()
    with open(gate, "wb"):
        heard += client.recv(1)  # the program has said all, and closed
    with client, suppress(TimeoutError):
        while data := client.recv(1 << 12):
            heard += data
            threading.Event().wait(0.005)
    mover.join()
    assert len(heard) == ANSWER_BYTES
    assert pair.status("beta", "c") == "running"


def connected(pair: Pair, address: str) -> socket.socket:
    """Connect, with little room for what is not read."""
    with namespace_entered(pair.world.outside):
        found: list[socket.socket] = []

        def is_open() -> bool:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 13)
            client.settimeout(DEADLINE_S)
            try:
                client.connect((address, PORT))
            except ConnectionRefusedError:
                client.close()
                return False
            found.append(client)
            return True

        assert wait_until(is_open)
    return found[0]
