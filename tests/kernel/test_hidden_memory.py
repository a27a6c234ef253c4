# SPDX-License-Identifier: Apache-2.0
"""A lazy dump by a CRIU that does not see the memory we carry: nothing is lost, and it sees what it must dump itself.

Each page is compared after a restore.  The carrying is that of `carried.py`.
"""

import itertools
import mmap
import os
from contextlib import ExitStack

import pytest

import carried
from insula.kernel import criu, criu_images, criu_unseen, protobuf
from insula.kernel.criu_images import PAGE_BYTES, PE_PRESENT
from insula.kernel.pagemap import PageMap, Range, intersect, mappings_of
from insula.migrate.absent import complete_images, list_hidden
from insula.migrate.memory import MemoryStore
from insula.migrate.track import Last, WholeTracker
from insula.model.errors import MigrationFailed
from insula.runtime import hidden, lazy, mappings
from insula.runtime.hidden import HiddenMemory
from insula.runtime.mappings import Described
from spawned import Spawned, Started

VSYSCALL = 1 << 2
"""VMA_AREA_VSYSCALL of CRIU's `criu/include/image.h`."""


class Dumped:
    """A dump that was let go, and what was known when it stood."""

    def __init__(self, host: Spawned, container: Started, images: int, store: MemoryStore) -> None:
        self.links = [os.readlink(f"/proc/{container.pid}/fd/{number}") for number in range(3)]
        self.ranges: dict[int, tuple[Range, ...]] = {}
        self.last: dict[int, Last] = {}
        self.described: set[int] = set()
        self.refused: MigrationFailed | None = None
        self._host, self._container, self._images, self._store = host, container, images, store

    def run(self, *, before_the_freeze: str = "") -> None:
        binds = enumerate(self._container.plan.mounts)
        options = criu.Options(
            images_dir=carried.IMAGES,
            pid=self._container.pid,
            external=("mnt[/dev]:dev", *(f"mnt[{each.target}]:mount{number}" for number, each in binds)),
            log_file="dump.log",
            lazy_pages=True,
            config_file=lazy.CONFIG_FILE,
        )
        with ExitStack() as held:
            maps = held.enter_context(HiddenMemory(self._pids()))
            extra = lazy.dump_descriptors(held)
            flags = {"page_maps": True} if maps.descriptor >= 0 else {}
            extra = (*extra, maps.descriptor) if flags else extra
            connection, _ = carried.launch(self._host, self._images, extra=extra, **flags)
            held.enter_context(connection)
            if before_the_freeze:
                assert self._host.execute_shell(self._container, before_the_freeze).code == 0

            def handle(stage: criu.Notification) -> bool:
                if stage.stage == "network-lock":
                    maps.show()
                elif stage.stage == "post-dump":
                    self._stands(maps)
                return True

            response = criu.request(connection, criu.DUMP, options, handle=handle)
        assert response.success, carried.errors(self._images, "dump.log")
        assert self._host.client.wait_exit(self._container.key) == 137
        self._host.client.events.clear()
        self._host.client.ask("forget", key=self._container.key)

    def restore(self) -> None:
        assert self._store.missing(self._images) == {}
        carried.begin_restore(self._host, self._container, self._images, self._store, self.links)

    def _pids(self) -> tuple[int, ...]:
        return tuple(self._host.group(self._container).pids())

    def _stands(self, maps: HiddenMemory) -> None:
        self.described = set(maps.described)
        try:
            maps.check()
        except MigrationFailed as error:
            self.refused = error
        self.ranges = {pid: each.hidden for pid, each in maps.seen.items()}
        self.last = dict(WholeTracker(self._pids).scan_last())
        list_hidden(self._images, self.last, seen=maps.seen)
        complete_images(self._images, self.last, seen=maps.seen)
        for pid in self._pids():
            inner = int(carried.status(pid, "NSpid").split()[-1])
            listed, unseen = criu_unseen.lazy_lists(self._images, inner)
            self._take(pid, inner, sorted((*listed, *unseen)))

    def _take(self, pid: int, inner: int, ranges: list[tuple[int, int]]) -> None:
        taken = self._store.begin(inner, ranges)
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for start, pages in ranges:
                for place in range(start, start + pages * PAGE_BYTES, 1 << 20):
                    end = min(place + (1 << 20), start + pages * PAGE_BYTES)
                    taken.feed(os.pread(memory.fileno(), end - place, place))
        taken.finish()


def _begin(host: Spawned, code: str, *, ready: int = 1) -> Started:
    return carried.start(host, code, ready=ready)


def _pagemap(images: int, pid: int) -> list[criu_images.Entry]:
    return criu_images.decode_pagemap(carried.image(images, f"pagemap-{pid}.img"))


def test_every_byte_comes_through(host: Spawned, images: int, store: MemoryStore) -> None:
    container = _begin(host, carried.EVERYTHING, ready=4)
    dumped = Dumped(host, container, images, store)
    dumped.run()
    assert len(dumped.ranges) == 4, "the memory of all four was hidden"
    assert len(dumped.described) == 4, "nobody's mappings changed"
    assert dumped.refused is None
    dumped.restore()
    carried.end_well(host, container)


def test_criu_lists_nothing_of_what_is_hidden(host: Spawned, images: int, store: MemoryStore) -> None:
    container = _begin(host, carried.EVERYTHING, ready=4)
    dumped = Dumped(host, container, images, store)
    dumped.run()
    for pid in dumped.ranges:
        listed = [Range(each.vaddr, each.pages) for each in _pagemap(images, _inner(dumped, pid))]
        assert not intersect(listed, dumped.ranges[pid])
        assert sum(each.pages for each in listed) < 4000


def _inner(dumped: Dumped, pid: int) -> int:
    return 1 + sorted(dumped.last).index(pid)  # pids here and there are in the same order


MORE = """
import ctypes
c = ctypes.CDLL(None, use_errno=True)
c.mmap.restype = c.mremap.restype = ctypes.c_void_p
c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
c.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
c.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
c.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
memory = anonymous(96)
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
def at_page(address, number): return ctypes.string_at(address + number * 4096, 4096)
moved = c.mremap(at + (64 << 20), 32 << 20, 64 << 20, 1)                  # moved and grown
assert c.madvise(at + (4 << 20), 4 << 20, 4) == 0                          # given back
assert c.mprotect(at + (16 << 20), 4 << 20, 1) == 0                        # read-only
assert c.mprotect(at + (24 << 20), 4 << 20, 0) == 0                        # nothing at all
guarded = c.madvise(at + (32 << 20), 64 << 10, 102) == 0                   # MADV_GUARD_INSTALL, since Linux 6.13
zeros = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
assert zeros[:] == bytes(len(zeros))                                       # the kernel's page of zeros
file = open("/root/file", "w+b"); file.write(b"f" * (1 << 20)); file.flush()
mapped = mmap.mmap(file.fileno(), 1 << 20, flags=mmap.MAP_PRIVATE); mapped[4096:8192] = b"m" * 4096
shared = mmap.mmap(-1, 4 << 20); write(shared, 3)
depth = []
def deep(level):
    local = bytes([level]) * 3000
    if level: deep(level - 1)
    else: say("ready"); wait("go")
    assert local == bytes([level]) * 3000
threads = [threading.Thread(target=deep, args=(0,)) for _ in range(3)]
for each in threads: each.start()
PLACE
for each in threads: each.join()
def verify():
    for number in range((64 << 20) // 4096):
        megabyte = number * 4096 >> 20
        if 24 <= megabyte < 28 or guarded and 32 << 20 <= number * 4096 < (32 << 20) + (64 << 10): continue
        assert at_page(at, number) == (bytes(4096) if 4 <= megabyte < 8 else page(number, 7)), number
    for number in range((32 << 20) // 4096):
        assert at_page(moved, number) == page(number + (64 << 20) // 4096, 7), number
        assert at_page(moved, number + (32 << 20) // 4096) == bytes(4096)
    assert c.mprotect(at + (24 << 20), 4 << 20, 3) == 0
    for number in range((24 << 20) // 4096, (28 << 20) // 4096): assert at_page(at, number) == page(number, 7)
verify()
assert zeros[:] == bytes(len(zeros))
assert mapped[:4096] == b"f" * 4096 and mapped[4096:8192] == b"m" * 4096 and mapped[8192:] == b"f" * (len(mapped) - 8192)
check(shared, 3)
if guarded:
    for place in (at + (32 << 20), at + (32 << 20) + (60 << 10)):
        child = os.fork()
        if child == 0: ctypes.string_at(place, 1); os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV, "the guard is gone"
say("good")
os._exit(0)
"""


def test_changed_mappings_threads_guards_and_files(host: Spawned, images: int, store: MemoryStore) -> None:
    container = _begin(host, MORE.replace("PLACE", "deep(20)"), ready=4)
    dumped = Dumped(host, container, images, store)
    dumped.run()
    assert set(dumped.ranges) == set(dumped.last)
    dumped.restore()
    carried.end_well(host, container)


LOCKED = "assert c.mlock(at + (40 << 20), 2 << 20) == 0\ndeep(20)"


def test_locked_memory_is_criu_s(host: Spawned, images: int, store: MemoryStore) -> None:
    container = _begin(host, MORE.replace("PLACE", LOCKED), ready=4)
    dumped = Dumped(host, container, images, store)
    dumped.run()
    assert all(not each for each in dumped.ranges.values()), "a process with locked memory hides nothing"
    present = sum(each.pages for each in _pagemap(images, 1) if each.flags & PE_PRESENT)
    assert present * PAGE_BYTES > 2 << 20
    dumped.restore()
    carried.end_well(host, container)


def test_criu_sees_where_the_stack_pointers_are(host: Spawned, images: int, store: MemoryStore) -> None:
    container = _begin(host, MORE.replace("PLACE", "deep(20)"), ready=4)
    dumped = Dumped(host, container, images, store)
    stacks: list[Range] = []
    seen = hidden._stack_pages

    def remembered(pid: int) -> tuple[Range, ...] | None:
        found = seen(pid)
        stacks.extend(found or ())
        return tuple(found or ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hidden, "_stack_pages", remembered)
        dumped.run()
    entries = _pagemap(images, 1)
    listed = [Range(each.vaddr, each.pages) for each in entries]
    assert len(stacks) == 4
    assert sum(each.pages for each in intersect(sorted(stacks), listed)) == 4


BORN = """
memory = anonymous(48)
say("ready")
children = 0
while not os.path.exists("/root/go"):
    if os.path.exists("/root/fork") and not children:
        children = os.fork()
        if children == 0:
            write(memory, 9, 5)
            more = anonymous(8)
            say("born")
            os.mkdir("/root/born")
            wait("go")
            check(memory, 9, 5, 7); check(more, 7); os._exit(4)
    time.sleep(0.005)
check(memory, 7)
assert os.waitstatus_to_exitcode(os.waitpid(children, 0)[1]) == 4
say("good")
"""


def test_process_born_after_the_launch(host: Spawned, images: int, store: MemoryStore) -> None:
    container = _begin(host, BORN)
    dumped = Dumped(host, container, images, store)
    dumped.run(before_the_freeze="touch /root/fork; while [ ! -d /root/born ]; do sleep 0.01; done")
    assert len(dumped.last) == 2
    assert len(dumped.ranges) == 1, "only the first one was there when CRIU was launched"
    assert dumped.refused is None
    dumped.restore()
    carried.end_well(host, container)


def test_criu_reads_the_flags_of_before(
    host: Spawned, images: int, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = _begin(host, "memory = anonymous(48)\nsay('ready')\nwait('go')\n")
    dumped = Dumped(host, container, images, store)
    lies = itertools.chain([b" dc"], itertools.repeat(b""))

    def describe(pid: int) -> Described:
        lie = next(lies)
        return Described({line: flags + lie for line, flags in mappings.describe(pid).flags.items()})

    monkeypatch.setattr(hidden, "describe", describe)
    dumped.run()
    advice = _advice(images, 1)
    assert advice
    assert all(each & 1 << mmap.MADV_DONTFORK for each in advice)
    assert dumped.refused is not None, "and it is noticed that they are none of now"


def _advice(images: int, pid: int) -> list[int]:
    image = carried.image(images, f"mm-{pid}.img")
    areas = [dict(protobuf.decode(value)) for field, value in protobuf.decode(image[12:]) if field == 14]  # type: ignore[arg-type]
    return [int(each.get(9, 0)) for each in areas if int(each[7]) & VSYSCALL == 0]


CHANGING = """
memory = anonymous(48)
BEFORE
say("ready")
wait("change")
CHANGE
os.mkdir("/root/changed")
wait("go")
check(memory, 7)
AFTER
say("good")
"""


@pytest.mark.parametrize(
    ("before", "change", "after", "described"),
    [
        pytest.param(
            "", "more = anonymous(8)", "check(more, 7)", 0, id="another one: the kernel's own are read"
        ),
        pytest.param(  # for reading only, so that the kernel makes no single mapping of the two
            "less = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)",
            "less.close()",
            "",
            1,
            id="one less: it is not told",
        ),
    ],
)
def test_mappings_that_change_before_the_freeze(
    host: Spawned, images: int, store: MemoryStore, *, before: str, change: str, after: str, described: int
) -> None:
    code = CHANGING.replace("BEFORE", before).replace("CHANGE", change).replace("AFTER", after)
    container = _begin(host, code)
    dumped = Dumped(host, container, images, store)
    dumped.run(before_the_freeze="touch /root/change; while [ ! -d /root/changed ]; do sleep 0.01; done")
    assert len(dumped.described) == described
    assert dumped.refused is None
    dumped.restore()
    carried.end_well(host, container)


def test_little_memory_is_not_hidden(host: Spawned, images: int, store: MemoryStore) -> None:
    container = _begin(
        host, "memory = anonymous(8)\nsay('ready')\nwait('go')\ncheck(memory, 7)\nsay('good')\n"
    )
    dumped = Dumped(host, container, images, store)
    dumped.run()
    assert dumped.ranges == {}
    dumped.restore()
    carried.end_well(host, container)


@pytest.mark.parametrize(
    ("protection", "is_hidden"),
    [(0, True), (3, False)],
    ids=["nobody may touch it: left out", "it may be used"],
)
def test_memory_beside_a_huge_reservation(
    host: Spawned, images: int, store: MemoryStore, *, protection: int, is_hidden: bool
) -> None:
    code = f"memory = anonymous(48)\nroom = mmap.mmap(-1, 200 << 30, flags=0x4022, prot={protection})\nsay('ready')\nwait('go')\ncheck(memory, 7)\nsay('good')\n"
    container = _begin(host, code)
    dumped = Dumped(host, container, images, store)
    dumped.run()
    assert bool(dumped.ranges) == is_hidden
    dumped.restore()
    carried.end_well(host, container)


def test_survey_says_what_the_single_questions_say() -> None:
    held = bytearray(8 << 20)
    with PageMap(os.getpid()) as pages:
        survey, present = pages.survey(), pages.present()
    own = mappings_of(os.getpid())
    common = intersect(intersect(survey.present, own), intersect(present, own))
    assert sum(each.pages for each in common) * PAGE_BYTES > len(held)
    assert survey.guarded == ()
    assert not survey.has_watched


def test_many_regions_are_each_told_once() -> None:
    memory = mmap.mmap(-1, 3000 * 2 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for number in range(0, 6000, 2):
        memory[number * PAGE_BYTES] = 1
    with PageMap(os.getpid()) as pages:
        for found in (pages.present(), pages.survey().present):
            assert len(found) > 2900
            assert all(one.end <= other.start for one, other in itertools.pairwise(found))


def test_page_maps_that_failed_a_dump_are_not_tried_again(
    host: Spawned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HiddenMemory, "_distrusted", False)
    container = _begin(host, "memory = anonymous(48)\nsay('ready')\nwait('go')\n")
    with HiddenMemory([container.pid]) as maps:
        assert maps.descriptor >= 0
        maps.blame(OSError("pagemap-cache: PAGEMAP_SCAN"))
        maps.seen = {container.pid: hidden.Seen((), (), ())}
        maps.blame(OSError("it has an io_uring instance"))
    with HiddenMemory([container.pid]) as maps:
        assert maps.descriptor >= 0
        maps.seen = {container.pid: hidden.Seen((), (), ())}
        maps.blame(OSError("cannot checkpoint `x`: Can't read 7's pagemap file"))
    with HiddenMemory([container.pid]) as maps:
        assert maps.descriptor == -1
