# SPDX-License-Identifier: Apache-2.0
"""Limits of bytes and files for a folder and all below it, by the file system's project quotas (ext4, xfs).

Each inode belongs to a project, a number that new files and folders inherit; the file system counts and limits by it, and
statvfs(3) below the folder tells the project's figures.  The administrator turns them on (mount option `prjquota`; ext4
also `tune2fs -O project,quota`).  Out of scope: whose a project is (`runtime/disk_kinds.py`).
Sources: include/uapi/linux/{fs,quota,dqblk_xfs}.h; quotactl_fd(2), since Linux 5.14; xfs_quota(8), "PROJECT QUOTA".
"""

import errno
import fcntl
import os
import struct

from insula.kernel import libc

FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FS_XFLAG_PROJINHERIT = 0x200
PRJQUOTA = 2
Q_SETQUOTA, Q_XGETQSTATV = 0x800008, 0x5808
FS_QUOTA_PDQ_ENFD = 1 << 5
"""Limits of projects are enforced."""
QIF_LIMITS = 1 | 4
"""The fields of bytes and of files count (QIF_BLIMITS, QIF_ILIMITS)."""
BLOCK_BYTES = 1024
"""Of dqb_bhardlimit."""

_FSXATTR = struct.Struct("=5I8x")
"""struct fsxattr: xflags, extsize, nextents, projid, cowextsize."""
_DQBLK = struct.Struct("=8QI4x")
"""struct if_dqblk: bhardlimit, bsoftlimit, curspace, ihardlimit, isoftlimit, curinodes, btime, itime, valid."""
_STATV_BYTES = 512
"""More than struct fs_quota_statv: qs_version, padding, qs_flags, …"""


def is_enforced(path: str) -> bool:
    """Tell whether the file system of a folder limits projects."""
    state = bytearray(_STATV_BYTES)
    state[0] = 1  # FS_QSTATV_VERSION1
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc.quotactl_fd(descriptor, _command(Q_XGETQSTATV), 0, libc.address_of(state))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ESRCH, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTSUP):
            return False
        raise
    finally:
        os.close(descriptor)
    return bool(struct.unpack_from("=H", state, 2)[0] & FS_QUOTA_PDQ_ENFD)


def project_of(path: str) -> int:
    """Return the project of a folder; 0: none.  Raises: OSError: ENOTTY where the file system knows none."""
    return int(_attributes(path)[3])


def assign(path: str, project: int) -> None:
    """Give an empty folder, and what will be made in it, to a project."""
    flags, extent, _extents, _project, cow_extent = _attributes(path)
    changed = _FSXATTR.pack(flags | FS_XFLAG_PROJINHERIT, extent, 0, project, cow_extent)
    _ioctl(path, FS_IOC_FSSETXATTR, changed)


def limit(path: str, project: int, *, size_bytes: int, files: int) -> None:
    """Limit a project of the folder's file system.  0: without limit.  Raises: OSError: EPERM, ESRCH if it does not count."""
    blocks = -(-size_bytes // BLOCK_BYTES)
    wanted = bytearray(_DQBLK.pack(blocks, 0, 0, files, 0, 0, 0, 0, QIF_LIMITS))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc.quotactl_fd(descriptor, _command(Q_SETQUOTA), project, libc.address_of(wanted))
    finally:
        os.close(descriptor)


def _command(number: int) -> int:
    """QCMD(number, PRJQUOTA)."""
    return (number << 8 | PRJQUOTA) & 0xFFFFFFFF


def _attributes(path: str) -> tuple[int, ...]:
    return _FSXATTR.unpack(_ioctl(path, FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))


def _ioctl(path: str, request: int, argument: bytes) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(descriptor, request, argument)
    except OSError as error:
        raise OSError(error.errno, f"ioctl: {error.strerror}", path) from error
    finally:
        os.close(descriptor)
