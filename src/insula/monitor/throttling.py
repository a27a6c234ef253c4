# SPDX-License-Identifier: Apache-2.0
"""When the CPU limit holds a container back: no program in the kernel tells it, the cgroup's counter does."""

import time

from insula.model.monitor import Event, EventKind
from insula.monitor.subscription import Subject


class Throttling:
    """What was seen of each container's counter."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        """By cgroup: each run of a container has another."""

    def look(self, subject: Subject) -> list[Event]:
        """Return an event if the container was held back since the last look; the first look only begins."""
        try:
            now_us = subject.group.cpu_stats().throttled_us
        except OSError:  # it has just ended
            self.forget(subject)
            return []
        before_us = self._seen.get(subject.cgroup, now_us)
        self._seen[subject.cgroup] = now_us
        if now_us <= before_us:
            return []
        return [
            Event(
                at=time.time(),
                container=subject.container,
                name=subject.name,
                kind=EventKind.THROTTLE,
                result=now_us - before_us,
                detail=f"held back for {(now_us - before_us) / 1000:.1f} ms by its CPU limit",
            )
        ]

    def forget(self, subject: Subject) -> None:
        """Nobody looks any more: the next look begins anew."""
        self._seen.pop(subject.cgroup, None)
