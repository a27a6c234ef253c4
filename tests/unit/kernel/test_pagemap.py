# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of ranges, and what is read out of page map entries and lists of mappings."""

import itertools
import struct
from collections.abc import Iterable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from insula.kernel import pagemap
from insula.kernel.pagemap import PAGE_BYTES, Range, intersect, merge, subtract

PRESENT, SWAPPED, FILE, SOFT_DIRTY = 1 << 63, 1 << 62, 1 << 61, 1 << 55
START = 0x7F0000000000

ranges = st.builds(
    lambda page, pages: Range(page * PAGE_BYTES, pages), st.integers(0, 200), st.integers(1, 40)
)
entries = st.lists(
    st.builds(
        lambda number, flags: number | sum(flags),
        st.integers(0, (1 << 55) - 1),
        st.sets(st.sampled_from((PRESENT, SWAPPED, FILE, SOFT_DIRTY, 1 << 56, 1 << 57))),
    ),
    max_size=300,
)


def _pages(given_ranges: Iterable[Range]) -> set[int]:
    return {address for each in given_ranges for address in range(each.start, each.end, PAGE_BYTES)}


@given(st.lists(ranges))
def test_merged_ranges_are_sorted_apart_and_the_same_pages(given_ranges: list[Range]) -> None:
    merged = merge(given_ranges)
    assert _pages(merged) == _pages(given_ranges)
    assert all(before.end < after.start for before, after in itertools.pairwise(merged))


@given(st.lists(ranges), st.lists(ranges))
def test_the_intersection_is_that_of_the_pages(some: list[Range], others: list[Range]) -> None:
    common = intersect(merge(some), merge(others))
    assert _pages(common) == _pages(some) & _pages(others)
    assert list(common) == sorted(common)


@given(st.lists(ranges), st.lists(ranges))
def test_the_difference_is_that_of_the_pages(some: list[Range], others: list[Range]) -> None:
    left = subtract(merge(some), merge(others))
    assert sum(each.pages for each in left) + sum(
        each.pages for each in intersect(merge(some), merge(others))
    ) == sum(each.pages for each in merge(some))
    assert not intersect(left, merge(others))
    assert intersect(left, merge(some)) == left


def _expected(words: list[int], wanted: int) -> Iterator[int]:
    for index, word in enumerate(words):
        if word & (PRESENT | SWAPPED) and not word & FILE and word & wanted == wanted:
            yield START + index * PAGE_BYTES


@given(entries)
def test_soft_dirty_marks_are_read_as_the_manual_says(words: list[int]) -> None:
    data = struct.pack(f"<{len(words)}Q", *words)
    assert _pages(pagemap.dirty_ranges(data, START)) == set(_expected(words, SOFT_DIRTY))
    assert _pages(pagemap.present_ranges(data, START)) == set(_expected(words, 0))


def test_only_private_mappings_without_a_file_are_taken() -> None:
    text = b"""\
55d2c0000000-55d2c0001000 r-xp 00000000 08:01 131 /usr/bin/program
55d2c1000000-55d2c1021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000002000 rw-p 00000000 00:00 0
7f0000002000-7f0000003000 ---p 00000000 00:00 0 \n7f0000003000-7f0000004000 rw-s 00000000 00:01 77 /dev/zero (deleted)
7f0000004000-7f0000005000 rw-p 00000000 00:01 99 /memfd:x (deleted)
7f0000005000-7f0000006000 rw-p 00000000 00:00 0                          [anon:a name]
7f0000006000-7f0000007000 rw-p 00001000 08:01 132 /usr/lib/a b.so
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
7ffc00030000-7ffc00034000 r--p 00000000 00:00 0                          [vvar]
7ffc00034000-7ffc00036000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""
    assert pagemap.parse_maps(text) == (
        Range(0x55D2C1000000, 0x21),
        Range(0x7F0000000000, 2),
        Range(0x7F0000002000, 1),
        Range(0x7F0000005000, 1),
        Range(0x7FFC00000000, 0x21),
    )


def test_mappings_of_files_and_all_private_ones() -> None:
    maps = b"""55d0a0000000-55d0a0002000 r-xp 00000000 08:01 4711                       /usr/bin/a b
55d0a0002000-55d0a0003000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 rw-s 00000000 00:01 12                         /dev/zero (deleted)
7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""
    assert pagemap.file_mappings(maps) == (Range(0x55D0A0000000, 2),)
    starts = [each.start for each in pagemap.private_mappings(maps)]
    assert starts == [0x55D0A0000000, 0x55D0A0002000, 0x7FFD00000000]
