# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells about the other end of a unix socket, also when that has gone."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.users import open_python

from insula.kernel.unix_peer import Process, credentials, groups, process
from waiting import DEADLINE_S

CALL = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    # Not in tmp_path, which is root's alone: another user connects.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as made:
        os.chmod(folder, 0o755)
        made.bind(f"{folder}/door")
        os.chmod(f"{folder}/door", 0o666)
        made.listen()
        made.settimeout(DEADLINE_S)
        yield made


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_the_one_who_connected_is_known_until_it_ends(listener: socket.socket) -> None:
    words = [open_python(), "-SIc", CALL, listener.getsockname()]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, user=12345, group=23456, extra_groups=[7, 9]
    ) as caller:
        connection, _ = listener.accept()
        with connection:
            assert credentials(connection) == (caller.pid, 12345, 23456)
            assert groups(connection) == {7, 9}
            assert process(connection) == Process(caller.pid, start_time(caller.pid))
            caller.communicate()
            assert process(connection) == Process(caller.pid, None)


def test_no_descriptor_stays() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            assert process(ours).pid == os.getpid()
        assert len(os.listdir("/proc/self/fd")) == before


class Older:
    """A kernel before 6.5."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def getsockopt(self, level: int, name: int, length: int, /) -> bytes:
        # No such option has this number: the kernel refuses it as an older one would SO_PEERPIDFD.
        return self._connection.getsockopt(level, 9999 if name == 77 else name, length)


def test_an_older_kernel_tells_the_pid_only() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert process(Older(ours)) == Process(os.getpid(), None)
