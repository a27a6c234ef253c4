# SPDX-License-Identifier: Apache-2.0
"""Connections of a process that is about to be killed because it runs elsewhere: nobody hears of its end, nothing stays."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from insula.kernel.tcp_repair import begin_repair, end_repair

HOLDS = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
accepted, _ = listener.accept()
accepted.sendall(b"x")
sys.stdin.read()
"""
SILENT_S = 0.3


@contextmanager
def connected() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A process that holds a listener and a connection, and the connection's other end."""
    words = [sys.executable, "-c", HOLDS]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), timeout=20.0) as ours:
                assert ours.recv(1) == b"x"
                yield process, ours
        finally:
            process.kill()


def is_known_to_the_kernel(port: int) -> bool:
    """Tell whether a socket of that local port is left."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") for line in lines)


def test_who_is_killed_in_repair_says_nothing_and_leaves_nothing() -> None:
    with connected() as (process, ours):
        port = ours.getpeername()[1]
        assert begin_repair(process.pid) == 1  # a listener cannot be
        process.kill()
        process.wait()
        ours.settimeout(SILENT_S)
        with pytest.raises(TimeoutError):
            ours.recv(1)
        assert not is_known_to_the_kernel(port)


def test_who_is_taken_out_of_repair_again_is_heard() -> None:
    with connected() as (process, ours):
        begin_repair(process.pid)
        assert end_repair(process.pid) == 1
        process.kill()
        assert ours.recv(1) == b""
