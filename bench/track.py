# SPDX-License-Identifier: Apache-2.0
"""How much slower a program runs while its memory is tracked, one scan each 200 ms, and what scans and attaching cost.

The programs write whole pages at random over all their memory, no page twice before all are written, which is the worst
case: each write after a scan is a fault.  Some work stands before each write: the heavy one writes some 50 MB a second (as
much as the heaviest published case of a migration), the heavier one some 120, the extreme one as fast as Python can.  Watched and unwatched turns alternate; work done for each second of its own processor time is
compared, in which the faults are, so that other work on the machine counts little.

    python bench/track.py [TURNS]

Exit codes: 0 measured; 3 this kernel has no userfaultfd WP_ASYNC.
"""

import contextlib
import mmap
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figures import bench_line
from insula.kernel import userfault
from insula.migrate import track

TURNS = 8
TURN_S = 1.0
SCAN_S = 0.2
MEMORY_MB = 256
EXIT_MISSING = 3

PROGRAM = """
import hashlib, mmap, random, sys
memory = memoryview(mmap.mmap(-1, int(sys.argv[2]) << 20, flags=0x22)); pages = len(memory) // 4096
count = memoryview(mmap.mmap(int(sys.argv[1]), 4096)).cast("Q"); hashes = int(sys.argv[3])
for page in range(pages): memory[page * 4096] = 1
order = [page * 4096 for page in range(pages)]; random.Random(7).shuffle(order)
block = bytes(range(256)) * 16
print(1, flush=True)
while True:
    for at in order:
        for _ in range(hashes): hashlib.sha256(block).digest()
        memory[at : at + 4096] = block
        count[0] += 1
"""
HASHES = {"heavy": 20, "heavier": 8, "extreme": 0}


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A running program: its process, and the counter of its writes."""

    pid: int
    counter: memoryview

    def work(self) -> tuple[int, int]:
        """Return how much it has written, and its processor time in ns."""
        used_ns = int(Path(f"/proc/{self.pid}/schedstat").read_text(encoding="ascii").split()[0])
        return self.counter[0], used_ns


@contextlib.contextmanager
def writer(hashes: int) -> Iterator[Writer]:
    """Run a program."""
    handle = os.memfd_create("count", 0)
    os.ftruncate(handle, mmap.PAGESIZE)
    command = [sys.executable, "-S", "-c", PROGRAM, str(handle), str(MEMORY_MB), str(hashes)]
    with mmap.mmap(handle, mmap.PAGESIZE) as shared, memoryview(shared) as view, view.cast("Q") as counter:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[handle])
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the program did not start")
            yield Writer(pid=process.pid, counter=counter)
        finally:
            process.kill()
            process.communicate()
            os.close(handle)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Medians of all turns; the slow-down is a fraction."""

    slowdown: float
    written_mb_s: float
    attach_ms: float
    first_scan_ms: float
    scan_ms: float


def measure(hashes: int, turns: int) -> Cost:
    """Let a program run in turns, unwatched and watched."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    firsts: list[float] = []
    scans: list[float] = []
    with writer(hashes) as program:
        attaches = [_timed_ms(lambda: os.close(userfault.open_in(program.pid))) for _ in range(20)]
        began, at_first = time.monotonic(), program.counter[0]
        for turn in range(2 * turns):
            is_watched = bool(turn % 2)
            with contextlib.ExitStack() as stack:
                if is_watched:
                    tracker = track.open_tracker(lambda: [program.pid])
                    stack.callback(tracker.close)
                    firsts.append(_timed_ms(tracker.scan))
                writes, used_ns = program.work()
                deadline = time.monotonic() + TURN_S
                while time.monotonic() < deadline:
                    select.select((), (), (), SCAN_S)
                    if is_watched:
                        scans.append(_timed_ms(tracker.scan))
                later_writes, later_ns = program.work()
                rates[is_watched].append((later_writes - writes) / (later_ns - used_ns))
        written = (program.counter[0] - at_first) * mmap.PAGESIZE / 1e6
    return Cost(
        slowdown=1 - statistics.median(rates[True]) / statistics.median(rates[False]),
        written_mb_s=written / (time.monotonic() - began),
        attach_ms=statistics.median(attaches),
        first_scan_ms=statistics.median(firsts),
        scan_ms=statistics.median(scans),
    )


def _timed_ms(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def main(arguments: list[str]) -> int:
    """Measure both programs and print a line each, and the line for machines."""
    with contextlib.closing(track.open_tracker(tuple)) as tracker:
        if tracker.kind != "userfaultfd":
            print("this kernel has no userfaultfd WP_ASYNC")
            return EXIT_MISSING
    turns = int(arguments[0]) if arguments else TURNS
    costs = {name: measure(hashes, turns) for name, hashes in HASHES.items()}
    for name, cost in costs.items():
        print(
            f"{name:8} {MEMORY_MB} MB, written {cost.written_mb_s:6.0f} MB/s: slower by {cost.slowdown:6.1%};"
            f" attach {cost.attach_ms:.2f} ms, first scan {cost.first_scan_ms:.2f} ms, scan {cost.scan_ms:.2f} ms"
        )
    heavy = costs["heavy"]
    print(
        bench_line(
            {
                "tracking_slowdown": round(heavy.slowdown, 4),
                "tracking_slowdown_heavier": round(costs["heavier"].slowdown, 4),
                "tracking_slowdown_extreme": round(costs["extreme"].slowdown, 4),
                "tracking_attach_ms": round(heavy.attach_ms, 2),
                "tracking_scan_ms": round(heavy.scan_ms, 2),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
