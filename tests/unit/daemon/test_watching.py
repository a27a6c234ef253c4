# SPDX-License-Identifier: Apache-2.0
"""Containers that are counted together: one that cannot be leaves none behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from insula.daemon.watching import _Counters
from insula.model.errors import Unsupported
from insula.monitor.probes import Counting
from insula.monitor.subscription import Subject

NO_GROUP: Any = None


class Collector:
    """Counts as many containers as there is room for."""

    def __init__(self, *, room: int) -> None:
        self.room = room
        self.counted: list[int] = []

    @contextmanager
    def counting(self, subject: Subject, *, how: Counting) -> Iterator[None]:
        if len(self.counted) >= self.room:
            raise Unsupported("cannot watch containers: full")
        self.counted.append(subject.cgroup)
        try:
            yield
        finally:
            self.counted.remove(subject.cgroup)

    def counts(self, subjects: list[Subject]) -> list[Subject]:
        return subjects


def subjects(count: int) -> list[Subject]:
    return [Subject(str(each), "web", NO_GROUP, each, 0, 65536) for each in range(count)]


def test_if_one_cannot_be_counted_none_stays_counted() -> None:
    collector: Any = Collector(room=2)
    counters = _Counters(lambda: subjects(3), collector, how=Counting.EACH)
    with pytest.raises(Unsupported), counters:
        pytest.fail("not all are counted")
    assert collector.counted == []


def test_one_that_could_not_be_counted_is_tried_again() -> None:
    collector: Any = Collector(room=1)
    now = subjects(1)
    with _Counters(lambda: now, collector, how=Counting.EACH) as counters:
        now = subjects(2)
        for _ in range(2):
            with pytest.raises(Unsupported):
                counters.read()
        collector.room = 2
        counters.read()
        assert sorted(collector.counted) == [0, 1]
    assert collector.counted == []
