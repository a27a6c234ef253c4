# SPDX-License-Identifier: Apache-2.0
"""What a program writes is found, whatever it does with its memory.

The judge is a copy: every scan's pages are read into it, and in the end, when the program stands, it must be equal to the
program's memory, byte for byte.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from insula.kernel import pagemap
from insula.kernel.pagemap import PAGE_BYTES, PageMap
from insula.kernel.trials import memory
from insula.migrate import track
from insula.migrate.track import Range, Tracker, read_pages
from tracked import Puppet, children, has_userfault, is_in_state, pages_within, wait

KINDS = [
    kind
    for kind, is_there in (("userfaultfd", has_userfault()), ("soft-dirty", pagemap.has_soft_dirty()))
    if is_there
]
"""The trackers of this kernel."""
pytestmark = pytest.mark.skipif(not KINDS, reason="no userfaultfd WP_ASYNC and no soft-dirty in this kernel")
ZEROS = bytes(PAGE_BYTES)


def open_tracker(kind: str, pids: Callable[[], Iterable[int]]) -> Tracker:
    """Open a tracker of a kind; for soft-dirty the processes are stopped, as a container would be frozen."""
    if kind == "userfaultfd":
        return track.UserfaultTracker(pids)

    @contextlib.contextmanager
    def still() -> Iterator[None]:
        stopped = list(pids())
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        wait(lambda: all(is_in_state(pid, "T") or is_in_state(pid, "Z") for pid in stopped))
        try:
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    return track.SoftDirtyTracker(pids, still=still)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tracker(puppet: Puppet, kind: str) -> Iterator[Tracker]:
    with contextlib.closing(open_tracker(kind, lambda: (puppet.pid, *children(puppet.pid)))) as made:
        assert made.kind == kind
        yield made


def test_the_best_that_this_kernel_has_is_taken() -> None:
    with contextlib.closing(track.open_tracker(tuple, still=contextlib.nullcontext)) as tracker:
        assert tracker.kind == KINDS[0]


class Copy:
    """What somebody knows who reads what the tracker says."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._pages: dict[int, dict[int, bytes]] = {}

    def round(self, *, protect: bool = True) -> int:
        """Scan and read.  Returns: how many pages were written."""
        found = self._tracker.scan(protect=protect)
        for pid, ranges in found.items():
            addresses = [address for each in ranges for address in range(each.start, each.end, PAGE_BYTES)]
            data = b"".join(read_pages(pid, ranges))
            assert len(data) == len(addresses) * PAGE_BYTES
            pages = self._pages.setdefault(pid, {})
            for index, address in enumerate(addresses):
                pages[address] = data[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
        self._pages = {pid: self._pages[pid] for pid in found}
        return sum(each.pages for ranges in found.values() for each in ranges)

    def compare(self, pids: Iterable[int]) -> int:
        """Assert that each page of processes that stand is known.  Returns: how many there were."""
        count = 0
        for pid in pids:
            ranges = track.WholeTracker(lambda pid=pid: [pid]).scan_last()[pid].present
            data = b"".join(read_pages(pid, ranges))
            addresses = [address for each in ranges for address in range(each.start, each.end, PAGE_BYTES)]
            for index, address in enumerate(addresses):
                real = data[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
                assert self._pages[pid].get(address, ZEROS) == real, (
                    f"page {address:#x} of {pid} is not known"
                )
            count += len(addresses)
        return count


def test_scattered_writes_are_found_exactly(puppet: Puppet, tracker: Tracker) -> None:
    start = puppet.number("new(65536)")
    if tracker.kind == "soft-dirty":
        puppet.do(f"ok(libc.madvise({start}, 65536 * P, 15))")  # MADV_NOHUGEPAGE: a huge page has one mark
    puppet.do(f"fill({start}, 65536)")
    assert len(pages_within(tracker.scan()[puppet.pid], start, pages=65536)) == 65536
    chosen = random.Random(1).sample(range(65536), 1000)
    puppet.do(f"for page in {chosen}: put({start}, page)")
    assert pages_within(tracker.scan()[puppet.pid], start, pages=65536) == set(chosen)
    assert not pages_within(tracker.scan()[puppet.pid], start, pages=65536)


def test_a_last_scan_sees_what_the_next_would_and_changes_nothing(puppet: Puppet, tracker: Tracker) -> None:
    start = puppet.number("new(64)")
    puppet.do(f"fill({start}, 64)")
    tracker.scan()
    puppet.do(f"put({start}, 5)")
    for _ in range(2):
        found = tracker.scan(protect=False)[puppet.pid]
        assert pages_within(found, start, pages=64) == {5}


def test_untouched_and_zero_pages_are_not_said(puppet: Puppet, tracker: Tracker) -> None:
    start = puppet.number("new(64)")
    puppet.do(f"fill({start}, 2); result = ctypes.string_at({start} + 10 * P, 20 * P)[:1]")
    assert pages_within(tracker.scan()[puppet.pid], start, pages=64) == {0, 1}


CHANGES = {
    "nothing": "pass",
    "a new mapping": "b = new(50); fill(b, 50)",
    "a mapping beside": "b = new(50, a + 100 * P); fill(b, 50, b'beside')",
    "unmapped": "ok(libc.munmap(a + 10 * P, 20 * P))",
    "another mapping at the same place": "ok(libc.munmap(a + 10 * P, 20 * P)); b = new(20, a + 10 * P); put(b, 3, b'other')",
    "the same mapping mapped over": "new(100, a); put(a, 7, b'over')",
    "moved": "b = libc.mremap(a, 100 * P, 200 * P, 1, None); put(b, 150, b'moved')",
    "moved to a place": "c = new(200); fill(c, 200); ok(libc.mremap(a, 100 * P, 100 * P, 3, c + 50 * P))",
    "moved away and back": (
        "c = new(300); d = libc.mremap(a, 100 * P, 100 * P, 3, c); put(d, 3, b'away');"
        "libc.mremap(d, 100 * P, 100 * P, 3, a); put(a, 4, b'back')"
    ),
    "grown": "b = libc.mremap(a, 100 * P, 150 * P, 1, None); put(b, 149, b'grown')",
    "given back": "ok(libc.madvise(a, 50 * P, 4))",
    "given back and touched": "ok(libc.madvise(a, 50 * P, 4)); put(a, 9, b'again')",
    "given back and read": "ok(libc.madvise(a, 50 * P, 4)); ctypes.string_at(a, 50 * P)",
    "given back and read and written": "ok(libc.madvise(a, 50 * P, 4)); ctypes.string_at(a, 50 * P); put(a, 8, b'w')",
    "made read-only": "ok(libc.mprotect(a, 30 * P, 1))",
    "made inaccessible": "ok(libc.mprotect(a, 30 * P, 0))",
    "made read-only and writable": "ok(libc.mprotect(a, 30 * P, 1)); ok(libc.mprotect(a, 30 * P, 3)); put(a, 2, b'rw')",
    "a heap that grows": "h = globals().setdefault('h', []); h.extend(bytes(b'%d' % i) * 50 for i in range(20000))",
    "a deep stack": "def deep(n): return n and 1 + deep(n - 1)\nsys.setrecursionlimit(9000); deep(8000)",
    "a thread": "t = threading.Thread(target=lambda: threading.Event().wait(3600), daemon=True); t.start()",
    "a fork": "spawn(); put(a, 1, b'parent')",
    "a fork that writes": (
        "pid = os.fork()\nif pid == 0:\n put(a, 77, b'child')\n while True: time.sleep(3600)\nput(a, 78, b'parent')"
    ),
    "a huge page": (
        "b = new(2048); b = (b + (1 << 21) - 1) & ~((1 << 21) - 1); libc.madvise(b, 1 << 21, 14);"
        "put(b, 0, b'huge'); put(b, 300, b'huge'); a2 = b"
    ),
    "a locked mapping": "b = new(10); libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]; ok(libc.mlock(b, 10 * P)); put(b, 1)",
    "a name": "libc.prctl(0x53564d41, 0, ctypes.c_void_p(a), 100 * P, b'our name'); put(a, 5, b'named')",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("scans_between", [0, 1, 2])
def test_nothing_is_missed(puppet: Puppet, tracker: Tracker, change: str, scans_between: int) -> None:
    copy = Copy(tracker)
    puppet.do("room = new(400); a = room + 100 * P; libc.munmap(room + 200 * P, 200 * P); fill(a, 100)")
    copy.round()
    puppet.do(change)
    for _ in range(scans_between):
        copy.round()
        puppet.do("try: put(b, 1, b'once more')\nexcept NameError: pass")
    pids = (puppet.pid, *children(puppet.pid))
    puppet.stop()
    copy.round(protect=False)
    assert copy.compare(pids) > 100


def test_another_program_counts_whole_and_is_tracked(puppet: Puppet, tracker: Tracker) -> None:
    tracker.scan()
    program = "import sys, mmap; m = mmap.mmap(-1, 40960, flags=0x22); m[0] = 1; print(1, flush=True); sys.stdin.read()"
    puppet.tell(f"os.execv(sys.executable, [sys.executable, '-S', '-c', {program!r}])")
    assert puppet.hear() == "1"
    wait(lambda: is_in_state(puppet.pid, "S"))  # it writes until it waits for its input
    copy = Copy(tracker)
    assert copy.round() > 300
    assert copy.round() < 20
    puppet.stop()
    copy.round(protect=False)
    copy.compare([puppet.pid])


def test_a_child_that_shares_its_parents_memory_takes_no_marks_away(
    puppet: Puppet, tracker: Tracker, tmp_path: Path
) -> None:
    """Threads apart, memory is shared between vfork and exec: the parent waits uninterruptibly meanwhile."""
    start = puppet.number("new(100)")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    puppet.do(f"fill({start}, 100)")
    tracker.scan()
    puppet.do(f"put({start}, 42)")
    # The child opens the fifo before it executes, and waits for a reader.
    action = f"(os.POSIX_SPAWN_OPEN, 9, {str(fifo)!r}, os.O_WRONLY, 0)"
    puppet.tell(f"os.waitpid(os.posix_spawn('/bin/true', ['true'], os.environ, file_actions=[{action}]), 0)")
    wait(lambda: bool(children(puppet.pid)))
    [child] = children(puppet.pid)
    wait(lambda: is_in_state(child, "S"))
    try:
        found = tracker.scan()
        assert pages_within(found[puppet.pid], start, pages=100) == {42}
        assert len(pages_within(found[child], start, pages=100)) == 100
        tracker.close()
        for _ in range(2):
            found = tracker.scan()  # the child is reached, the parent is not
            assert len(pages_within(found[puppet.pid], start, pages=100)) == 100
    finally:
        os.close(os.open(fifo, os.O_RDONLY))
    puppet.hear()
    for _ in range(4):
        tracker.scan()
    puppet.do(f"put({start}, 43)")
    assert pages_within(tracker.scan()[puppet.pid], start, pages=100) == {43}


def test_processes_that_end_are_left_out(puppet: Puppet, tracker: Tracker) -> None:
    child = puppet.number("spawn()")
    assert child in tracker.scan()
    os.kill(child, signal.SIGKILL)
    wait(lambda: is_in_state(child, "Z"))
    assert child in children(puppet.pid), "the test wants a zombie"
    assert child not in tracker.scan()
    puppet.do(f"os.waitpid({child}, 0)")
    assert set(tracker.scan()) == {puppet.pid}


def test_a_process_in_a_user_namespace() -> None:
    puppet = Puppet(prefix=("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"))
    try:
        puppet.do("a = new(100); fill(a, 100)")
        [pid] = children(puppet.pid)
        with contextlib.closing(track.open_tracker(lambda: [pid])) as tracker:
            start = puppet.number("a")
            assert len(pages_within(tracker.scan()[pid], start, pages=100)) == 100
            puppet.do("put(a, 9)")
            assert pages_within(tracker.scan()[pid], start, pages=100) == {9}
    finally:
        puppet.end()


def test_a_process_without_room_for_a_descriptor_counts_whole(puppet: Puppet, tracker: Tracker) -> None:
    puppet.do("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); a = new(20); fill(a, 20)")
    start = puppet.number("a")
    for _ in range(4):
        assert len(pages_within(tracker.scan()[puppet.pid], start, pages=20)) == 20
    assert puppet.number("1") == 1


def test_fifty_processes_at_once(puppet: Puppet, tracker: Tracker) -> None:
    copy = Copy(tracker)
    puppet.do("a = new(100); fill(a, 100)")
    children = [puppet.number("spawn()") for _ in range(50)]
    copy.round()
    copy.round()
    for pid in (puppet.pid, *children):
        os.kill(pid, signal.SIGSTOP)
    wait(lambda: all(is_in_state(pid, "T") for pid in (puppet.pid, *children)))
    copy.round(protect=False)
    assert copy.compare((puppet.pid, *children)) > 50 * 100


def test_thousands_of_mappings(puppet: Puppet, tracker: Tracker) -> None:
    # Every second one is read-only, so that the kernel cannot join them.
    start = puppet.number("new(20000)")
    puppet.do(
        f"for page in range(0, 20000, 2): put({start}, page); ok(libc.mprotect({start} + (page + 1) * P, P, 1))"
    )
    assert pages_within(tracker.scan()[puppet.pid], start, pages=20000) == set(range(0, 20000, 2))
    puppet.do(f"put({start}, 16); put({start}, 18000)")
    assert pages_within(tracker.scan()[puppet.pid], start, pages=20000) == {16, 18000}


def test_a_process_whose_first_thread_has_ended(puppet: Puppet, tracker: Tracker) -> None:
    start = puppet.number("new(50)")
    thread = "def go():\n time.sleep(0.2); put(start, 3, b'thread'); print(7, flush=True)\n while True: time.sleep(3600)\n"
    puppet.do(f"start = {start}; fill(start, 50)\n{thread}threading.Thread(target=go).start()")
    puppet.tell("libc.syscall(60, 0)")
    assert puppet.hear() == "7"
    wait(lambda: is_in_state(puppet.pid, "Z"))
    found = tracker.scan()
    # The kernel shows no memory at the process's own folder then: it is left out, and nothing breaks.
    assert puppet.pid not in found or len(pages_within(found[puppet.pid], start, pages=50)) == 50


STRESS = """
import ctypes, mmap, random, sys, os
m = mmap.mmap(-1, 16 << 20, flags=0x22); r = random.Random(4); n = 0
extra = []
print(1, flush=True)
while True:
    n += 1
    m[(at := r.randrange(4096) * 4096 + 16) : at + 8] = n.to_bytes(8, "little")
    if n % 5000 == 0:
        extra.append(bytearray(os.urandom(100)) * 3000)
        if len(extra) > 8: del extra[r.randrange(8)]
"""


def test_a_copy_of_a_program_that_writes_at_random_is_true_in_the_end(kind: str) -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", STRESS], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        with contextlib.closing(open_tracker(kind, lambda: [process.pid])) as tracker:
            copy = Copy(tracker)
            for _ in range(40):
                copy.round()
            os.kill(process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            copy.round(protect=False)
            assert copy.compare([process.pid]) > 4000
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_pages_that_vanished_read_as_zeros(puppet: Puppet) -> None:
    start = puppet.number("new(10)")
    puppet.do(f"fill({start}, 10); ok(libc.munmap({start} + 3 * P, 2 * P))")
    data = b"".join(read_pages(puppet.pid, [Range(start, 10)], piece_bytes=3 * PAGE_BYTES))
    assert len(data) == 10 * PAGE_BYTES
    assert data[3 * PAGE_BYTES : 5 * PAGE_BYTES] == bytes(2 * PAGE_BYTES)
    assert data[5 * PAGE_BYTES + 8 :].startswith(b"full5")
    puppet.end()
    assert b"".join(read_pages(puppet.pid, [Range(start, 2)])) == bytes(2 * PAGE_BYTES)


def test_the_page_map_reads_the_same_both_ways(puppet: Puppet) -> None:
    puppet.do("a = new(3000); [put(a, page) for page in range(0, 3000, 7)]")
    start = puppet.number("a")
    puppet.stop()
    with PageMap(puppet.pid) as pages:
        scanned = pages_within(pages.present(), start, pages=3000)
        read = [
            each
            for at, entries in pages.entries(Range(start, 3000))
            for each in pagemap.present_ranges(entries, at)
        ]
    assert scanned == pages_within(read, start, pages=3000) == set(range(0, 3000, 7))


def test_the_tracker_that_knows_nothing_says_everything(puppet: Puppet) -> None:
    with contextlib.closing(track.WholeTracker(lambda: [puppet.pid])) as tracker:
        copy = Copy(tracker)
        puppet.do("a = new(100); fill(a, 100)")
        assert copy.round() > 100
        puppet.do("put(a, 3, b'later')")
        puppet.stop()
        copy.round(protect=False)
        copy.compare([puppet.pid])


def test_a_kernel_without_the_marks_says_so() -> None:
    assert pagemap.has_soft_dirty() == _soft_dirty_is_compiled_in()


def _soft_dirty_is_compiled_in() -> bool:
    try:
        memory.soft_dirty()
    except Exception:  # noqa: BLE001  the trial names its own kind
        return False
    return True
