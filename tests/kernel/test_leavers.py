# SPDX-License-Identifier: Apache-2.0
"""Who waits at a door, and who leaves without having heard all, as the kernel tells."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import pytest

from insula.kernel.sock_diag import TcpSocket, TcpState
from insula.runtime.context import Runtime
from insula.runtime.leavers import Leavers, leaving, sockets_of
from records import container_record
from spawned import wait_until

FAMILIES = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@pytest.fixture(params=FAMILIES, ids=("v4", "v6"))
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family: socket.AddressFamily = request.param
    with socket.create_server((FAMILIES[family], 0), family=family) as made:
        yield made


def of(listener: socket.socket, found: list[TcpSocket]) -> list[TcpSocket]:
    port = int(listener.getsockname()[1]).to_bytes(2, "big")
    return [each for each in found if each.ends.startswith(port)]


def test_who_was_not_accepted_yet_waits(listener: socket.socket) -> None:
    def waiting() -> list[tuple[TcpState, int]]:
        found = sockets_of(os.getpid(), (TcpState.SYN_RECV, TcpState.LISTEN))
        return [(each.state, each.waiting) for each in of(listener, found)]

    assert waiting() == [(TcpState.LISTEN, 0)]
    with socket.create_connection(
        listener.getsockname()[:2]
    ):  # connected before the other end has heard of it
        wait_until(lambda: waiting() == [(TcpState.LISTEN, 1)], what=lambda: f"one waits: {waiting()}")
        with listener.accept()[0]:
            assert waiting() == [(TcpState.LISTEN, 0)]


def test_who_has_not_heard_all_is_leaving_until_he_has(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()[:2]) as client:
        server, _ = listener.accept()
        server.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while True:
                sent += server.send(bytes(1 << 16))
        assert of(listener, list(leaving(os.getpid()))) == [], "somebody has it"
        server.close()
        [left] = of(listener, list(leaving(os.getpid())))
        assert 0 < left.unheard_bytes <= sent + 1
        assert sum(len(data) for data in iter(lambda: client.recv(1 << 16), b"")) == sent
        wait_until(lambda: not of(listener, list(leaving(os.getpid()))), what="all was heard")


def test_of_a_process_that_is_gone_nothing_is_known() -> None:
    assert sockets_of(1 << 22, (TcpState.LISTEN,)) == []


def test_who_may_not_pause_for_a_look_does_not_look() -> None:
    runtime = cast(Runtime, SimpleNamespace(closing=threading.Event()))
    Leavers(runtime, container_record(pid=os.getpid())).see_off_last(seconds=0.0005)
