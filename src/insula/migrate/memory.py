# SPDX-License-Identifier: Apache-2.0
"""The memory of a container on its way in: the target's store of what the rounds bring, before and in the freeze.

One sparse file in memory holds all processes: a page lies at its process's slot plus its own address, so that a later round
overwrites what an earlier one brought, nothing is sorted or copied once more, and the filler (`boot/filler.py`) finds each page
without an index.  It frees the pages that it has brought, so that filling takes hardly more than the memory itself.

What the source says is not believed: addresses and lengths are checked, and no more distinct pages are taken than it offered.

Out of scope: which pages are sent (track.py, source.py), and CRIU's own pages (`pages-N.img`), which its restore reads.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

from insula.kernel import criu_images, criu_unseen, pagemap
from insula.kernel.criu_images import PAGE_BYTES
from insula.kernel.missing_pages import SLOT_BYTES
from insula.kernel.pagemap import merge
from insula.kernel.pieces import Pieces
from insula.kernel.whole import write_at
from insula.model.errors import ProtocolError

Range = tuple[int, int]
"""Address and number of pages."""

MAX_PROCESSES = 1 << 15
"""Slots of the store: its last byte must be one that a file can have."""
MAX_PID = 1 << 22
"""PID_MAX_LIMIT of linux/threads.h."""
MAX_PIECES = 1 << 20
"""Separate ranges that are remembered, at about 150 bytes each."""
_FIRST_ADDRESS = 1 << 16


class MemoryStore:
    """Pages by process and address.  Use as a context manager.

    limit_bytes: of distinct pages, as the source has offered.
    """

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: dict[int, Pieces] = {}
        self._slots: dict[int, int] = {}
        self._expected: dict[int, list[Range]] = {}
        """What of a list that was looked at (`expect`) had not come by then."""
        self.descriptor = os.memfd_create("insula-memory", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, MAX_PROCESSES * SLOT_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the pages.  A filler that has begun keeps them until it ends."""
        os.close(self.descriptor)

    @property
    def held_bytes(self) -> int:
        """Distinct pages so far."""
        return sum(each.total_bytes for each in self._held.values())

    @property
    def slots(self) -> Mapping[int, int]:
        """Where the filler finds each process's pages: pid in the container → slot."""
        return dict(self._slots)

    def make_slots(self, pids: Iterable[int]) -> None:
        """Make room for processes whose pages come later.  Raises: ProtocolError."""
        for pid in pids:
            self.begin(pid, ()).finish()

    def begin(self, pid: int, ranges: Iterable[Range]) -> "Round":
        """Take what a round says of one process; its pages then follow in that order (`Round.feed`).

        Raises: ProtocolError for ranges that cannot be, or are more than was offered.
        """
        if not 0 < pid <= MAX_PID:
            raise ProtocolError(f"cannot take memory of process {pid}: no such pid")
        if pid not in self._slots and len(self._slots) >= MAX_PROCESSES:
            raise ProtocolError("cannot take memory: too many processes")
        checked = checked_ranges(ranges)
        held = self._held.setdefault(pid, Pieces())
        slot = self._slots.setdefault(pid, len(self._slots))
        base = slot * SLOT_BYTES
        others = self.held_bytes - held.total_bytes
        new = sum(high - low for start, end in checked for low, high in held.gaps(start, end))
        if others + held.total_bytes + new > self._limit_bytes:
            raise ProtocolError(f"cannot take memory: it is more than the {self._limit_bytes} bytes offered")
        if sum(len(each) for each in self._held.values()) + len(checked) > MAX_PIECES:
            raise ProtocolError("cannot take memory: it is in too many pieces")
        return Round(self.descriptor, checked, base=base, held=held)

    def expect(self, images: int, names: Iterable[str]) -> None:
        """Look at lists of pages that come later (`criu_unseen.lazy_name`) as soon as they are here: it spares the pause.

        images: descriptor of their folder.  Raises: ProtocolError.
        """
        for name in names:
            if (pid := criu_unseen.lazy_pid(name)) is not None:
                with _readable(pid):
                    self._expected[pid] = self._gaps(pid, criu_unseen.read_list(images, name))

    def missing(self, images: int) -> dict[int, list[Range]]:
        """Return what CRIU's final pagemaps want later and no round has brought, by pid in the container.

        images: descriptor of the folder of CRIU's final images.  Raises: ProtocolError if one of them cannot be read.
        """
        found: dict[int, list[Range]] = {}
        for pid in filter(None, map(criu_images.pid_of, os.listdir(images))):
            with _readable(pid):
                lists = [
                    criu_unseen.listed_pages(images, pid),
                    criu_unseen.read_list(images, criu_unseen.rest_name(pid)),
                    self._hidden(images, pid),
                ]
            gaps = merge(pagemap.Range(*each) for wanted in lists for each in self._gaps(pid, wanted))
            if gaps:
                found[pid] = [(each.start, each.pages) for each in gaps]
        return found

    def _hidden(self, images: int, pid: int) -> list[Range]:
        if pid in self._expected:
            return self._expected[pid]
        return criu_unseen.read_list(images, criu_unseen.lazy_name(pid))

    def _gaps(self, pid: int, wanted: Iterable[Range]) -> list[Range]:
        # CRIU lists pages of different kinds in different buffers, so addresses need not ascend.
        held = self._held.get(pid, _NOTHING)
        return [
            (low, (high - low) // PAGE_BYTES) for low, high in held.unknown(checked_ranges(sorted(wanted)))
        ]


_NOTHING = Pieces()


class Round:
    """The pages of one process in one round, on their way."""

    def __init__(self, descriptor: int, ranges: list[Range], *, base: int, held: Pieces) -> None:
        self._descriptor = descriptor
        self._ranges = ranges
        self._base = base
        self._held = held
        self._index = 0
        self._at = ranges[0][0] if ranges else 0
        self.left_bytes = sum(end - start for start, end in ranges)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes, of any number.  Raises: ProtocolError if they are more than was announced."""
        view = memoryview(data)
        if len(view) > self.left_bytes:
            raise ProtocolError("cannot take memory: more bytes than were announced")
        self.left_bytes -= len(view)
        while view:
            start, end = self._ranges[self._index]
            step = min(len(view), end - self._at)
            write_at(self._descriptor, view[:step], self._base + self._at)
            view = view[step:]
            self._at += step
            if self._at == end:
                self._held.add(start, end, source=start)
                self._index += 1
                self._at = self._ranges[self._index][0] if self._index < len(self._ranges) else 0

    def finish(self) -> None:
        """Make sure that all has come.  Raises: ProtocolError."""
        if self.left_bytes:
            raise ProtocolError(f"cannot take memory: {self.left_bytes} bytes did not come")


def checked_ranges(ranges: Iterable[Range]) -> list[Range]:
    """Return start and end of each range.  Raises: ProtocolError unless they are whole pages, in order, in user memory."""
    found: list[Range] = []
    last = _FIRST_ADDRESS
    for start, pages in ranges:
        if start % PAGE_BYTES or pages <= 0 or start < last or start + pages * PAGE_BYTES > SLOT_BYTES:
            raise ProtocolError(f"cannot take memory: no pages can be at {start:#x} ({pages} pages)")
        last = start + pages * PAGE_BYTES
        found.append((start, last))
    return found


@contextlib.contextmanager
def _readable(pid: int) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ProtocolError(f"cannot read what memory of process {pid} is to come: {error}") from error
