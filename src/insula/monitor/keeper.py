# SPDX-License-Identifier: Apache-2.0
"""A process that keeps programs at their hooks beside ours, so that ours ends at once, however it ends.

The kernel detaches a program from a function when the last descriptor of its link is closed, and has whoever closes it wait
some 0.13 s for each: an insulad that is killed would go on holding the lock of its state folder for ten seconds and more.
So another process has a copy of each descriptor, and closes them a moment after it sees us gone.  Source: ADR 32.
"""

import os
from collections.abc import Sequence

_PROGRAM = "read -r _; sleep 1"
"""`read` ends with the last writer of the pipe; the second is for us to have closed ours first."""


class Keeper:
    """Keeps the links behind some descriptors until `let_go`, or until our process ends."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        """Begin.  Raises: OSError if there is no room for another process."""
        reading, self._writing = os.pipe2(os.O_CLOEXEC)
        inherited = [(os.POSIX_SPAWN_DUP2, each, each) for each in descriptors]
        try:
            self._pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", _PROGRAM],
                {"PATH": os.defpath},
                file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0), *inherited],
                setsid=True,
            )
        except OSError:
            os.close(self._writing)
            raise
        finally:
            os.close(reading)
        self._is_over = False

    def let_go(self) -> None:
        """Have it end, after what may be ten seconds and more."""
        os.close(self._writing)

    def is_alive(self) -> bool:
        """Answer whether it still keeps something."""
        return not self._look(os.WNOHANG)

    def wait(self) -> None:
        """Wait until it has ended."""
        self._look(0)

    def _look(self, how: int) -> bool:
        self._is_over = self._is_over or os.waitpid(self._pid, how)[0] != 0
        return self._is_over
