# SPDX-License-Identifier: Apache-2.0
"""The kernel's counters into words: system calls with failures and durations, capabilities, losses."""

import errno
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

from insula.model.monitor import CallCount, ContainerCounts
from insula.monitor.details import capability_name
from insula.monitor.layout import FIRST_STEP_NS, Count, Durations
from insula.monitor.probes import Probes
from insula.monitor.subscription import Subject

_TAIL = 0.99


def tail_ns(durations: Durations, *, share: float = _TAIL) -> int:
    """Return the upper end of the histogram's step below which that share of the calls lies; 0: none was timed."""
    wanted, seen = share * durations.calls, 0
    for step, count in enumerate(durations.steps):
        seen += count
        if count and seen >= wanted:
            return FIRST_STEP_NS << step
    return 0


class Counts:
    """One look at all maps."""

    def __init__(self, probes: Probes, names: Mapping[int, str]) -> None:
        self._names = names
        self._probes = probes
        self._durations = {(cgroup, number): each for cgroup, number, each in probes.durations()}
        self._errors = _grouped(probes.errors())
        self._capabilities = _grouped(probes.capabilities())
        self._looked_s = probes.looked_s
        self._sampled_at = time.monotonic()

    def of(self, subjects: Iterable[Subject], *, since: Mapping[int, float]) -> list[ContainerCounts]:
        """Return the counters of containers, leaving out those that nobody counts.

        since: cgroup → `Probes.looked_s` when somebody began to.
        """
        found = []
        for subject in subjects:
            counts = self._probes.counts(subject.cgroup)
            if counts:
                looked_s = self._looked_s - since.get(subject.cgroup, self._looked_s)
                found.append(self._one(subject, subject.cgroup, counts=counts, looked_s=looked_s))
        return found

    def _one(
        self, subject: Subject, cgroup: int, *, counts: Mapping[int, Count], looked_s: float
    ) -> ContainerCounts:
        calls = [self._call(cgroup, number, count=count) for number, count in counts.items()]
        return ContainerCounts(
            id=subject.container,
            name=subject.name,
            sampled_at=self._sampled_at,
            looked_s=round(looked_s, 6),
            calls=tuple(sorted(calls, key=lambda each: -each.calls)),
            capabilities=_named(self._capabilities[cgroup, 1]),
            refused_capabilities=_named(self._capabilities[cgroup, 0]),
            lost_events=self._probes.lost_events(cgroup),
        )

    def _call(self, cgroup: int, number: int, *, count: Count) -> CallCount:
        failed = self._errors[cgroup, number]
        errors = {errno.errorcode.get(code, str(code)): times for code, times in failed.items()}
        timed = self._durations.get((cgroup, number))
        return CallCount(
            call=self._names.get(number, f"syscall {number}"),
            calls=count.calls,
            failures=count.failures,
            errors=errors,
            timed=timed.calls if timed else 0,
            mean_ns=timed.nanoseconds // timed.calls if timed and timed.calls else 0,
            p99_ns=tail_ns(timed) if timed else 0,
        )


def _named(counts: Mapping[int, int]) -> dict[str, int]:
    return {capability_name(bit): count for bit, count in counts.items()}


def _grouped(rows: Iterable[tuple[int, int, int, int]]) -> dict[tuple[int, int], dict[int, int]]:
    """(cgroup, number, detail, count) by cgroup and number."""
    found: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for cgroup, number, detail, count in rows:
        found[cgroup, number][detail] = count
    return found
