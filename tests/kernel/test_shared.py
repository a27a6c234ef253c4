# SPDX-License-Identifier: Apache-2.0
"""Shared memory in rounds, without CRIU: what the target makes of it are the images that CRIU would have made."""

import contextlib
import mmap
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from insula.kernel import criu_images
from insula.kernel.criu_images import PE_PRESENT, Entry
from insula.kernel.shared_memory import PAGE_BYTES, data_segments, shared_mappings
from insula.migrate.shared import CHUNK_BYTES, SharedSource
from insula.migrate.sharedstore import SharedStore
from insula.migrate.wire import Wire
from insula.model.errors import ProtocolError
from insula.model.migration import Answer, SharedPages
from insula.runtime.dump import memory_folder, write_file

PAGES = 400
LIMIT_BYTES = 64 << 20
PAGES_ID = 7


class Area:
    """Memory that this process and its fork share; the fork, which is looked at, only waits."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("shared", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, PAGES * PAGE_BYTES)
        self.memory = mmap.mmap(self.descriptor, PAGES * PAGE_BYTES)
        self.inode = os.fstat(self.descriptor).st_ino
        reading, self._end = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._end)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)

    def close(self) -> None:
        os.close(self._end)
        os.waitpid(self.pid, 0)
        self.memory.close()
        os.close(self.descriptor)

    def write(self, page: int, chance: random.Random) -> None:
        at = page * PAGE_BYTES + chance.randrange(PAGE_BYTES - 8)
        self.memory[at : at + 8] = chance.randbytes(8)

    def punch(self, page: int, count: int = 1) -> None:
        self.memory.madvise(mmap.MADV_REMOVE, page * PAGE_BYTES, count * PAGE_BYTES)

    def dump_as_criu_does(self, folder: int) -> None:
        """Write its pagemap and say where its pages would be."""
        entries = [
            Entry(start, (end - start) // PAGE_BYTES, PE_PRESENT)
            for start, end in data_segments(self.descriptor)
        ]
        name = criu_images.shared_pagemap_name(self.inode)
        write_file(folder, name, criu_images.encode_pagemap(entries, pages_id=PAGES_ID))


class Carried:
    """Both sides, with a socket between."""

    def __init__(self, area: Area, images: int, limit_bytes: int) -> None:
        near, far = socket.socketpair()
        self.out, self._taken = Wire(near), Wire(far)
        self.area, self.images = area, images
        self.source = SharedSource(lambda: (area.pid,), limit_bytes=limit_bytes)
        self.store = SharedStore(images, limit_bytes=LIMIT_BYTES)
        self.problem: ProtocolError | None = None

    def close(self) -> None:
        for each in (self.source, self.store, self.out, self._taken):
            each.close()

    def round(self) -> int:
        """Do one; returns its bytes."""
        thread = threading.Thread(target=self._take)
        thread.start()
        sent = self.source.send_round(self.out)
        self.out.send(Answer())
        thread.join()
        if self.problem:
            raise self.problem
        return sent

    def _take(self) -> None:
        with contextlib.suppress(ProtocolError):
            while isinstance(message := self._taken.receive(), SharedPages):
                try:
                    self.store.receive(message, self._taken.receive_stream())
                except ProtocolError as error:
                    self.problem = error
                    return

    def restored(self) -> bytes:
        """Return what CRIU would make of the target's images."""
        self.store.make_image(self.area.inode)
        name = criu_images.shared_pagemap_name(self.area.inode)
        data = criu_images.read_image(self.images, name)
        pages = criu_images.read_image(self.images, criu_images.pages_name(criu_images.pages_id_of(data)))
        found, position = bytearray(PAGES * PAGE_BYTES), 0
        for each in criu_images.decode_pagemap(data):
            size = each.pages * PAGE_BYTES
            found[each.vaddr : each.vaddr + size] = pages[position : position + size]
            position += size
        return bytes(found)


Carry = Callable[[int], Carried]


@pytest.fixture
def area() -> Iterator[Area]:
    made = Area()
    yield made
    made.close()


@pytest.fixture
def carry(area: Area) -> Iterator[Carry]:
    with contextlib.ExitStack() as held:
        images = held.enter_context(memory_folder())

        def make(limit_bytes: int) -> Carried:
            return held.enter_context(contextlib.closing(Carried(area, images, limit_bytes)))

        yield make


def test_the_mapping_of_another_process_is_found(area: Area) -> None:
    assert area.inode in {each.inode for each in shared_mappings(area.pid)}


def test_only_what_was_written_is_sent_again(area: Area, carry: Carry) -> None:
    carried, chance = carry(LIMIT_BYTES), random.Random(1)
    for page in range(0, PAGES, 2):
        area.write(page, chance)
    assert carried.round() == PAGES // 2 * PAGE_BYTES
    assert carried.round() == 0
    area.write(4, chance)
    area.write(399, chance)
    assert carried.round() == 2 * PAGE_BYTES


@pytest.mark.parametrize("seed", range(8))
def test_images_are_those_of_criu(area: Area, carry: Carry, seed: int) -> None:
    carried, chance = carry(LIMIT_BYTES), random.Random(seed)
    for number in range(6):
        for _ in range(chance.choice((0, 3, 60, 500))):
            area.write(chance.randrange(PAGES), chance)
        if seed % 2:
            area.punch(chance.randrange(PAGES - 9), chance.randrange(1, 9))
        if number == 5:
            carried.source.stand()
        carried.round()
    area.dump_as_criu_does(carried.images)
    assert carried.source.held_images(carried.images) == {criu_images.pages_name(PAGES_ID): area.inode}
    assert carried.restored() == area.memory[:]


def test_area_that_shrinks_and_grows_is_the_same(area: Area, carry: Carry) -> None:
    carried, chance = carry(LIMIT_BYTES), random.Random(2)
    for size in (PAGES, 17, PAGES, 200, PAGES):
        os.ftruncate(area.descriptor, size * PAGE_BYTES)
        for _ in range(300):
            area.write(chance.randrange(size), chance)
        carried.round()
    area.dump_as_criu_does(carried.images)
    assert carried.source.held_images(carried.images)
    assert carried.restored() == area.memory[:]


def test_image_with_a_page_that_was_not_sent_is_not_spared(area: Area, carry: Carry) -> None:
    carried, chance = carry(LIMIT_BYTES), random.Random(3)
    area.write(1, chance)
    carried.round()
    area.write(2, chance)
    area.dump_as_criu_does(carried.images)
    assert carried.source.held_images(carried.images) == {}


def test_what_a_round_sent_is_what_the_next_one_is_expected_to(area: Area, carry: Carry) -> None:
    carried, chance = carry(LIMIT_BYTES), random.Random(6)
    for page in range(PAGES):
        area.write(page, chance)
    carried.round()
    assert carried.source.dirty_estimate() == 0, "the first one sends all, which says nothing"
    for count in (30, 20, 0, 10):
        for page in range(count):
            area.write(page, chance)
        assert carried.source.dirty_estimate() != carried.round() == carried.source.dirty_estimate()


def test_area_beyond_the_limit_is_left_to_criu(area: Area, carry: Carry) -> None:
    carried, chance = carry(2 * CHUNK_BYTES), random.Random(4)
    for page in range(PAGES):
        area.write(page, chance)
    carried.round()
    assert carried.source.areas == ()
    area.dump_as_criu_does(carried.images)
    assert carried.source.held_images(carried.images) == {}


@pytest.mark.parametrize(
    ("pieces", "data", "words"),
    [
        (((1, 1),), bytes(PAGE_BYTES), "no pages can be at"),
        (((0, 0),), b"", "no pages can be at"),
        (((-PAGE_BYTES, 1),), bytes(PAGE_BYTES), "no pages can be at"),
        (((0, 1),), bytes(10), "fewer bytes"),
        (((0, 1),), bytes(PAGE_BYTES + 1), "more bytes"),
        (((0, LIMIT_BYTES // PAGE_BYTES + 1),), b"", "more than was offered"),
        (((0, 8192),), b"", "bytes at once"),
    ],
)
def test_what_cannot_be_is_refused(carry: Carry, pieces: Any, data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        carry(LIMIT_BYTES).store.receive(SharedPages(area=1, pieces=pieces), [data])


def test_image_of_an_area_of_which_a_page_did_not_come_is_refused(area: Area, carry: Carry) -> None:
    carried, chance = carry(LIMIT_BYTES), random.Random(5)
    area.write(1, chance)
    carried.round()
    area.write(2, chance)
    area.dump_as_criu_does(carried.images)
    with pytest.raises(ProtocolError, match="did not come"):
        carried.store.make_image(area.inode)
