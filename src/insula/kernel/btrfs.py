# SPDX-License-Identifier: Apache-2.0
"""Subvolumes of btrfs with a limit of bytes: each has a quota group, which counts what it refers to.

The administrator turns quotas on (`btrfs quota enable [--simple] PATH`): they cost every user of the file system a little.
Files are not counted.  Figures are those of the last commit, at most 30 s old.  Out of scope: snapshots, other groups.
Sources: include/uapi/linux/{btrfs,btrfs_tree}.h; btrfs-quota(8).
"""

import contextlib
import errno
import fcntl
import os
import struct
from typing import NamedTuple

SUBVOL_CREATE, SNAP_DESTROY = 0x5000940E, 0x5000940F
TREE_SEARCH, INO_LOOKUP = 0xD0009411, 0xD0009412
QGROUP_LIMIT = 0x8030942B
ROOT_INODE = 256
"""BTRFS_FIRST_FREE_OBJECTID: every subvolume's own folder has this inode number."""
QUOTA_TREE = 8
QGROUP_STATUS_KEY, QGROUP_INFO_KEY, QGROUP_LIMIT_KEY = 240, 242, 244
LIMIT_MAX_RFER = 1
NO_LIMIT = (1 << 64) - 1

_ARGS_BYTES = 4096
_NAME = struct.Struct("=q4088s")
"""struct btrfs_ioctl_vol_args: fd, name."""
_KEY = struct.Struct("=7Q4I4Q")
"""struct btrfs_ioctl_search_key: tree, objectids, offsets, transids from and to; types from and to, count, unused."""
_ITEM = struct.Struct("=3Q2I")
"""struct btrfs_ioctl_search_header: transid, objectid, offset, type, len."""
_LIMIT = struct.Struct("=6Q")
"""struct btrfs_ioctl_qgroup_limit_args: qgroupid, flags, max_rfer, max_excl, rsv_rfer, rsv_excl."""


class Group(NamedTuple):
    """What a subvolume refers to and may refer to.  limit_bytes: None without limit."""

    used_bytes: int
    limit_bytes: int | None


def has_quotas(path: str) -> bool:
    """Tell whether a path lies on btrfs and its quotas are on."""
    with contextlib.suppress(OSError):
        return _is_btrfs(path) and bool(_search(path, QGROUP_STATUS_KEY, 0))
    return False


def is_subvolume(path: str) -> bool:
    """Tell whether a folder is the root of a subvolume."""
    try:
        return os.stat(path).st_ino == ROOT_INODE and _is_btrfs(path)
    except FileNotFoundError:
        return False


def create(folder: str, name: str) -> None:
    """Make an empty subvolume in a folder.  Undo: `destroy`."""
    _ioctl(folder, SUBVOL_CREATE, _NAME.pack(0, name.encode()))


def destroy(folder: str, name: str) -> None:
    """Remove a subvolume with all in it; no other one may lie in it."""
    _ioctl(folder, SNAP_DESTROY, _NAME.pack(0, name.encode()))


def limit(path: str, *, size_bytes: int | None) -> None:
    """Limit what the subvolume at a path refers to.  Raises: OSError: ENOTCONN where quotas are off."""
    wanted = NO_LIMIT if size_bytes is None else size_bytes
    _ioctl(path, QGROUP_LIMIT, _LIMIT.pack(0, LIMIT_MAX_RFER, wanted, 0, 0, 0))


def group(path: str) -> Group:
    """Return the figures of the subvolume at a path.  Raises: OSError: ENOENT without a group."""
    number = struct.unpack_from("=Q", _ioctl(path, INO_LOOKUP, struct.pack("=2Q4080x", 0, ROOT_INODE)))[0]
    counted = _search(path, QGROUP_INFO_KEY, number)
    if counted is None:
        raise OSError(errno.ENOENT, "ioctl: no quota group", path)
    limits = _search(path, QGROUP_LIMIT_KEY, number)
    flags, most = struct.unpack_from("=2Q", limits) if limits else (0, NO_LIMIT)
    is_limited = flags & LIMIT_MAX_RFER and most != NO_LIMIT
    return Group(struct.unpack_from("=2Q", counted)[1], most if is_limited else None)


def _search(path: str, key: int, offset: int) -> bytes | None:
    """Return the item (0, key, offset) of the quota tree."""
    top = (1 << 64) - 1
    wanted = _KEY.pack(QUOTA_TREE, 0, 0, offset, offset, 0, top, key, key, 1, 0, 0, 0, 0, 0)
    answer = _ioctl(path, TREE_SEARCH, wanted.ljust(_ARGS_BYTES, b"\0"))
    if not _KEY.unpack_from(answer)[9]:
        return None
    length = _ITEM.unpack_from(answer, _KEY.size)[4]
    start = _KEY.size + _ITEM.size
    return answer[start : start + length]


def _is_btrfs(path: str) -> bool:
    """Only btrfs knows the question for a subvolume's number."""
    try:
        _ioctl(path, INO_LOOKUP, struct.pack("=2Q4080x", 0, ROOT_INODE))
    except OSError as error:
        if error.errno == errno.ENOTTY:
            return False
        raise
    return True


def _ioctl(path: str, request: int, argument: bytes) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        held = bytearray(argument)
        fcntl.ioctl(descriptor, request, held)
        return bytes(held)
    except OSError as error:
        raise OSError(error.errno, f"ioctl: {error.strerror}", path) from error
    finally:
        os.close(descriptor)
