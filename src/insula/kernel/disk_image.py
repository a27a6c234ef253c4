# SPDX-License-Identifier: Apache-2.0
"""A file system of a fixed size in a sparse file: made, mounted, measured, made larger or smaller.

ext4 by e2fsprogs, which every Debian has: the number of bytes *and of files* ends where it is told to, on any kernel.
Deleted blocks go back to the host (`discard`).  Out of scope: whose it is (`runtime/disks.py`).
Sources: mke2fs(8), resize2fs(8), e2fsck(8), ext4(5).
"""

import errno
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

from insula.kernel import loop, mount

SECONDS = 300.0
"""For one run of e2fsprogs; a check of a terabyte that is mostly holes needs less."""
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_RETRY_MS = 5
"""Nothing tells when the last user of a file system has gone."""
_CHECKED = (0, 1)
"""Exit codes of e2fsck: clean, corrected."""


class Room(NamedTuple):
    """What a file system holds and may hold."""

    used_bytes: int
    total_bytes: int
    used_files: int
    total_files: int


def make(path: str, *, size_bytes: int, files: int | None) -> None:
    """Make a file system in a new sparse file.  files: how many it can hold; None: as mke2fs thinks right.

    Raises: OSError: ENOENT without mkfs.ext4, ENOSPC, EINVAL with mke2fs' words.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)
    words = [
        "mkfs.ext4",
        "-q",
        "-F",
        "-m",
        "0",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0",
    ]
    words += ["-N", str(files)] if files is not None else []
    try:
        _run([*words, path])
    except OSError:
        os.unlink(path)
        raise


def attach(path: str, place: str) -> None:
    """Mount the file system of a file on a folder.  Undo: `detach`.

    A device that shows the file already is taken: two would be two file systems in the same blocks.
    """
    known = loop.find(path)
    if known is not None:
        _mount(known, place)
        return
    file = loop.open_unseen(path)
    try:
        device = loop.attach(file)
    finally:
        os.close(file)
    try:
        _mount(loop.path_of(device), place)
    finally:
        os.close(device)


def _mount(device: str, place: str) -> None:
    attributes = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV
    mounted = mount.filesystem("ext4", source=device, options=("discard",), attributes=attributes)
    try:
        mount.attach(mounted, place)
    finally:
        os.close(mounted)


def detach(path: str, place: str, *, deadline: float) -> bool:
    """Take the mount away.  Returns: whether nobody uses the file system any more at the deadline (monotonic seconds)."""
    if is_attached(place):
        mount.detach(place)
    while loop.find(path) is not None:
        if time.monotonic() >= deadline:
            return False
        select.poll().poll(_RETRY_MS)
    return True


def is_attached(place: str) -> bool:
    """Tell whether a folder has something mounted on it."""
    return os.path.ismount(place)


def grow(path: str, *, size_bytes: int) -> None:
    """Make a mounted file system larger.  Raises: OSError: EPERM without CAP_SYS_RESOURCE: then only `resize` can."""
    device = loop.find(path)
    if device is None:
        raise OSError(errno.ENODEV, "ioctl: no loop device shows the file", path)
    before = os.stat(path).st_size
    os.truncate(path, size_bytes)
    loop.follow_size(device)
    try:
        _run(["resize2fs", device])
    except OSError:
        os.truncate(path, before)
        loop.follow_size(device)
        raise


def resize(path: str, *, size_bytes: int) -> None:
    """Make a file system that is not mounted larger or smaller.

    Raises: OSError: ENOSPC if its files need more; EINVAL with the words of e2fsck or resize2fs.
    """
    _run(["e2fsck", "-f", "-p", path], succeeds=_CHECKED)
    if size_bytes > os.stat(path).st_size:
        os.truncate(path, size_bytes)
    try:
        _run(["resize2fs", path, f"{size_bytes >> 10}K"])
    except OSError as error:
        if "smaller than minimum" in str(error):
            raise OSError(errno.ENOSPC, "resize2fs: its files need more", path) from None
        raise
    os.truncate(path, size_bytes)


def room(place: str) -> Room:
    """Measure a mounted file system."""
    found = os.statvfs(place)
    return Room(
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize,
        used_files=found.f_files - found.f_ffree,
        total_files=found.f_files,
    )


def _run(words: Sequence[str], *, succeeds: Sequence[int] = (0,)) -> None:
    program = shutil.which(words[0], path=_PATH)
    if program is None:
        raise OSError(errno.ENOENT, f"{words[0]}: not installed (Debian package e2fsprogs)", words[0])
    done = subprocess.run(
        [program, *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
        check=False,
        env={"PATH": _PATH, "LC_ALL": "C"},
    )
    if done.returncode not in succeeds:
        said = " ".join(done.stdout.decode(errors="replace").split())[-300:]
        code = errno.EPERM if "Permission denied" in said else errno.EINVAL
        raise OSError(code, f"{words[0]}: {said}", words[-1])
