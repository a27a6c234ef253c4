# SPDX-License-Identifier: Apache-2.0
"""The kernel's counters into words: system calls with failures and durations, capabilities."""

import errno
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from insula.model.monitor import CallCount, CallDurations, ContainerCounts
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


class _Words(NamedTuple):
    """What was read of a container, and that in words."""

    counts: Mapping[int, Count]
    calls: tuple[CallCount, ...]
    durations: CallDurations | None


class Counts:
    """What is counted, in words.  Of who has made no call since the last look, the words of then.

    Not for several threads at once.
    """

    def __init__(self, probes: Probes, names: Mapping[int, str]) -> None:
        self._names = names
        self._probes = probes
        self._words: dict[int, _Words] = {}
        """cgroup → what was read last, and that in words."""
        self._capabilities: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
        """(cgroup, granted) → uses that the kernel has been told to forget."""

    def of(
        self, subjects: Iterable[Subject], *, since: Mapping[int, float], lost: Mapping[str, int]
    ) -> list[ContainerCounts]:
        """Return the counters of containers, leaving out those that nobody counts.

        since: cgroup → `Probes.looked_s` when somebody began to.  lost: container → its events that nobody could read.
        """
        counted = [subject for subject in subjects if subject.cgroup in since]
        self._put_into_words({each.cgroup: self._probes.counts(each.cgroup) for each in counted})
        capabilities = self._used_capabilities()
        looked_s, now = self._probes.looked_s, time.monotonic()
        return [
            ContainerCounts(
                id=subject.container,
                name=subject.name,
                sampled_at=now,
                looked_s=round(looked_s - since[subject.cgroup], 6),
                calls=self._words[subject.cgroup].calls,
                durations=self._words[subject.cgroup].durations,
                capabilities=_named(capabilities.get((subject.cgroup, 1), {})),
                refused_capabilities=_named(capabilities.get((subject.cgroup, 0), {})),
                lost_events=lost.get(subject.container, 0),
            )
            for subject in counted
        ]

    def _used_capabilities(self) -> dict[tuple[int, int], Counter[int]]:
        found = {of: counts.copy() for of, counts in self._capabilities.items()}
        for cgroup, granted, capability, count in self._probes.capabilities():
            found.setdefault((cgroup, granted), Counter())[capability] += count
        return found

    def tell_capabilities_again(self, cgroup: int) -> None:
        """Have the kernel tell the next use of each capability, as it does the first; all uses stay counted."""
        for granted, capability, count in self._probes.take_capabilities(cgroup):
            self._capabilities[cgroup, granted][capability] += count

    def forget_calls(self, cgroup: int) -> None:
        """Drop the words about a container whose calls nobody counts any more."""
        self._words.pop(cgroup, None)

    def forget(self, cgroup: int) -> None:
        """Drop the capabilities of a container that nobody watches any more."""
        for granted in (0, 1):
            self._capabilities.pop((cgroup, granted), None)

    def _put_into_words(self, found: Mapping[int, Mapping[int, Count]]) -> None:
        # `Slots.read` gives what it gave before, the very same, of who has made no call.
        changed = {
            cgroup
            for cgroup, counts in found.items()
            if cgroup not in self._words or self._words[cgroup].counts is not counts
        }
        if not changed:
            return
        # After the counts: they are complete when a container is said to have changed.
        durations = {(cgroup, number): each for cgroup, number, each in self._probes.durations(changed)}
        errors = _grouped(row for row in self._probes.errors() if row[0] in changed)
        timed: dict[int, list[Durations]] = defaultdict(list)
        for (cgroup, _), each in durations.items():
            timed[cgroup].append(each)
        for cgroup in changed:
            calls = [
                self._call(
                    number,
                    count,
                    failed=errors.get((cgroup, number), {}),
                    timed=durations.get((cgroup, number)),
                )
                for number, count in found[cgroup].items()
            ]
            by_frequency = tuple(sorted(calls, key=lambda each: -each.calls))
            self._words[cgroup] = _Words(found[cgroup], by_frequency, _together(timed[cgroup]))

    def _call(
        self, number: int, count: Count, *, failed: Mapping[int, int], timed: Durations | None
    ) -> CallCount:
        return CallCount(
            call=self._names.get(number, f"syscall {number}"),
            calls=count.calls,
            failures=count.failures,
            errors={errno.errorcode.get(code, str(code)): times for code, times in failed.items()},
            timed=timed.calls if timed else 0,
            mean_ns=timed.nanoseconds // timed.calls if timed and timed.calls else 0,
            p99_ns=tail_ns(timed) if timed else 0,
        )


def _together(durations: Sequence[Durations]) -> CallDurations | None:
    if not durations:
        return None
    return CallDurations(
        calls=sum(each.calls for each in durations),
        nanoseconds=sum(each.nanoseconds for each in durations),
        steps=tuple(map(sum, zip(*(each.steps for each in durations), strict=True))),
    )


def _named(counts: Mapping[int, int]) -> dict[str, int]:
    return {capability_name(bit): count for bit, count in counts.items()}


def _grouped(rows: Iterable[tuple[int, int, int, int]]) -> dict[tuple[int, int], dict[int, int]]:
    """(cgroup, number, detail, count) by cgroup and number."""
    found: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for cgroup, number, detail, count in rows:
        found[cgroup, number][detail] = count
    return found
