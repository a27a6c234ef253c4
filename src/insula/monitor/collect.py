# SPDX-License-Identifier: Apache-2.0
"""The collector: one per host.  It knows who watches whom, keeps the programs in the kernel to that, and hands out.

    kernel ── ring ──► the collector's thread ──► subscriptions ──► whoever reads them (the API, rules, a profile)
           ── maps ──► counts(), when somebody asks

Nothing is loaded before somebody watches; with the last watcher everything is detached.  Verbs are safe from any
thread.  Out of scope: which containers there are, and who may watch them (`daemon/watching.py`).
"""

import itertools
import os
import random
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from insula.kernel import syscalls
from insula.kernel.threads import begin
from insula.model.errors import Unsupported
from insula.model.monitor import ContainerCounts, Event, TraceLine, TraceWish
from insula.monitor import layout
from insula.monitor.counts import Counts
from insula.monitor.describe import call_names
from insula.monitor.layout import CGROUP, Kind
from insula.monitor.probes import Counting, Probes
from insula.monitor.setbacks import Setbacks, refusing
from insula.monitor.subscription import Redact, Scope, Subject, Subscription, as_it_is
from insula.monitor.throttling import Throttling

BATCH = 8192
LINGER_MS = 5
"""After events more are looked for unasked, so long after: waking the reader for each costs the program that makes them."""
TICK_S = 0.2
"""How often losses and throttling are looked at while somebody watches."""
LOOK_TICKS = 5
"""In one tick of so many, any of them, calls are looked at: that costs every system call on the host (ADR 31)."""
TIMED_LOOKS = 2
"""In one look of so many calls are timed: tracing their entry, too, doubles what counting costs."""
_AT_CGROUP = 8
"""Where in an event the cgroup stands."""


class Collector:
    """Who watches whom."""

    def __init__(self, load: Callable[[], Probes] = Probes) -> None:
        self._load = load
        self._probes: Probes | None = None
        self._counts: Counts | None = None
        self._lock = threading.RLock()
        self._subscriptions: dict[int, list[Subscription]] = {}
        self._counting: dict[int, list[Counting]] = {}
        """cgroup → how it is counted, by each who counts."""
        self._counted_from: dict[int, float] = {}
        """cgroup → `Probes.looked_s` when that began."""
        self._lost: dict[int, int] = {}
        """cgroup → losses that were handed out."""
        self._unread: Counter[str] = Counter()
        """Container → events that nobody could read in time, since it is watched and until its end."""
        self._ending: list[tuple[Subscription, str]] = []
        self._emptying = threading.Lock()
        """The ring has one reader at a time; taken before `_lock`."""
        self._names = call_names(syscalls.numbers(os.uname().machine))
        self._throttling = Throttling()
        self._setbacks = Setbacks("collector")
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._is_closing = False

    @contextmanager
    def subscribe(
        self,
        subject: Subject,
        wish: TraceWish,
        *,
        notify: Callable[[], None],
        redact: Redact = as_it_is,
        scope: Scope = Scope.EVERYTHING,
    ) -> Iterator[Subscription]:
        """Watch a container while the block runs.  `notify` is called, from another thread, when there is more to read.

        scope: what at least is told.
        Raises: Unsupported where eBPF cannot be used, with the cure.
        """
        clock = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        cgroup = subject.cgroup
        subscription = Subscription(
            subject, wish, calls=self._names, clock=clock, notify=notify, redact=redact, scope=scope
        )
        try:
            with self._lock, refusing():
                lost = self._ready().lost_events(cgroup)
                self._lost.setdefault(cgroup, lost)
                self._subscriptions.setdefault(cgroup, []).append(subscription)
                self._tell_capabilities_again(subscription, had=frozenset())
                self._tell(subject)
            yield subscription
        finally:
            with self._lock:
                self._unsubscribe(subscription)
            subscription.close()

    def _unsubscribe(self, subscription: Subscription) -> None:
        cgroup = subscription.subject.cgroup
        watchers = self._subscriptions.get(cgroup, [])
        if subscription not in watchers:  # it could not even begin
            return
        watchers.remove(subscription)
        if not watchers:
            del self._subscriptions[cgroup], self._lost[cgroup]
            self._throttling.forget(subscription.subject)
        self._tell_end(subscription.subject)

    def change(self, subscription: Subscription, subject: Subject, *, wish: TraceWish) -> None:
        """Have a subscription that is open tell what is wished for now, without a gap.  For the thread that reads it.

        subject: the same run of the same container; its name may be another.
        Raises: Unsupported; then it tells what it told.
        """
        with self._lock:
            had, before = subscription.kinds, (subscription.subject, subscription.wish)
            subscription.change(subject, wish)
            try:
                with refusing():
                    self._tell_capabilities_again(subscription, had=had)
                    self._tell(subject)
            except Unsupported:
                subscription.change(*before)
                self._tell_end(subject)
                raise

    @contextmanager
    def counting(self, subject: Subject, *, how: Counting = Counting.EACH) -> Iterator[None]:
        """Count a container's system calls while the block runs.  Raises: as `subscribe`."""
        cgroup = subject.cgroup
        with self._lock, refusing():
            self._counted_from.setdefault(cgroup, self._ready().looked_s)
            self._counting.setdefault(cgroup, []).append(how)
        try:
            with self._lock, refusing():
                self._tell(subject)
            yield
        finally:
            with self._lock:
                self._counting[cgroup].remove(how)
                if not self._counting[cgroup]:
                    del self._counting[cgroup], self._counted_from[cgroup]
                self._tell_end(subject)
                with self._setbacks.going_on("forget what was counted"):
                    self._forget_uncounted(cgroup)

    @contextmanager
    def knowing(self, subject: Subject, calls: frozenset[str]) -> Iterator[None]:
        """Have a container's system calls other than these told as drift while the block runs.  Raises: as `subscribe`."""
        with self._lock, refusing():
            probes = self._ready()
        try:
            with self._lock, refusing():
                probes.know(subject.cgroup, [number for number, name in self._names.items() if name in calls])
            yield
        finally:
            with self._lock, self._setbacks.going_on("forget what is known"):
                probes.know(subject.cgroup, None)

    def strange(self, subject: Subject) -> dict[str, int]:
        """Return system call → how often, of those that a container is not known to make."""
        with self._lock:
            found = self._probes.strange(subject.cgroup) if self._probes is not None else {}
        return {self._names.get(number, f"syscall {number}"): count for number, count in found.items()}

    def tell(self, container: str, event: Event) -> None:
        """Give a container's watchers an event that the kernel does not know of."""
        for each in self.watchers(container):
            if each.is_wished(event):
                self._give(each, [event])

    def counts(self, subjects: list[Subject]) -> list[ContainerCounts]:
        """Return what was counted of containers since somebody began to, and as long as somebody does."""
        with self._lock:
            if self._counts is None:
                return []
            return self._counts.of(subjects, since=self._counted_from, lost=self._unread)

    def lost_events(self) -> dict[str, int]:
        """Return container → how many of its events nobody could read in time, for want of room in the ring or with a reader.

        Of those that are watched, or were since their start.
        """
        with self._lock:
            watched = {each[0].subject.container: 0 for each in self._subscriptions.values()}
            return watched | self._unread

    @property
    def is_counting(self) -> bool:
        """Whether somebody counts any container's system calls."""
        return bool(self._counting)

    def watchers(self, container: str) -> list[Subscription]:
        """Return who watches a container here."""
        with self._lock:
            return [
                each
                for subscriptions in self._subscriptions.values()
                for each in subscriptions
                if each.subject.container == container and not each.is_elsewhere
            ]

    def end(self, container: str, *, reason: str) -> None:
        """Tell the watchers of a container that it is gone from here, after what it still has in the ring."""
        with self._lock:
            watchers = self.watchers(container)
            self._ending += [(each, reason) for each in watchers]
            if watchers:
                os.eventfd_write(self._wake, 1)
            else:
                self._unread.pop(container, None)

    def catch_up(self) -> None:
        """Hand out what the kernel has told until now, and how much it lost: of what ended a moment ago, it may be there yet."""
        with self._emptying:
            probes = self._probes
            if probes is None or self._is_closing:
                return
            end = probes.ring.written
            while probes.ring.position < end and (records := probes.ring.read(at_most=BATCH)):
                self._hand_out(records)
        with self._lock, self._counting_losses():
            self._hand_out_losses(probes)

    def _counting_losses(self) -> AbstractContextManager[None]:
        return self._setbacks.going_on("count losses")

    @property
    def attached(self) -> frozenset[str]:
        """The programs that run in the kernel now."""
        return self._probes.attached if self._probes is not None else frozenset()

    def wait_settled(self, *, deadline: float) -> bool:
        """Wait until events of system calls are told at the calls themselves.  Returns: whether they are; never on some kernels."""
        return self._probes is not None and self._probes.calls.wait_settled(deadline=deadline)

    @property
    def tells_capabilities(self) -> bool:
        """Whether this kernel says which capabilities are used."""
        return "on_capability" not in self.missing

    @property
    def missing(self) -> frozenset[str]:
        """The programs that this kernel has no hook for, as far as they were loaded."""
        return self._probes.missing if self._probes is not None else frozenset()

    def close(self, *, at_once: bool = False) -> None:
        """Take everything out of the kernel.  at_once: what takes time there is left to a process of its own."""
        self._is_closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        with self._emptying, self._lock:
            if self._probes is not None:
                self._probes.close(at_once=at_once)
        os.close(self._wake)

    def _tell(self, subject: Subject) -> None:
        """Say to the kernel what is wanted of a container now."""
        cgroup = subject.cgroup
        wanted: frozenset[Kind] = frozenset().union(
            *(each.kinds for each in self._subscriptions.get(cgroup, ()))
        )
        if self._probes is not None:
            hows = self._counting.get(cgroup, [])
            counting = Counting.EACH if Counting.EACH in hows else next(iter(hows), Counting.NOT)
            self._probes.watch(cgroup, wanted, counting=counting, flags=self._flags(subject))
            os.eventfd_write(self._wake, 1)

    def _tell_end(self, subject: Subject) -> None:
        """Say that less is wanted now, and drop what nobody asks for any more.  What is refused stays as it is."""
        with self._setbacks.going_on("say that less is wanted"):
            self._tell(subject)
        with self._setbacks.going_on("forget what was told"):
            self._forget_unwatched(subject.cgroup)

    def _forget_uncounted(self, cgroup: int) -> None:
        if cgroup not in self._counting and self._probes is not None and self._counts is not None:
            self._probes.forget_calls(cgroup)
            self._counts.forget_calls(cgroup)

    def _forget_unwatched(self, cgroup: int) -> None:
        """What was lost, and which capabilities were told, is each watcher's business as long as there is one."""
        is_watched = cgroup in self._subscriptions or cgroup in self._counting
        if not is_watched and self._probes is not None and self._counts is not None:
            self._probes.forget(cgroup)
            self._counts.forget(cgroup)

    def _tell_capabilities_again(self, subscription: Subscription, *, had: frozenset[Kind]) -> None:
        """The kernel tells the first use of each: who begins to watch for them has not heard of any."""
        if self._counts is not None and Kind.CAPABILITY in subscription.kinds - had:
            self._counts.tell_capabilities_again(subscription.subject.cgroup)

    def _flags(self, subject: Subject) -> int:
        flags = layout.CONFINED_ONLY if subject.is_confined else 0
        watchers = self._subscriptions.get(subject.cgroup, ())
        of_calls = [each for each in watchers if each.kinds & {Kind.FILE, Kind.NETWORK}]
        if all(each.scope is Scope.CHANGES for each in of_calls):
            flags |= layout.CHANGES_ONLY
        return flags

    def _ready(self) -> Probes:
        """Return the programs, loaded.  Raises: OSError."""
        if self._probes is None:
            with ExitStack() as undo:
                probes = self._load()
                undo.callback(probes.close)
                thread = threading.Thread(target=self._run, args=(probes,), name="collector", daemon=True)
                begin(thread)
                undo.pop_all()
            self._probes, self._thread = probes, thread
            self._counts = Counts(probes, self._names)
        return self._probes

    def _run(self, probes: Probes) -> None:
        woken, lingering = select.poll(), select.poll()
        woken.register(probes.ring.fd, select.POLLIN)
        for poll in (woken, lingering):
            poll.register(self._wake, select.POLLIN)
        next_tick = 0.0
        looks = _looks()
        is_busy = False
        while not self._is_closing:
            if is_busy:
                found = lingering.poll(LINGER_MS)
            else:
                probes.wake_reader()
                found = woken.poll(TICK_S * 1000 if self._subscriptions or self._counting else None)
            if any(fd == self._wake for fd, _ in found):
                os.eventfd_read(self._wake)
            is_busy = self._empty(probes)
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + TICK_S
                is_look, is_timed = next(looks)
                self._tick(probes, is_look=is_look, is_timed=is_timed)

    def _empty(self, probes: Probes) -> bool:
        """Hand out what is in the ring, then say to whom it ends.  Returns: whether there was anything."""
        with self._lock:
            ending, self._ending = self._ending, []
        is_any = False
        with self._emptying:
            while records := probes.ring.read(at_most=BATCH):
                is_any = True
                self._hand_out(records)
        if ending:
            with self._lock:
                with self._counting_losses():
                    self._hand_out_losses(probes)
                for subscription, _ in ending:
                    self._unread.pop(subscription.subject.container, None)
            for subscription, reason in ending:
                subscription.end(reason)
        return is_any

    def _hand_out(self, records: list[bytes]) -> None:
        shares: dict[int, list[bytes]] = {}
        for record in records:
            (cgroup,) = CGROUP.unpack_from(record, _AT_CGROUP)
            shares.setdefault(cgroup, []).append(record)
        with self._lock:
            for cgroup, share in shares.items():
                for each in self._subscriptions.get(cgroup, ()):
                    self._give(each, share)

    def _give(self, subscription: Subscription, records: Sequence[bytes | TraceLine]) -> None:
        unplaced = subscription.give(records)
        if unplaced:
            with self._lock:
                self._unread[subscription.subject.container] += unplaced

    def _tick(self, probes: Probes, *, is_look: bool, is_timed: bool) -> None:
        kind = "end a look" if not is_look else "time calls" if is_timed else "count calls"
        with self._lock:
            with self._setbacks.going_on(kind):
                probes.look(is_on=is_look, is_timing=is_timed)
            with self._counting_losses():
                self._hand_out_losses(probes)
            for subscriptions in self._subscriptions.values():
                self._tell_throttling(subscriptions)

    def _hand_out_losses(self, probes: Probes) -> None:
        """Tell each watcher how many of its container's events have found the ring full since this was done last."""
        for cgroup, lost in probes.losses().items():
            before = self._lost.get(cgroup)
            if before is None or lost == before:  # nobody watches it, or nothing is new
                continue
            self._lost[cgroup] = lost
            new = (
                lost - before if lost > before else lost
            )  # fewer: the kernel's map was full, and it began anew
            watchers = self._subscriptions[cgroup]
            self._unread[watchers[0].subject.container] += new
            for each in watchers:
                each.give((), lost=new)

    def _tell_throttling(self, subscriptions: list[Subscription]) -> None:
        """Look at a container's throttling if one of its watchers wants that.  One that hears from elsewhere hears it there."""
        subject = subscriptions[0].subject
        wanting = [each for each in subscriptions if each.wants_throttling and not each.is_elsewhere]
        if not wanting:
            self._throttling.forget(subject)
        elif throttled := self._throttling.look(subject):
            for each in wanting:
                self._give(each, throttled)


def _looks() -> Iterator[tuple[bool, bool]]:
    """Tell of each tick whether calls are looked at in it, and whether they are timed: at no time that programs could keep to."""
    for number in itertools.count():
        chosen = random.randrange(LOOK_TICKS)
        for tick in range(LOOK_TICKS):
            is_look = tick == chosen
            yield is_look, is_look and number % TIMED_LOOKS == 0
