# SPDX-License-Identifier: Apache-2.0
"""A process that ends when the one that made it does.  Source: prctl(2), PR_SET_PDEATHSIG."""

import signal

from insula.kernel import libc

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that made it ends.

    A change of its ids, or a program that has more rights than it, takes that back.
    """
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
