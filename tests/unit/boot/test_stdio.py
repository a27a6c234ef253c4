# SPDX-License-Identifier: Apache-2.0
"""What a program writes into its log, and what has it wait."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from insula.boot import stdio
from insula.boot.loop import EventLoop
from insula.boot.stdio import Log, Stdio

DEADLINE_S = 20.0


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
