# SPDX-License-Identifier: Apache-2.0
"""The kernel's counters into words: system calls with failures and durations, capabilities, losses."""

import errno
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

from insula.model.monitor import CallCount, ContainerCounts
from insula.monitor.describe import capability_name
from insula.monitor.layout import FIRST_SLOT_NS, Counter
from insula.monitor.probes import Probes
from insula.monitor.subscription import Subject

_TAIL = 0.99


def slot_end_ns(counter: Counter, *, share: float = _TAIL) -> int:
    """Return the upper end of the histogram's slot below which that share of the calls lies; 0: none was timed."""
    wanted, seen = share * counter.timed, 0
    for slot, count in enumerate(counter.slots):
        seen += count
        if count and seen >= wanted:
            return FIRST_SLOT_NS << slot
    return 0


class Counts:
    """One look at all maps."""

    def __init__(self, probes: Probes, names: Mapping[int, str]) -> None:
        self._names = names
        self._calls: dict[int, list[tuple[int, Counter]]] = defaultdict(list)
        for cgroup, number, counter in probes.counters():
            self._calls[cgroup].append((number, counter))
        self._errors = _grouped(probes.errors())
        self._capabilities = _grouped(probes.capabilities())
        self._losses = _grouped(probes.losses())
        self._sampled_at = time.monotonic()

    def of(self, subjects: Iterable[Subject]) -> list[ContainerCounts]:
        """Return the counters of containers, leaving out those that do not run or were never counted."""
        found = []
        for subject in subjects:
            try:
                cgroup = subject.cgroup
            except OSError:
                continue
            if cgroup in self._calls:
                found.append(self._one(subject, cgroup))
        return found

    def _one(self, subject: Subject, cgroup: int) -> ContainerCounts:
        calls = [self._call(cgroup, number, counter=counter) for number, counter in self._calls[cgroup]]
        losses = self._losses[cgroup]
        capabilities = self._capabilities[cgroup]
        return ContainerCounts(
            id=subject.container,
            name=subject.name,
            sampled_at=self._sampled_at,
            calls=tuple(sorted(calls, key=lambda each: -each.calls)),
            capabilities={
                capability_name(bit): count
                for (was_granted, bit), count in capabilities.items()
                if was_granted
            },
            refused_capabilities={
                capability_name(bit): count
                for (was_granted, bit), count in capabilities.items()
                if not was_granted
            },
            lost_events=losses.get((0, 0), 0),
            uncounted_calls=losses.get((0, 1), 0),
        )

    def _call(self, cgroup: int, number: int, *, counter: Counter) -> CallCount:
        errors = {
            errno.errorcode.get(code, str(code)): count
            for (of, code), count in self._errors[cgroup].items()
            if of == number
        }
        return CallCount(
            call=self._names.get(number, f"syscall {number}"),
            calls=counter.calls,
            failures=counter.failures,
            errors=errors,
            mean_ns=counter.nanoseconds // counter.timed if counter.timed else 0,
            p99_ns=slot_end_ns(counter),
        )


def _grouped(rows: Iterable[tuple[int, int, int, int]]) -> dict[int, dict[tuple[int, int], int]]:
    """(cgroup, number, detail, count) by cgroup."""
    found: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
    for cgroup, number, detail, count in rows:
        found[cgroup][number, detail] = count
    return found
