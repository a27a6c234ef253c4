# SPDX-License-Identifier: Apache-2.0
"""One watcher's share of the events: what it wishes, how much waits for it, what it has missed.

Events wait as the kernel told them and are put into words when they are read, so that a flood costs its reader and not
the thread that empties the ring.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from fnmatch import fnmatchcase
from operator import methodcaller
from typing import NamedTuple, TypeAlias

from msgspec.structs import force_setattr

from insula.kernel.cgroup import Group
from insula.model.monitor import Ended, Event, EventKind, Lost, TraceLine, TraceWish
from insula.monitor.describe import describe, error_name, same_as, text_of
from insula.monitor.layout import TIME, Kind, Raw, unpack
from insula.monitor.shapes import kind_of

MAX_WAITING = 200_000
"""Events that wait for one watcher: some 50 MB."""
MAX_WORDED = 256
"""Different events that are remembered in words: some 200 KB."""
ANY_ERROR = "any"
_copied = methodcaller("__copy__")
"""`copy.copy` without the search for how."""

Redact: TypeAlias = Callable[[Event], Event]
"""Takes away what the watcher may not see."""


def as_it_is(event: Event) -> Event:
    return event


class Scope(Enum):
    """What of files and the network a watcher must be told; more may come if another one wants it."""

    EVERYTHING = "everything"
    CHANGES = "changes"
    """What changes files, and what goes out."""


class Subject(NamedTuple):
    """A container that can be watched."""

    container: str
    name: str
    group: Group
    cgroup: int
    """Its cgroup v2 id: each start has another."""
    first_uid: int
    """Of its range of the host's uids."""
    uids: int
    is_confined: bool = False
    """Its programs have a seccomp filter: what a task does in its cgroup before it has one is insula's, which makes it."""

    def inner_user(self, uid: int) -> int:
        """Return the container's uid of a host's, -1 for one that is not in its range."""
        inner = uid - self.first_uid
        return inner if 0 <= inner < self.uids else -1


def kinds_of(wish: TraceWish) -> frozenset[Kind]:
    """Return what the kernel must tell for a wish."""
    wanted = {kind.name for kind in wish.kinds}
    return frozenset(kind for kind in Kind if not wanted or kind.name in wanted)


class Subscription:
    """What waits for one watcher.  Filled from any thread (the collector's, a relay's), read by one other."""

    def __init__(
        self,
        subject: Subject,
        wish: TraceWish,
        *,
        calls: Mapping[int, str],
        clock: float,
        notify: Callable[[], None],
        redact: Redact = as_it_is,
        scope: Scope = Scope.EVERYTHING,
    ) -> None:
        self.scope = scope
        self._calls = calls
        self._clock = clock
        self._notify = notify
        self._redact = redact
        self.change(subject, wish)
        self.is_elsewhere = False
        """What it watches has moved, and is told of from there: its end here is not the end."""
        self._closers: list[Callable[[], None]] = []
        self._is_closed = False
        self._waiting: deque[bytes | TraceLine] = deque()
        self._lost = 0
        self._lock = threading.Lock()

    def change(self, subject: Subject, wish: TraceWish) -> None:
        """Tell from now on what is wished for now, of what waits already, too.  For the reader's thread."""
        self.subject = subject
        self.wish = wish
        self.kinds = kinds_of(wish)
        self.wants_throttling = not wish.kinds or EventKind.THROTTLE in wish.kinds
        self._numbers = frozenset(number for number, name in self._calls.items() if name in wish.calls)
        self._tells_all = self._redact is as_it_is and not wish.paths and not wish.addresses
        self._worded: dict[bytes, Event | None] = {}

    def give(self, records: Sequence[bytes | TraceLine], *, lost: int = 0) -> int:
        """Let records wait.  Returns: how many found no room: they are counted as lost, too."""
        with self._lock:
            room = max(0, MAX_WAITING - len(self._waiting))  # the end waits even where there is none
            self._waiting.extend(records[:room] if len(records) > room else records)
            unplaced = max(0, len(records) - room)
            self._lost += lost + unplaced
        self._notify()
        return unplaced

    def read(self, *, at_most: int) -> list[TraceLine]:
        """Take what waits and is wished for, in order; empty: nothing now.  What was missed is told first."""
        with self._lock:
            lost, self._lost = self._lost, 0
        lines: list[TraceLine] = [Lost(events=lost)] if lost else []
        while self._waiting and len(lines) < at_most:
            record = self._waiting.popleft()
            line = self._event(record) if isinstance(record, bytes) else self._told_event(record)
            if line is not None:
                lines.append(line)
        return lines

    def is_wished(self, event: Event) -> bool:
        """Tell whether an event that the kernel does not know of is one of those that are watched."""
        wish = self.wish
        return (
            (not wish.kinds or event.kind in wish.kinds)
            and (not wish.calls or event.call in wish.calls)
            and (not wish.errors or event.error in wish.errors)
            and (not wish.pids or event.pid in wish.pids)
            and (not wish.commands or _matches((event.command,), wish.commands))
        )

    def on_close(self, closer: Callable[[], None]) -> None:
        """Have something called when nobody reads this any more; at once, if nobody does."""
        with self._lock:
            if not self._is_closed:
                self._closers.append(closer)
                return
        closer()

    def close(self) -> None:
        """Nobody reads this any more."""
        with self._lock:
            self._is_closed = True
            closers, self._closers = self._closers, []
        for closer in closers:
            closer()

    def end(self, reason: str) -> None:
        """Tell the reader that nothing more comes."""
        with self._lock:
            self._waiting.append(Ended(reason=reason))
        self._notify()

    def _event(self, record: bytes) -> Event | None:
        """Put an event into words, or return None for one that is not wished for.

        Programs repeat themselves: what differs from an earlier event in its time alone is not worded again.
        """
        key = same_as(record)
        if key in self._worded:
            event = self._worded[key]
            if event is not None:
                event = _copied(event)
                force_setattr(event, "at", self._clock + TIME.unpack_from(record)[0] / 1e9)
        else:
            event = self._in_words(unpack(record))
            if len(self._worded) >= MAX_WORDED:
                self._worded.clear()
            self._worded[key] = event
        return event if event is None or self._tells_all else self._told(event)

    def _in_words(self, raw: Raw) -> Event | None:
        wish = self.wish
        if raw.kind == Kind.SECCOMP and Kind.SECCOMP not in self.kinds:  # another watcher wants that
            raw = raw._replace(kind=kind_of(self._calls.get(raw.number, "")))
        if raw.kind not in self.kinds or (
            wish.calls and (raw.kind < Kind.SECCOMP or raw.number not in self._numbers)
        ):
            return None
        if wish.errors and not self._has_failed_as_wished(raw):
            return None
        if wish.pids and raw.pid not in wish.pids:
            return None
        if wish.commands and not _matches((text_of(raw.command),), wish.commands):
            return None
        subject = self.subject
        return describe(
            raw,
            container=subject.container,
            name=subject.name,
            calls=self._calls,
            clock=self._clock,
            inner_user=subject.inner_user,
        )

    def _told_event(self, line: TraceLine) -> TraceLine | None:
        """As `_told`, of a line that came in words already."""
        return self._told(line) if isinstance(line, Event) else line

    def _told(self, event: Event) -> Event | None:
        """Return what the watcher may see of an event, or None if nothing of that is wished for."""
        wish, event = self.wish, self._redact(event)
        if wish.paths and not event.is_cut and not _matches((event.path, event.other_path), wish.paths):
            return None
        if wish.addresses and not _matches((event.address,), wish.addresses):
            return None
        return event

    def _has_failed_as_wished(self, raw: Raw) -> bool:
        name = error_name(raw.result) if raw.kind >= Kind.SECCOMP else ""
        return name != "" and (ANY_ERROR in self.wish.errors or name in self.wish.errors)


def _matches(texts: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(text, pattern) for text in texts if text for pattern in patterns)
