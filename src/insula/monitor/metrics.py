# SPDX-License-Identifier: Apache-2.0
"""Figures of containers for Prometheus: one table of names, units and kinds, and cAdvisor's names beside ours.

Sources: https://prometheus.io/docs/practices/naming/; cAdvisor's docs/storage/prometheus.md for its names.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from insula.model.export import SinkCounts
from insula.model.monitor import ContainerCounts
from insula.model.profile import ContainerDrifts
from insula.model.record import ContainerStats
from insula.monitor.layout import FIRST_STEP_NS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("id", "name", "tenant")
_CADVISOR_LABELS = (*_LABELS, "image")


MetricFamily: TypeAlias = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class MetricKind(StrEnum):
    """How a figure moves."""

    COUNTER = "counter"
    """Only up, from 0 at the container's start."""
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of each container.  Names of counters stand without the `_total` that the format adds."""

    name: str
    kind: MetricKind
    unit: str
    """seconds, bytes, or what is counted."""
    words: str
    read: Callable[[ContainerStats], float | None]
    """None: unknown here, left out."""
    cadvisor: str = ""
    """What cAdvisor calls it; labelled with the image, too."""


_COUNTER, _GAUGE = MetricKind.COUNTER, MetricKind.GAUGE


def _seconds(us: int | None) -> float | None:
    return None if us is None else us / 1e6


METRICS: tuple[Metric, ...] = (
    Metric("insula_container_cpu_seconds", _COUNTER, "seconds", "processor time used",
           lambda of: of.cpu_usage_us / 1e6, "container_cpu_usage_seconds"),
    Metric("insula_container_cpu_user_seconds", _COUNTER, "seconds", "processor time used by programs themselves",
           lambda of: of.cpu_user_us / 1e6, "container_cpu_user_seconds"),
    Metric("insula_container_cpu_system_seconds", _COUNTER, "seconds", "processor time used by the kernel for them",
           lambda of: of.cpu_system_us / 1e6, "container_cpu_system_seconds"),
    Metric("insula_container_cpu_throttled_seconds", _COUNTER, "seconds", "time held back by the CPU limit",
           lambda of: of.throttled_us / 1e6, "container_cpu_cfs_throttled_seconds"),
    Metric("insula_container_cpu_waiting_seconds", _COUNTER, "seconds", "time in which a process waited for a processor",
           lambda of: _seconds(of.cpu_wait_us), "container_pressure_cpu_waiting_seconds"),
    Metric("insula_container_memory_waiting_seconds", _COUNTER, "seconds", "time in which a process waited for memory",
           lambda of: _seconds(of.memory_wait_us), "container_pressure_memory_waiting_seconds"),
    Metric("insula_container_io_waiting_seconds", _COUNTER, "seconds", "time in which a process waited for a disk",
           lambda of: _seconds(of.io_wait_us), "container_pressure_io_waiting_seconds"),
    Metric("insula_container_cpu_stalled_seconds", _COUNTER, "seconds", "time in which none went on, for want of a processor",
           lambda of: _seconds(of.cpu_stalled_us), "container_pressure_cpu_stalled_seconds"),
    Metric("insula_container_memory_stalled_seconds", _COUNTER, "seconds", "time in which none went on, for want of memory",
           lambda of: _seconds(of.memory_stalled_us), "container_pressure_memory_stalled_seconds"),
    Metric("insula_container_io_stalled_seconds", _COUNTER, "seconds", "time in which none went on, for want of a disk",
           lambda of: _seconds(of.io_stalled_us), "container_pressure_io_stalled_seconds"),
    Metric("insula_container_cpu_periods", _COUNTER, "periods", "periods of the CPU limit",
           lambda of: of.cpu_periods, "container_cpu_cfs_periods"),
    Metric("insula_container_cpu_throttled_periods", _COUNTER, "periods", "of them, those in which the CPU limit held it back",
           lambda of: of.throttled_periods, "container_cpu_cfs_throttled_periods"),
    Metric("insula_container_cpu_quota_microseconds", _GAUGE, "microseconds", "limit of processor time in each period",
           lambda of: of.cpu_quota_us, "container_spec_cpu_quota"),
    Metric("insula_container_cpu_period_microseconds", _GAUGE, "microseconds", "period of the CPU limit",
           lambda of: of.cpu_period_us or None, "container_spec_cpu_period"),
    Metric("insula_container_start_time_seconds", _GAUGE, "seconds", "when it was started, since the epoch",
           lambda of: of.started_at or None, "container_start_time_seconds"),
    Metric("insula_container_seen_time_seconds", _GAUGE, "seconds", "when these figures were read, since the epoch",
           lambda of: of.seen_at or None, "container_last_seen"),
    Metric("insula_container_memory_bytes", _GAUGE, "bytes", "memory used, page cache included",
           lambda of: of.memory_bytes, "container_memory_usage_bytes"),
    Metric("insula_container_memory_cache_bytes", _GAUGE, "bytes", "of it, page cache",
           lambda of: of.memory_cache_bytes, "container_memory_cache"),
    Metric("insula_container_memory_anonymous_bytes", _GAUGE, "bytes", "of it, memory that is no file's",
           lambda of: of.memory_anonymous_bytes, "container_memory_rss"),
    Metric("insula_container_memory_working_set_bytes", _GAUGE, "bytes", "of it, all but page cache that was not used lately",
           lambda of: of.memory_working_set_bytes, "container_memory_working_set_bytes"),
    Metric("insula_container_memory_limit_bytes", _GAUGE, "bytes", "limit of memory",
           lambda of: of.memory_limit_bytes, "container_spec_memory_limit_bytes"),
    Metric("insula_container_oom_kills", _COUNTER, "processes", "processes killed because memory ran out",
           lambda of: of.oom_kills, "container_oom_events"),
    Metric("insula_container_processes", _GAUGE, "processes", "processes and threads",
           lambda of: of.pids, "container_threads"),
    Metric("insula_container_processes_limit", _GAUGE, "processes", "limit of processes and threads",
           lambda of: of.pids_limit, "container_threads_max"),
    Metric("insula_container_network_received_bytes", _COUNTER, "bytes", "bytes received",
           lambda of: of.received_bytes, "container_network_receive_bytes"),
    Metric("insula_container_network_sent_bytes", _COUNTER, "bytes", "bytes sent",
           lambda of: of.sent_bytes, "container_network_transmit_bytes"),
    Metric("insula_container_network_received_packets", _COUNTER, "packets", "packets received",
           lambda of: of.received_packets, "container_network_receive_packets"),
    Metric("insula_container_network_sent_packets", _COUNTER, "packets", "packets sent",
           lambda of: of.sent_packets, "container_network_transmit_packets"),
    Metric("insula_container_disk_read_bytes", _COUNTER, "bytes", "bytes read from disks",
           lambda of: of.read_bytes, "container_fs_reads_bytes"),
    Metric("insula_container_disk_written_bytes", _COUNTER, "bytes", "bytes written to disks",
           lambda of: of.written_bytes, "container_fs_writes_bytes"),
    Metric("insula_container_disk_bytes", _GAUGE, "bytes", "bytes on its own disk (`--disk`)",
           lambda of: of.disk_bytes, "container_fs_usage_bytes"),
    Metric("insula_container_disk_limit_bytes", _GAUGE, "bytes", "limit of its own disk",
           lambda of: of.disk_limit_bytes, "container_fs_limit_bytes"),
)  # fmt: skip

#: Told of containers whose system calls somebody counts; labels: call, and errno of the second.
CALLS = "insula_container_calls"
CALL_FAILURES = "insula_container_call_failures"
LOOKED = "insula_container_calls_looked_seconds"
#: Of all calls together: one for each call would be 24 series for each of some 80.
DURATIONS = "insula_container_syscall_duration_seconds"
#: Told of containers that somebody watches or has watched.
LOST_EVENTS = "insula_container_lost_events"
#: Told of containers that are held to a profile; labels: part (calls, capabilities, programs, written, outgoing) and answer.
DRIFTS = "insula_container_profile_drifts"

_Whose: TypeAlias = Mapping[str, str]
"""Container that runs → tenant."""


class _Figures:
    """What a scrape collects."""

    def __init__(
        self,
        stats: Sequence[ContainerStats],
        counts: Sequence[ContainerCounts],
        *,
        lost: Mapping[str, int],
        whose: _Whose,
    ) -> None:
        self._stats = stats
        self._counts = [each for each in counts if each.id in whose]
        self._lost = lost
        self._whose = whose

    def collect(self) -> Iterator[MetricFamily]:
        for metric in METRICS:
            yield self._family(metric, metric.name, labels=_LABELS)
            if metric.cadvisor:
                yield self._family(metric, metric.cadvisor, labels=_CADVISOR_LABELS)
        yield self._losses()
        yield from self._calls()
        yield self._durations()

    def _losses(self) -> CounterMetricFamily:
        family = CounterMetricFamily(LOST_EVENTS, "events that nobody could read in time", labels=_LABELS)
        for each in self._stats:
            if each.id in self._lost:
                family.add_metric((each.id, each.name, each.tenant), self._lost[each.id])
        return family

    def _family(self, metric: Metric, name: str, *, labels: Sequence[str]) -> MetricFamily:
        make = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
        family = make(name, metric.words, labels=labels)
        for each in self._stats:
            value = metric.read(each)
            if value is not None:
                family.add_metric([getattr(each, label) for label in labels], value)
        return family

    def _calls(self) -> Iterator[CounterMetricFamily]:
        calls = CounterMetricFamily(
            CALLS, "system calls, while somebody counts them", labels=(*_LABELS, "call")
        )
        failures = CounterMetricFamily(
            CALL_FAILURES,
            "system calls that failed, while somebody counts them",
            labels=(*_LABELS, "call", "errno"),
        )
        looked = CounterMetricFamily(LOOKED, "for how long calls were looked at", labels=_LABELS)
        for each in self._counts:
            who = self._who(each)
            looked.add_metric(who, each.looked_s)
            for call in each.calls:
                calls.add_metric((*who, call.call), call.calls)
                for error, count in call.errors.items():
                    failures.add_metric((*who, call.call, error), count)
        yield from (calls, failures, looked)

    def _durations(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(
            DURATIONS,
            "how long calls took, of those that were timed, while somebody counts them",
            labels=_LABELS,
        )
        for each in self._counts:
            if each.durations is not None:
                family.add_metric(
                    self._who(each), _buckets(each.durations.steps), each.durations.nanoseconds / 1e9
                )
        return family

    def _who(self, counts: ContainerCounts) -> tuple[str, str, str]:
        return counts.id, counts.name, self._whose[counts.id]


def _buckets(steps: Sequence[int]) -> list[tuple[str, float]]:
    """Return (upper end in seconds, how many took no longer) of each step; the last has no end."""
    ends = [*(repr((FIRST_STEP_NS << step) / 1e9) for step in range(len(steps) - 1)), "+Inf"]
    return list(zip(ends, itertools.accumulate(steps), strict=True))


@dataclass(frozen=True, slots=True)
class ExportMetric:
    """One figure of each sink that something is exported to, with the label `sink`."""

    name: str
    kind: MetricKind
    words: str
    read: Callable[[SinkCounts], int]


EXPORT_METRICS: tuple[ExportMetric, ...] = (
    ExportMetric("insula_export_sent", _COUNTER, "items that were taken", lambda of: of.sent),
    ExportMetric("insula_export_dropped", _COUNTER, "items that were lost: more came than could wait", lambda of: of.dropped),
    ExportMetric("insula_export_refused", _COUNTER, "items that the sink did not want", lambda of: of.refused),
    ExportMetric("insula_export_failures", _COUNTER, "tries that failed; each is tried again", lambda of: of.failures),
    ExportMetric("insula_export_waiting", _GAUGE, "items that wait", lambda of: of.waiting),
)  # fmt: skip


class _Exports:
    """What a scrape collects of exports."""

    def __init__(self, sinks: Sequence[SinkCounts]) -> None:
        self._sinks = sinks

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for metric in EXPORT_METRICS if self._sinks else ():
            make = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
            family = make(metric.name, metric.words, labels=("sink",))
            for each in self._sinks:
                family.add_metric((each.sink,), metric.read(each))
            yield family


class _Drifts:
    """What containers do that their profiles lack."""

    def __init__(self, drifts: Sequence[ContainerDrifts], *, whose: _Whose) -> None:
        self._drifts = [each for each in drifts if each.id in whose]
        self._whose = whose

    def collect(self) -> Iterator[CounterMetricFamily]:
        if not self._drifts:
            return
        labels = (*_LABELS, "part", "answer")
        family = CounterMetricFamily(
            DRIFTS, "what a container's profile lacks, since its start", labels=labels
        )
        for each in self._drifts:
            who = (each.id, each.name, self._whose[each.id])
            for answer, counts in (("refused", each.refused), ("done", each.done)):
                for part, count in counts.items():
                    family.add_metric((*who, part, answer), count)
        yield family


def exposition(
    stats: Sequence[ContainerStats],
    counts: Sequence[ContainerCounts],
    *,
    lost: Mapping[str, int] = MappingProxyType({}),
    sinks: Sequence[SinkCounts] = (),
    drifts: Sequence[ContainerDrifts] = (),
) -> bytes:
    """Return the figures in Prometheus' text format, of those containers that there are stats of: they run.

    lost: container → how many of its events nobody could read in time, of those that somebody has watched.
    """
    whose = {each.id: each.tenant for each in stats}
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(stats, counts, lost=lost, whose=whose))
    registry.register(_Drifts(drifts, whose=whose))
    registry.register(_Exports(sinks))
    return generate_latest(registry)


def table() -> Iterable[tuple[str, str, str, str, str]]:
    """Yield (name, kind, unit, cAdvisor's name, words) of each figure, as docs/metrics.md shows them."""
    for metric in METRICS:
        end = "_total" if metric.kind is MetricKind.COUNTER else ""
        other = f"{metric.cadvisor}{end}" if metric.cadvisor else ""
        yield f"{metric.name}{end}", metric.kind.value, metric.unit, other, metric.words
