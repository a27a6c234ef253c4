# SPDX-License-Identifier: Apache-2.0
"""A program that has reserved more address space than there is memory is moved as any other: what it holds in there goes along."""

from collections.abc import Iterator

import pytest

from insula.kernel.pagemap import PAGE_BYTES
from two_hosts import SERVER, Conversation, Counter, Pair, emptied_after, show_log

RESERVED_BYTES = 8 << 40
#: As MariaDB and runtimes with large heaps do: reserved as a whole, used bit by bit; and left out of core files.
RESERVING = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
reserve = libc.mmap(None, ctypes.c_size_t({RESERVED_BYTES}), 0, 0x4022, -1, ctypes.c_long(0))
assert libc.madvise(ctypes.c_void_p(reserve), ctypes.c_size_t({RESERVED_BYTES}), 16) == 0
def use(number, text):
    place = reserve + number * (1 << 40)
    assert libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t({PAGE_BYTES}), 3) == 0, ctypes.get_errno()
    ctypes.memmove(place, text, len(text))
def read(number, size):
    return ctypes.string_at(reserve + number * (1 << 40), size).decode()
def put_away(number):
    assert libc.mprotect(ctypes.c_void_p(reserve + number * (1 << 40)), ctypes.c_size_t({PAGE_BYTES}), 0) == 0
def reserves():
    found, line = [], ""
    for each in open("/proc/self/smaps"):
        if " ---p " in each: line = each.split()[0]
        if each.startswith("VmFlags") and line:
            low, high = (int(end, 16) for end in line.split("-"))
            if high - low > 1 << 36: found.append([line, each])
            line = ""
    return found
use(1, b"first")
use(5, b"put away")
put_away(5)
"""


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    yield from emptied_after(module_pair, "c")


def test_address_space_that_is_only_reserved_goes_along(pair: Pair) -> None:
    address = pair.run("c", program=RESERVING + SERVER)
    counter = Counter(pair.world, address)
    counter.wait_for_more()
    talk = Conversation(pair.world, address)
    before = talk.run("answer = reserves()")
    assert len(before) > 1, before
    here, there = "alpha", "beta"
    for number in range(2):
        result = pair.migrate("c", here, there)
        print(result)
        here, there = there, here
        counter.wait_for_more()
        assert talk.run("answer = reserves()") == before, show_log(pair)
        assert talk.run("answer = read(1, 5)") == "first"
        assert talk.run(f"use({6 + number}, b'later'); answer = read({6 + number}, 5)") == "later"
        before = talk.run("answer = reserves()")
    assert talk.run("use(5, b'put'); answer = read(5, 8)") == "put away"
    talk.close()
    counter.finish()
