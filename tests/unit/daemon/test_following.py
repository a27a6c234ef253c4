# SPDX-License-Identifier: Apache-2.0
"""Who is watched for insulad's own sake stays so, whatever the kernel refuses meanwhile."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from hosted import wait_until
from insula.daemon.following import Following
from insula.model.errors import Unsupported
from insula.model.monitor import EventKind, Lost, TraceLine, TraceWish
from insula.model.record import ContainerRecord
from insula.monitor.subscription import Subject, Subscription
from records import container_record

RECORD = container_record()
NO_GROUP: Any = None


class Around:
    """What there is around a `Following`: one container, and a collector that refuses as it is told."""

    def __init__(self) -> None:
        self.wish = TraceWish(kinds=(EventKind.EXEC,))
        self.is_full = False
        self.taken: list[TraceLine] = []
        self.refusal: OSError | None = None
        """What taking lines is answered with."""
        self.subscriptions: list[Subscription] = []
        self.subject = Subject(RECORD.id, RECORD.name, NO_GROUP, 1, 0, 65536)
        runtime: Any = SimpleNamespace(
            store=SimpleNamespace(list_containers=lambda *_: []),
            group=lambda _: SimpleNamespace(create=lambda: None),
        )
        collector: Any = SimpleNamespace(subscribe=self.subscribe, change=self.change, catch_up=lambda: None)
        watching: Any = SimpleNamespace(subject=lambda _: self.subject)
        self.following = Following(
            runtime, collector, watching, wish_of=lambda _: self.wish, take=self.take, name="test"
        )

    @contextmanager
    def subscribe(
        self, subject: Subject, wish: TraceWish, *, notify: Any, scope: Any
    ) -> Iterator[Subscription]:
        self.refuse()
        made = Subscription(subject, wish, calls={}, clock=0.0, notify=notify)
        self.subscriptions.append(made)
        yield made
        self.subscriptions.remove(made)

    def change(self, subscription: Subscription, subject: Subject, *, wish: TraceWish) -> None:
        self.refuse()
        subscription.change(subject, wish)

    def refuse(self) -> None:
        if self.is_full:
            raise Unsupported("cannot watch containers: full", hint="end a trace")

    def take(self, _record: ContainerRecord, lines: Iterable[TraceLine]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.taken += lines


@pytest.fixture
def around() -> Iterator[Around]:
    made = Around()
    yield made
    made.refusal = None
    made.following.close()
    assert made.subscriptions == []


def test_a_container_starts_that_cannot_be_watched(around: Around, caplog: pytest.LogCaptureFixture) -> None:
    around.is_full = True
    around.following.before_start(RECORD)
    assert caplog.messages == ["a container is not watched"]
    around.is_full = False
    around.following.note(RECORD.id, RECORD)
    assert len(around.subscriptions) == 1


def test_a_wish_that_is_refused_leaves_the_one_before_and_is_tried_again(
    around: Around, caplog: pytest.LogCaptureFixture
) -> None:
    around.following.note(RECORD.id, RECORD)
    (watch,) = around.subscriptions
    before, around.wish = around.wish, TraceWish(kinds=(EventKind.FORK,))
    around.is_full = True
    around.following.note(RECORD.id, RECORD)
    assert caplog.messages == ["a container is not watched as is wished for"]
    assert watch.wish == before
    around.is_full = False
    around.following.note(RECORD.id, RECORD)
    assert watch.wish == around.wish


def test_what_cannot_be_taken_ends_nothing(around: Around, caplog: pytest.LogCaptureFixture) -> None:
    around.following.note(RECORD.id, RECORD)
    (watch,) = around.subscriptions
    around.refusal = OSError(errno.EMFILE, "open")
    for _ in range(3):
        watch.give([Lost(events=1)])
        wait_until(lambda: not watch._waiting, what="it is heard")
    wait_until(lambda: caplog.messages == ["a step of watching fails"], what="it is said once")
    around.refusal = None
    watch.give([Lost(events=2)])
    wait_until(lambda: around.taken == [Lost(events=2)], what="it goes on")


def test_a_watch_ends_whose_last_lines_cannot_be_taken(around: Around) -> None:
    around.following.note(RECORD.id, RECORD)
    around.refusal = OSError(errno.EMFILE, "open")
    around.subscriptions[0].give([Lost(events=1)])
    around.following.note(RECORD.id, None)
    assert around.subscriptions == []
