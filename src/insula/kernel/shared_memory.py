# SPDX-License-Identifier: Apache-2.0
"""The shared memory of processes as files: anonymous shared mappings, memfds, System V segments.

All of them are files of one tmpfs that is mounted nowhere, told apart by their inodes; a mapping's is opened by
/proc/PID/map_files.  Out of scope: files of a tmpfs with a place (/dev/shm), huge pages, segments that nobody has mapped.

Sources: proc_pid_maps(5), proc_pid_map_files(5); Linux mm/shmem.c (`shmem_kernel_file_setup`, `shm_mnt`), ipc/shm.c;
lseek(2), SEEK_DATA.
"""

import errno
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE_BYTES = 4096
_SHARED = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ...s [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) ([0-9]+) +(/dev/zero|/SYSV|/memfd:)",
    re.MULTILINE,
)


class Mapping(NamedTuple):
    """Where a process sees an area."""

    start: int
    end: int
    inode: int
    kind: bytes


@functools.cache
def device() -> int:
    """Return the device that all areas are on."""
    descriptor = os.memfd_create("insula-probe", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def shared_mappings(pid: int) -> tuple[Mapping, ...]:
    """Return the shared mappings of a process.  Raises: OSError: the process is gone."""
    return parse_shared(Path(f"/proc/{pid}/maps").read_bytes(), device())


def parse_shared(text: bytes, on_device: int) -> tuple[Mapping, ...]:
    """Return the shared mappings out of /proc/PID/maps.  Pure."""
    return tuple(
        Mapping(int(start, 16), int(end, 16), int(inode), kind)
        for start, end, major, minor, inode, kind in _SHARED.findall(text)
        if os.makedev(int(major, 16), int(minor, 16)) == on_device
    )


def open_mapping(pid: int, mapping: Mapping) -> int:
    """Open what a process has mapped, to read it.  Raises: OSError: it is gone, or another by now."""
    descriptor = os.open(
        f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", os.O_RDONLY | os.O_CLOEXEC
    )
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) != (device(), mapping.inode):
        os.close(descriptor)
        raise OSError(errno.ENOENT, "open: another mapping by now")
    return descriptor


def data_segments(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of what a file has pages of, on page borders; it may change meanwhile."""
    position = 0
    while True:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = -(-end // PAGE_BYTES) * PAGE_BYTES
        if end <= position:
            return
        yield start // PAGE_BYTES * PAGE_BYTES, end
        position = end
