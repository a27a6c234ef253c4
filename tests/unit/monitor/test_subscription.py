# SPDX-License-Identifier: Apache-2.0
"""What waits for one watcher is bounded, what finds no room is counted once, and only what is wished for is told, redacted."""

from typing import Any

import pytest
from msgspec.structs import replace

from insula.model.monitor import Ended, Event, EventKind, Lost, TraceWish
from insula.monitor import subscription
from insula.monitor.subscription import Subject, Subscription

NO_GROUP: Any = None
SUBJECT = Subject("id", "web", NO_GROUP, 1, 0, 65536)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Subscription:
    """One for which as much waits as may."""
    monkeypatch.setattr(subscription, "MAX_WAITING", 3)
    made = Subscription(SUBJECT, TraceWish(), calls={}, clock=0.0, notify=lambda: None)
    assert made.give([Lost(events=1)] * 3) == 0
    return made


def test_after_the_end_a_full_one_takes_nothing_and_counts_each_event_once(full: Subscription) -> None:
    full.end("gone")
    assert full.give([Lost(events=1)] * 10) == 10
    assert len(full._waiting) == 4
    lines = full.read(at_most=100)
    assert lines[0] == Lost(events=10)
    assert lines[-1] == Ended(reason="gone")


def test_what_finds_room_is_taken(full: Subscription) -> None:
    full.read(at_most=2)
    assert full.give([Lost(events=1)] * 10) == 8
    assert len(full._waiting) == 3


def connection(address: str) -> Event:
    return Event(at=0.0, container="id", name="web", kind=EventKind.NETWORK, call="connect", address=address)


HERE, THERE, NAMED = connection("192.0.2.1:80"), connection("192.0.2.10:80"), connection("unix:/run/secret")


@pytest.mark.parametrize(("patterns", "told"), [
    ((), [HERE, THERE, NAMED]), (("192.0.2.1:80",), [HERE]), (("192.0.2.1*:80",), [HERE, THERE]),
    (("unix:*", "*.10:*"), [THERE, NAMED]), (("198.51.100.*",), []),
])  # fmt: skip
def test_only_addresses_that_are_wished_for_are_told(patterns: tuple[str, ...], told: list[Event]) -> None:
    watcher = Subscription(SUBJECT, TraceWish(addresses=patterns), calls={}, clock=0.0, notify=lambda: None)
    watcher.give([HERE, THERE, NAMED])
    assert watcher.read(at_most=9) == told


def test_what_a_watcher_may_not_see_is_taken_away_before_it_is_compared() -> None:
    """Else who asks for a path or an address learns from the answer what it is."""
    hidden = replace(NAMED, address="[redacted]")
    for addresses, told in (((), [hidden]), (("unix:/run/*",), []), (("*redacted*",), [hidden])):
        watcher = Subscription(
            SUBJECT, TraceWish(addresses=addresses), calls={}, clock=0.0, notify=lambda: None,
            redact=lambda event: replace(event, address="[redacted]"),
        )  # fmt: skip
        watcher.give([NAMED])
        assert watcher.read(at_most=9) == told
