# SPDX-License-Identifier: Apache-2.0
"""Percentiles, ratios and what a bench's last line says."""

import json

import pytest
from bench.figures import bench_line, percentile, ratio
from bench.peers import libraries
from bench.start import report as report_starts
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(1, 100))
def test_a_percentile_is_a_sample_that_as_many_do_not_exceed(samples: list[float], percent: float) -> None:
    found = percentile(samples, percent)
    assert found in samples
    assert sum(each <= found for each in samples) >= len(samples) * percent / 100 - 1e-9


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_a_ratio_without_a_peer_is_null() -> None:
    assert (ratio(2.0, 4.0), ratio(2.0, None)) == (0.5, None)
    assert bench_line({"api_vs_crun": None}) == 'BENCH {"api_vs_crun": null}'


def test_starts_are_reported_with_null_for_missing_peers() -> None:
    text = report_starts({"insula API": [4.0, 6.0, 5.0], "insula CLI": [40.0], "podman": [200.0]})
    facts = json.loads(text.splitlines()[-1].removeprefix("BENCH "))
    assert facts == {
        "api_p50_ms": 5.0,
        "api_p99_ms": 6.0,
        "api_vs_crun": None,
        "cli_p50_ms": 40.0,
        "cli_vs_podman": 0.2,
        "peers": {"crun": None, "runc": None, "bwrap": None, "podman": 200.0},
    }


def test_libraries_are_taken_out_of_ldd() -> None:
    listing = "\tlinux-vdso.so.1 (0x0)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x1)\n\t/lib64/ld-linux.so.2 (0x2)\n"
    assert libraries(listing) == ["/lib/x/libc.so.6", "/lib64/ld-linux.so.2"]
