# SPDX-License-Identifier: Apache-2.0
"""Who is told what, whatever the kernel refuses meanwhile: the collector's book-keeping, on programs that stand in.

What the programs themselves tell is tested on the real kernel (`tests/kernel/test_collect*.py`).
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from hosted import wait_until
from insula.model.errors import Unsupported
from insula.model.monitor import Ended, Event, EventKind, Lost, TraceWish
from insula.monitor.collect import Collector
from insula.monitor.layout import Kind
from insula.monitor.probes import Counting
from insula.monitor.subscription import Subject, Subscription

EXECS = TraceWish(kinds=(EventKind.EXEC,))
FORKS = TraceWish(kinds=(EventKind.FORK,))
THROTTLING = TraceWish(kinds=(EventKind.THROTTLE,))


class Counted:
    """A control group whose processor time is held back as the test says."""

    def __init__(self) -> None:
        self.throttled_us = 0

    def cpu_stats(self) -> SimpleNamespace:
        return SimpleNamespace(throttled_us=self.throttled_us)


class Programs:
    """In the place of `Probes`: takes each wish, tells nothing."""

    def __init__(self) -> None:
        self.refusal: OSError | None = None
        """What each wish for more is answered with."""
        self.look_refusal: OSError | None = None
        """What each look is answered with."""
        self.loss_refusal: OSError | None = None
        """What each question for losses is answered with."""
        self.looks = 0
        self.lost: dict[int, int] = {}
        self.watched: dict[int, frozenset[Kind]] = {}
        self.known: set[int] = set()
        self.readable = os.eventfd(0, os.EFD_CLOEXEC)
        self.ring: Any = SimpleNamespace(fd=self.readable, read=lambda *, at_most: [], written=0, position=0)

    def close(self, *, at_once: bool) -> None:
        os.close(self.readable)

    def wake_reader(self) -> None: ...
    def watch(self, cgroup: int, kinds: frozenset[Kind], *, counting: Counting, flags: int) -> None:
        if not kinds <= self.watched.get(cgroup, frozenset()) or counting is not Counting.NOT:
            self._refuse()
        self.watched[cgroup] = kinds

    def know(self, cgroup: int, calls: object) -> None:
        self.known.discard(cgroup)
        if calls is not None:
            self.known.add(cgroup)
            self._refuse()

    def _refuse(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    looked_s = 0.0

    def forget_calls(self, cgroup: int) -> None: ...

    def look(self, *, is_on: bool, is_timing: bool) -> None:
        self.looks += 1
        if self.look_refusal is not None:
            raise self.look_refusal

    def forget(self, cgroup: int) -> None: ...

    def lost_events(self, cgroup: int) -> int:
        return 0

    def losses(self) -> dict[int, int]:
        if self.loss_refusal is not None:
            raise self.loss_refusal
        return self.lost

    def capabilities(self) -> Iterator[tuple[int, int, int, int]]:
        return iter(())


class Bench:
    """A collector, whose thread runs."""

    def __init__(self) -> None:
        self.programs = Programs()
        loaded: Any = self.programs
        self.collector = Collector(lambda: loaded)
        self.group: Any = Counted()
        self.stack = ExitStack()

    def subject(self, cgroup: int) -> Subject:
        return Subject("id", "web", self.group, cgroup, 0, 65536)

    def watch(self, cgroup: int, wish: TraceWish) -> Subscription:
        return self.stack.enter_context(
            self.collector.subscribe(self.subject(cgroup), wish, notify=lambda: None)
        )

    def tick(self) -> None:
        """Look once; the collector's own thread does, too, now and then."""
        probes: Any = self.programs
        self.collector._tick(probes, is_look=False, is_timed=False)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made.stack:
        yield made
    made.collector.close()


FULL = OSError(errno.E2BIG, "bpf")


def test_who_cannot_be_subscribed_is_told_why_and_leaves_nothing(bench: Bench) -> None:
    bench.programs.refusal = FULL
    with pytest.raises(Unsupported, match="cannot watch containers: bpf") as caught:
        bench.watch(1, EXECS)
    assert "end a trace" in caught.value.hint
    assert bench.collector.watchers("id") == []
    assert bench.collector.lost_events() == {}
    bench.programs.refusal = None
    bench.watch(1, EXECS)
    assert bench.programs.watched[1] == {Kind.EXEC}


def test_who_watches_already_goes_on_when_another_is_refused(bench: Bench) -> None:
    first = bench.watch(1, EXECS)
    bench.programs.refusal = OSError(errno.EMFILE, "bpf")
    with pytest.raises(Unsupported) as caught:
        bench.watch(1, FORKS)
    assert "open files" in caught.value.hint
    assert bench.collector.watchers("id") == [first]
    assert bench.programs.watched[1] == {Kind.EXEC}


def test_who_cannot_be_counted_is_not_counted(bench: Bench) -> None:
    bench.programs.refusal = FULL
    with pytest.raises(Unsupported), bench.collector.counting(bench.subject(1)):
        pytest.fail("it is not counted")
    assert not bench.collector.is_counting


def test_whose_calls_cannot_be_known_is_held_to_none(bench: Bench) -> None:
    bench.programs.refusal = FULL
    with pytest.raises(Unsupported), bench.collector.knowing(bench.subject(1), frozenset({"read"})):
        pytest.fail("they are not known")
    assert bench.programs.known == set()


def test_a_change_that_is_refused_leaves_what_was_wished_for(bench: Bench) -> None:
    watch = bench.watch(1, EXECS)
    bench.programs.refusal = FULL
    with pytest.raises(Unsupported):
        bench.collector.change(watch, bench.subject(1), wish=FORKS)
    assert watch.wish == EXECS
    assert bench.programs.watched[1] == {Kind.EXEC}


def test_an_error_of_who_watches_stays_its_own(bench: Bench) -> None:
    with pytest.raises(FileNotFoundError), bench.collector.counting(bench.subject(1)):
        raise FileNotFoundError


def test_looks_that_are_refused_end_nothing_else_and_are_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bench.programs.look_refusal = OSError(errno.EMFILE, "bpf_program__attach")
    watch = bench.watch(1, EXECS)
    wait_until(lambda: bench.programs.looks > 6, what="it looks again and again")
    assert 1 <= len(caplog.messages) <= 3  # of each kind of look
    bench.programs.lost = {1: 7}
    wait_until(lambda: watch.read(at_most=1) == [Lost(events=7)], what="losses are told")
    bench.programs.look_refusal = None
    wait_until(lambda: "a step of watching works again" in caplog.messages, what="it works again")


def test_an_end_is_told_where_losses_cannot_be_counted(bench: Bench) -> None:
    bench.programs.loss_refusal = OSError(errno.ENOMEM, "bpf")
    watch = bench.watch(1, EXECS)
    bench.collector.catch_up()
    bench.collector.end("id", reason="gone")
    wait_until(lambda: watch.read(at_most=1) == [Ended(reason="gone")], what="the end is told")


def throttled(watch: Subscription) -> list[int]:
    return [each.result for each in watch.read(at_most=10) if isinstance(each, Event)]


def test_a_new_run_is_told_of_its_throttling_beside_a_trace_of_an_earlier_one(bench: Bench) -> None:
    bench.watch(1, EXECS)
    now = bench.watch(2, THROTTLING)
    bench.tick()
    bench.group.throttled_us = 70
    bench.tick()
    assert throttled(now) == [70]


def test_who_hears_of_a_container_from_elsewhere_is_told_of_no_throttling_here(bench: Bench) -> None:
    before, now = bench.watch(1, THROTTLING), bench.watch(2, THROTTLING)
    before.is_elsewhere = True
    bench.tick()
    bench.group.throttled_us = 70
    bench.tick()
    assert throttled(before) == []
    assert throttled(now) == [70]
