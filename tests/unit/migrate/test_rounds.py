# SPDX-License-Identifier: Apache-2.0
"""Rounds of a program that writes at a known rate over a known link."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.migrate.rounds import MAX_ROUNDS, THROTTLES, Step, forecast, foresee

LINK = 200e6


def simulate(
    *, size: int, written: float, max_pause_s: float, fixed_s: float = 0.05
) -> tuple[Step, float, int]:
    """Play rounds until they end.  written: bytes per second.  Returns: the last step, the forecast, the rounds."""
    seen = foresee(size_bytes=size, written=written, link=LINK, max_pause_s=max_pause_s, fixed_s=fixed_s)
    return seen.step, seen.pause_s, seen.rounds


def test_an_idle_program_is_frozen_after_one_round() -> None:
    step, pause, count = simulate(size=1 << 30, written=0, max_pause_s=0.3)
    assert (step, count) == (Step.FREEZE, 1)
    assert pause == 0.05


def test_a_writing_program_takes_some_rounds() -> None:
    step, pause, count = simulate(size=2 << 30, written=20e6, max_pause_s=0.3)
    assert step is Step.FREEZE
    assert 2 <= count <= 5
    assert pause < 0.06


def test_a_program_that_writes_faster_than_the_link_is_throttled() -> None:
    step, pause, _count = simulate(size=1 << 30, written=300e6, max_pause_s=0.3)
    assert step is Step.FREEZE
    assert pause <= 0.3


def test_one_that_no_throttle_can_help_is_refused() -> None:
    step, _pause, _count = simulate(size=8 << 30, written=50e9, max_pause_s=0.3)
    assert step is Step.REFUSE


def test_a_pause_that_cannot_be_is_refused_without_throttling() -> None:
    step, _pause, count = simulate(size=1 << 20, written=0, max_pause_s=0.05)
    assert (step, count) == (Step.REFUSE, 1)


@given(
    size=st.integers(0, 64 << 30),
    written=st.floats(0, 1e11, allow_nan=False),
    max_pause_s=st.floats(0.001, 10, allow_nan=False),
)
def test_rounds_end_and_a_freeze_fits(size: int, written: float, max_pause_s: float) -> None:
    step, pause, count = simulate(size=size, written=written, max_pause_s=max_pause_s)
    assert step in (Step.FREEZE, Step.REFUSE)
    assert count <= MAX_ROUNDS + len(THROTTLES)
    if step is Step.FREEZE:
        assert pause <= max_pause_s


def test_without_a_round_there_is_no_forecast() -> None:
    with pytest.raises(ValueError, match="no round"):
        forecast([], fixed_s=0.1)
