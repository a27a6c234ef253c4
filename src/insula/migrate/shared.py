# SPDX-License-Identifier: Apache-2.0
"""Shared memory on its way while the program still runs: the source compares it with a copy of what it has sent.

A write to shared memory leaves no mark that another process could rely on, so each round reads all of it and sends the pages
that differ.  The copy costs the source as much memory as it carries, `KEPT_BYTES` at most; what does not fit travels in the
pause, as CRIU's image, and so does what was made after the last round.

In the pause nothing writes.  CRIU dumps the areas as ever, and for those whose every dumped page the target has by then
(`held_images`), the source says so instead of sending the image (`SharedImage`).  The target's side is `sharedstore.py`.

Out of scope: which areas there are (`kernel/shared_memory.py`), files of a container's tmpfs, huge pages.
"""

import contextlib
import functools
import itertools
import operator
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from insula.kernel import criu_images
from insula.kernel.pagemap import Range, merge
from insula.kernel.shared_memory import PAGE_BYTES, Mapping, data_segments, open_mapping, shared_mappings
from insula.migrate.wire import Wire
from insula.model.migration import SharedImage, SharedPages

KEPT_BYTES = 1 << 30
CHUNK_BYTES = 256 << 10
MESSAGE_BYTES = 4 << 20
"""Of one message, whose pages are gathered before they are sent."""
_SECOND = operator.itemgetter(1)
_GONE = (FileNotFoundError, ProcessLookupError)

Run = tuple[int, tuple[bytes, ...]]
"""Offset and content of pages side by side, each on its own: so they are compared the fastest (bench/shared.py)."""


@dataclass(slots=True)
class _Area:
    """One area and what the target has of it."""

    descriptor: int
    kind: bytes
    kept: dict[int, tuple[Run, ...]] = field(default_factory=dict)
    """Number of a chunk → what was sent of it."""
    is_dropped: bool = False
    """It is not carried ahead (any more)."""

    @property
    def kept_bytes(self) -> int:
        return sum(map(_bytes_of, self.kept.values()))


class SharedSource:
    """The shared memory of a container, in rounds; one of the trees of `Precopy`."""

    def __init__(self, pids: Callable[[], Iterable[int]], *, limit_bytes: int = KEPT_BYTES) -> None:
        """pids: lists the container's processes.  limit_bytes: of the copies."""
        self._pids = pids
        self._limit_bytes = limit_bytes
        self._areas: dict[int, _Area] = {}
        self._stands = False
        self._is_first = True
        self._last_bytes = 0
        self.work_bytes = 0
        """What the last round sent."""
        self.spared_bytes = 0
        """Of CRIU's images that `held_images` found not to be needed."""

    def close(self) -> None:
        for area in self._areas.values():
            os.close(area.descriptor)
        self._areas.clear()

    def stand(self) -> None:
        """Know that nothing runs any more: no other areas are looked for."""
        self._stands = True

    def dirty_estimate(self) -> int:
        """Return what the last round sent: the next one will send about as much.  0 after the first, which sends all."""
        return self._last_bytes

    @property
    def areas(self) -> tuple[int, ...]:
        """The areas that are carried, by their inodes."""
        return tuple(inode for inode, area in self._areas.items() if not area.is_dropped)

    def send_round(self, wire: Wire) -> int:
        """Send what differs from what was sent.  Returns: its bytes.  Raises: MigrationFailed; OSError."""
        if not self._stands:
            self._find_areas()
        sent = 0
        for inode, area in self._areas.items():
            if not area.is_dropped:
                for runs in _batches(self._changes(area)):
                    pieces = tuple((offset, len(pages)) for offset, pages in runs)
                    wire.send(SharedPages(area=inode, pieces=pieces))
                    wire.send_stream(b"".join(pages) for _offset, pages in runs)
                    sent += _bytes_of(runs)
        self.work_bytes = sent
        self._last_bytes = 0 if self._is_first else sent
        self._is_first = False
        return sent

    def look(self) -> int:
        """Compare as a round does, and send nothing.  Returns: bytes that differ.  Raises: OSError."""
        self._find_areas()
        areas = [each for each in self._areas.values() if not each.is_dropped]
        return sum(_bytes_of(self._changes(each)) for each in areas)

    def _find_areas(self) -> None:
        found: dict[int, list[tuple[int, Mapping]]] = {}
        for pid in sorted(set(self._pids())):
            with contextlib.suppress(*_GONE):
                for mapping in shared_mappings(pid):
                    found.setdefault(mapping.inode, []).append((pid, mapping))
        for inode in self._areas.keys() - found.keys():
            os.close(self._areas.pop(inode).descriptor)
        for inode, places in found.items():
            # The kernel numbers System V segments apart from the others: the same number may be two areas.
            if len({mapping.kind for _pid, mapping in places}) > 1:
                if inode in self._areas:
                    os.close(self._areas.pop(inode).descriptor)
            elif inode not in self._areas:
                with contextlib.suppress(*_GONE):
                    descriptor = open_mapping(places[0][0], places[0][1])
                    self._areas[inode] = _Area(descriptor, places[0][1].kind)

    def _changes(self, area: _Area) -> Iterator[Run]:
        """Yield what differs, and remember it.  An area that does not fit is dropped."""
        others = sum(each.kept_bytes for each in self._areas.values() if each is not area)
        held, seen = area.kept_bytes, set[int]()
        for number, runs in _chunks(area.descriptor):
            seen.add(number)
            before = area.kept.get(number, ())
            if runs == before:
                continue
            held += _bytes_of(runs) - _bytes_of(before)
            if others + held > self._limit_bytes and not self._stands:
                area.is_dropped = True
                area.kept.clear()
                return
            area.kept[number] = runs
            yield from _differing(runs, before)
        for number in area.kept.keys() - seen:
            del area.kept[number]

    def held_images(self, images: int) -> dict[str, int]:
        """Return which of CRIU's images need not be sent: name of the file of pages → area.

        Those whose pagemap lists nothing that was not sent.  images: descriptor of their folder.
        """
        found: dict[str, int] = {}
        for inode in self.areas:
            with contextlib.suppress(FileNotFoundError):
                name = criu_images.shared_pagemap_name(inode)
                data = criu_images.read_image(images, name)
                wanted = merge(Range(each.vaddr, each.pages) for each in criu_images.decode_pagemap(data))
                if wanted and _covers(self._held(inode), wanted):
                    found[criu_images.pages_name(criu_images.pages_id_of(data))] = inode
                    self.spared_bytes += sum(each.pages for each in wanted) * PAGE_BYTES
        return found

    def _held(self, inode: int) -> tuple[Range, ...]:
        runs = (run for each in self._areas[inode].kept.values() for run in each)
        return merge(Range(offset, len(pages)) for offset, pages in runs)

    def send_image(self, wire: Wire, *, area: int) -> None:
        """Say that the pages of an area are those that were sent."""
        wire.send(SharedImage(area=area))


def _bytes_of(runs: Iterable[Run]) -> int:
    return sum(len(pages) for _offset, pages in runs) * PAGE_BYTES


def _chunks(descriptor: int) -> Iterator[tuple[int, tuple[Run, ...]]]:
    """Read a file: yield the number of each chunk that has pages, and these."""
    number, runs = -1, list[Run]()
    for start, end in data_segments(descriptor):
        while start < end:
            if start // CHUNK_BYTES != number:
                if runs:
                    yield number, tuple(runs)
                number, runs = start // CHUNK_BYTES, []
            stop = min(end, (number + 1) * CHUNK_BYTES)
            runs.append((start, _read(descriptor, start, stop - start)))
            start = stop
    if runs:
        yield number, tuple(runs)


def _read(descriptor: int, start: int, length: int) -> tuple[bytes, ...]:
    data = os.pread(descriptor, length, start)
    if len(data) < length:  # it was cut meanwhile, or its size is no whole number of pages
        data = data.ljust(length, b"\0")
    return _pages_of(length // PAGE_BYTES).unpack(data)


@functools.cache
def _pages_of(count: int) -> struct.Struct:
    return struct.Struct(f"{PAGE_BYTES}s" * count)


def _differing(runs: Sequence[Run], before: Sequence[Run]) -> Iterator[Run]:
    """Yield the pages of one chunk that are new or not what they were."""
    for offset, pages in runs:
        old = _old_pages(offset, len(pages), before)
        for differs, group in itertools.groupby(enumerate(map(operator.ne, pages, old)), _SECOND):
            if differs:
                places = [place for place, _ in group]
                yield offset + places[0] * PAGE_BYTES, pages[places[0] : places[-1] + 1]


def _old_pages(offset: int, count: int, before: Sequence[Run]) -> Sequence[bytes]:
    """Return what pages were; empty for those that were not there."""
    for start, pages in before:
        if start == offset and len(pages) == count:
            return pages
    old = {start + at * PAGE_BYTES: page for start, pages in before for at, page in enumerate(pages)}
    return [old.get(offset + at * PAGE_BYTES, b"") for at in range(count)]


def _batches(runs: Iterable[Run]) -> Iterator[list[Run]]:
    batch, total = list[Run](), 0
    for run in runs:
        batch.append(run)
        total += len(run[1]) * PAGE_BYTES
        if total >= MESSAGE_BYTES:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _covers(held: Sequence[Range], wanted: Sequence[Range]) -> bool:
    return merge((*held, *wanted)) == tuple(held)
