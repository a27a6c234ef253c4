# SPDX-License-Identifier: Apache-2.0
"""`insula stats`: pressure between two samples, and what was used in the last minutes."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from daemon_double import serve

from insula.cli.commands import stats
from insula.cli.main import main
from insula.cli.render import Column, table

A = "a" * 64
SPAN = {
    "id": A, "name": "web", "at": 1.0, "seconds": 1800.0, "cpu_us": 900_000_000, "cpu_peak_percent": 100.0,
    "memory_bytes": 1 << 20, "memory_peak_bytes": 1 << 21, "pids_peak": 3, "cpu_wait_us": 18_000_000,
    "memory_wait_us": 0, "io_wait_us": None, "read_bytes": 1024, "written_bytes": 0, "received_bytes": 0, "sent_bytes": 0,
    "counted_seconds": 0.0, "calls": 0, "failures": 0, "top_calls": {}, "top_errors": {},
}  # fmt: skip


def now(**counters: Any) -> dict[str, Any]:
    return {"sampled_at": 10.0, "cpu_usage_us": 0, **counters}


def test_pressure_is_measured_between_two_samples() -> None:
    before = now(cpu_wait_us=1_000_000, memory_wait_us=5)
    found = stats.with_rates(now(sampled_at=12.0, cpu_wait_us=1_500_000, memory_wait_us=5), before)
    assert (found["cpu_wait_percent"], found["memory_wait_percent"]) == (25.0, 0.0)
    assert found["io_wait_percent"] is None


def test_a_container_that_was_started_anew_has_used_nothing_less() -> None:
    found = stats.with_rates(now(sampled_at=12.0, cpu_usage_us=10), now(cpu_usage_us=1_000_000))
    assert found["cpu_percent"] == 0.0


def test_what_was_used_in_the_last_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/history"] = (200, {}, [SPAN])
        assert main(["-H", double.host, "stats", "--since", "30m"]) == 0
        assert double.seen[0].target == "/v1/history?seconds=1800.0"
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "NAME"
    words = line.replace(" / ", "/").split()
    assert words == "web 30 minutes 50.0%/100.0% 1.0MiB/2.0MiB 1.0%/0.0%/- 0B/0B 1.0KiB/0B".split()


@pytest.mark.parametrize("columns", [stats.COLUMNS, stats.PAST_COLUMNS], ids=["now", "past"])
def test_a_narrow_terminal_is_wide_enough(columns: tuple[Column, ...]) -> None:
    busy = {
        **SPAN, "name": "database-of-the-shop", "memory_bytes": 99 << 20, "memory_peak_bytes": 99 << 20, "memory_limit_bytes": 99 << 20,
        "read_bytes": 9 << 30, "written_bytes": 9 << 30, "received_bytes": 9 << 30, "sent_bytes": 9 << 30, "pids": 100,
        "cpu_percent": 199.9, **dict.fromkeys(("cpu_wait_percent", "memory_wait_percent", "io_wait_percent"), 99.9),
    }  # fmt: skip
    assert max(map(len, table([busy], columns, width=80))) <= 80


def test_more_than_is_kept_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--since", "2h"]) == 125
    assert "an hour is kept" in capsys.readouterr().err
