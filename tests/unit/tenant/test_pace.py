# SPDX-License-Identifier: Apache-2.0
"""The pace: never more than rate and burst, nobody is refused who keeps to it, and users of one tenant have turns."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import TooManyRequests
from insula.tenant.pace import BURST_S, PATIENCE_S, Bucket, Rate, Turns


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


@given(
    rate=st.integers(1, 200),
    asked=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 0.3)), min_size=1, max_size=200),
)
def test_users_of_one_tenant_have_one_rate_together(rate: int, asked: list[tuple[str, float]]) -> None:
    now, turns = 100.0, Turns[float].begin(rate, now=100.0)
    let_in: list[float] = []
    for user, gap in asked:
        now += gap
        let_in += [now] * len(turns.deal(now=now))
        with contextlib.suppress(TooManyRequests):
            let_in += [now] * turns.enter(user, now, now=now)
    for start in let_in:
        assert sum(start <= at < start + 1 for at in let_in) <= rate * (1 + BURST_S) + 1


def exhausted(rate: int) -> Turns[str]:
    """Return turns of a tenant whose burst is gone."""
    turns = Turns[str].begin(rate, now=0.0)
    while turns.enter("alice", "x", now=0.0):
        pass
    turns.leave("alice", "x")
    return turns


def test_who_asks_little_does_not_wait_behind_who_asks_much() -> None:
    turns = exhausted(10)
    for number in range(10):
        assert not turns.enter("alice", f"alice {number}", now=0.0)
    with pytest.raises(TooManyRequests):
        turns.enter("alice", "too many", now=0.0)
    assert not turns.enter("bob", "bob 0", now=0.0)
    assert turns.next_s() == pytest.approx(0.1)
    assert turns.deal(now=0.05) == []
    assert turns.deal(now=0.3001) == ["alice 0", "bob 0", "alice 1"]
    assert not turns.enter("bob", "bob 1", now=0.3001)
    assert turns.deal(now=0.5001) == ["alice 2", "bob 1"]


def test_one_of_each_user_may_wait_however_many_they_are() -> None:
    turns = exhausted(1)
    for number in range(20):
        assert not turns.enter(f"user {number}", "one", now=0.0)
        with pytest.raises(TooManyRequests):
            turns.enter(f"user {number}", "two", now=0.0)


def test_who_has_left_takes_no_turn() -> None:
    turns = exhausted(10)
    turns.enter("alice", "gone", now=0.0)
    turns.enter("bob", "there", now=0.0)
    turns.leave("alice", "gone")
    turns.leave("alice", "gone")
    assert turns.deal(now=0.1001) == ["there"]
    assert turns.next_s() is None


def test_a_rate_is_that_of_the_last_second() -> None:
    rate = Rate()
    for _ in range(10):
        rate.note(now=100.5)
    assert rate.per_second(now=100.9) == 10
    assert rate.per_second(now=101.5) == 5
    rate.note(now=101.5)
    assert rate.per_second(now=101.75) == round(1 + 10 / 4)
    assert rate.per_second(now=103.0) == 0
