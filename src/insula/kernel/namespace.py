# SPDX-License-Identifier: Apache-2.0
"""Namespaces: a process made inside new ones, and a process that joins those of another.

Out of scope: what is then mounted or mapped there.  Only for single-threaded processes: `spawn` continues a copy of
this interpreter in the child.

Sources: clone(2) (clone3), setns(2), namespaces(7), `include/uapi/linux/sched.h`.
"""

import os
import struct
from typing import NamedTuple

from insula.kernel import libc

CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000
SIGCHLD = 17

#: What a container gets at its birth.  Its cgroup namespace follows later: its root is the cgroup of the moment.
CONTAINER = (
    CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWTIME
)
#: What a process that enters a container joins.
JOINED = CONTAINER | CLONE_NEWCGROUP


class Child(NamedTuple):
    """A new process: its pid here (0 in the child itself) and its pidfd (-1 in the child)."""

    pid: int
    pidfd: int


def spawn(flags: int, *, cgroup_fd: int = -1) -> Child:
    """Clone the caller into new namespaces.  Returns twice, as fork(2).

    cgroup_fd: a cgroup v2 directory for the child to be born in; -1: the caller's.
    Raises: OSError naming clone3: EPERM, ENOSPC (too many namespaces), EINVAL (an unknown kind).
    """
    pidfd = bytearray(4)
    flags |= CLONE_PIDFD | (CLONE_INTO_CGROUP if cgroup_fd >= 0 else 0)
    exit_signal = 0 if flags & CLONE_PARENT else SIGCHLD  # a sibling sends its parent what we send ours
    # struct clone_args { __aligned_u64 flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
    #                     set_tid, set_tid_size, cgroup; }
    arguments = bytearray(
        struct.pack(
            "=11Q", flags, libc.address_of(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, max(cgroup_fd, 0)
        )
    )
    pid = libc.clone3(libc.address_of(arguments), len(arguments))
    return Child(pid, struct.unpack("=i", pidfd)[0] if pid else -1)


def enter(pidfd: int, flags: int) -> None:
    """Join namespaces of a process; the pid and time namespaces take effect for children only.

    Raises: OSError naming setns: ESRCH if the process is gone, EPERM.
    """
    libc.setns(pidfd, flags)


def identify(pid: int | str, kind: str) -> int:
    """Return the inode number of a namespace: kind as in /proc/PID/ns (`net`, `mnt`, …)."""
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
