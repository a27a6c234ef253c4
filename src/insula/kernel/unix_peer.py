# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a unix socket, as the kernel noted it when that end connected.

A pid alone may be somebody else's by the time it is looked at.  With SO_PEERPIDFD the process is held while it is asked
about, and a number that was given anew is noticed.  Out of scope: what any of it permits (`api/auth.py`).
Sources: unix(7), SO_PEERCRED; socket(7); include/uapi/asm-generic/socket.h; proc_pid_stat(5).  Standard library only.
"""

import os
import select
import socket
import struct
from typing import NamedTuple, Protocol

__all__ = ["Connection", "Credentials", "Process", "credentials", "groups", "process"]

SO_PEERGROUPS = 59
"""Since Linux 4.13."""
SO_PEERPIDFD = 77
"""Since Linux 6.5."""
NGROUPS_MAX = 65_536
"""limits.h."""
_FEW_GROUPS = 64
_UCRED = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""
_DESCRIPTOR = struct.Struct("i")
_START_TIME = 22 - 3
"""starttime's place in /proc/PID/stat behind the name in brackets, whose next field is the third."""


class Connection(Protocol):
    """What of a socket is needed here."""

    def getsockopt(self, level: int, name: int, length: int, /) -> bytes: ...


class Credentials(NamedTuple):
    """Of who connected, at that moment.  pid: 0 if it lives in a pid namespace that we do not see."""

    pid: int
    uid: int
    gid: int


class Process(NamedTuple):
    """A process by what is never another's until the next boot.  began: clock ticks after boot; None: cannot be told."""

    pid: int
    began: int | None


def credentials(connection: Connection) -> Credentials:
    """Return who connected."""
    return Credentials(
        *_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    )


def groups(connection: Connection) -> frozenset[int]:
    """Return the supplementary groups of who connected."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * _FEW_GROUPS)
    except OSError:  # ERANGE: more than that
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * NGROUPS_MAX)
    return frozenset(struct.unpack(f"{len(raw) // 4}I", raw))


def process(connection: Connection) -> Process:
    """Return the process that connected.  It may have ended or given the connection to another since."""
    pid = credentials(connection).pid
    try:
        pidfd = _DESCRIPTOR.unpack(connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, _DESCRIPTOR.size))[
            0
        ]
    except OSError:  # ENOPROTOOPT: an older kernel; ESRCH, ENODATA: it has gone
        return Process(pid, None)
    try:
        began = _start_time(pid)
        return Process(pid, None if _has_ended(pidfd) else began)
    finally:
        os.close(pidfd)


def _start_time(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[_START_TIME])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _has_ended(pidfd: int) -> bool:
    """A pidfd is readable when its process has ended.  Source: pidfd_open(2)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
