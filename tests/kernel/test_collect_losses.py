# SPDX-License-Identifier: Apache-2.0
"""What found no room is counted, once, and told before the end: whatever else begins or ends meanwhile."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from insula.model.monitor import Ended, Event, EventKind, Lost, TraceLine, TraceWish
from insula.monitor import subscription
from insula.monitor.subscription import Subscription
from waiting import DEADLINE_S
from watched import Bench

FILES = TraceWish(kinds=(EventKind.FILE,))
FLOOD = 20_000
"""More than a ring of 1 MB holds."""
_PROGRAM = """
import os, sys
for line in sys.stdin:
    for number in range(int(line)):
        try: os.rmdir(f"/nonexistent-insula/{number}")
        except OSError: pass
    print(flush=True)
"""


@contextmanager
def program(bench: Bench, name: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that has begun already: of files it does what it is told and nothing else."""
    subject = bench.subjects[name]
    with subprocess.Popen(
        [sys.executable, "-SIc", _PROGRAM],
        preexec_fn=lambda: subject.group.attach(os.getpid()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        do(child, 0)
        yield child
        child.communicate(timeout=DEADLINE_S)


def do(child: subprocess.Popen[str], calls: int) -> None:
    """Have so many calls made."""
    assert child.stdin is not None
    assert child.stdout is not None
    print(calls, file=child.stdin, flush=True)
    assert child.stdout.readline() == "\n"


def flood(bench: Bench, child: subprocess.Popen[str]) -> None:
    """Overrun the ring: the collector's thread cannot hand out, so that it takes no more."""
    with bench.collector._lock:
        do(child, FLOOD)


@dataclass
class Told:
    """What a watcher has heard."""

    seen: int = 0
    lost: int = 0
    has_ended: bool = False

    def add(self, lines: list[TraceLine]) -> None:
        for line in lines:
            match line:
                case Event():
                    self.seen += 1
                case Lost():
                    assert line.events > 0
                    self.lost += line.events
                case Ended():
                    self.has_ended = True
                case _:
                    pass


def hear(bench: Bench, watch: Subscription, *, calls: int, told: Told | None = None) -> Told:
    """Read until so many calls are accounted for, or the end."""
    told = told or Told()
    deadline = time.monotonic() + DEADLINE_S
    while told.seen + told.lost < calls and not told.has_ended and time.monotonic() < deadline:
        bench.ready.clear()
        told.add(watch.read(at_most=5000))
        bench.ready.wait(0.1)
    return told


def test_each_event_is_either_told_or_counted(bench: Bench, stack: ExitStack) -> None:
    child = stack.enter_context(program(bench, "one"))
    watch = bench.watch(stack, "one", FILES)
    flood(bench, child)
    told = hear(bench, watch, calls=FLOOD)
    assert told.lost > 0
    do(child, 100)
    told = hear(bench, watch, calls=FLOOD + 100, told=told)
    assert told.seen + told.lost == FLOOD + 100


def test_losses_stay_right_when_somebody_no_longer_counts(bench: Bench, stack: ExitStack) -> None:
    child = stack.enter_context(program(bench, "one"))
    watch = bench.watch(stack, "one", FILES)
    with bench.collector.counting(bench.subjects["one"]):
        flood(bench, child)
        told = hear(bench, watch, calls=FLOOD)
    flood(bench, child)
    told = hear(bench, watch, calls=2 * FLOOD, told=told)
    assert told.seen + told.lost == 2 * FLOOD


def test_who_watches_again_is_not_told_of_earlier_losses(bench: Bench, stack: ExitStack) -> None:
    child = stack.enter_context(program(bench, "one"))
    with ExitStack() as first:
        watch = bench.watch(first, "one", FILES)
        flood(bench, child)
        assert hear(bench, watch, calls=FLOOD).lost > 0
    watch = bench.watch(stack, "one", FILES)
    do(child, 10)
    told = hear(bench, watch, calls=10)
    assert (told.seen, told.lost) == (10, 0)


def test_the_end_comes_after_what_was_lost(bench: Bench, stack: ExitStack) -> None:
    child = stack.enter_context(program(bench, "one"))
    told = Told()
    watches: list[Subscription] = []

    def hear_at_once() -> None:
        while not told.has_ended and (lines := watches[0].read(at_most=5000)):
            told.add(lines)
        if told.has_ended:
            bench.ready.set()

    subscribed = bench.collector.subscribe(bench.subjects["one"], FILES, notify=hear_at_once)
    watches.append(stack.enter_context(subscribed))
    with bench.collector._lock:
        do(child, FLOOD)
        bench.collector.end("id-one", reason="gone")
    assert bench.ready.wait(DEADLINE_S)
    assert told.seen + told.lost == FLOOD


def test_who_catches_up_knows_what_was_lost(bench: Bench, stack: ExitStack) -> None:
    child = stack.enter_context(program(bench, "one"))
    watch = bench.watch(stack, "one", FILES)
    flood(bench, child)
    bench.collector.catch_up()
    told = Told()
    while lines := watch.read(at_most=5000):
        told.add(lines)
    assert told.seen + told.lost == FLOOD


def test_losses_add_up_until_the_end_for_all_who_ask(
    bench: Bench, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the ring, and those of a reader for whom too much waits, whether anybody counts calls or not."""
    child = stack.enter_context(program(bench, "one"))
    assert bench.collector.lost_events() == {}
    with ExitStack() as first:
        watch = bench.watch(first, "one", FILES)
        assert bench.collector.lost_events() == {"id-one": 0}
        flood(bench, child)
        told = hear(bench, watch, calls=FLOOD)
        assert bench.collector.lost_events() == {"id-one": told.lost}
        monkeypatch.setattr(subscription, "MAX_WAITING", 10)
        do(child, 100)
        bench.collector.catch_up()
        assert bench.collector.lost_events() == {"id-one": told.lost + 90}
    assert bench.collector.lost_events() == {"id-one": told.lost + 90}
    bench.collector.end("id-one", reason="gone")
    assert bench.collector.lost_events() == {}
