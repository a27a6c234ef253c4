# SPDX-License-Identifier: Apache-2.0
"""What is in pages of a process that may run meanwhile.

Out of scope: which pages (`pagemap.py`).  Source: process_vm_readv(2), proc_pid_mem(5),
proc_pid_statm(5).
"""

import errno
import itertools
import os
from array import array
from collections.abc import Generator, Iterator, Sequence

from insula.kernel import libc
from insula.kernel.pagemap import PAGE_BYTES, Range

_VECTORS_AT_MOST = 1024
"""UIO_MAXIOV of process_vm_readv(2)."""


def read_pages(
    pid: int, ranges: Sequence[Range], *, piece_bytes: int = 1 << 20
) -> Generator[bytes, None, None]:
    """Read pages of a process, which may run meanwhile: in order, in pieces of `piece_bytes`, the last one smaller.

    A page that has vanished, or whose process has, reads as zeros.  To be closed by who may not come to the end of it.
    """
    try:
        handle = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        handle = None
    try:
        for wanted in _cut(ranges, piece_bytes):
            yield _read_piece(pid, handle, wanted)
    finally:
        if handle is not None:
            os.close(handle)


def address_space_pages(pid: int) -> int:
    """Return how many pages a process has mapped, whether there is memory behind them or not; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _cut(ranges: Sequence[Range], piece_bytes: int) -> Iterator[list[tuple[int, int]]]:
    # Addresses and lengths of each piece, few enough for one call.
    room, wanted = piece_bytes, list[tuple[int, int]]()
    for start, pages in ranges:
        address, end = start, start + pages * PAGE_BYTES
        while address < end:
            length = min(room, end - address)
            wanted.append((address, length))
            address += length
            room -= length
            if not room:
                yield wanted
                room, wanted = piece_bytes, []
    if wanted:
        yield wanted


def _read_piece(pid: int, handle: int | None, wanted: Sequence[tuple[int, int]]) -> bytes:
    data = bytearray(sum(length for _, length in wanted))
    view, base, offset, index = memoryview(data), libc.address_of(data), 0, 0
    while index < len(wanted):
        batch = wanted[index : index + _VECTORS_AT_MOST]
        read = _read_vectors(pid, base + offset, batch) if handle is not None else 0
        for address, length in batch:
            if read < length:  # here the call ended: go on one by one
                _read_into(handle, view[offset + read : offset + length], address + read)
            index, offset, read = index + 1, offset + length, max(read - length, 0)
            if not read:
                break
    return bytes(data)


def _read_vectors(pid: int, target: int, wanted: Sequence[tuple[int, int]]) -> int:
    """Read many places at once.  Returns: how many bytes, whole pages; 0 if not even the first one."""
    size = sum(length for _, length in wanted)
    remote = array("Q", itertools.chain.from_iterable(wanted))
    local = array("Q", (target, size))
    try:
        count = libc.process_vm_readv(pid, local.buffer_info()[0], 1, remote.buffer_info()[0], len(wanted), 0)
    except OSError as error:
        if error.errno not in (errno.EFAULT, errno.ESRCH, errno.ENOMEM, errno.EPERM):
            raise
        return 0
    return count - count % PAGE_BYTES


def _read_into(handle: int | None, view: memoryview, start: int) -> None:
    done = 0
    while done < len(view):
        # What cannot be read stays zero, as it was: go on with the next page.
        done += _read_some(handle, view[done:], start + done) or min(PAGE_BYTES, len(view) - done)


def _read_some(handle: int | None, view: memoryview, address: int) -> int:
    if handle is None:
        return 0
    try:
        count = os.preadv(handle, [view], address)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EFAULT, errno.ENOMEM, errno.ESRCH):
            raise
        return 0
    return count - count % PAGE_BYTES
