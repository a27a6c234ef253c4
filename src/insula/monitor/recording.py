# SPDX-License-Identifier: Apache-2.0
"""A profile in the making: what a container is seen to do, added up.

System calls and capabilities come out of the kernel's counters, without loss; paths and addresses out of events.  What
happens while the container is made (its mounts, its ids) is left out: tasks are looked at from their seccomp filter on.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack

from insula.kernel import syscalls
from insula.kernel.threads import begin
from insula.model.monitor import ContainerCounts, Event, EventKind, Lost, TraceLine, TraceWish
from insula.model.profile import VERSION, Profile
from insula.monitor.collect import Collector
from insula.monitor.setbacks import refusing
from insula.monitor.subscription import Scope, Subject, Subscription
from insula.monitor.usage import (
    NOWHERE,
    Home,
    changed_folders,
    listening_peer,
    outgoing_peer,
    refused_folders,
    refused_program,
    serving_ports,
    started_programs,
)

_WISH = TraceWish(
    kinds=(EventKind.EXEC, EventKind.FILE, EventKind.NETWORK, EventKind.CAPABILITY, EventKind.SECCOMP)
)
_AT_ONCE = 1000
_NUMBERS = syscalls.numbers(os.uname().machine)
_NAMES = frozenset(_NUMBERS)
"""Of the calls that there are; others cannot be allowed by name."""
MAX_THINGS = 10_000
"""Folders, or addresses: more tell nothing."""


class Gathered:
    """What events have told so far."""

    def __init__(self, *, home: Home = NOWHERE) -> None:
        self.written: Counter[str] = Counter()
        self.outgoing: Counter[str] = Counter()
        self.listening: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.refused_folders: Counter[str] = Counter()
        self.programs: Counter[str] = Counter()
        self.refused_programs: Counter[str] = Counter()
        self.lost = 0
        self._home = home
        self._serving: set[int] = set()
        """Its own ports, at which it answers datagrams."""

    def add(self, lines: Iterable[TraceLine]) -> None:
        """Take in what a trace tells."""
        for line in lines:
            match line:
                case Lost():
                    self.lost += line.events
                case Event(kind=EventKind.SECCOMP):
                    self.refused[line.call] += 1
                case Event(kind=EventKind.EXEC):
                    for program in started_programs(line):
                        _count(self.programs, program)
                case Event(kind=EventKind.FILE):
                    self._add_folders(line)
                    if program := refused_program(line):
                        _count(self.refused_programs, program)
                case Event(kind=EventKind.NETWORK):
                    self._add_folders(line)
                    self._add_peer(line)
                case _:
                    pass

    def _add_folders(self, event: Event) -> None:
        for folder in changed_folders(event):
            _count(self.written, folder)
        for folder in refused_folders(event):
            _count(self.refused_folders, folder)

    def _add_peer(self, event: Event) -> None:
        if peer := listening_peer(event):
            _count(self.listening, peer)
            self._serving.update(serving_ports((peer,)))
        if peer := outgoing_peer(event, home=self._home, serving=self._serving):
            _count(self.outgoing, peer)


def _count(things: Counter[str], thing: str) -> None:
    if thing in things or len(things) < MAX_THINGS:
        things[thing] += 1


class Recording:
    """Watches a container until it is closed."""

    def __init__(
        self,
        collector: Collector,
        subject: Subject,
        *,
        is_from_birth: bool,
        home: Home = NOWHERE,
    ) -> None:
        """Begin.  Raises: Unsupported where that cannot be, with the cure."""
        self.subject = subject
        self._collector = collector
        self._is_from_birth = is_from_birth
        self._begun = time.monotonic()
        self._gathered = Gathered(home=home)
        self._ready = threading.Event()
        self._lock = threading.Lock()
        with ExitStack() as undo:
            self._before = _calls(collector.counts([subject]))
            undo.enter_context(collector.counting(subject))
            self._used_before, self._refused_before = _capabilities(collector.counts([subject]))
            self._subscription: Subscription = undo.enter_context(
                collector.subscribe(subject, _WISH, notify=self._ready.set, scope=Scope.CHANGES)
            )
            self._is_closed = False
            self._counts: ContainerCounts | None = None
            with refusing():
                begin(threading.Thread(target=self._run, name="recording", daemon=True))
            self._held = undo.pop_all()

    def _run(self) -> None:
        while not self._is_closed:
            self._ready.wait()
            self._ready.clear()
            self._drain()

    def _drain(self) -> None:
        with self._lock:
            while lines := self._subscription.read(at_most=_AT_ONCE):
                self._gathered.add(lines)

    def look(self) -> None:
        """Remember the counters as they are now: they go with the container's cgroup."""
        found = self._collector.counts([self.subject])
        if found:
            self._counts = found[0]

    def profile(self, name: str) -> Profile:
        """Return what has been recorded so far."""
        self.look()
        self._collector.catch_up()
        self._drain()
        waiting = self._under_way()
        counts, gathered = self._counts, self._gathered
        used, refused = _capabilities([counts] if counts else [])
        with self._lock:
            calls = Counter(_calls([counts] if counts else [])) + Counter(waiting)
            calls.subtract(self._before)
            calls.subtract(gathered.refused)
            return Profile(
                version=VERSION,
                name=name,
                container=self.subject.name,
                recorded_at=time.time(),
                seconds=round(time.monotonic() - self._begun, 3),
                calls={call: count for call, count in sorted(calls.items()) if count > 0 and call in _NAMES},
                capabilities=_sorted(used - self._used_before)
                if self._collector.tells_capabilities
                else None,
                programs=_sorted(gathered.programs),
                written=_sorted(gathered.written),
                outgoing=_sorted(gathered.outgoing),
                listening=_sorted(gathered.listening),
                refused_calls={
                    call: count for call, count in sorted(gathered.refused.items()) if call in _NAMES
                },
                refused_capabilities=_sorted(refused - self._refused_before),
                refused_programs=_sorted(gathered.refused_programs),
                refused_folders=_sorted(gathered.refused_folders),
                is_from_birth=self._is_from_birth,
                lost_events=gathered.lost,
            )

    def _under_way(self) -> set[str]:
        numbers: set[int] = set().union(*(syscalls.under_way(pid) for pid in self._pids()))
        return {name for name, number in _NUMBERS.items() if number in numbers}

    def _pids(self) -> list[int]:
        try:
            return list(self.subject.group.pids())
        except OSError:  # its groups went with it
            return []

    def close(self) -> None:
        """Watch no more."""
        self._is_closed = True
        self._ready.set()
        self._held.close()


def _calls(counts: list[ContainerCounts]) -> dict[str, int]:
    return {each.call: each.calls for one in counts for each in one.calls}


def _capabilities(counts: list[ContainerCounts]) -> tuple[Counter[str], Counter[str]]:
    """Return which were granted and which refused, each with how often."""
    used, refused = Counter[str](), Counter[str]()
    for one in counts:
        used.update(one.capabilities)
        refused.update(one.refused_capabilities)
    return used, refused


def _sorted(things: Counter[str]) -> dict[str, int]:
    return dict(sorted(things.items()))
