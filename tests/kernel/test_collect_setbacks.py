# SPDX-License-Identifier: Apache-2.0
"""Watching on the real kernel while there are no file descriptors: what cannot begin says so, and all else goes on."""

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from insula.model.errors import Unsupported
from insula.model.monitor import EventKind, TraceWish
from insula.monitor.layout import Kind
from insula.monitor.probes import Counting, Probes
from waiting import wait_until
from watched import Bench, refuse_hooks

EXECS = TraceWish(kinds=(EventKind.EXEC,))
FORKS = TraceWish(kinds=(EventKind.FORK,))


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Have no file opened by this process meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_looks_that_cannot_be_had_end_nothing_and_come_back(
    bench: Bench, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    watch = bench.watch(stack, "one", EXECS)
    stack.enter_context(bench.collector.counting(bench.subjects["one"], how=Counting.BY_LOOKS))
    with ExitStack() as limited:
        with bench.collector._lock:  # a look that ends meanwhile would leave its descriptors to the next
            assert bench.collector._probes is not None
            bench.collector._probes.look(is_on=False, is_timing=False)
            limited.enter_context(no_descriptors())
        wait_until(lambda: "a step of watching fails" in caplog.messages, what="a look fails")
    wait_until(lambda: "a step of watching works again" in caplog.messages, what="a look works")
    bench.run("one", ["true"])
    bench.seen(watch, lambda each: each.kind is EventKind.EXEC)
    wait_until(lambda: "on_exit" in bench.collector.attached, what="calls are looked at")


def test_a_watch_that_cannot_begin_is_refused_with_the_cure_and_begins_later(
    bench: Bench, stack: ExitStack
) -> None:
    first = bench.watch(stack, "one", EXECS)
    with no_descriptors(), pytest.raises(Unsupported) as caught:
        bench.watch(stack, "one", FORKS)
    assert "open files" in caught.value.hint
    assert bench.collector.watchers("id-one") == [first]
    second = bench.watch(stack, "one", FORKS)
    bench.run("one", ["sh", "-c", "true; true & wait"])
    bench.seen(first, lambda each: each.kind is EventKind.EXEC)
    bench.seen(second, lambda each: each.kind is EventKind.FORK)


def test_who_is_counted_no_more_is_not_counted_for_who_has_its_place_then(bench: Bench) -> None:
    one, other = (bench.subjects[name].cgroup for name in ("one", "other"))
    at_rest = one + other  # nobody is in it
    probes = Probes(ring_bytes=1 << 20, load_calls=refuse_hooks)
    try:
        probes.watch(one, frozenset({Kind.EXEC}), counting=Counting.EACH)
        probes.watch(other, frozenset(), counting=Counting.EACH)
        with no_descriptors():
            with pytest.raises(OSError, match="attach"):
                probes.look(is_on=True, is_timing=True)
            with pytest.raises(OSError, match="attach"):
                probes.watch(one, frozenset({Kind.EXEC}))
        probes.forget_calls(one)
        probes.watch(at_rest, frozenset(), counting=Counting.EACH)
        bench.run("one", ["true"])
        assert probes.counts(at_rest) == {}
    finally:
        probes.close()
