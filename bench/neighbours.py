# SPDX-License-Identifier: Apache-2.0
"""What a program that nobody watches pays beside one whose events are told: at system calls' end, and at their functions.

    python bench/neighbours.py [--rounds N]

A loop of getppid(2), which is no event, and one of open(2) and close(2), of which the first is one: plain, beside a
watched cgroup, and plain again, by the fastest round of each, since whatever else runs on the machine only ever makes one
longer.  `filtered`: the same in a process with a seccomp filter, as containers have.  No insulad, no container: root, and
what `scripts/setup` compiles, are all that it needs.

Exit codes: 0 measured; 3 this kernel lets no programs be hung at its functions (what could be measured is told).
"""

import argparse
import ctypes
import itertools
import os
import struct
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figures import bench_line
from insula.kernel.call_functions import try_hook
from insula.kernel.cgroup import Group, Hierarchies, delete_parent
from insula.monitor.call_hooks import CallPrograms, MapFd
from insula.monitor.layout import Kind
from insula.monitor.probes import Probes

EXIT_MISSING = 3
ROUNDS = 200
SETTLED_S = 60.0
CALLS = 4_000
"""A round is so short that some are not disturbed by whatever else runs."""
KINDS = {
    "files": frozenset({Kind.FILE, Kind.NETWORK}),
    "refusals": frozenset({Kind.FILE, Kind.NETWORK, Kind.SECCOMP}),
}


def ask_parent() -> None:
    ask = os.getppid
    for _ in range(CALLS):
        ask()


def open_and_close() -> None:
    open_, close = os.open, os.close
    for _ in range(CALLS // 4):
        close(open_("/", os.O_RDONLY))


LOOPS: dict[str, Callable[[], None]] = {"getppid": ask_parent, "open": open_and_close}


def refuse(map_fd: MapFd) -> CallPrograms:
    """Have events told at the end of calls."""
    raise OSError(0, "not to be used")


def take_filter() -> None:
    """Take a seccomp filter that allows everything.  Source: seccomp(2)."""
    allow_all = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
    program = struct.pack("@HxxxxxxQ", 1, ctypes.addressof(allow_all))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):
        raise OSError(ctypes.get_errno(), "prctl")


@contextmanager
def cgroup() -> Iterator[int]:
    """Make a control group with nobody in it."""
    hierarchies = Hierarchies.detect()
    parent = f"insula-bench-{uuid.uuid4().hex[:8]}"
    group = Group(hierarchies, parent, "watched")
    group.create()
    try:
        yield group.v2_id()
    finally:
        group.delete(time.monotonic() + 10.0)
        delete_parent(hierarchies, parent)


def seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def slowdown(
    probes: Probes, watched: int, work: Callable[[], None], *, kinds: frozenset[Kind], rounds: int
) -> float:
    """Return how much longer a loop takes beside one that is watched, as a fraction: before, beside, after."""
    plain = [seconds(work) for _ in range(rounds)]
    probes.watch(watched, kinds)
    probes.calls.wait_settled(deadline=time.monotonic() + SETTLED_S)
    probes.look(is_on=False, is_timing=False)
    beside = [seconds(work) for _ in range(rounds)]
    probes.watch(watched, frozenset())
    while probes.attached:
        time.sleep(0.1)
    plain += [seconds(work) for _ in range(rounds)]
    return round(min(beside) / min(plain) - 1, 4)


def main() -> int:
    """Measure, and say it."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = options.parse_args().rounds
    facts: dict[str, object] = {}
    by_way = {"at_end": Probes(load_calls=refuse)}
    try:
        try_hook()
        by_way["at_calls"] = Probes()
    except OSError as error:
        print(f"without programs at calls: {error.strerror}")
    with cgroup() as watched:
        for prefix in ("", "filtered_"):
            if prefix:
                take_filter()
            for way, probes in by_way.items():
                for (asked, kinds), (name, work) in itertools.product(KINDS.items(), LOOPS.items()):
                    fact = f"{prefix}{name}_beside_{asked}_{way}"
                    facts[fact] = slowdown(probes, watched, work, kinds=kinds, rounds=rounds)
                    print(f"  {fact}: {facts[fact]:+.2%}", flush=True)
    for probes in by_way.values():
        probes.close()
    print(bench_line(facts))
    return 0 if "at_calls" in by_way else EXIT_MISSING


if __name__ == "__main__":
    sys.exit(main())
