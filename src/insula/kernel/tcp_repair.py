# SPDX-License-Identifier: Apache-2.0
"""Put the sockets of a process into TCP_REPAIR and take them out of it.

Out of it: a CRIU that was killed in mid-dump leaves them there, and `recv()` answers EPERM, nothing is sent, so that the program
believes its connections broken.  Into it: what goes on elsewhere must end here without a word.  A socket that is closed in repair
goes at once; another one sends FIN again and again to who cannot answer, and keeps its network namespace for minutes.

The process should be frozen meanwhile.  Source: tcp(7) does not have it; linux/tcp.h, net/ipv4/tcp.c `tcp_repair_set`,
`__tcp_close`; pidfd_getfd(2).
"""

import os
import socket
from collections.abc import Callable

from insula.kernel import libc

__all__ = ["begin_repair", "end_repair"]

TCP_REPAIR = 19
TCP_REPAIR_ON = 1
TCP_REPAIR_OFF = 0


def begin_repair(pid: int) -> int:
    """Put every TCP socket of a process that is connected into repair.  Returns: how many.

    Raises: OSError: ESRCH if the process is gone.
    """
    return _set_all(pid, _begin_one)


def end_repair(pid: int) -> int:
    """Take every TCP socket of a process out of repair.  Returns: how many were in it.

    Raises: OSError: ESRCH if the process is gone.
    """
    return _set_all(pid, _end_one)


def _set_all(pid: int, change: Callable[[socket.socket], bool]) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        numbers = [int(name) for name in os.listdir(f"/proc/{pid}/fd") if _is_socket(pid, name)]
        return sum(_change_one(pidfd, number, change) for number in numbers)
    finally:
        os.close(pidfd)


def _is_socket(pid: int, name: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    except OSError:  # closed
        return False


def _change_one(pidfd: int, number: int, change: Callable[[socket.socket], bool]) -> bool:
    with socket.socket(fileno=libc.pidfd_getfd(pidfd, number, 0)) as found:
        is_tcp = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
        return is_tcp and change(found)


def _begin_one(found: socket.socket) -> bool:
    try:
        found.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON)
    except PermissionError:  # it listens: `tcp_can_repair_sock`
        return False
    return True


def _end_one(found: socket.socket) -> bool:
    if found.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR) != TCP_REPAIR_ON:
        return False
    found.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF)
    return True
