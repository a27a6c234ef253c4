# SPDX-License-Identifier: Apache-2.0
"""Does a restore go on?  CRIU waits for ever for a process of it that the kernel has killed for want of memory.

Two signs, both read from the cgroup in which CRIU and what it restores run:

    the kernel says so     its count of processes killed for want of memory has grown: given up at once
    no work                CRIU and its processes have used no processor time for STILL_SECONDS.  Who reads pages, unpacks
                           files or waits for its share of a quota uses some; who waits for a process that is no more, none

What takes long and goes on is not given up here, whatever its size; how long the other host waits is `migrate/heartbeat.py`.
Sources: cgroup-v2.rst, `memory.events`; cgroup-v1/memory.rst, `memory.oom_control`, whose `oom_kill` counts alike.
"""

import time

from insula.kernel.cgroup import Group
from insula.model.errors import RestoreFailed

LOOK_SECONDS = 0.2
STILL_SECONDS = 5.0
WORK_US = 1000
"""Of processor time: less in STILL_SECONDS is no work."""


class Stall:
    """Watches one restore; made before it begins."""

    def __init__(self, group: Group, *, name: str) -> None:
        self._group = group
        self.name = name
        seen = group.stats()
        self._killed = seen.oom_kills
        self._worked_us = seen.cpu_usage_us
        self._worked_at = time.monotonic()

    def begin_anew(self) -> None:
        """Forget how long nothing was done: CRIU has waited for us."""
        self._worked_at = time.monotonic()

    def look(self) -> None:
        """Raises: RestoreFailed if it will not come to an end."""
        seen, now = self._group.stats(), time.monotonic()
        self.blame_memory(seen.oom_kills)
        if (
            seen.cpu_usage_us - self._worked_us >= WORK_US or not seen.cpu_usage_us
        ):  # which is not counted here
            self._worked_us, self._worked_at = seen.cpu_usage_us, now
        elif now - self._worked_at >= STILL_SECONDS:
            raise RestoreFailed(f"cannot restore `{self.name}`: CRIU does not go on")

    def blame_memory(self, killed: int | None = None) -> None:
        """Raises: RestoreFailed if a process was killed for want of memory."""
        if (self._group.stats().oom_kills if killed is None else killed) > self._killed:
            raise RestoreFailed(
                f"cannot restore `{self.name}`: the kernel has ended one of its processes for want of memory",
                hint="free memory on that host, or give the container a higher --memory",
            )
