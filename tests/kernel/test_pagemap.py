# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of this process's own pages."""

import ctypes
import mmap
import os

from insula.kernel.pagemap import PAGE_BYTES, PageMap, Range, intersect

PAGES = 1500
"""Every second one: more regions than the kernel gathers before it hands them over (512)."""


def test_many_regions_are_told_in_order_and_once() -> None:
    with mmap.mmap(-1, 2 * PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        start = ctypes.addressof(view := ctypes.c_char.from_buffer(memory))
        for number in range(PAGES):
            memory[2 * number * PAGE_BYTES] = 1
        with PageMap(os.getpid()) as pages:
            told = pages.survey().present
        del view
    starts = [each.start for each in told]
    assert starts == sorted(set(starts))
    ours = intersect(told, (Range(start, 2 * PAGES),))
    assert [each.start for each in ours] == [start + 2 * number * PAGE_BYTES for number in range(PAGES)]
