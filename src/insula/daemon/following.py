# SPDX-License-Identifier: Apache-2.0
"""Containers that are watched from their start to their end for insulad's own sake, and one thread that hears of all.

before a start, before an arrival runs, when insulad begins ─► is anything of it wanted? ─► subscribed to that
it ends, moves, is removed ─► what was still unheard is heard, then no more
"""

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import TypeAlias

from insula.daemon.watching import WATCHABLE, Watching
from insula.model.errors import Unsupported, WrongState
from insula.model.monitor import TraceLine, TraceWish
from insula.model.record import ContainerRecord
from insula.monitor.collect import Collector
from insula.monitor.setbacks import Setbacks
from insula.monitor.subscription import Scope, Subject, Subscription
from insula.runtime.context import Runtime

LOG = logging.getLogger(__name__)

_AT_ONCE = 1000

WishOf: TypeAlias = Callable[[ContainerRecord], TraceWish | None]
"""What is wanted of a container; None: nothing."""
Take: TypeAlias = Callable[[ContainerRecord, Iterable[TraceLine]], None]


Beside: TypeAlias = Callable[[ContainerRecord, Subject], AbstractContextManager[None]]


def _nothing_beside(_record: ContainerRecord, _subject: Subject) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class _Watch:
    record: ContainerRecord
    subscription: Subscription
    held: ExitStack

    def is_of(self, subject: Subject) -> bool:
        """Tell whether it is of the same run of the same container."""
        return self.subscription.subject.cgroup == subject.cgroup

    def is_told(self, subject: Subject, wish: TraceWish) -> bool:
        """Tell whether that is what it tells, under the name that the container has."""
        return (self.subscription.subject.name, self.subscription.wish) == (subject.name, wish)


class Following:
    """Who is watched.  `note` and `before_start` from any thread; `take` is called by one at a time."""

    def __init__(
        self,
        runtime: Runtime,
        collector: Collector,
        watching: Watching,
        *,
        wish_of: WishOf,
        take: Take,
        name: str,
        scope: Scope = Scope.EVERYTHING,
        beside: Beside = _nothing_beside,
    ) -> None:
        """scope: what at least is told.  beside: what is held as long as a container is watched."""
        self._runtime = runtime
        self._collector = collector
        self._watching = watching
        self._wish_of = wish_of
        self._take = take
        self._scope = scope
        self._beside = beside
        self._setbacks = Setbacks(name)
        self._ready = threading.Event()
        self._lock = threading.RLock()
        self._watches: dict[str, _Watch] = {}
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        for record in runtime.store.list_containers():
            self.note(record.id, record)

    def before_start(self, record: ContainerRecord) -> None:
        """Take up a container of which nothing runs yet, so that nothing of it is missed."""
        if self._wish_of(record) is not None:
            self._runtime.group(record).create()
            with self._lock:
                self._take_up(record)

    def note(self, container_id: str, record: ContainerRecord | None) -> None:
        """Take a change of a container."""
        with self._lock:
            if record is not None and record.status in WATCHABLE:
                self._take_up(record)
            else:
                self._drop(container_id)

    def _take_up(self, record: ContainerRecord) -> None:
        wish = self._wish_of(record)
        try:
            subject = self._watching.subject(record)
        except WrongState:  # it has just ended, or an arrival has no groups yet
            return
        known = self._watches.get(record.id)
        if known is not None and wish is not None and known.is_of(subject):
            if not known.is_told(subject, wish):
                self._change(known, record, subject=subject, wish=wish)
            return
        self._drop(record.id)
        if wish is not None:
            self._begin(record, subject, wish=wish)

    def _change(self, known: _Watch, record: ContainerRecord, *, subject: Subject, wish: TraceWish) -> None:
        """Go on with what is wished for now: what was heard until then is judged by what was."""
        self._collector.catch_up()
        self._hear(known)
        try:
            self._collector.change(known.subscription, subject, wish=wish)
        except Unsupported as error:  # it goes on as it was, and is tried again at the next change
            _log("a container is not watched as is wished for", record, error=error)
            return
        self._watches[record.id] = replace(known, record=record)

    def _begin(self, record: ContainerRecord, subject: Subject, *, wish: TraceWish) -> None:
        with ExitStack() as held:
            try:
                subscription = held.enter_context(
                    self._collector.subscribe(subject, wish, notify=self._ready.set, scope=self._scope)
                )
                held.enter_context(self._beside(record, subject))
            except Unsupported as error:
                _log("a container is not watched", record, error=error)
                return
            self._watches[record.id] = _Watch(record, subscription, held.pop_all())

    def _drop(self, container_id: str) -> None:
        watch = self._watches.pop(container_id, None)
        if watch is not None:
            self._collector.catch_up()
            self._hear(watch)
            watch.held.close()

    def _run(self) -> None:
        while not self._is_closing:
            self._ready.wait()
            self._ready.clear()
            with self._lock:
                for watch in list(self._watches.values()):
                    self._hear(watch)

    def _hear(self, watch: _Watch) -> None:
        while lines := watch.subscription.read(at_most=_AT_ONCE):
            with self._setbacks.going_on("take events"):
                self._take(watch.record, lines)

    def close(self) -> None:
        """Watch no more."""
        self._is_closing = True
        self._ready.set()
        self._thread.join()
        with self._lock:
            for container_id in list(self._watches):
                self._drop(container_id)


def _log(message: str, record: ContainerRecord, *, error: Unsupported) -> None:
    fields = {"container": record.name, "reason": error.message, "hint": error.hint}
    LOG.warning(message, extra={"fields": fields, "tenant": record.tenant})
