# SPDX-License-Identifier: Apache-2.0
"""The twin of `programs/watch.h`: keys and values of the maps, and an event, as bytes.  Change both together.

`tests/unit/monitor/test_layout.py` compiles the header and compares sizes.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

SYSCALLS = 512
"""Numbers at or above are counted as the last."""
STEPS = 24
FIRST_STEP_NS = 256
SLOTS = 4096
"""Containers that can be counted at once."""
NO_SLOT = SLOTS
USED_WORDS = SYSCALLS // 64
"""Of the map `used`, for each slot."""
TEXT_BYTES = 1024
"""Of a path and its NUL at most: one that takes as much may have been cut."""
PLACES_BYTES = 2048
"""Where in an event a text may begin."""

GENERATION = struct.Struct("=I")
SINCE = struct.Struct("=Q")
CGROUP = struct.Struct("=Q")
WATCH = struct.Struct("=IIII")
COUNT = struct.Struct("=QQ")
CALL_KEY = struct.Struct("=QII")
DURATIONS = struct.Struct(f"=QQ{STEPS}I")
DETAIL_KEY = struct.Struct("=QII")
DETAIL = struct.Struct("=Q")
SHAPE = struct.Struct("=BBBBBBBBB")
KNOWN = struct.Struct(f"={SYSCALLS // 64}Q")
HEAD = struct.Struct("=QQ6QqIIIHHHH16sHHHH4x")
HEAD_BYTES = HEAD.size
TIME = struct.Struct("=Q")
NAMED = struct.Struct("=HH")
NAMED_AT = 84
"""Where kind and number stand."""
ARGUMENTS_AT, RESULT_AT = 16, 64
CONFINED_ONLY, CHANGES_ONLY = 1, 2
"""Of a watch: WATCH_… of the header."""


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
    DRIFT = 13


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
    folder: bytes = b""
    """That a path begins in: its names, innermost first, NUL after each."""
    other_folder: bytes = b""
    """That the other path begins in, if it is not the same."""
    protocol: int = 0
    port: int = 0
    """Of a socket: IPPROTO_…, and its own port."""


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
        folder,
        protocol,
        port,
        other_folder,
    ) = HEAD.unpack_from(record)
    end = HEAD_BYTES + text
    last = end + other
    own = last + folder - other_folder
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
        record[end:last],
        record[last:own],
        record[own : own + other_folder],
        protocol,
        port,
    )


def known(numbers: Iterable[int]) -> bytes:
    """Return what the map `known` holds of a container."""
    # The last stands for what has no name here, and for the end of rt_sigreturn(2), whose number is lost by then.
    bits = sum({1 << number for number in (*numbers, SYSCALLS - 1) if number < SYSCALLS})
    return bits.to_bytes(KNOWN.size, "little")


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
    words = memoryview(value).cast("Q")
    return Count(sum(words[::2]), sum(words[1::2]))


def sum_durations(value: bytes) -> Durations:
    """Add what each processor has timed."""
    calls, nanoseconds, *steps = map(sum, zip(*DURATIONS.iter_unpack(value), strict=True))
    return Durations(calls, nanoseconds, tuple(steps))
