# SPDX-License-Identifier: Apache-2.0
"""Which containers can be watched, and what becomes of their watchers when one ends or moves: the API's monitor verbs.

A trace goes on across a move.  Before the container runs on the other host the source opens the same trace there, and
from then on passes on what it tells (`relay.py`); the move waits for that, but only if somebody watches.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from insula.api.watch import Counting, Trace
from insula.daemon.pki import Pki
from insula.daemon.relay import Relays
from insula.daemon.sight import Sight
from insula.kernel.cgroup import Group
from insula.model.errors import BadRequest, WrongState
from insula.model.grant import Grant, scope
from insula.model.lifecycle import ALIVE, Status
from insula.model.migration import Phase
from insula.model.monitor import ContainerCounts, TraceWish
from insula.model.record import ContainerRecord
from insula.monitor import probes
from insula.monitor.collect import Collector
from insula.monitor.names import judge_call, judge_error
from insula.monitor.subscription import ANY_ERROR, Subject
from insula.runtime.context import Runtime, not_running
from insula.tenant.idmap import RANGE_WIDTH

WATCHABLE = ALIVE | {Status.RESTORING}
"""Of these there is something to watch, or soon will be."""


def _check(wish: TraceWish) -> None:
    """Refuse what would never be told.  Raises: BadRequest."""
    for name in wish.calls:
        if reason := judge_call(name):
            raise BadRequest(f"cannot trace call `{name[:80]}`: {reason}", hint="as in openat")
    for name in wish.errors:
        if reason := judge_error(name):
            raise BadRequest(
                f"cannot trace error `{name[:80]}`: {reason}", hint=f"as in ENOENT, or {ANY_ERROR}"
            )


class Watching:
    """The `Monitor` of `api/watch.py`."""

    def __init__(self, runtime: Runtime, collector: Collector, *, pki: Pki, sight: Sight) -> None:
        self._sight = sight
        self._runtime = runtime
        self._collector = collector
        self._changes = 0
        self._relays = Relays(collector, store=runtime.store, pki=pki)

    @contextmanager
    def trace(
        self, grant: Grant, ref: str, *, wish: TraceWish, notify: Callable[[], None]
    ) -> Iterator[Trace]:
        """Watch a container while the block runs.  Raises: ContainerNotFound, WrongState, Unsupported, BadRequest."""
        _check(wish)
        record = self._runtime.find(grant, ref)
        if record.status not in WATCHABLE:
            raise not_running(record)
        redact = self._sight.redact(grant.principal, record.tenant)
        with self._collector.subscribe(
            self.subject(record), wish, notify=notify, redact=redact
        ) as subscription:
            yield subscription

    def counts(self, grant: Grant) -> list[ContainerCounts]:
        """Return what was counted of the caller's containers, as far as somebody counts them."""
        return self._collector.counts(self._counted(grant, ""))

    def lost_events(self, grant: Grant) -> dict[str, int]:
        """Return container → how many of its events nobody could read in time, of the caller's that somebody has watched."""
        lost = self._collector.lost_events()
        records = self._runtime.store.list_containers(scope(grant)) if lost else []
        return {record.id: lost[record.id] for record in records if record.id in lost}

    @contextmanager
    def counting(
        self, grant: Grant, ref: str, *, only: frozenset[str] = frozenset(), is_exact: bool = False
    ) -> Iterator[Counting]:
        """Count the system calls of a container, or of all that the caller may see, while the block runs.

        only: of these, by their ids; empty: of all.  is_exact: each call, not those of a part of the time.
        Raises: ContainerNotFound, WrongState, Unsupported.
        """
        how = probes.Counting.EACH if is_exact else probes.Counting.BY_LOOKS
        find = _Known(lambda: self._counted(grant, ref, only=only), changes=lambda: self._changes)
        with _Counters(find, self._collector, how=how) as counters:
            yield counters

    def _counted(self, grant: Grant, ref: str, *, only: frozenset[str] = frozenset()) -> list[Subject]:
        if ref:
            return [self.subject(self._runtime.find_alive(grant, ref))]
        found = []
        for record in self._runtime.store.list_containers(scope(grant)):
            if record.status in ALIVE and (not only or record.id in only):
                try:
                    found.append(self.subject(record))
                except WrongState:
                    continue
        return found

    def subject(self, record: ContainerRecord, *, group: Group | None = None) -> Subject:
        """Return what the collector must know of a container.  Raises: WrongState if it has just ended.

        group: the container's, if the caller knows it: to find it takes fifteen times as long as all else.
        """
        group = group or self._runtime.group(record)
        try:
            cgroup = group.v2_id()
        except FileNotFoundError:
            raise WrongState(f"container `{record.name}` is not running: it has just ended") from None
        return Subject(record.id, record.name, group, cgroup, record.uid_base, RANGE_WIDTH, is_confined=True)

    def note(self, container_id: str, record: ContainerRecord | None) -> None:
        """Take a change of a container: its watchers are told of an end."""
        self._changes += 1
        if record is not None and record.status is Status.MOVED:
            self._relays.take_over(container_id, host=record.owner)
            return
        if record is None or record.status is not Status.MIGRATING:
            self._relays.give_up(container_id)
        if record is None:
            self._collector.end(container_id, reason="removed")
        elif record.status is Status.EXITED:
            self._collector.end(container_id, reason=f"ended with exit code {record.exit_code}")

    def note_phase(self, container_id: str, phase: str, host: str) -> None:
        """Take a new phase of a move away from here: who watches the container goes on watching it there."""
        match phase:
            case Phase.RESTORE:
                self._relays.open(container_id, host=host)
            case Phase.COMMIT:
                self._relays.wait_open(container_id)


class _Known:
    """Subjects that are looked for again only after a change of some container: each costs files that are looked at."""

    def __init__(self, find: Callable[[], list[Subject]], *, changes: Callable[[], int]) -> None:
        self._find = find
        self._changes = changes
        self._seen = -1
        self._subjects: list[Subject] = []

    def __call__(self) -> list[Subject]:
        now = self._changes()
        if now != self._seen:
            self._subjects = self._find()
            self._seen = now
        return self._subjects


class _Counters:
    """Containers that are counted: those that start later are taken in at the next look."""

    def __init__(
        self, find: Callable[[], list[Subject]], collector: Collector, *, how: probes.Counting
    ) -> None:
        self._find = find
        self._collector = collector
        self._how = how
        self._counted: dict[int, ExitStack] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "_Counters":
        with ExitStack() as undo:
            undo.push(self.__exit__)
            self._take_in()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for held in self._counted.values():
                held.close()
            self._counted.clear()

    def read(self) -> list[ContainerCounts]:
        """Look at all counters."""
        return self._collector.counts(self._take_in())

    def _take_in(self) -> list[Subject]:
        subjects = self._find()
        with self._lock:
            now = {subject.cgroup: subject for subject in subjects}
            for cgroup in self._counted.keys() - now.keys():
                self._counted.pop(cgroup).close()
            for cgroup in now.keys() - self._counted.keys():
                with ExitStack() as held:
                    held.enter_context(self._collector.counting(now[cgroup], how=self._how))
                    self._counted[cgroup] = held.pop_all()
        return list(now.values())
