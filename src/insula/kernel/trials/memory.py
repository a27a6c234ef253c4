# SPDX-License-Identifier: Apache-2.0
"""Trials of the two trackers of changed memory: userfaultfd WP_ASYNC with PAGEMAP_SCAN, put into a process from outside, and
soft-dirty.

Sources: `include/uapi/linux/userfaultfd.h`, `include/uapi/linux/fs.h` (PAGEMAP_SCAN), proc_pid_pagemap(5),
`Documentation/admin-guide/mm/soft-dirty.rst`.
"""

import fcntl
import mmap
import os
import struct

from insula.kernel import libc, userfault
from insula.kernel.trials import Absent, in_child

_UFFD_USER_MODE_ONLY = 1
_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
_UFFD_FEATURE_WP_ASYNC = 1 << 15
_PAGEMAP_SCAN = 0xC0606610
_PM_SCAN_ARG_BYTES = 96
_PAGE_IS_PRESENT = 1 << 3
_SOFT_DIRTY_BIT = 55


def userfaultfd_wp_async() -> str:
    """Ask a userfaultfd for asynchronous write protection, and scan a page map."""
    handle = libc.userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY)
    try:
        features = _UFFD_FEATURE_WP_ASYNC | _UFFD_FEATURE_WP_UNPOPULATED
        fcntl.ioctl(handle, _UFFDIO_API, struct.pack("=QQQ", _UFFD_API, features, 0))
    except OSError as error:
        raise OSError(error.errno, "userfaultfd: no WP_ASYNC") from None
    finally:
        os.close(handle)
    _scan_own_page()
    return "WP_ASYNC, PAGEMAP_SCAN"


def _scan_own_page() -> None:
    memory = bytearray(2 * mmap.PAGESIZE)
    start = _page_in(memory)
    vector = bytearray(24)
    # struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
    #                     category_mask, category_anyof_mask, return_mask
    argument = struct.pack(
        "=12Q",
        *(_PM_SCAN_ARG_BYTES, 0, start, start + mmap.PAGESIZE, 0, libc.address_of(vector), 1, 0, 0),
        *(_PAGE_IS_PRESENT, 0, _PAGE_IS_PRESENT),
    )
    with open("/proc/self/pagemap", "rb") as pagemap:
        try:
            fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument)
        except OSError as error:
            raise OSError(error.errno, "ioctl: no PAGEMAP_SCAN") from None


def _page_in(memory: bytearray) -> int:
    # The first whole page inside a buffer of two.
    return -(-libc.address_of(memory) // mmap.PAGESIZE) * mmap.PAGESIZE


def tracking_from_outside() -> str:
    """Put a userfaultfd into another process and take it out."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        os.close(userfault.open_in(child))
    finally:
        os.close(writer)
        os.waitpid(child, 0)
    return "ptrace, pidfd_getfd"


def soft_dirty() -> str:
    """Write to a page after clearing the marks and look for the mark."""

    def write_and_look() -> str:
        memory = bytearray(2 * mmap.PAGESIZE)
        with open("/proc/self/clear_refs", "wb") as clear:
            clear.write(b"4")
        memory[:] = b"x" * len(memory)
        if not _is_marked(_page_in(memory)):
            raise Absent("a written page carries no soft-dirty mark")
        return ""

    return in_child(write_and_look)


def _is_marked(address: int) -> bool:
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // mmap.PAGESIZE * 8)
        entry: int = struct.unpack("=Q", pagemap.read(8))[0]
    return bool(entry >> _SOFT_DIRTY_BIT & 1)
