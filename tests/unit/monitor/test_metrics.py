# SPDX-License-Identifier: Apache-2.0
"""Names, units and kinds of figures; and what a scrape says."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from insula.model.export import SinkCounts
from insula.model.monitor import CallCount, ContainerCounts
from insula.model.record import ContainerStats
from insula.monitor.metrics import METRICS, Metric, MetricKind, exposition, table

STATS = ContainerStats(
    id="a" * 64,
    name='we"b\n',
    cpu_usage_us=1_500_000,
    memory_bytes=4096,
    received_bytes=10,
    cpu_wait_us=None,
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
    if metric.unit in ("seconds", "bytes"):
        assert metric.name.endswith(f"_{metric.unit}")


def test_no_name_stands_twice() -> None:
    names = [name for row in table() for name in (row[0], row[3]) if name]
    assert len(names) == len(set(names))


def test_a_scrape_says_every_figure_under_both_names() -> None:
    found = scraped()
    for metric in METRICS:
        for name in (metric.name, metric.cadvisor):
            full = f"{name}_total" if metric.kind is MetricKind.COUNTER else name
            value = metric.read(STATS)
            assert (value is None) == (full not in found), full
            if value is not None:
                assert found[full] == [({"id": STATS.id, "name": STATS.name}, value)]


def test_calls_are_told_by_name_and_errno() -> None:
    found = scraped()
    who = {"id": COUNTS.id, "name": "web"}
    assert found["insula_container_calls_total"] == [({**who, "call": "openat"}, 5)]
    assert found["insula_container_call_failures_total"] == [
        ({**who, "call": "openat", "errno": "ENOENT"}, 2)
    ]
    assert found["insula_container_calls_looked_seconds_total"] == [(who, 1.5)]


def test_losses_are_told_of_all_that_somebody_watches() -> None:
    assert scraped()["insula_container_lost_events_total"] == [({"id": STATS.id, "name": STATS.name}, 9)]
    told = exposition([STATS], [], lost={STATS.id: 0}).decode()
    assert f'insula_container_lost_events_total{{id="{STATS.id}"' in told
    assert "lost_events_total{" not in exposition([STATS], [COUNTS]).decode()


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
