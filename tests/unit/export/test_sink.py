# SPDX-License-Identifier: Apache-2.0
"""The queue before a place: bounded, never waited for, counted."""

import threading
from collections.abc import Sequence

import pytest

from hosted import wait_until
from insula.export import sink as sinks
from insula.export.sink import Sink, Unavailable


class Place:
    """Takes items as long as it may."""

    def __init__(self, *, is_open: bool = True, refused: int = 0) -> None:
        self.got: list[int] = []
        self.open = threading.Event()
        self.is_down = not is_open
        self.refused = refused
        self.is_closed = False
        self.tries = 0

    def carry(self, items: Sequence[int]) -> int:
        self.tries += 1
        if self.is_down:
            raise Unavailable("down")
        self.got += items
        return self.refused

    def close(self) -> None:
        self.is_closed = True


class Slow(Place):
    def carry(self, items: Sequence[int]) -> int:
        self.open.wait(20)
        return super().carry(items)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "PAUSES_S", (0.01,))


def test_everything_is_carried_in_order() -> None:
    place = Place()
    sink = Sink("place", place, linger_s=0.0)
    for number in range(2000):
        sink.offer(number)
    sink.close()
    assert place.got == list(range(2000))
    assert place.is_closed
    assert (sink.counts.sent, sink.counts.dropped, sink.counts.waiting) == (2000, 0, 0)


def test_who_is_slow_loses_the_oldest_and_holds_up_nobody() -> None:
    place = Slow()
    sink = Sink("slow", place, max_waiting=10, linger_s=0.0)
    sink.offer(-1)
    wait_until(lambda: sink.counts.waiting == 1 and not sink._waiting, what="the first is on its way")
    for number in range(100):
        sink.offer(number)
    assert (sink.counts.dropped, sink.counts.waiting) == (90, 11)
    place.open.set()
    sink.close()
    assert place.got == [-1, *range(90, 100)]


def test_who_is_down_is_tried_again() -> None:
    place = Place(is_open=False)
    sink = Sink("down", place, linger_s=0.0)
    sink.offer(1)
    wait_until(lambda: place.tries > 3, what="tried again")
    assert sink.counts.failures >= 3
    place.is_down = False
    wait_until(lambda: sink.counts.sent == 1, what="carried")
    sink.close()
    assert place.got == [1]


def test_a_close_does_not_wait_for_who_is_down() -> None:
    place = Place(is_open=False)
    sink = Sink("down", place, linger_s=0.0)
    for number in range(1200):
        sink.offer(number)
    sink.close()
    assert not sink._thread.is_alive()
    assert (sink.counts.dropped, sink.counts.waiting) == (1200, 0)


def test_what_was_carried_before_a_failure_is_not_carried_again() -> None:
    class Half(Place):
        def carry(self, items: Sequence[int]) -> int:
            self.got += items[:2]
            if len(items) > 2:
                raise Unavailable("half", carried=2)
            return 0

    place = Half()
    sink = Sink("half", place, linger_s=0.05)
    for number in range(5):
        sink.offer(number)
    wait_until(lambda: sink.counts.sent == 5, what="carried")
    sink.close()
    assert place.got == [0, 1, 2, 3, 4]


def test_a_flood_is_carried_no_faster_than_allowed() -> None:
    place = Place()
    sink = Sink("paced", place, max_waiting=10, max_per_s=0.001, linger_s=0.0)
    sink.offer(0)
    wait_until(lambda: sink.counts.sent == 1, what="the first is carried")
    for number in range(1, 101):
        sink.offer(number)
    assert (place.tries, sink.counts.waiting, sink.counts.dropped) == (1, 10, 90)
    sink.close()
    assert place.got == [0, *range(91, 101)]


def test_what_cannot_be_put_into_words_is_refused_and_the_rest_goes_on() -> None:
    class Literal(Place):
        def carry(self, items: Sequence[int]) -> int:
            if 1 in items:
                raise ValueError("no words for 1")
            return super().carry(items)

    place = Literal()
    sink = Sink("literal", place, linger_s=0.0)
    sink.offer(1)
    wait_until(lambda: sink.counts.refused == 1, what="refused")
    sink.offer(2)
    sink.close()
    assert place.got == [2]


def test_what_is_refused_is_counted() -> None:
    place = Place(refused=2)
    sink = Sink("picky", place, linger_s=0.05)
    for number in range(3):
        sink.offer(number)
    sink.close()
    assert (sink.counts.sent, sink.counts.refused) == (1, 2)


def test_what_is_refused_before_a_failure_is_not_counted_as_sent() -> None:
    class Half(Place):
        def carry(self, items: Sequence[int]) -> int:
            self.tries += 1
            if self.tries == 1:
                raise Unavailable("half", carried=2, refused=1)
            return super().carry(items)

    place = Half()
    sink = Sink("half", place, linger_s=0.05)
    for number in range(3):
        sink.offer(number)
    wait_until(lambda: sink.counts.sent == 2, what="carried")
    sink.close()
    assert place.got == [2]
    assert (sink.counts.refused, sink.counts.failures, sink.counts.waiting) == (1, 1, 0)


def test_who_is_closed_while_slow_gives_up_what_is_left_at_its_deadline() -> None:
    place = Slow()
    sink = Sink("slow", place, linger_s=0.0)
    for number in range(1000):
        sink.offer(number)
    sink.begin_close(within_s=0.0)
    place.open.set()
    wait_until(lambda: sink.has_ended, what="ended")
    assert sink.counts.sent + sink.counts.dropped == 1000
    assert sink.counts.dropped >= 500
    assert place.is_closed


def test_a_sink_carries_nothing_before_those_that_it_follows_have_ended() -> None:
    before, after = Slow(), Place()
    first = Sink("first", before, linger_s=0.0)
    first.offer(1)
    second = Sink("second", after, linger_s=0.0, after=[first])
    second.offer(2)
    first.begin_close()
    before.open.set()
    wait_until(lambda: after.got == [2], what="carried")
    assert before.is_closed
    second.close()
