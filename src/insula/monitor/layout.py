# SPDX-License-Identifier: Apache-2.0
"""The twin of `programs/watch.h`: keys and values of the maps, and an event, as bytes.  Change both together.

`tests/unit/monitor/test_layout.py` compiles the header and compares sizes.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

SYSCALLS = 512
"""Numbers at or above are counted as the last."""
STEPS = 24
FIRST_STEP_NS = 256
SLOTS = 4096
"""Containers that can be counted at once."""
NO_SLOT = SLOTS
TEXT_BYTES = 256
ARGUMENTS_BYTES = 1024

GENERATION = struct.Struct("=I")
CGROUP = struct.Struct("=Q")
WATCH = struct.Struct("=IIII")
COUNT = struct.Struct("=QQ")
CALL_KEY = struct.Struct("=QII")
DURATIONS = struct.Struct(f"=QQ{STEPS}I")
DETAIL_KEY = struct.Struct("=QII")
DETAIL = struct.Struct("=Q")
SHAPE = struct.Struct("=BBBBBxxx")
HEAD = struct.Struct("=QQ6QqIIIHHHH16s4x")
HEAD_BYTES = HEAD.size


class Kind(IntEnum):
    """What an event tells of.  Bit i of a watch's kinds is kind i."""

    EXEC = 1
    FORK = 2
    EXIT = 3
    SIGNAL = 4
    OOM = 5
    CAPABILITY = 6
    SECCOMP = 7
    FILE = 8
    NETWORK = 9
    MOUNT = 10
    IDENTITY = 11
    KERNEL = 12


class Raw(NamedTuple):
    """One event as the kernel told it."""

    nanoseconds: int
    """Of CLOCK_BOOTTIME."""
    cgroup: int
    arguments: tuple[int, ...]
    result: int
    pid: int
    """As the container counts, like `thread`."""
    thread: int
    user: int
    """As the host counts."""
    kind: int
    number: int
    command: bytes
    text: bytes
    other: bytes


def unpack(record: bytes) -> Raw:
    """Take an event of the ring apart.  Raises: struct.error for one that is too short."""
    (
        nanoseconds,
        cgroup,
        a,
        b,
        c,
        d,
        e,
        f,
        result,
        pid,
        thread,
        user,
        kind,
        number,
        text,
        other,
        command,
    ) = HEAD.unpack_from(record)
    end = HEAD_BYTES + text
    return Raw(
        nanoseconds,
        cgroup,
        (a, b, c, d, e, f),
        result,
        pid,
        thread,
        user,
        kind,
        number,
        command.split(b"\0", 1)[0],
        record[HEAD_BYTES:end],
        record[end : end + other],
    )


class Count(NamedTuple):
    """Of one system call in one container, since somebody first counted."""

    calls: int
    failures: int


class Durations(NamedTuple):
    """Of those calls that were timed."""

    calls: int
    nanoseconds: int
    steps: tuple[int, ...]
    """Step i counts calls that took less than 2^i * 256 ns, the last all others."""


def sum_counts(value: bytes) -> Count:
    """Add what each processor has counted."""
    calls, failures = map(sum, zip(*COUNT.iter_unpack(value), strict=True))
    return Count(calls, failures)


def sum_durations(value: bytes) -> Durations:
    """Add what each processor has timed."""
    calls, nanoseconds, *steps = map(sum, zip(*DURATIONS.iter_unpack(value), strict=True))
    return Durations(calls, nanoseconds, tuple(steps))
