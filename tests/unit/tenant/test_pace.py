# SPDX-License-Identifier: Apache-2.0
"""A user's pace: never more than its rate and its burst, and nobody is refused who keeps to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import TooManyRequests
from insula.tenant.pace import BURST_S, PATIENCE_S, Bucket


@given(rate=st.integers(1, 1000), gaps=st.lists(st.floats(0, 0.5), max_size=200))
def test_no_more_than_rate_and_burst_get_in(rate: int, gaps: list[float]) -> None:
    now, bucket = 100.0, Bucket.full(rate, now=100.0)
    let_in = []
    for gap in gaps:
        now += gap
        try:
            let_in.append(now + bucket.take(rate, now=now))
        except TooManyRequests:
            continue
    for start in let_in:
        within = [at for at in let_in if start <= at < start + 1]
        assert len(within) <= rate * (1 + BURST_S) + 1


@given(rate=st.integers(1, 1000), count=st.integers(1, 300))
def test_who_keeps_the_pace_never_waits(rate: int, count: int) -> None:
    bucket = Bucket.full(rate, now=0.0)
    for number in range(count):
        assert bucket.take(rate, now=number / rate) == 0.0


def test_who_is_too_fast_waits_and_then_is_told_when_to_come_again() -> None:
    bucket = Bucket.full(10, now=0.0)
    waits = [bucket.take(10, now=0.0) for _ in range(30)]
    assert waits[:20] == [0.0] * 20
    assert waits[20] == pytest.approx(0.1)
    assert waits[-1] == pytest.approx(PATIENCE_S)
    with pytest.raises(TooManyRequests) as caught:
        bucket.take(10, now=0.0)
    assert caught.value.after_s == 1
    assert bucket.take(10, now=1.0) == pytest.approx(0.1)
