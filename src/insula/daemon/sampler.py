# SPDX-License-Identifier: Apache-2.0
"""Looks at all running containers each few seconds and keeps what it sees for an hour: the API's history.

Costs little when containers rest: five short files each, one for all interfaces, and disks only of those that have used a
processor.  No program in the kernel is attached for this: system calls are kept while somebody counts them anyway.
"""

import logging
import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from insula.daemon.watching import Watching
from insula.kernel.cgroup import Group
from insula.kernel.net_dev import NOTHING, Traffic, traffic
from insula.model.errors import InsulaError, WrongState
from insula.model.grant import Grant, scope
from insula.model.history import INTERVAL_S, CallShare, Sample, Usage
from insula.model.lifecycle import ALIVE
from insula.model.monitor import ContainerCounts
from insula.model.record import ContainerRecord
from insula.monitor.collect import Collector
from insula.monitor.history import History
from insula.runtime.context import Runtime

LOG = logging.getLogger(__name__)

RESTING_US = 2000
"""Who has used less processor time than that is not asked what it read and wrote: it is told with the next sample."""
SHORTEST_S = 1.0
"""What a start itself uses would be the peak of a shorter sample."""
TOP_CALLS = 8
"""Of each sample: system calls, and failures, that are kept by name."""


class _Look(NamedTuple):
    """All counters of a container at one moment: they began at 0 with its start."""

    at: float
    """Monotonic seconds."""
    cpu_us: int
    waits: tuple[int | None, int | None, int | None]
    disk: tuple[int, int]
    disk_cpu_us: int
    """What `cpu_us` was when disks were looked at: that costs more than all the rest."""
    traffic: Traffic
    calls: dict[tuple[str, str], int] | None = None
    """(call, error) → count; None: nobody counts them."""
    looked_s: float = 0.0
    """For how long calls were looked at: the counts are of that."""


@dataclass(slots=True)
class _Watched:
    """A running container."""

    record: ContainerRecord
    group: Group
    before: _Look | None = None
    """None: it ran already when this insulad began, and was not looked at yet."""


class Sampler:
    """The `HistoryBook` of `api/watch.py`."""

    def __init__(
        self, runtime: Runtime, collector: Collector, watching: Watching, *, history: History
    ) -> None:
        self._runtime = runtime
        self._collector = collector
        self._watching = watching
        self._history = history
        self._watched: dict[str, _Watched] = {}
        self._gone: set[str] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._is_failing = False
        self._has_begun = False
        records = runtime.store.list_containers()
        self._gone.update(history.known() - {record.id for record in records})
        for record in records:
            self.note(record.id, record)
        self._has_begun = True
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def note(self, container_id: str, record: ContainerRecord | None) -> None:
        """Take a change of a container."""
        with self._lock:
            if record is None:
                self._gone.add(container_id)
            if record is None or record.status not in ALIVE:
                self._watched.pop(container_id, None)
                return
            watched = self._watched.get(container_id)
            if watched is not None and watched.record.pid == record.pid:
                watched.record = record
            else:
                before = (
                    _Look(time.monotonic(), 0, (0, 0, 0), (0, 0), 0, NOTHING) if self._has_begun else None
                )
                self._watched[container_id] = _Watched(record, self._runtime.group(record), before)

    def usage(self, grant: Grant, ref: str, *, seconds: float, step_s: float) -> list[Usage]:
        """Return what a container used during the last `seconds`, in spans of `step_s`; 0: as it was sampled.

        Raises: ContainerNotFound.
        """
        record = self._runtime.find(grant, ref)
        return self._history.usage({record.id: record.name}, since=time.time() - seconds, step_s=step_s)

    def totals(self, grant: Grant, *, seconds: float) -> list[Usage]:
        """Return what each container that the caller may see used during the last `seconds`."""
        names = {record.id: record.name for record in self._runtime.store.list_containers(scope(grant))}
        return self._history.usage(names, since=time.time() - seconds, step_s=math.inf)

    def close(self) -> None:
        """Sample no more."""
        self._closing.set()
        self._thread.join()
        self._history.close()

    def _run(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            try:
                self._sample()
            except (InsulaError, OSError) as error:
                if not self._is_failing:
                    LOG.warning("no history is kept", extra={"fields": {"reason": str(error)}})
                self._is_failing = True
            else:
                self._is_failing = False

    def _sample(self) -> None:
        with self._lock:
            watched = list(self._watched.values())
            gone = frozenset(self._gone)
        self._history.forget(gone)
        with self._lock:
            self._gone -= gone
        interfaces, counts = traffic(), self._counts(watched)
        samples = []
        for each in watched:
            try:
                found = _look(each, interfaces=interfaces, counts=counts)
            except OSError:  # it has just ended
                each.before = None
                continue
            if found is not None:
                samples.append(found)
        self._history.add(samples, at=time.time())

    def _counts(self, watched: Iterable[_Watched]) -> dict[str, ContainerCounts]:
        if not self._collector.is_counting:
            return {}
        subjects = []
        for each in watched:
            try:
                subjects.append(self._watching.subject(each.record, group=each.group))
            except WrongState:
                continue
        return {each.id: each for each in self._collector.counts(subjects)}


def _look(
    watched: _Watched, *, interfaces: dict[str, Traffic], counts: dict[str, ContainerCounts]
) -> Sample | None:
    """Return what a container used since the last look; None: there was none, or only just.

    Raises: OSError if it is gone.
    """
    record, before = watched.record, watched.before
    if before is not None and time.monotonic() - before.at < SHORTEST_S:
        return None
    glance = watched.group.glance()
    has_rested = before is not None and glance.cpu_usage_us - before.disk_cpu_us < RESTING_US
    attachment = record.attachment
    counted = counts.get(record.id)
    now = _Look(
        at=time.monotonic(),
        cpu_us=glance.cpu_usage_us,
        waits=glance.pressure[:3],
        disk=before.disk if before is not None and has_rested else watched.group.io_bytes(),
        disk_cpu_us=before.disk_cpu_us if before is not None and has_rested else glance.cpu_usage_us,
        traffic=interfaces.get(attachment.interface, NOTHING) if attachment is not None else NOTHING,
        calls=_calls_of(counted) if counted is not None else None,
        looked_s=counted.looked_s if counted is not None else 0.0,
    )
    watched.before = now
    if before is None:
        return None
    calls, failures, shares = _counted(now, before)
    return Sample(
        container=record.id,
        seconds=now.at - before.at,
        cpu_us=now.cpu_us - before.cpu_us,
        memory_bytes=glance.memory_bytes,
        pids=glance.pids,
        cpu_wait_us=_grown(now.waits[0], before.waits[0]),
        memory_wait_us=_grown(now.waits[1], before.waits[1]),
        io_wait_us=_grown(now.waits[2], before.waits[2]),
        # Where the processes themselves are asked, those that ended take theirs along.
        read_bytes=max(0, now.disk[0] - before.disk[0]),
        written_bytes=max(0, now.disk[1] - before.disk[1]),
        # The host's end sends what the container receives; it may get another interface.
        received_bytes=max(0, now.traffic.sent_bytes - before.traffic.sent_bytes),
        sent_bytes=max(0, now.traffic.received_bytes - before.traffic.received_bytes),
        calls=calls,
        failures=failures,
        shares=shares,
    )


def _grown(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else max(0, now - before)


def _calls_of(counts: ContainerCounts) -> dict[tuple[str, str], int]:
    found = {}
    for each in counts.calls:
        found[each.call, ""] = each.calls
        for error, count in each.errors.items():
            found[each.call, error] = count
    return found


def _counted(now: _Look, before: _Look) -> tuple[int | None, int | None, tuple[CallShare, ...]]:
    """Return how many calls there were, how many failed, and the most frequent of both, as far as can be told from looks."""
    looked_s = now.looked_s - before.looked_s
    if now.calls is None or before.calls is None or looked_s <= 0:
        return None, None, ()
    seen = {key: count - before.calls.get(key, 0) for key, count in now.calls.items()}
    grown = {key: round(count * (now.at - before.at) / looked_s) for key, count in seen.items()}
    shares = sorted(
        (CallShare(*key, count) for key, count in grown.items() if count > 0), key=lambda each: -each.times
    )
    calls = [each for each in shares if not each.error]
    errors = [each for each in shares if each.error]
    return (
        sum(each.times for each in calls),
        sum(each.times for each in errors),
        (*calls[:TOP_CALLS], *errors[:TOP_CALLS]),
    )
