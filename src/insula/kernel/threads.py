# SPDX-License-Identifier: Apache-2.0
"""Threads that the kernel may refuse: a limit of tasks (`ulimit -u`, pids.max) is an error like any other call's.

Source: clone(2), pthread_create(3).
"""

import errno
import threading


def begin(thread: threading.Thread) -> None:
    """Start a thread.  Raises: OSError: EAGAIN: there may be no more, which `Thread.start` says in words alone."""
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"clone: {error}") from error
