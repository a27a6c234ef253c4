# SPDX-License-Identifier: Apache-2.0
"""Shared memory of each kind moves while forked writers go on writing to it; each knows what it wrote."""

from collections.abc import Iterator

import pytest

from insula.model.errors import PauseTooLong
from two_hosts import Conversation, Pair, start_pair

WRITERS = """
import ctypes, mmap, os, random, threading, time
PAGE, SHARE, ROOM = 4096, 64, 1 << 20
c = ctypes.CDLL(None, use_errno=True)
c.shmat.restype = ctypes.c_void_p
c.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
c.shmget.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]

class Model:
    # A part of an area, and what this process wrote to it.
    def __init__(self, area, first, rare=1):
        self.area, self.first, self.rare = area, first, rare
        self.known = bytearray(SHARE * PAGE)
    def write(self, chance):
        at = chance.randrange(SHARE // self.rare) * self.rare * PAGE + chance.randrange(PAGE - 64)
        data = chance.randbytes(64)
        self.area[self.first + at : self.first + at + 64] = data
        self.known[at : at + 64] = data
    def punch(self, chance):
        at = chance.randrange(SHARE) * PAGE
        self.area.madvise(mmap.MADV_REMOVE, self.first + at, PAGE)
        self.known[at : at + PAGE] = bytes(PAGE)
    def is_good(self):
        return self.area[self.first : self.first + SHARE * PAGE] == self.known

def grow(area, chance):
    # A memfd whose end goes up and down; what was cut off is zeros when it comes back.
    size = chance.randrange(1, SHARE + 1) * PAGE
    os.ftruncate(area.descriptor, size)
    os.ftruncate(area.descriptor, SHARE * PAGE)
    area.model.known[size:] = bytes(SHARE * PAGE - size)

class Growing:
    def __init__(self):
        self.descriptor = os.memfd_create("growing")
        os.ftruncate(self.descriptor, SHARE * PAGE)
        self.model = Model(mmap.mmap(self.descriptor, SHARE * PAGE), 0)

def write_on(number, areas, status):
    chance = random.Random(number)
    models = [Model(area, number * ROOM, 1 + number % 3) for area in areas]
    growing = Growing()
    models.append(growing.model)
    fresh = mmap.mmap(-1, SHARE * PAGE)
    models.append(Model(fresh, 0))
    turn = 0
    while True:
        turn += 1
        for each in models:
            each.write(chance)
        if turn % 50 == 0:
            models[0].punch(chance)
            grow(growing, chance)
        if turn % 400 == 0:
            models[-1] = Model(mmap.mmap(-1, SHARE * PAGE), 0)
        wanted = status[8 * number]
        if status[8 * number + 1] != wanted:
            good = [each.is_good() for each in models]
            status[8 * number + 2] = 1 if all(good) else 2 + good.index(False)
            status[8 * number + 1] = wanted
        time.sleep(0.0005)

def segment(size):
    number = c.shmget(0, size, 0o1600)
    address = c.shmat(number, None, 0)
    assert address not in (None, 2**64 - 1), ctypes.get_errno()
    kept = (ctypes.c_char * size).from_address(address)
    return memoryview(kept).cast("B")

def placed(size):
    file = os.open("/dev/shm/placed", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(file, size)
    return mmap.mmap(file, size)

def named(size):
    file = os.memfd_create("named")
    os.ftruncate(file, size)
    return mmap.mmap(file, size)

COUNT = 4
areas = [mmap.mmap(-1, COUNT * ROOM), named(COUNT * ROOM), segment(COUNT * ROOM), placed(COUNT * ROOM)]
big = mmap.mmap(-1, 64 << 20)
big[: 32 << 20] = os.urandom(32 << 20)
import hashlib
sum_of_big = hashlib.sha256(big).hexdigest()
status = mmap.mmap(-1, PAGE)
for number in range(COUNT):
    if os.fork() == 0:
        try:
            write_on(number, areas, status)
        finally:
            os._exit(1)
"""

CHECK = """
for number in range(COUNT):
    status[8 * number] = (status[8 * number] + 1) % 250
until = time.monotonic() + 60
while any(status[8 * n] != status[8 * n + 1] for n in range(COUNT)) and time.monotonic() < until:
    time.sleep(0.01)
answered = all(status[8 * n] == status[8 * n + 1] for n in range(COUNT))
answer = [answered, [status[8 * n + 2] for n in range(COUNT)], hashlib.sha256(big).hexdigest() == sum_of_big]
"""
MAX_PAUSE_MS = 60_000
"""What a loaded machine takes is not asked here."""
GOOD = [True, [1, 1, 1, 1], True]


@pytest.fixture
def pair() -> Iterator[Pair]:
    yield from start_pair()


def test_shared_memory_of_each_kind_is_the_same_after_the_move(pair: Pair) -> None:
    talk = Conversation(pair.world, pair.run("shared"))
    assert talk.run(WRITERS) is None
    assert talk.run(CHECK) == GOOD
    for _ in range(2):
        for source, target in (("alpha", "beta"), ("beta", "alpha")):
            moved = pair.act(source, "shared", "migrate", target=target, max_pause_ms=MAX_PAUSE_MS)
            assert moved["shared_bytes"] >= 32 << 20, "shared memory was sent in the pause"
            assert talk.run(CHECK) == GOOD, f"{source} to {target}"
    talk.close()
    pair.remove("shared")


def test_files_in_dev_shm_count_for_the_pause(pair: Pair) -> None:
    talk = Conversation(pair.world, pair.run("packed"))
    assert talk.run("open('/dev/shm/large', 'wb').write(os.urandom(128 << 20))") is None
    with pytest.raises(PauseTooLong):
        pair.act("alpha", "packed", "migrate", target="beta", max_pause_ms=300)
    assert talk.run("answer = os.stat('/dev/shm/large').st_size") == 128 << 20
    talk.close()
    pair.remove("packed")
