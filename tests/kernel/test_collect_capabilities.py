# SPDX-License-Identifier: Apache-2.0
"""The first use of each capability is told to everybody who watches, whoever else has watched before."""

from contextlib import ExitStack

import pytest

from insula.model.monitor import Event, EventKind, TraceWish
from insula.monitor.recording import Recording
from insula.monitor.subscription import Subscription
from watched import Bench

WISH = TraceWish(kinds=(EventKind.CAPABILITY, EventKind.EXIT))
USES = "import os; os.setgid(1)"


def told(bench: Bench, watch: Subscription) -> list[str]:
    """Have a program use a capability, and return what is told of it until the program's end."""
    bench.python("one", USES)
    lines = bench.until(watch, lambda event: event.kind is EventKind.EXIT)
    return [each.detail for each in lines if isinstance(each, Event) and each.kind is EventKind.CAPABILITY]


@pytest.fixture
def able(bench: Bench) -> Bench:
    """A bench whose kernel tells capabilities (Linux 6.14); elsewhere there is nothing to show."""
    with bench.collector.counting(bench.subjects["other"]):
        if not bench.collector.tells_capabilities:
            pytest.skip("this kernel has no tracepoint cap_capable")
    return bench


def test_who_watches_later_is_told_as_well(able: Bench) -> None:
    for _ in range(2):
        with ExitStack() as stack:
            assert "SETGID granted" in told(able, able.watch(stack, "one", WISH))


def test_who_watches_beside_others_is_told_as_well(able: Bench, stack: ExitStack) -> None:
    first = able.watch(stack, "one", WISH)
    assert "SETGID granted" in told(able, first)
    assert told(able, first) == []
    second = able.watch(stack, "one", WISH)
    assert "SETGID granted" in told(able, second)


def test_who_begins_to_wish_for_them_is_told_as_well(able: Bench, stack: ExitStack) -> None:
    told(able, able.watch(stack, "one", WISH))
    watch = able.watch(stack, "one", TraceWish(kinds=(EventKind.EXIT,)))
    able.collector.change(watch, able.subjects["one"], wish=WISH)
    assert "SETGID granted" in told(able, watch)


def test_all_uses_are_counted_whoever_begins_to_watch_meanwhile(able: Bench, stack: ExitStack) -> None:
    subject = able.subjects["one"]
    stack.enter_context(able.collector.counting(subject))
    told(able, able.watch(stack, "one", WISH))
    told(able, able.watch(stack, "one", WISH))
    (counts,) = able.collector.counts([subject])
    assert counts.capabilities["SETGID"] == 2


def test_a_recording_has_what_was_used_while_it_ran(able: Bench, stack: ExitStack) -> None:
    subject = able.subjects["one"]
    watch = able.watch(stack, "one", WISH)
    told(able, watch)
    made = Recording(able.collector, subject, is_from_birth=False)
    stack.callback(made.close)
    able.run("one", ["true"])
    assert "SETGID" not in (made.profile("before").capabilities or {})
    told(able, watch)
    told(able, able.watch(stack, "one", WISH))
    assert (made.profile("after").capabilities or {})["SETGID"] == 2
