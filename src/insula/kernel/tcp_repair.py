# SPDX-License-Identifier: Apache-2.0
"""Take the sockets of a process out of TCP_REPAIR, in which a CRIU that was killed in mid-dump leaves them.

In repair `recv()` answers EPERM and nothing is sent, so that the program believes its connections broken.  The process
should be frozen meanwhile.  Source: tcp(7) does not have it; linux/tcp.h, net/ipv4/tcp.c `tcp_repair_set`; pidfd_getfd(2).
"""

import os
import socket

from insula.kernel import libc

__all__ = ["end_repair"]

TCP_REPAIR = 19
TCP_REPAIR_ON = 1
TCP_REPAIR_OFF = 0


def end_repair(pid: int) -> int:
    """Take every TCP socket of a process out of repair.  Returns: how many were in it.

    Raises: OSError: ESRCH if the process is gone.
    """
    pidfd = os.pidfd_open(pid)
    try:
        return sum(
            _end_one(pidfd, int(name)) for name in os.listdir(f"/proc/{pid}/fd") if _is_socket(pid, name)
        )
    finally:
        os.close(pidfd)


def _is_socket(pid: int, name: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    except OSError:  # closed
        return False


def _end_one(pidfd: int, number: int) -> bool:
    with socket.socket(fileno=libc.pidfd_getfd(pidfd, number, 0)) as found:
        if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
            return False
        if found.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR) != TCP_REPAIR_ON:
            return False
        found.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF)
        return True
