# SPDX-License-Identifier: Apache-2.0
"""A trace at another host ends here when nobody wants it any more, however far it has come."""

import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hosted import DEADLINE_S, wait_until
from insula.daemon.relay import Relay, Relays
from insula.daemon.watching import Watching
from insula.model.errors import ContainerNotFound
from insula.model.lifecycle import Status
from insula.model.migration import Phase
from insula.model.monitor import Ended, TraceWish
from insula.monitor.subscription import Subject, Subscription

NO_GROUP: Any = None
SUBJECT = Subject("id", "web", NO_GROUP, 1, 0, 65536)


def watcher() -> Subscription:
    return Subscription(SUBJECT, TraceWish(), calls={}, clock=0.0, notify=lambda: None)


class Host:
    """Two ends of each connection to the other host, which tells that the trace has begun; and who watches here."""

    def __init__(self) -> None:
        self.watcher = watcher()
        self.status: Status | None = Status.MIGRATING
        self.ends: list[str] = []
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._is_over = False
        self._guard = threading.Lock()
        this: Any = self
        self.relays = Relays(this, store=this, pki=this)

    def watchers(self, _container: str) -> list[Subscription]:
        return [self.watcher]

    def end(self, _container: str, *, reason: str) -> None:
        self.ends.append(reason)

    def get_host(self, name: str) -> str:
        return name

    def get_container(self, ref: str) -> "Host":
        if self.status is None:
            raise ContainerNotFound(f"no container `{ref}`")
        return self

    def open_stream(self, _host: str) -> socket.socket:
        with self._guard:
            if self._is_over:
                raise ConnectionRefusedError("the other host has ended")
            here, there = socket.socketpair()
            self._pairs.append((here, there))
        there.settimeout(DEADLINE_S)
        there.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"type":"began"}\n')
        return here

    def open(self) -> None:
        self.relays.open("id", host="there")
        self.relays.wait_open("id")

    def hang_up(self) -> None:
        self._pairs[0][1].shutdown(socket.SHUT_WR)

    def is_left(self) -> bool:
        """Tell whether the other host has been hung up on."""
        return all(here.fileno() == -1 for here, _ in self._pairs)

    def close(self) -> None:
        with self._guard:
            self._is_over = True
        for here, there in self._pairs:
            there.close()
            here.close()


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def test_who_goes_away_during_the_move_leaves_nothing_behind(host: Host) -> None:
    host.open()
    host.watcher.close()
    host.relays.take_over("id", host="there")
    wait_until(host.is_left, what="the relay is closed")


def test_who_goes_away_after_the_move_leaves_nothing_behind(host: Host) -> None:
    host.open()
    host.relays.take_over("id", host="there")
    host.watcher.close()
    wait_until(host.is_left, what="the relay is closed")


def test_one_that_is_lost_during_the_move_is_no_watchers_only_source(host: Host) -> None:
    host.open()
    host.hang_up()
    wait_until(host.is_left, what="the relay has ended")
    host.relays.take_over("id", host="there")
    ended = [each for each in host.watcher.read(at_most=9) if isinstance(each, Ended)]
    assert ended or not host.watcher.is_elsewhere


@pytest.mark.parametrize("status", [None, Status.EXITED, Status.RUNNING])
def test_one_that_opens_when_its_container_leaves_no_more_is_closed(
    host: Host, status: Status | None
) -> None:
    host.status = status
    host.open()
    wait_until(host.is_left, what="the relay is closed")


def test_another_move_closes_what_an_earlier_one_opened(host: Host) -> None:
    host.open()
    host.open()
    host.relays.give_up("id")
    wait_until(host.is_left, what="the relays are closed")


@pytest.mark.parametrize("status", [None, Status.EXITED, Status.PAUSED, Status.RUNNING])
def test_the_end_of_a_container_in_mid_move_closes_its_relays(host: Host, status: Status | None) -> None:
    runtime: Any = SimpleNamespace(store=host)
    collector: Any = host
    pki: Any = host
    sight: Any = None
    watching = Watching(runtime, collector, pki=pki, sight=sight)
    watching.note_phase("id", Phase.RESTORE, "there")
    watching.note_phase("id", Phase.COMMIT, "there")
    record: Any = None if status is None else SimpleNamespace(status=status, exit_code=1)
    watching.note("id", record)
    wait_until(host.is_left, what="the relay is closed")


def test_a_move_goes_on_where_no_thread_can_be_begun_for_its_watchers(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    host.open()
    host.relays.take_over("id", host="there")
    assert host.ends == ["moved to host there, which does not tell more"]


def test_one_that_is_closed_before_it_is_connected_closes_its_connection_and_ends() -> None:
    is_connecting, may_connect = threading.Event(), threading.Event()
    here, there = socket.socketpair()
    there.settimeout(DEADLINE_S)

    def connect() -> Any:
        is_connecting.set()
        may_connect.wait(DEADLINE_S)
        return here

    before = set(threading.enumerate())
    with there:
        relay = Relay(connect, watcher())
        (thread,) = set(threading.enumerate()) - before
        assert is_connecting.wait(DEADLINE_S)
        relay.close()
        may_connect.set()
        wait_until(lambda: not thread.is_alive(), what="the relay's thread ends")
        assert here.fileno() == -1
        assert there.recv(1) == b""
