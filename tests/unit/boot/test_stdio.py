# SPDX-License-Identifier: Apache-2.0
"""What a program writes into its log, what has it wait, and what has it lose some."""

import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from insula.boot import stdio
from insula.boot.loop import EventLoop
from insula.boot.stdio import LAST_BYTES, RECORD, Log, Stdio
from insula.model import stream
from waiting import DEADLINE_S

HALF = 4096


class Program:
    """A program that writes as fast as it is read."""

    def __init__(self, path: Path) -> None:
        self.loop = EventLoop()
        self.path = path
        self.streams = Stdio(self.loop, log=Log(str(path)), signal=lambda _number: None)
        reading, self.writing = os.pipe2(os.O_CLOEXEC)
        self.streams.add_output(reading, 1)
        os.set_blocking(self.writing, False)
        self.written = 0
        # The loop waits for as long as nothing happens.
        self.loop.call_at(time.monotonic() + DEADLINE_S, lambda: None)

    def write(self) -> None:
        try:
            while True:
                self.written += os.write(self.writing, bytes(4096))
        except BlockingIOError:
            pass

    def write_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end
            self.write()
            self.loop.run_once()

    def end(self) -> None:
        os.close(self.writing)
        self.streams.finish(b"")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr(stdio, "LOG_RATE", 1 << 20)
    monkeypatch.setattr(stdio, "LOG_BURST", 1 << 18)
    return Program(tmp_path / "log")


def logged(program: Program) -> int:
    return program.path.stat().st_size


def test_a_flood_of_the_log_has_to_wait_and_nothing_is_lost(program: Program) -> None:
    program.write_until(lambda: logged(program) >= 1 << 18)
    stopped_at = logged(program)
    assert stopped_at < (1 << 18) + 3 * stdio.READ_BYTES
    program.write_until(lambda: logged(program) > stopped_at)  # it goes on by itself
    program.end()
    with open(program.path, "rb") as file:
        size = 0
        while head := file.read(stdio.RECORD.size):
            size += len(file.read(stdio.RECORD.unpack(head)[2]))
    assert size == program.written


def test_who_watches_need_not_wait_for_the_log(program: Program) -> None:
    program.write_until(lambda: logged(program) >= 1 << 18)
    ours, theirs = socket.socketpair()
    with ours:
        program.streams.attach(theirs, with_stdin=False, first=b"")
        for _ in range(50):  # far more than the rate gives meanwhile
            program.write()
            program.loop.run_once()
            ours.recv(1 << 20)
        assert logged(program) > 4 << 18
        program.end()


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Have each open(2) fail with EMFILE."""
    lowest = os.dup(0)
    os.close(lowest)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_log_that_could_not_be_turned_over_is_turned_over_later(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(str(path), kept_bytes=2 * HALF)
    with no_descriptor_left():
        for _ in range(3):
            log.write(stream.STDOUT, bytes(HALF))
    for _ in range(20):
        log.write(stream.STDOUT, bytes(HALF // 4))
    log.close()
    sizes = [each.stat().st_size for each in (path, tmp_path / "log.1")]
    assert max(sizes) <= 2 * (HALF + RECORD.size), sizes


class NoLoop:
    """Nothing is ever ready by itself: epoll takes no /dev/zero."""

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None: ...
    def unwatch(self, descriptor: int) -> None: ...
    def call_at(self, deadline: float, callback: Callable[[], None]) -> object: ...


def test_of_a_pipe_that_is_never_empty_the_end_of_the_program_takes_what_it_can_hold(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), kept_bytes=8 * LAST_BYTES)
    stdio = Stdio(NoLoop(), log=log, signal=lambda _number: None)
    stdio.add_output(os.open("/dev/zero", os.O_RDONLY), stream.STDOUT)
    stdio.finish(b"")
    assert LAST_BYTES <= (tmp_path / "log").stat().st_size <= 2 * LAST_BYTES
