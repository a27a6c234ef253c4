# SPDX-License-Identifier: Apache-2.0
"""Trials of mounts and paths: on the file system that will hold insula's state, since features differ between them.

Sources: mount_setattr(2), fsopen(2), openat2(2), `Documentation/filesystems/overlayfs.rst`.
"""

import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from insula.kernel import btrfs, idmap, libc, mount, namespace, project_quota
from insula.kernel.overlay import make as make_overlay
from insula.kernel.trials import Absent, in_child

#: insula's state folder, or before the first start the nearest folder above it that exists.
STATE = Path("/var/lib/insula")

_PLACE = "/mnt"
"""Any folder, in a mount namespace of our own."""
_RESOLVE_IN_ROOT = 0x10
_OUTSIDE_ID, _ID_COUNT = 100_000, 65_536


def new_mount_api() -> str:
    """Make a detached tmpfs."""
    os.close(mount.tmpfs(size_bytes=4096))
    return "fsopen, fsmount"


def openat2() -> str:
    """Open `/..` beneath a root: it must stay inside."""
    # struct open_how { __u64 flags, mode, resolve; }
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    root = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    try:
        handle = libc.openat2(root, b"../..", libc.address_of(how), len(how))
        same = os.fstat(handle).st_ino == os.fstat(root).st_ino
        os.close(handle)
    finally:
        os.close(root)
    if not same:
        raise OSError(0, "openat2: RESOLVE_IN_ROOT let a path out")
    return "RESOLVE_IN_ROOT"


def idmapped_mounts() -> str:
    """Show a folder of the state's file system through an id mapping."""

    def clone(folder: Path) -> str:
        with ExitStack() as stack:
            os.close(_idmapped(folder, stack))
        return _file_system_of(folder)

    return _with_folder(clone)


def overlay() -> str:
    """Mount an overlay on the state's file system."""

    def make(folder: Path) -> str:
        with ExitStack() as stack:
            base = _open(folder, stack)
            _overlay_beneath(base, None, stack)
        return _file_system_of(folder)

    return _with_folder(make)


def overlay_idmapped() -> str:
    """Mount an overlay whose layers are all seen through an id mapping, and write to it as the container's root."""

    def make(folder: Path) -> str:
        with ExitStack() as stack:
            base = _idmapped(folder, stack)
            stack.callback(os.close, base)
            _overlay_beneath(base, (_OUTSIDE_ID, _OUTSIDE_ID), stack)
        return _file_system_of(folder)

    return _with_folder(make)


def idmapped_tmpfs() -> str:
    """Show a tmpfs through an id mapping."""

    def clone() -> str:
        with ExitStack() as stack:
            made = mount.tmpfs(size_bytes=4096)
            stack.callback(os.close, made)
            ranges = (idmap.Range(0, _OUTSIDE_ID, _ID_COUNT),)
            users = idmap.user_namespace(uids=ranges, gids=ranges)
            stack.callback(os.close, users)
            # As the mask is: attached first, since kernels before 6.15 do not clone a detached mount.
            mount.set_propagation("/", propagation=mount.MS_PRIVATE)
            mount.attach(made, _PLACE)
            os.close(idmap.idmapped_clone(_open(Path(_PLACE), stack), users))
        return "tmpfs"

    return in_child(clone, namespaces=namespace.CLONE_NEWNS)


def _overlay_beneath(base: int, owner: tuple[int, int] | None, stack: ExitStack) -> None:
    lower, upper, work = (_open_at(base, name, stack) for name in ("lower", "upper", "work"))
    made = make_overlay(lower_fds=(lower,), upper_fd=upper, work_fd=work, source="insula-probe", owner=owner)
    os.close(made)


def _open(folder: Path, stack: ExitStack) -> int:
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, handle)
    return handle


def _open_at(base: int, name: str, stack: ExitStack) -> int:
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base)
    stack.callback(os.close, handle)
    return handle


def _idmapped(folder: Path, stack: ExitStack) -> int:
    ranges = (idmap.Range(0, _OUTSIDE_ID, _ID_COUNT),)
    users = idmap.user_namespace(uids=ranges, gids=ranges)
    stack.callback(os.close, users)
    return idmap.idmapped_clone(_open(folder, stack), users)


def disk_limits() -> str:
    """Find what can keep a tenant's limit of disk space on the state's file system, the cheapest first."""
    state = str(_nearest_state())
    if project_quota.is_enforced(state):
        return "project quota"
    if btrfs.has_quotas(state):
        return "btrfs quota; a file system in a file for tenants with a limit of files"
    if not os.path.exists("/dev/loop-control"):
        raise Absent("no project quota (prjquota), no btrfs quota, and no loop devices")
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        raise Absent("no project quota (prjquota), no btrfs quota, and no mkfs.ext4")
    return "a file system in a file"


def _nearest_state() -> Path:
    return next(folder for folder in (STATE, *STATE.parents) if folder.is_dir())


def _with_folder(trial: Callable[[Path], str]) -> str:
    folder = Path(tempfile.mkdtemp(prefix=".insula-probe-", dir=_nearest_state()))
    try:
        for name in ("lower", "upper", "work"):
            (folder / name).mkdir()
        return in_child(lambda: trial(folder), namespaces=namespace.CLONE_NEWNS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _file_system_of(folder: Path) -> str:
    # proc_pid_mountinfo(5): the type is the first field after ` - `; the device is the third.
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            if left.split()[2] == wanted:
                return f"on {right.split()[0]}"
    return ""
