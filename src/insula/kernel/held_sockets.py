# SPDX-License-Identifier: Apache-2.0
"""Sockets in the hands of another process, known by their inodes: are they still there, and cut them.

For connections that were given away by SCM_RIGHTS and have to end before their new owner lets go of them.
Sources: proc_pid_fd(5), pidfd_getfd(2), since Linux 5.6.  Standard library only.
"""

import errno
import os
import re
import socket
from collections.abc import Iterator

from insula.kernel import libc

__all__ = ["copies", "held", "inode_of", "shut_down"]

_SOCKET = re.compile(r"socket:\[([0-9]+)\]")


def inode_of(descriptor: int) -> int:
    """Return the number by which a socket is known system-wide while it is open anywhere."""
    return os.fstat(descriptor).st_ino


def held(pid: int) -> frozenset[int]:
    """Return the inodes of all sockets that a process has open."""
    found = (_SOCKET.fullmatch(_target(pid, name)) for name in _names(pid))
    return frozenset(int(each[1]) for each in found if each)


def copies(pid: int) -> Iterator[socket.socket]:
    """Yield a duplicate of each socket that a process has open; the caller closes it.

    Raises: OSError: EPERM without the right to trace the process.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for name in _names(pid):
            found = _SOCKET.fullmatch(_target(pid, name))
            copy = _copy(pidfd, int(name), inode=int(found[1])) if found else None
            if copy is not None:
                yield copy
    finally:
        os.close(pidfd)


def shut_down(pid: int, inode: int) -> bool:
    """End a connection both ways, as if the other end had hung up.  Returns: False if the process does not have it.

    Raises: OSError: EPERM without the right to trace the process.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return any(_shut_one(pidfd, number, inode=inode) for number in _descriptors(pid, inode))
    finally:
        os.close(pidfd)


def _descriptors(pid: int, inode: int) -> list[int]:
    return [int(name) for name in _names(pid) if _target(pid, name) == f"socket:[{inode}]"]


def _names(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        return []


def _target(pid: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{name}")
    except FileNotFoundError:  # closed
        return ""


def _shut_one(pidfd: int, number: int, *, inode: int) -> bool:
    found = _copy(pidfd, number, inode=inode)
    if found is None:
        return False
    with found:
        found.shutdown(socket.SHUT_RDWR)
        return True


def _copy(pidfd: int, number: int, *, inode: int) -> socket.socket | None:
    try:
        descriptor = libc.pidfd_getfd(pidfd, number, 0)
    except OSError as error:
        if isinstance(error, ProcessLookupError) or error.errno == errno.EBADF:
            return None
        raise
    if inode_of(descriptor) != inode:  # the number was taken by something else meanwhile
        os.close(descriptor)
        return None
    return socket.socket(fileno=descriptor)
