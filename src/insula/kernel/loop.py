# SPDX-License-Identifier: Apache-2.0
"""Loop devices: a file as a block device, until its last user lets go of it.

Every process may read in /sys which file a device shows, containers' too: as it was opened.  Whose it is does not stand there
if it was opened beneath a detached mount (`open_unseen`).  So a device is known by its file's inode, which only root is told.

Source: include/uapi/linux/loop.h, loop(4); LOOP_CONFIGURE since Linux 5.8.
"""

import errno
import fcntl
import os
import struct
from typing import NamedTuple

from insula.kernel import mount

LOOP_GET_STATUS64 = 0x4C05
LOOP_SET_CAPACITY = 0x4C07
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
LO_FLAGS_AUTOCLEAR = 4
"""The device is free again when nobody has it open or mounted: nothing stays after a crash."""
LO_FLAGS_DIRECT_IO = 16
"""The file's pages are not kept in memory a second time."""

_INFO = struct.Struct("=5Q4I64s64s32s2Q")
"""struct loop_info64: device, inode, rdevice, offset, sizelimit; number, encrypt_type, encrypt_key_size, flags; names."""
_CONFIG = struct.Struct(f"=II{_INFO.size}s8Q")
"""struct loop_config: fd, block_size, info."""
_TRIES = 64
"""Somebody else may take the free device that the kernel named."""


def attach(file: int) -> int:
    """Make a block device of an open file.

    Returns: an open descriptor of the device (its path is below /proc/self/fd): close it when it is mounted.
    Raises: OSError: ENODEV without loop devices, EBUSY if others take every free one.
    """
    flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    config = _CONFIG.pack(file, 0, info, *([0] * 8))
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OSError(errno.ENODEV, "open: this kernel has no loop devices", "/dev/loop-control") from None
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
                return device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "ioctl: no free loop device", "/dev/loop-control")


class Inode(NamedTuple):
    """Which file a device shows."""

    device: int
    number: int


def open_unseen(path: str) -> int:
    """Open a file for `attach` so that /sys tells nothing but its last name.  Returns: a descriptor."""
    folder, name = os.path.split(path)
    seen = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        detached = mount.clone(seen)
    finally:
        os.close(seen)
    try:
        return os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=detached)
    finally:
        os.close(detached)


def find(path: str) -> str | None:
    """Return the path of the device that shows a file, None if none does."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    wanted = Inode(found.st_dev, found.st_ino)
    with os.scandir("/sys/block") as entries:
        names = [each.name for each in entries if _may_show(each.path, os.path.basename(path))]
    return next((f"/dev/{each}" for each in names if inode_of(f"/dev/{each}") == wanted), None)


def _may_show(place: str, name: str) -> bool:
    # Others' devices are not opened: who has one open uses it.
    try:
        with open(f"{place}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
            return os.path.basename(file.read().rstrip("\n")) == name
    except OSError:  # another kind of device, or free
        return False


def inode_of(path: str) -> Inode | None:
    """Return which file a device shows; None: none, or it is no such device."""
    try:
        device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # free, and gone
        return None
    try:
        status = bytearray(_INFO.size)
        fcntl.ioctl(device, LOOP_GET_STATUS64, status)
    except OSError:  # free
        return None
    finally:
        os.close(device)
    return Inode(*_INFO.unpack(status)[:2])


def path_of(device: int) -> str:
    """Return the path of a device."""
    return os.readlink(f"/proc/self/fd/{device}")


def follow_size(path: str) -> None:
    """Have a device see that its file has grown."""
    device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, LOOP_SET_CAPACITY)
    finally:
        os.close(device)
