# SPDX-License-Identifier: Apache-2.0
"""Names, units and kinds of figures; and what a scrape says."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from insula.model.export import SinkCounts
from insula.model.monitor import CallCount, CallDurations, ContainerCounts
from insula.model.profile import ContainerDrifts
from insula.model.record import ContainerStats
from insula.monitor.metrics import METRICS, Metric, MetricKind, exposition, table

STATS = ContainerStats(
    id="a" * 64,
    name='we"b\n',
    cpu_usage_us=1_500_000,
    memory_bytes=4096,
    received_bytes=10,
    cpu_wait_us=None,
    tenant="alice",
    image="debian:12",
    started_at=1000.0,
    seen_at=1060.0,
    cpu_quota_us=50_000,
    cpu_period_us=100_000,
)
COUNTS = ContainerCounts(
    id="a" * 64,
    name="web",
    sampled_at=0.0,
    looked_s=1.5,
    calls=(CallCount(call="openat", calls=5, failures=2, errors={"ENOENT": 2}),),
    capabilities={},
    refused_capabilities={},
    lost_events=7,
    durations=CallDurations(calls=4, nanoseconds=3000, steps=(1, 2, *[0] * 21, 1)),
)


def scraped() -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(exposition([STATS], [COUNTS], lost={STATS.id: 9}).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_tells_what_and_in_which_unit(metric: Metric) -> None:
    assert re.fullmatch(r"insula_container_[a-z_]+", metric.name)
    assert not metric.name.endswith("_total")
    if metric.unit in ("seconds", "bytes", "microseconds"):
        assert metric.name.endswith(f"_{metric.unit}")


def test_no_name_stands_twice() -> None:
    names = [name for row in table() for name in (row[0], row[3]) if name]
    assert len(names) == len(set(names))


def test_a_scrape_says_every_figure_under_both_names() -> None:
    found = scraped()
    for metric in METRICS:
        for name in filter(None, (metric.name, metric.cadvisor)):
            full = f"{name}_total" if metric.kind is MetricKind.COUNTER else name
            image = {"image": STATS.image} if name == metric.cadvisor else {}
            value = metric.read(STATS)
            assert (value is None) == (full not in found), full
            if value is not None:
                assert found[full] == [
                    ({"id": STATS.id, "name": STATS.name, "tenant": "alice", **image}, value)
                ]


def test_calls_are_told_by_name_and_errno() -> None:
    found = scraped()
    who = {"id": COUNTS.id, "name": "web", "tenant": "alice"}
    assert found["insula_container_calls_total"] == [({**who, "call": "openat"}, 5)]
    assert found["insula_container_call_failures_total"] == [
        ({**who, "call": "openat", "errno": "ENOENT"}, 2)
    ]
    assert found["insula_container_calls_looked_seconds_total"] == [(who, 1.5)]


def test_losses_are_told_of_all_that_somebody_watches() -> None:
    assert scraped()["insula_container_lost_events_total"] == [
        ({"id": STATS.id, "name": STATS.name, "tenant": "alice"}, 9)
    ]
    told = exposition([STATS], [], lost={STATS.id: 0}).decode()
    assert f'insula_container_lost_events_total{{id="{STATS.id}"' in told
    assert "lost_events_total{" not in exposition([STATS], [COUNTS]).decode()


def test_durations_are_a_histogram_of_all_calls_together() -> None:
    found = scraped()
    name = "insula_container_syscall_duration_seconds"
    buckets = {float(labels["le"]): value for labels, value in found[f"{name}_bucket"]}
    assert len(buckets) == 24
    assert (buckets[256e-9], buckets[512e-9], buckets[float("inf")]) == (1, 3, 4)
    assert [value for _, value in found[f"{name}_count"] + found[f"{name}_sum"]] == [4, 3e-6]


# Name → kind and unit of what cAdvisor tells, of those that we tell, too.  Source: its docs/storage/prometheus.md; of
# pressure, threads and OOM events its metrics/prometheus.go.
CADVISOR = {
    "container_cpu_cfs_periods_total": ("counter", ""),
    "container_cpu_cfs_throttled_periods_total": ("counter", ""),
    "container_cpu_cfs_throttled_seconds_total": ("counter", "seconds"),
    "container_cpu_system_seconds_total": ("counter", "seconds"),
    "container_cpu_usage_seconds_total": ("counter", "seconds"),
    "container_cpu_user_seconds_total": ("counter", "seconds"),
    "container_fs_limit_bytes": ("gauge", "bytes"),
    "container_fs_reads_bytes_total": ("counter", "bytes"),
    "container_fs_usage_bytes": ("gauge", "bytes"),
    "container_fs_writes_bytes_total": ("counter", "bytes"),
    "container_last_seen": ("gauge", "timestamp"),
    "container_memory_cache": ("gauge", "bytes"),
    "container_memory_rss": ("gauge", "bytes"),
    "container_memory_usage_bytes": ("gauge", "bytes"),
    "container_memory_working_set_bytes": ("gauge", "bytes"),
    "container_network_receive_bytes_total": ("counter", "bytes"),
    "container_network_receive_packets_total": ("counter", ""),
    "container_network_transmit_bytes_total": ("counter", "bytes"),
    "container_network_transmit_packets_total": ("counter", ""),
    "container_oom_events_total": ("counter", ""),
    "container_pressure_cpu_stalled_seconds_total": ("counter", "seconds"),
    "container_pressure_cpu_waiting_seconds_total": ("counter", "seconds"),
    "container_pressure_io_stalled_seconds_total": ("counter", "seconds"),
    "container_pressure_io_waiting_seconds_total": ("counter", "seconds"),
    "container_pressure_memory_stalled_seconds_total": ("counter", "seconds"),
    "container_pressure_memory_waiting_seconds_total": ("counter", "seconds"),
    "container_spec_cpu_period": ("gauge", ""),
    "container_spec_cpu_quota": ("gauge", ""),
    "container_spec_memory_limit_bytes": ("gauge", "bytes"),
    "container_start_time_seconds": ("gauge", "seconds"),
    "container_threads": ("gauge", ""),
    "container_threads_max": ("gauge", ""),
}
_COUNTED = ("periods", "packets", "processes", "microseconds")
"""Units that cAdvisor's page does not name."""


def test_cadvisors_figures_have_its_names_kinds_and_units() -> None:
    told = {
        name: (kind, "timestamp" if name == "container_last_seen" else "" if unit in _COUNTED else unit)
        for _, kind, unit, name, _ in table()
        if name
    }
    assert told == CADVISOR


def test_every_figure_stands_on_the_page() -> None:
    page = (Path(__file__).parents[3] / "docs/metrics.md").read_text(encoding="utf-8")
    missing = [
        name
        for name, kind, unit, cadvisor, words in table()
        if f"| `{name}` | {kind} | {unit} | `{cadvisor}` | {words} |" not in page
    ]
    assert not missing


def test_sinks_are_told_with_what_was_lost() -> None:
    counts = SinkCounts(sink="file /e", sent=5, dropped=4, refused=3, failures=2, waiting=1)
    told = exposition([], [], sinks=[counts]).decode()
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
        if sample.labels == {"sink": "file /e"}
    }
    assert list(samples.values()) == [5, 4, 3, 2, 1]
    page = (Path(__file__).parents[3] / "docs/metrics.md").read_text(encoding="utf-8")
    assert [name for name in samples if f"`{name}`" not in page] == []
    assert "insula_export" not in exposition([], []).decode()


def test_of_what_has_ended_during_a_scrape_nothing_is_told() -> None:
    drifts = ContainerDrifts(id=STATS.id, name="web", refused={"calls": 2}, done={})
    told = exposition([STATS], [], drifts=[drifts]).decode()
    assert 'name="web",part="calls",tenant="alice"} 2.0' in told
    assert STATS.id not in exposition([], [COUNTS], drifts=[drifts]).decode()
