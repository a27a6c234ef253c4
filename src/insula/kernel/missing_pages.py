# SPDX-License-Identifier: Apache-2.0
"""Bring pages to a program that already runs without them: the events of a userfaultfd in mode MISSING, and its ioctls.

Out of scope: making and registering one (CRIU does, in each process that it restores).
Sources: userfaultfd(2), ioctl_userfaultfd(2), `include/uapi/linux/userfaultfd.h`; since Linux 4.11.
Standard library only.
"""

import errno
import fcntl
import os
import struct
from enum import IntEnum
from typing import NamedTuple

UFFDIO_WAKE = 0x8010AA02
UFFDIO_COPY = 0xC028AA03
UFFDIO_ZEROPAGE = 0xC020AA04
SLOT_BYTES = 1 << 47
"""Of a sparse store of pages, for each memory: the page at an address lies at its slot plus that address."""
_EVENTS_PER_READ = 32
_EVENT = struct.Struct("=BxHIQQQ")


class Kind(IntEnum):
    """enum of UFFD_EVENT_*."""

    FAULT = 0x12
    FORK = 0x13
    REMAP = 0x14
    REMOVE = 0x15
    UNMAP = 0x16


class Event(NamedTuple):
    """What happened: fault (second: the address), fork (first: the child's userfaultfd), remap (from, to, length), …"""

    kind: Kind
    first: int
    second: int
    third: int


class Gone(OSError):
    """The memory is no more: its process ended, or executes another program."""


def read_events(handle: int) -> list[Event]:
    """Return what is to be read, without waiting.  Raises: OSError naming read."""
    try:
        data = os.read(handle, _EVENTS_PER_READ * _EVENT.size)
    except BlockingIOError:
        return []
    found = []
    for kind, _two, _three, first, second, third in _EVENT.iter_unpack(data):
        found.append(Event(Kind(kind), first, second, third))
    return found


def copy(handle: int, to: int, *, source: int, length: int) -> tuple[int, int]:
    """Fill pages from an address of ours and wake who waits for them.  Returns: bytes filled, and why no more (errno or 0).

    The errno: EAGAIN: read the events first; EEXIST: the next page is there already; ENOENT: the next page is in no mapping
    of that userfaultfd, or not all of it in one.  Raises: Gone; OSError naming the ioctl.
    """
    argument = bytearray(struct.pack("=QQQQq", to, source, length, 0, 0))
    return _fill(handle, UFFDIO_COPY, argument, done_at=32, length=length)


def zero(handle: int, at: int, *, length: int) -> tuple[int, int]:
    """Fill pages with zeros.  As `copy`."""
    argument = bytearray(struct.pack("=QQQq", at, length, 0, 0))
    return _fill(handle, UFFDIO_ZEROPAGE, argument, done_at=24, length=length)


def _fill(handle: int, request: int, argument: bytearray, *, done_at: int, length: int) -> tuple[int, int]:
    try:
        fcntl.ioctl(handle, request, argument)
    except OSError as error:
        reason = error.errno or 0
        if reason in (errno.ESRCH, errno.ENOSPC):
            raise Gone(reason, "ioctl: userfaultfd: the memory is gone") from None
        if reason not in (errno.EAGAIN, errno.EEXIST, errno.ENOENT):
            raise OSError(reason, f"ioctl: userfaultfd: {os.strerror(reason)}") from None
        done = max(0, struct.unpack_from("=q", argument, done_at)[0])
        return done, reason
    return length, 0


def wake(handle: int, at: int, *, length: int) -> None:
    """Have those look again who wait for pages that are there."""
    try:
        fcntl.ioctl(handle, UFFDIO_WAKE, struct.pack("=QQ", at, length))
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.ENOENT):
            raise
