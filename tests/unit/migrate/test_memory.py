# SPDX-License-Identifier: Apache-2.0
"""The target's store: what rounds bring is where the filler looks for it, and a source that lies is refused."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.kernel import criu_images
from insula.kernel.criu_images import PAGE_BYTES, PE_LAZY, PE_PRESENT, Entry
from insula.kernel.missing_pages import SLOT_BYTES
from insula.migrate.memory import MAX_PID, MemoryStore, Range
from insula.model.errors import ProtocolError

BASE = 0x7F0000000000


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore(limit_bytes=64 * PAGE_BYTES) as made:
        yield made


def _bring(store: MemoryStore, pid: int, ranges: list[Range], *, byte: int) -> None:
    taken = store.begin(pid, ranges)
    data = bytes([byte]) * sum(pages * PAGE_BYTES for _, pages in ranges)
    for at in range(0, len(data), 5000):
        taken.feed(data[at : at + 5000])
    taken.finish()


def _page(store: MemoryStore, pid: int, address: int) -> bytes:
    return os.pread(store.descriptor, PAGE_BYTES, store.slots[pid] * SLOT_BYTES + address)


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 15), st.integers(1, 5), st.integers(1, 255)), max_size=12
    )
)
def test_the_last_round_counts(rounds: list[tuple[int, int, int, int]]) -> None:
    model: dict[tuple[int, int], int] = {}
    with MemoryStore(limit_bytes=64 * PAGE_BYTES) as store:
        for pid, page, pages, byte in rounds:
            _bring(store, pid, [(BASE + page * PAGE_BYTES, pages)], byte=byte)
            model |= {(pid, each): byte for each in range(page, page + pages)}
        for (pid, page), byte in model.items():
            assert _page(store, pid, BASE + page * PAGE_BYTES) == bytes([byte]) * PAGE_BYTES
        assert store.held_bytes == len(model) * PAGE_BYTES


def test_criu_may_list_pages_in_any_order(store: MemoryStore, tmp_path: Path) -> None:
    entries = [Entry(BASE + 4 * PAGE_BYTES, 2, PE_LAZY), Entry(BASE, 3, PE_LAZY)]
    (tmp_path / "pagemap-1.img").write_bytes(criu_images.encode_pagemap(entries, pages_id=1))
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert store.missing(folder) == {1: [(BASE, 3), (BASE + 4 * PAGE_BYTES, 2)]}
    finally:
        os.close(folder)


def test_what_is_wanted_and_not_there_is_missing(store: MemoryStore, tmp_path: Path) -> None:
    _bring(store, 1, [(BASE, 4), (BASE + 8 * PAGE_BYTES, 1)], byte=1)
    entries = [Entry(BASE + 2 * PAGE_BYTES, 8, PE_LAZY), Entry(BASE + 20 * PAGE_BYTES, 2, PE_PRESENT)]
    (tmp_path / "pagemap-1.img").write_bytes(criu_images.encode_pagemap(entries, pages_id=1))
    (tmp_path / "pagemap-7.img").write_bytes(
        criu_images.encode_pagemap([Entry(BASE, 1, PE_LAZY)], pages_id=2)
    )
    (tmp_path / "pagemap-shmem-3.img").write_bytes(b"of no concern")
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert store.missing(folder) == {
            1: [(BASE + 4 * PAGE_BYTES, 4), (BASE + 9 * PAGE_BYTES, 1)],
            7: [(BASE, 1)],
        }
    finally:
        os.close(folder)


@pytest.mark.parametrize(
    "ranges",
    [
        [(BASE + 1, 1)],
        [(BASE, 0)],
        [(BASE, -1)],
        [(-PAGE_BYTES, 1)],
        [(0, 1)],
        [(BASE, 2), (BASE + PAGE_BYTES, 1)],
        [(BASE + PAGE_BYTES, 1), (BASE, 1)],
        [(SLOT_BYTES - PAGE_BYTES, 2)],
        [(1 << 70, 1)],
        [(BASE, 65)],
        [(BASE, 1 << 60)],
    ],
)
def test_impossible_ranges_are_refused(store: MemoryStore, ranges: list[Range]) -> None:
    with pytest.raises(ProtocolError):
        store.begin(1, ranges)
    assert store.held_bytes == 0


@pytest.mark.parametrize("pid", [0, -1, MAX_PID + 1])
def test_impossible_processes_are_refused(store: MemoryStore, pid: int) -> None:
    with pytest.raises(ProtocolError):
        store.begin(pid, [(BASE, 1)])


def test_no_more_than_was_offered(store: MemoryStore) -> None:
    _bring(store, 1, [(BASE, 40)], byte=1)
    _bring(store, 1, [(BASE, 40)], byte=2)  # the same pages once more
    with pytest.raises(ProtocolError):
        store.begin(2, [(BASE, 25)])


def test_more_or_fewer_bytes_than_announced(store: MemoryStore) -> None:
    taken = store.begin(1, [(BASE, 1)])
    with pytest.raises(ProtocolError):
        taken.feed(bytes(PAGE_BYTES + 1))
    taken.feed(bytes(PAGE_BYTES - 1))
    with pytest.raises(ProtocolError):
        taken.finish()
