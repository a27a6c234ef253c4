# SPDX-License-Identifier: Apache-2.0
"""Which memory of a running container was written since one last looked: one face, three trackers.

    userfaultfd   Linux ≥ 6.7: nothing stands; a write to a page costs its program one fault for each scan
    soft-dirty    CONFIG_MEM_SOFT_DIRTY: the container stands while the marks are read and taken away
    none          everything is always written

Private anonymous memory is tracked, which is what CRIU leaves out of a lazy dump.  What cannot be tracked (a process that
does not stop for a moment, a new mapping, a process that executes another program) counts as written whole: a tracker may
say too much, never too little.  A page that was given back or is the kernel's zero page is not in any answer: CRIU's own
last list of pages says that it is zeros.

Out of scope: sending (source.py), deciding about another round, shared memory.
Sources: kernel/userfault.py, kernel/pagemap.py; CRIU's criu/include/vma.h `vma_entry_can_be_lazy`.
"""

import contextlib
import os
import platform
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from insula.kernel import pagemap, userfault
from insula.kernel.page_contents import read_pages
from insula.kernel.pagemap import PageMap, Range, intersect, mappings_of, merge, subtract
from insula.kernel.trials import Absent, memory

__all__ = ["Range", "Tracker", "open_tracker", "read_pages"]

Pids = Callable[[], Iterable[int]]
Still = Callable[[], AbstractContextManager[object]]

_ATTACH_SECONDS = 0.5
"""A thread that is not stopped by then waits uninterruptibly, or its container is frozen."""
_LONGEST_REST = 32
"""Scans that pass before one tries again to reach a process that could not be reached."""
_GONE = (FileNotFoundError, ProcessLookupError)


class Tracker(Protocol):
    """Tells what was written."""

    kind: str

    def scan(self, *, protect: bool = True) -> Mapping[int, tuple[Range, ...]]:
        """Return for each process its pages that were written since the last scan, the first time all of them.

        protect: this scan is one to count from; False for the last one, which touches no process.  The processes may run;
        whoever reads the pages afterwards gets what is there then, and what is written later is in the next answer.
        """

    def scan_last(self) -> Mapping[int, "Last"]:
        """Return the answer of a last scan of processes that stand, and which pages there are at all."""

    def close(self) -> None:
        """Leave the processes as if nobody had ever looked."""


class Last(NamedTuple):
    """What is known of a process that stands."""

    written: tuple[Range, ...]
    """Since the last scan."""
    present: tuple[Range, ...]
    """All private pages, also those of changed private file mappings."""
    guarded: tuple[Range, ...]


def open_tracker(pids: Pids, *, still: Still | None = None) -> Tracker:
    """Return the best tracker that this kernel has.

    pids: lists the container's processes, by their ids here, each time.
    still: a context in which these stand; without it soft-dirty, which cannot read and clear in one step, is not used.
    """
    if _has_userfault():
        return UserfaultTracker(pids)
    if still is not None and pagemap.has_soft_dirty():
        return SoftDirtyTracker(pids, still=still)
    return WholeTracker(pids)


def _has_userfault() -> bool:
    try:
        memory.userfaultfd_wp_async()
    except (OSError, Absent):
        return False
    return platform.machine() == "x86_64"


class UserfaultTracker:
    """By a userfaultfd in each process and PAGEMAP_SCAN."""

    kind = "userfaultfd"

    def __init__(self, pids: Pids) -> None:
        self._pids = pids
        self._handles: dict[int, int] = {}
        self._rests: dict[int, _Rest] = {}

    def scan(self, *, protect: bool = True) -> Mapping[int, tuple[Range, ...]]:
        found: dict[int, tuple[Range, ...]] = {}
        for pid in sorted(set(self._pids())):
            with contextlib.suppress(*_GONE):
                found[pid] = self._scan_one(pid, protect=protect)
        for pid in self._handles.keys() - found.keys():
            self._forget(pid)
        for pid in self._rests.keys() - found.keys():
            del self._rests[pid]
        return found

    def scan_last(self) -> Mapping[int, Last]:
        found: dict[int, Last] = {}
        for pid in sorted(set(self._pids())):
            with contextlib.suppress(*_GONE), PageMap(pid) as pages:
                seen, mappings = pages.survey(), mappings_of(pid)
                if pid not in self._handles and seen.has_watched:
                    written = intersect(seen.present, mappings)  # as in `_scan_one`
                else:
                    written = merge((*seen.written, *intersect(seen.unwatched, mappings)))
                found[pid] = Last(written, seen.present, seen.guarded)
        return found

    def close(self) -> None:
        for pid in tuple(self._handles):
            self._forget(pid)

    def _scan_one(self, pid: int, *, protect: bool) -> tuple[Range, ...]:
        with PageMap(pid) as pages:
            mappings = mappings_of(pid)
            if pid not in self._handles and pages.has_watched():
                # It shares its memory with a process that is tracked (vfork): the marks are that one's.
                return intersect(pages.present(), mappings)
            unwatched = intersect(pages.unwatched(), mappings)
            if protect and unwatched:
                self._watch(pid, pages, mappings=_holding(mappings, unwatched))
            written = pages.protect_written() if protect else pages.written()
            return merge((*written, *unwatched)) if unwatched else merge(written)

    def _watch(self, pid: int, pages: PageMap, *, mappings: Sequence[Range]) -> None:
        """Register mappings; what cannot be stays unwatched, and is found so each time."""
        if pid in self._handles:
            self._register(pid, mappings)
            if pages.has_watched():
                return
            self._forget(pid)  # it executes another program, or is another process of the same id
        rest = self._rests.setdefault(pid, _Rest())
        if not rest.is_over():
            return
        try:
            self._handles[pid] = userfault.open_in(pid, deadline_seconds=_ATTACH_SECONDS)
        except OSError:
            rest.lengthen()
            return
        del self._rests[pid]
        self._register(pid, mappings)

    def _register(self, pid: int, mappings: Sequence[Range]) -> None:
        for each in mappings:
            # Refused: unmapped meanwhile, of a kind that the kernel does not watch, or the memory is another by now.
            with contextlib.suppress(OSError):
                userfault.register(self._handles[pid], each.start, end=each.end)

    def _forget(self, pid: int) -> None:
        os.close(self._handles.pop(pid))


class _Rest:
    """Scans to let pass after a process could not be reached: 1, 2, 4, …"""

    def __init__(self) -> None:
        self._next, self._left = 1, 0

    def is_over(self) -> bool:
        if self._left:
            self._left -= 1
            return False
        return True

    def lengthen(self) -> None:
        self._left = self._next
        self._next = min(2 * self._next, _LONGEST_REST)


def _holding(mappings: Sequence[Range], pages: Sequence[Range]) -> tuple[Range, ...]:
    # Each range of pages lies within one of the mappings.
    starts = [each.start for each in mappings]
    return tuple(
        mappings[index] for index in sorted({bisect_right(starts, each.start) - 1 for each in pages})
    )


class SoftDirtyTracker:
    """By the kernel's soft-dirty marks, which are read and taken away while the container stands."""

    kind = "soft-dirty"

    def __init__(self, pids: Pids, *, still: Still) -> None:
        self._pids, self._still = pids, still
        self._known: dict[int, str] = {}

    def scan(self, *, protect: bool = True) -> Mapping[int, tuple[Range, ...]]:
        if not protect:
            return self._read(protect=False)
        with self._still():
            return self._read(protect=True)

    def scan_last(self) -> Mapping[int, Last]:
        return _with_present(self.scan(protect=False))

    def close(self) -> None:
        self._known.clear()

    def _read(self, *, protect: bool) -> dict[int, tuple[Range, ...]]:
        found: dict[int, tuple[Range, ...]] = {}
        known: dict[int, str] = {}
        for pid in sorted(set(self._pids())):
            with contextlib.suppress(*_GONE):
                birth = _birth_of(pid)
                parse = pagemap.dirty_ranges if self._known.get(pid) == birth else pagemap.present_ranges
                found[pid] = _entries_of(pid, parse)
                if protect:
                    pagemap.clear_soft_dirty(pid)
                    known[pid] = birth
        if protect:
            self._known = known
        return found


def _birth_of(pid: int) -> str:
    # Tells a process from a later one with its id: field 22 of proc_pid_stat(5).
    return (
        Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    )


class WholeTracker:
    """Knows nothing: all pages, each time."""

    kind = "none"

    def __init__(self, pids: Pids) -> None:
        self._pids = pids

    def scan(self, *, protect: bool = True) -> Mapping[int, tuple[Range, ...]]:
        del protect
        found: dict[int, tuple[Range, ...]] = {}
        for pid in sorted(set(self._pids())):
            with contextlib.suppress(*_GONE):
                found[pid] = _entries_of(pid, pagemap.present_ranges)
        return found

    def scan_last(self) -> Mapping[int, Last]:
        return _with_present(self.scan(protect=False))

    def close(self) -> None:
        """Nothing is held."""


def _with_present(written: Mapping[int, tuple[Range, ...]]) -> dict[int, Last]:
    found: dict[int, Last] = {}
    for pid, ranges in written.items():
        with contextlib.suppress(*_GONE), PageMap(pid) as pages:
            guarded = pages.guarded()
            # A page that was given back and is only read since carries no mark, and what was sent of it is old.
            nothing = merge((*guarded, *_entries_of(pid, pagemap.zero_ranges)))
            present = subtract(_entries_of(pid, pagemap.present_ranges), nothing)
            found[pid] = Last(subtract(ranges, nothing), present, guarded)
    return found


def _entries_of(pid: int, parse: Callable[[bytes, int], Iterable[Range]]) -> tuple[Range, ...]:
    with PageMap(pid) as pages:
        return merge(
            each
            for mapping in mappings_of(pid)
            for address, entries in pages.entries(mapping)
            for each in parse(entries, address)
        )
