# SPDX-License-Identifier: Apache-2.0
"""Figures out of samples: percentiles, ratios, the last line of a bench.  Pure."""

import json
import math
from collections.abc import Mapping, Sequence


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that at least so many per cent of all do not exceed.  Raises: ValueError if empty."""
    if not samples:
        raise ValueError("cannot take a percentile of nothing")
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def ratio(ours: float, theirs: float | None) -> float | None:
    """Return ours ÷ theirs, None without theirs."""
    return None if not theirs else round(ours / theirs, 3)


def bench_line(facts: Mapping[str, object]) -> str:
    """Return the line that machines read."""
    return f"BENCH {json.dumps(facts)}"
