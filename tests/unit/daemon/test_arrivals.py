# SPDX-License-Identifier: Apache-2.0
"""The door for migrations: few of whom nobody knows, each for a short time, and a paired host is let in beside them."""

import contextlib
import ssl
import threading
import time
from pathlib import Path

import pytest

from doors import DEADLINE_S, Doors, ends, http, run, secured
from hosted import wait_until
from insula.daemon import arrivals
from insula.model.errors import TargetRefused
from insula.model.migration import PROTOCOL

OF_ADDRESS, ALL = 32, 64


def hello() -> bytes:
    """The first words of somebody who wants to migrate."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([PROTOCOL])
    session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x")
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def test_a_slow_handshake_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "HANDSHAKE_S", 0.3)

    def test(doors: Doors) -> None:
        with doors.connect() as connection:
            connection.sendall(hello())
            assert doors.converses()
            assert ends(connection)

    run(test, tmp_path)


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MAX_UNPROVEN", ALL)
    monkeypatch.setattr(arrivals, "MAX_UNPROVEN_OF_ADDRESS", OF_ADDRESS)


def served() -> int:
    """How many threads serve the door for migrations."""
    return sum(each.name == "migration in" for each in threading.enumerate())


@pytest.mark.usefixtures("few_places")
def test_who_is_refused_and_stays_holds_few_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("insula.migrate.wire.DRAIN_SECONDS", 600.0)

    def test(doors: Doors) -> None:
        with contextlib.ExitStack() as held:
            for _ in range(300):
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                held.enter_context(secured(doors, context, alpn=PROTOCOL))
            wait_until(lambda: served() <= OF_ADDRESS, what=lambda: f"{served()} threads")
            assert doors.converses()

    run(test, tmp_path)


@pytest.mark.usefixtures("few_places")
@pytest.mark.parametrize("sources", [("127.0.0.1",), ("127.0.0.2",), ("127.0.0.2", "127.0.0.3")])
def test_a_paired_host_is_welcomed_beside_a_flood_of_silent_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: tuple[str, ...]
) -> None:
    monkeypatch.setattr(arrivals, "HANDSHAKE_S", 600.0)

    def test(doors: Doors) -> None:
        words = hello()
        with contextlib.ExitStack() as held:
            for number in range(150):
                connection = held.enter_context(doors.connect(source=sources[number % len(sources)]))
                connection.sendall(words)
                with contextlib.suppress(ConnectionResetError):
                    connection.recv(1)  # it is answered, or cut
            bound = min(ALL, OF_ADDRESS * len(sources))
            wait_until(lambda: served() <= bound, what=lambda: f"{served()} threads")
            assert doors.converses()

    run(test, tmp_path)


def test_the_door_stays_open_when_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "migration in":
            raise RuntimeError("can't start new thread")
        start(thread)

    def test(doors: Doors) -> None:
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", refuse)
            for _ in range(3):
                with doors.connect() as connection:
                    connection.sendall(hello())
                    assert ends(connection)
        assert doors.converses()

    run(test, tmp_path)
    assert [each.message for each in caplog.records if each.name == arrivals.__name__] == [
        "cannot serve a migration"
    ]


def test_too_many_at_once_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MAX_SERVED", 2)

    def test(doors: Doors) -> None:
        held = [doors.open(), doors.open()]
        with pytest.raises(TargetRefused, match="too many"):
            doors.open()
        for wire in held:
            wire.close()
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                assert doors.converses()
                break
            except TargetRefused:
                continue
        else:
            pytest.fail("the places were not given back")

    run(test, tmp_path)


def test_a_hundred_at_once(tmp_path: Path) -> None:
    def test(doors: Doors) -> None:
        silent = [doors.connect() for _ in range(100)]
        answers: list[bool] = []

        def ask() -> None:
            try:
                answers.append(doors.converses())
            except TargetRefused:
                answers.append(True)  # told to come again

        threads = [threading.Thread(target=ask) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [True] * 100
        assert http(doors)
        for each in silent:
            each.close()

    run(test, tmp_path)
