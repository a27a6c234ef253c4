# SPDX-License-Identifier: Apache-2.0
"""A server that accepts more slowly than clients come can be moved: nobody has to try again, and nobody is turned away."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from insula.kernel.netlink import namespace_entered
from two_hosts import PORT, Pair, mended_after, show_log, wait_until

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
            connection = socket.create_connection((self._address, PORT), timeout=30)
        with connection, connection.makefile("rb") as file:
            connection.sendall(b"hello\n")
            json.loads(file.readline())

    def finish(self) -> None:
        self._over.set()
        self.join()


def test_a_server_with_a_queue_at_its_door_is_moved(pair: Pair) -> None:
    address = pair.run("c", program=SLOW_SERVER)

    def is_open() -> bool:
        with (
            suppress(OSError),
            namespace_entered(pair.world.outside),
            socket.create_connection((address, PORT), timeout=5),
        ):
            return True
        return False

    assert wait_until(is_open)
    callers = [Caller(pair, address) for _ in range(CLIENTS)]
    assert wait_until(lambda: all(each.answers > 3 for each in callers)), [each.problems for each in callers]
    here, there = "alpha", "beta"
    for _ in range(MOVES):
        pair.migrate("c", here, there)
        here, there = there, here
        before = [each.answers for each in callers]
        assert wait_until(
            lambda seen=before: all(each.answers > 3 + was for each, was in zip(callers, seen, strict=True))
        ), ([each.problems for each in callers], show_log(pair))
    for each in callers:
        each.finish()
    assert not [problem for each in callers for problem in each.problems]
