# SPDX-License-Identifier: Apache-2.0
"""Sockets of a process, as copies; this process stands for the other one (which needs no right to trace it)."""

import os
import socket

from insula.kernel import held_sockets
from insula.kernel.held_sockets import inode_of


def test_copies_are_the_sockets_themselves() -> None:
    ours, other = socket.socketpair()
    with ours, other:
        found = {}
        for copy in held_sockets.copies(os.getpid()):
            with copy:
                found[inode_of(copy.fileno())] = copy.family, copy.type
        assert found[inode_of(ours.fileno())] == (socket.AF_UNIX, socket.SOCK_STREAM)
        assert inode_of(other.fileno()) in found


def test_a_process_that_has_gone_has_none() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert list(held_sockets.copies(child)) == []
