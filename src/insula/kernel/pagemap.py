# SPDX-License-Identifier: Apache-2.0
"""Which pages a process has, and which of them were written: /proc/PID/{maps,pagemap,clear_refs}.

Private anonymous memory only: what CRIU leaves out of a lazy dump (its `vma_entry_can_be_lazy`), pages of the kernel's zero
page excepted, which CRIU leaves out, too.  Out of scope: deciding when; what is in them (`page_contents.py`); shared memory.

Sources: proc_pid_pagemap(5), Documentation/admin-guide/mm/pagemap.rst (PAGEMAP_SCAN since Linux 6.7), soft-dirty.rst;
linux/fs.h; CRIU's criu/pagemap-cache.c, criu/include/vma.h.
"""

import errno
import fcntl
import functools
import itertools
import mmap
import operator
import os
import re
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from enum import IntFlag
from pathlib import Path
from typing import NamedTuple, Self

from insula.kernel import libc

PAGE_BYTES = 4096
PAGEMAP_SCAN = 0xC0606610
PM_SCAN_WP_MATCHING = 1
ENTRY_BYTES = 8
_REGIONS = 4096
"""Regions in one answer of PAGEMAP_SCAN; the scan goes on behind the last one."""
_REGION_WORDS = 3
_SCAN_ARGUMENT = struct.Struct("=12Q")
_WALK_END = 4
_ENDS = ((1 << 56) - PAGE_BYTES, 1 << 48, (1 << 47) - PAGE_BYTES)
"""Where the addresses of a program may end; PAGEMAP_SCAN refuses (EFAULT) an end beyond this processor's."""
_ENTRIES_AT_ONCE = 1 << 18


class Range(NamedTuple):
    """Pages that follow each other: address of the first byte, number of 4 KiB pages."""

    start: int
    pages: int

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.start + self.pages * PAGE_BYTES


_START, _END = operator.itemgetter(0), operator.attrgetter("end")


class Category(IntFlag):
    """PAGE_IS_… of linux/fs.h: what PAGEMAP_SCAN can ask of a page."""

    WPALLOWED = 1 << 0
    WRITTEN = 1 << 1
    FILE = 1 << 2
    PRESENT = 1 << 3
    SWAPPED = 1 << 4
    PFNZERO = 1 << 5
    GUARD = 1 << 8
    """Since Linux 6.15."""


class Survey(NamedTuple):
    """All that is asked of a process's pages when it is asked for the last time; as the methods of `PageMap` say."""

    present: tuple[Range, ...]
    written: tuple[Range, ...]
    unwatched: tuple[Range, ...]
    guarded: tuple[Range, ...]
    has_watched: bool


_ANY = Category(0)
_HAS_CONTENT = Category.PRESENT | Category.SWAPPED
_NOT = Category.FILE | Category.PFNZERO
_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ...p [0-9a-f]+ 00:00 0 *(?:\[[^v\n].*\])?$", re.MULTILINE)
"""Private, of no file, and none of the kernel's own: [vdso], [vvar], [vsyscall]."""
_PRIVATE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ...p ", re.MULTILINE)
_OF_FILES = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ...p [0-9a-f]+ [0-9a-f:]+ [1-9]", re.MULTILINE)
_VSYSCALL = 1 << 63
_SOFT_DIRTY_BYTE, _STATE_BYTE = 6, 7
"""Of a little-endian entry: bit 55 is the first bit of the one, present (63), swapped (62) and file (61) are in the other."""
_IS_DIRTY = bytes(1 if byte & 0x80 else 0 for byte in range(256))
_IS_PRIVATE = bytes(1 if byte & 0xC0 and not byte & 0x20 else 0 for byte in range(256))
_DIRTY, _FRAME = 1 << 55, (1 << 55) - 1
_RUN = re.compile(b"\x01+")


def merge(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Sort ranges, and join those that touch or overlap.  Pure."""
    merged: list[Range] = []
    start = end = 0
    for first, pages in sorted(ranges):
        if first > end:
            if end > start:
                merged.append(Range(start, (end - start) // PAGE_BYTES))
            start = first
        if (last := first + pages * PAGE_BYTES) > end:
            end = last
    if end > start:
        merged.append(Range(start, (end - start) // PAGE_BYTES))
    return tuple(merged)


def intersect(ranges: Sequence[Range], others: Sequence[Range]) -> tuple[Range, ...]:
    """Return what both have; each is sorted and without overlaps.  Pure."""
    if len(ranges) > len(others):
        ranges, others = others, ranges
    common: list[Range] = []
    for each in ranges:
        low, high = _touched(others, each)
        if low < high:
            first, last = _clip(others[low], each), _clip(others[high - 1], each)
            common.append(first)
            if high - low > 1:
                common += others[low + 1 : high - 1]
                common.append(last)
    return tuple(common)


def _touched(ranges: Sequence[Range], by: Range) -> tuple[int, int]:
    """Return from which to which (excluded) a range overlaps others."""
    low = bisect_right(ranges, by.start, key=_END)
    return low, bisect_left(ranges, by.end, low, key=_START)


def _clip(each: Range, within: Range) -> Range:
    start = max(each.start, within.start)
    return Range(start, (min(each.end, within.end) - start) // PAGE_BYTES)


def dirty_ranges(entries: bytes, start: int) -> Iterator[Range]:
    """Find the private pages that carry a soft-dirty mark among entries of /proc/PID/pagemap.  Pure.

    start: the address of the first entry's page.
    """
    marks = int.from_bytes(entries[_SOFT_DIRTY_BYTE::ENTRY_BYTES].translate(_IS_DIRTY), "big")
    kinds = entries[_STATE_BYTE::ENTRY_BYTES].translate(_IS_PRIVATE)
    yield from _runs((marks & int.from_bytes(kinds, "big")).to_bytes(len(kinds), "big"), start)


def present_ranges(entries: bytes, start: int) -> Iterator[Range]:
    """Find the private pages among entries of /proc/PID/pagemap; as `dirty_ranges`.  Pure."""
    yield from _runs(entries[_STATE_BYTE::ENTRY_BYTES].translate(_IS_PRIVATE), start)


def zero_ranges(entries: bytes, start: int) -> Iterator[Range]:
    """Find the pages that are the kernel's own page of zeros; as `dirty_ranges`.

    Only who may see the numbers of page frames (CAP_SYS_ADMIN) finds any; a huge page of zeros is not found.
    """
    if not (frame := _zero_frame()):
        return
    frames = array("Q", entries)
    if frame in frames or frame | _DIRTY in frames:
        yield from _runs(bytes((each & ~_DIRTY) == frame for each in frames), start)


@functools.cache
def _zero_frame() -> int:
    """Return the entry of a page that was only read; 0 if frames are not to be seen."""
    with mmap.mmap(-1, PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        view = memoryview(page)
        address = libc.address_of(page)
        is_zero = not view[0]
        view.release()
        with PageMap(os.getpid()) as own:
            entry = next(iter(own.entries(Range(address, 1))))[1]
    value = int.from_bytes(entry, "little") & ~_DIRTY
    return value if is_zero and value & _FRAME else 0


def _runs(flags: bytes, start: int) -> Iterator[Range]:
    for run in _RUN.finditer(flags):
        yield Range(start + run.start() * PAGE_BYTES, run.end() - run.start())


def mappings_of(pid: int) -> tuple[Range, ...]:
    """Return the private anonymous mappings of a process, one each, sorted.  Raises: OSError: the process is gone."""
    return parse_maps(Path(f"/proc/{pid}/maps").read_bytes())


def parse_maps(text: bytes) -> tuple[Range, ...]:
    """Return the private anonymous mappings out of /proc/PID/maps.  Pure."""
    return _parse(_MAPPING, text)


def private_mappings(text: bytes) -> tuple[Range, ...]:
    """Return all private mappings out of /proc/PID/maps, those of files, too.  Pure."""
    return tuple(each for each in _parse(_PRIVATE, text) if each.start < _VSYSCALL)


def file_mappings(text: bytes) -> tuple[Range, ...]:
    """Return the private mappings of files out of /proc/PID/maps.  Pure."""
    return _parse(_OF_FILES, text)


def _parse(pattern: "re.Pattern[bytes]", text: bytes) -> tuple[Range, ...]:
    ends = ((int(low, 16), int(high, 16)) for low, high in pattern.findall(text))
    return tuple(Range(low, (high - low) // PAGE_BYTES) for low, high in ends)


def subtract(ranges: Sequence[Range], others: Sequence[Range]) -> tuple[Range, ...]:
    """Return what the first have and the others have not; each is sorted and without overlaps.  Pure."""
    left: list[Range] = []
    position, start = 0, 0
    # Ranges before `position` are dealt with, and of the one there what is before `start`.
    for low, pages in others:
        high = low + pages * PAGE_BYTES
        first = bisect_right(ranges, low, position, key=_END)
        left += _from(ranges, position, first, start=start)
        if first < len(ranges) and max(start, ranges[first].start) < low:
            begin = max(start, ranges[first].start)
            left.append(Range(begin, (low - begin) // PAGE_BYTES))
        position, start = bisect_right(ranges, high, first, key=_END), high
    left += _from(ranges, position, len(ranges), start=start)
    return tuple(left)


def _from(ranges: Sequence[Range], first: int, last: int, *, start: int) -> Sequence[Range]:
    """Return ranges from the first to the last (excluded), without what of the first one is before an address."""
    if first >= last or ranges[first].start >= start:
        return ranges[first:last]
    begin, end = ranges[first].start, ranges[first].end
    return [Range(max(begin, start), (end - start) // PAGE_BYTES), *ranges[first + 1 : last]]


def has_soft_dirty() -> bool:
    """Whether this kernel marks written pages: a page that is new and written must carry the mark."""
    memory = bytearray(b"x" * 2 * PAGE_BYTES)
    start = -(-libc.address_of(memory) // PAGE_BYTES) * PAGE_BYTES
    with PageMap(os.getpid()) as own:
        return any(list(dirty_ranges(entries, address)) for address, entries in own.entries(Range(start, 1)))


def clear_soft_dirty(pid: int) -> None:
    """Take the soft-dirty marks of all pages of a process away."""
    with open(f"/proc/{pid}/clear_refs", "wb", buffering=0) as clear:
        clear.write(b"4")


class PageMap:
    """The page map of a process as it is when opened: after an exec it is a map of nothing.

    Ranges come sorted; some may touch.

    Raises: OSError: ESRCH or ENOENT if the process is gone, a zombie among them.
    """

    def __init__(self, pid: int) -> None:
        self._handle = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        # Before Linux 6.16 PAGEMAP_SCAN of a zombie's map, which is none, is an oops; a read of it is empty.
        if not os.pread(self._handle, ENTRY_BYTES, 0):
            os.close(self._handle)
            raise ProcessLookupError(errno.ESRCH, f"open: process {pid} has no memory")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def present(self) -> tuple[Range, ...]:
        """Return all private pages."""
        return self._scan(without=_NOT)

    def written(self) -> tuple[Range, ...]:
        """Return the pages of watched mappings that are not protected."""
        return self._scan(Category.WRITTEN | Category.WPALLOWED, without=Category.PFNZERO)

    def protect_written(self) -> tuple[Range, ...]:
        """Return the pages of watched mappings that are not protected, and protect them, each in one step."""
        return self._scan(Category.WRITTEN, without=Category.PFNZERO, flags=PM_SCAN_WP_MATCHING)

    def unwatched(self) -> tuple[Range, ...]:
        """Return the private pages of mappings that nobody watches."""
        return self._scan(without=_NOT | Category.WPALLOWED)

    def guarded(self) -> tuple[Range, ...]:
        """Return what is guarded by MADV_GUARD_INSTALL; nothing where the kernel cannot tell (before Linux 6.15)."""
        if not _knows_guards():
            return ()
        return self._scan(Category.GUARD, any_of=Category.GUARD)

    def survey(self) -> Survey:
        """Return the answers of `present`, `written`, `unwatched`, `guarded` and `has_watched` of one walk over the pages."""
        guard = Category.GUARD if _knows_guards() else _ANY
        watched, written = Category.WPALLOWED, Category.WPALLOWED | Category.WRITTEN
        all_told = written | Category.FILE | guard
        ranges, told = list[Range](), list[int]()
        for words in self._answers(
            _ANY, without=Category.PFNZERO, any_of=_HAS_CONTENT | guard, told=all_told
        ):
            ranges += _ranges_of(words)
            told += words[2::_REGION_WORDS]
        of_others = Category.FILE | guard
        return Survey(
            present=_ranges_where(ranges, told, of_others, _ANY),
            written=_ranges_where(ranges, told, written, written),
            unwatched=_ranges_where(ranges, told, of_others | watched, _ANY),
            guarded=_ranges_where(ranges, told, guard, guard) if guard else (),
            has_watched=any(each & int(watched) for each in set(told)),
        )

    def has_watched(self) -> bool:
        """Whether somebody watches a mapping that has pages."""
        return bool(self._scan(Category.WPALLOWED, limit=1))

    def _scan(
        self,
        required: Category = _ANY,
        *,
        without: Category = _ANY,
        any_of: Category = _HAS_CONTENT,
        flags: int = 0,
        limit: int = 0,
    ) -> tuple[Range, ...]:
        found: list[Range] = []
        for regions in self._answers(required, without=without, any_of=any_of, flags=flags, limit=limit):
            found.extend(_ranges_of(regions))
        return tuple(found)

    def _answers(
        self,
        required: Category,
        *,
        without: Category,
        any_of: Category,
        told: Category = _ANY,
        flags: int = 0,
        limit: int = 0,
    ) -> Iterator["array[int]"]:
        regions = array("Q", bytes(_REGIONS * _REGION_WORDS * 8))
        start, end, address = 0, _end_of_addresses(), regions.buffer_info()[0]
        while start < end:
            # struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
            #                     category_mask, category_anyof_mask, return_mask
            argument = bytearray(
                _SCAN_ARGUMENT.pack(
                    *(_SCAN_ARGUMENT.size, flags, start, end, 0, address, _REGIONS, limit),
                    *(without, required | without, any_of, told),
                )
            )
            count = _scan_once(self._handle, argument)
            yield regions[: count * _REGION_WORDS]
            if limit and count:
                break
            # Linux 6.18, fs/proc/task_mmu.c: a walk that reached its end tells where it last emptied its buffer of 512 regions,
            # if it ever did.  What follows from there was told already.
            told_until = regions[(count - 1) * _REGION_WORDS + 1] if count else start
            start = max(_SCAN_ARGUMENT.unpack(argument)[_WALK_END], told_until)

    def entries(self, mapping: Range) -> Iterator[tuple[int, bytes]]:
        """Read the entries of a mapping in pieces: the address of a piece's first page, and 8 bytes for each page."""
        address = mapping.start
        while address < mapping.end:
            count = min(_ENTRIES_AT_ONCE, (mapping.end - address) // PAGE_BYTES)
            data = os.pread(self._handle, count * ENTRY_BYTES, address // PAGE_BYTES * ENTRY_BYTES)
            if not data:
                return
            yield address, data
            address += len(data) // ENTRY_BYTES * PAGE_BYTES


def _ranges_of(words: "array[int]") -> Iterator[Range]:
    # struct page_region: start, end, categories.  They come sorted, and joined but where the kernel empties its buffer.
    starts, ends = words[0::_REGION_WORDS], words[1::_REGION_WORDS]
    sizes = [(end - start) // PAGE_BYTES for start, end in zip(starts, ends, strict=True)]
    return map(Range._make, zip(starts, sizes, strict=True))


def _ranges_where(
    ranges: Sequence[Range], told: Sequence[int], mask: Category, value: Category
) -> tuple[Range, ...]:
    # Few different things are told of many ranges.
    chosen = {each: each & int(mask) == int(value) for each in set(told)}
    return tuple(itertools.compress(ranges, map(chosen.__getitem__, told)))


@functools.cache
def _knows_guards() -> bool:
    with PageMap(os.getpid()) as own:
        try:
            own._scan(Category.GUARD, any_of=Category.GUARD, limit=1)  # noqa: SLF001  it is this module's
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise
            return False
    return True


def _scan_once(handle: int, argument: bytearray) -> int:
    try:
        count: int = fcntl.ioctl(handle, PAGEMAP_SCAN, argument)
    except OSError as error:
        raise OSError(error.errno, f"ioctl: PAGEMAP_SCAN: {os.strerror(error.errno or 0)}") from None
    return count


@functools.cache
def _end_of_addresses() -> int:
    """Return the end of what a program may address: a larger one is refused (EFAULT)."""
    vector = bytearray(_REGION_WORDS * 8)
    with open("/proc/self/pagemap", "rb", buffering=0) as own:
        for end in _ENDS:
            fields = (_SCAN_ARGUMENT.size, 0, end - PAGE_BYTES, end, 0, libc.address_of(vector), 1, 0)
            argument = bytearray(_SCAN_ARGUMENT.pack(*fields, 0, 0, _HAS_CONTENT, 0))
            try:
                _scan_once(own.fileno(), argument)
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
            else:
                return end
    return _ENDS[-1]
