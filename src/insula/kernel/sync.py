# SPDX-License-Identifier: Apache-2.0
"""Bring a whole file system to the disk.

For folders of many thousand files, where an fsync each would cost minutes.  Source: syncfs(2), since Linux 2.6.39.
"""

from insula.kernel import libc

_syncfs = libc.function("syncfs")


def sync_file_system(fd: int) -> None:
    """Write out everything of the file system that holds an open file.  Raises: OSError, also for earlier losses."""
    _syncfs(fd)
