# SPDX-License-Identifier: Apache-2.0
"""A userfaultfd for the memory of another process, by which the kernel notes what the process writes.

It is made inside (a userfaultfd belongs to the memory of whoever makes it), taken out, and closed inside at once: what stays
in the process is a mark on its mappings (`uw` in smaps), which the end of our descriptor takes away, however we end.  With
WP_ASYNC nobody must answer: the kernel resolves a write to a protected page by itself and takes the protection off.

While a mapping is registered the kernel does not merge it with neighbours that are not, so that an `mremap` over two
mappings that would otherwise be one fails with EFAULT; no program that was tried does that.  A thread that forks in the
0.1 ms during which the descriptor is inside gives it to its child.

Out of scope: which mappings (migrate/track.py), what was written (pagemap.py).
Sources: userfaultfd(2), ioctl_userfaultfd(2); linux/userfaultfd.h; Documentation/admin-guide/mm/userfaultfd.rst.
Since Linux 6.7.
"""

import contextlib
import fcntl
import os
import struct

from insula.kernel import ptrace

__all__ = ["open_in", "register"]

UFFD_USER_MODE_ONLY = 1
UFFD_API = 0xAA
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_WRITEPROTECT = 0xC018AA06
UFFDIO_REGISTER_MODE_WP = 2


def open_in(pid: int, *, deadline_seconds: float = 1.0) -> int:
    """Return a userfaultfd of a running process's memory, in mode WP_ASYNC, as a descriptor of ours.

    Raises: OSError: as ptrace.inside; EMFILE if the process may have no more descriptors; EINVAL without WP_ASYNC.
    """

    with contextlib.ExitStack() as undo:

        def make(inside: ptrace.Inside) -> int:
            number = inside.call("userfaultfd", os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY)
            try:
                handle = inside.take(number)
                undo.callback(os.close, handle)  # the process may die before it is let go
                return handle
            finally:
                inside.call("close", number)

        handle = ptrace.inside(pid, make, deadline_seconds=deadline_seconds)
        features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED
        _ioctl(handle, UFFDIO_API, struct.pack("=QQQ", UFFD_API, features, 0), words="no WP_ASYNC")
        undo.pop_all()
    return handle


def register(handle: int, start: int, *, end: int) -> None:
    """Have the kernel watch a mapping: from now on each page of it counts as written until it is protected.

    Raises: OSError: ENOMEM if that memory is gone (the process ended, or executes another program); EINVAL where there is no
    mapping, or one that cannot be watched; EBUSY if somebody else watches it.
    """
    words = f"mapping {start:#x}"
    fields = struct.pack("=QQQQ", start, end - start, UFFDIO_REGISTER_MODE_WP, 0)
    _ioctl(handle, UFFDIO_REGISTER, fields, words=words)
    # Marks of an earlier watcher may be left, on kernels that do not clear them (before 6.9) or after an mremap (before
    # 6.14): they would hide what was written since.
    _ioctl(handle, UFFDIO_WRITEPROTECT, struct.pack("=QQQ", start, end - start, 0), words=words)


def _ioctl(handle: int, request: int, argument: bytes, *, words: str) -> None:
    try:
        fcntl.ioctl(handle, request, argument)
    except OSError as error:
        raise OSError(error.errno, f"ioctl: userfaultfd: {words}: {os.strerror(error.errno or 0)}") from None
