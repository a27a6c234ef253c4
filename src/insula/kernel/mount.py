# SPDX-License-Identifier: Apache-2.0
"""Mounts as descriptors: made detached, attached in one call, so that no half-made tree is ever visible.

Out of scope: what a container gets mounted, and id mappings (`idmap`).  Every function that returns an int returns a
descriptor (O_CLOEXEC) of a detached mount, which vanishes when it is closed unattached.

Sources: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2);
`include/uapi/linux/mount.h`; `Documentation/filesystems/overlayfs.rst`.
"""

import errno
import os
import struct
from collections.abc import Sequence

from insula.kernel import caps, libc

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

MOUNT_ATTR_RDONLY = 0x00000001
MOUNT_ATTR_NOSUID = 0x00000002
MOUNT_ATTR_NODEV = 0x00000004
MOUNT_ATTR_NOEXEC = 0x00000008
MOUNT_ATTR__ATIME = 0x00000070
MOUNT_ATTR_RELATIME = 0x00000000
MOUNT_ATTR_NOATIME = 0x00000010
MOUNT_ATTR_STRICTATIME = 0x00000020
MOUNT_ATTR_NODIRATIME = 0x00000080
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR_NOSYMFOLLOW = 0x00200000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x00000004
MOVE_MOUNT_T_SYMLINKS = 0x00000010
MOVE_MOUNT_T_EMPTY_PATH = 0x00000040
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1

FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7

#: What an overlay of a container gets, and why:
#: index=off         the upper layer is carried to other hosts, where the file handles of an index mean nothing (ESTALE);
#: metacopy=off      a file in the upper layer is whole, so that it can be copied as content;
#: redirect_dir=on   rename of a directory of a lower layer works (else EXDEV); the redirect is a path, so it travels.
#: Not `userxattr`: marks are trusted.overlay.*, which no container can forge, because the mounter keeps CAP_SYS_ADMIN.
OVERLAY_OPTIONS = ("index=off", "metacopy=off", "redirect_dir=on")

#: OVL_MAX_STACK is 500 in the kernel; docker's limit is 128, and so is ours.
OVERLAY_LAYERS = 128

#: fsconfig(2) takes strings of fewer bytes than this.
_FSCONFIG_STRING_BYTES = 256


def overlay(
    *,
    lower_fds: Sequence[int],
    upper_fd: int | None,
    work_fd: int | None,
    source: str,
    options: Sequence[str] = OVERLAY_OPTIONS,
    owner: tuple[int, int] | None = None,
    attributes: int = 0,
) -> int:
    """Make an overlay of directories, the topmost lower layer first.

    lower_fds, upper_fd, work_fd: directories (O_PATH is enough), also beneath detached, id-mapped mounts (since Linux
    6.15).  Upper and work must be beneath the same mount; both None makes a read-only overlay.
    owner: uid and gid, on the host, with which the overlay acts on its layers.  Must be mapped by the upper mount, else
    whiteouts and the work folder fail with EOVERFLOW; for a container with its own user ids: its root's.
    Raises: OSError with the kernel's own words: EINVAL, ENOTSUP, EBUSY if upper or work is in use.
    """
    if not 0 < len(lower_fds) <= OVERLAY_LAYERS:
        raise OSError(errno.EINVAL, f"fsconfig: an overlay has 1 to {OVERLAY_LAYERS} lower layers", source)
    with _FileSystem("overlay") as context:
        context.set_string("source", source)
        for option in options:
            context.set_option(option)
        _set_lower(context, lower_fds)
        if upper_fd is not None and work_fd is not None:
            context.set_directory("upperdir", upper_fd)
            context.set_directory("workdir", work_fd)
        with Identity(owner):
            context.create()
        return context.mount(attributes)


def tmpfs(
    *,
    size_bytes: int | None = None,
    mode: int = 0o755,
    inodes: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    source: str = "tmpfs",
    attributes: int = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
) -> int:
    """Make a tmpfs.  size_bytes, inodes: None is the kernel's half of the memory."""
    values = (("size", size_bytes), ("nr_inodes", inodes), ("uid", uid), ("gid", gid))
    options = [f"mode={mode:o}", *(f"{key}={value}" for key, value in values if value is not None)]
    return filesystem("tmpfs", source=source, options=options, attributes=attributes)


_STRICT = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC


def proc(*, options: Sequence[str] = (), attributes: int = _STRICT) -> int:
    """Make a procfs of the caller's pid namespace.  options: such as `hidepid=2`."""
    return filesystem("proc", source="proc", options=options, attributes=attributes)


def sysfs(*, attributes: int = _STRICT | MOUNT_ATTR_RDONLY) -> int:
    """Make a sysfs of the caller's network namespace."""
    return filesystem("sysfs", source="sysfs", attributes=attributes)


def devpts(
    *,
    mode: int = 0o620,
    gid: int | None = None,
    terminals: int | None = None,
    attributes: int = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
) -> int:
    """Make a devpts instance of its own, with an open `ptmx`.  gid: the group of new terminals, usually 5 (tty).

    terminals: how many there may be; the host has kernel.pty.max for all instances together.
    """
    options = ["newinstance", "ptmxmode=666", f"mode={mode:o}"]
    if gid is not None:
        options.append(f"gid={gid}")
    if terminals is not None:
        options.append(f"max={terminals}")
    return filesystem("devpts", source="devpts", options=options, attributes=attributes)


def mqueue(*, attributes: int = _STRICT) -> int:
    """Make the file system of POSIX message queues of the caller's ipc namespace."""
    return filesystem("mqueue", source="mqueue", attributes=attributes)


def cgroup2(*, attributes: int = _STRICT) -> int:
    """Make the cgroup v2 tree as the caller's cgroup namespace shows it."""
    return filesystem("cgroup2", source="cgroup", attributes=attributes)


def filesystem(kind: str, *, source: str, options: Sequence[str] = (), attributes: int = 0) -> int:
    """Make a mount of any type.  options: `key=value` or `key`.  Raises: OSError with the kernel's own words."""
    with _FileSystem(kind) as context:
        context.set_string("source", source)
        for option in options:
            context.set_option(option)
        context.create()
        return context.mount(attributes)


def clone(path_fd: int, *, recursive: bool = False) -> int:
    """Clone the mount at a path, detached.  recursive: with all mounts below it.

    The clone is private: as the peer of a shared mount, which systemd makes of all, it would pass on to the host what is
    mounted in it.  Source: mount_namespaces(7), "Shared subtrees".
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    detached = libc.open_tree(path_fd, b"", flags)
    try:
        set_attributes(detached, recursive=recursive, propagation=MS_PRIVATE)
    except OSError:
        os.close(detached)
        raise
    return detached


def bind_fd(path_fd: int, *, recursive: bool = False, attributes: int = 0) -> int:
    """Clone the file or directory of a descriptor as a bind mount, with attributes set before anybody sees it."""
    detached = clone(path_fd, recursive=recursive)
    if attributes:
        try:
            set_attributes(detached, set=attributes, recursive=recursive)
        except OSError:
            os.close(detached)
            raise
    return detached


def parts_of_root(pid: int) -> list[str]:
    """Return where parts of a process's root file system are mounted on themselves.  Source: proc_pid_mountinfo(5)."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        lines = [line.split(b" ", 5) for line in file]
    (device,) = {device for _, _, device, _, place, _ in lines if place == b"/"}
    return [
        os.fsdecode(place.decode("unicode_escape").encode("latin-1"))
        for _, _, other, root, place, _ in lines
        if other == device and place != b"/" and root == place
    ]


def attach(mount_fd: int, at: int | str | bytes, *, at_fd: int = AT_FDCWD) -> None:
    """Put a detached mount on a place.

    at: a descriptor of the place (safe inside a container's root), or a path, relative to `at_fd`.
    Raises: OSError: ENOTDIR or EINVAL if one is a directory and the other is not.
    """
    if isinstance(at, int):
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        libc.move_mount(mount_fd, b"", at, b"", flags)
    else:
        libc.move_mount(mount_fd, b"", at_fd, os.fsencode(at), MOVE_MOUNT_F_EMPTY_PATH)


def set_attributes(
    mount_fd: int,
    *,
    set: int = 0,  # noqa: A002  the word of mount_setattr(2)
    clear: int = 0,
    recursive: bool = False,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """Change the attributes of a mount, attached or not.  set, clear: MOUNT_ATTR_*; propagation: MS_PRIVATE or like."""
    # struct mount_attr { __u64 attr_set, attr_clr, propagation, userns_fd; }
    argument = struct.pack("=QQQQ", set, clear, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    libc.mount_setattr(mount_fd, b"", flags, libc.address_of(argument), len(argument))


def set_propagation(path: str, *, propagation: int) -> None:
    """Make every mount of a tree private, slave or shared.  propagation: MS_PRIVATE, MS_SLAVE, MS_SHARED."""
    libc.mount(None, os.fsencode(path), None, MS_REC | propagation, None)


def detach(path: str | bytes) -> None:
    """Take a mount, and all below it, away; it lives on for those who have files open.  Follows no last link."""
    libc.umount2(os.fsencode(path), MNT_DETACH | UMOUNT_NOFOLLOW)


class _FileSystem:
    """A file system context (fsopen) until it is mounted; its errors carry the kernel's log."""

    __slots__ = ("_fd", "_kind")

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._fd = libc.fsopen(kind.encode(), FSOPEN_CLOEXEC)

    def __enter__(self) -> "_FileSystem":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def set_option(self, option: str) -> None:
        key, separator, value = option.partition("=")
        if separator:
            self.set_string(key, value)
        else:
            self._config(FSCONFIG_SET_FLAG, key, value=None, fd=0)

    def set_string(self, key: str, value: str) -> None:
        self._config(FSCONFIG_SET_STRING, key, value=value, fd=0)

    def set_directory(self, key: str, fd: int) -> None:
        """Hand over a directory by descriptor, on kernels before 6.13 by its name below /proc."""
        try:
            self._config(FSCONFIG_SET_FD, key, value=None, fd=fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF):
                raise
            self.set_string(key, f"/proc/self/fd/{fd}")

    def create(self) -> None:
        self._config(FSCONFIG_CMD_CREATE, None, value=None, fd=0)

    def mount(self, attributes: int) -> int:
        try:
            return libc.fsmount(self._fd, FSMOUNT_CLOEXEC, attributes)
        except OSError as error:
            raise self._explained(error, "") from None

    def _config(self, command: int, key: str | None, *, value: str | None, fd: int) -> None:
        try:
            libc.fsconfig(
                self._fd,
                command,
                None if key is None else key.encode(),
                None if value is None else os.fsencode(value),
                fd,
            )
        except OSError as error:
            raise self._explained(error, key or "create") from None

    def _explained(self, error: OSError, what: str) -> OSError:
        # fsopen(2): read() gives one message of the kernel at a time ("e overlay: …"), then ENODATA.
        try:
            words = os.read(self._fd, 1024).decode(errors="replace").strip()
        except OSError:
            words = ""
        text = f"{error.strerror} ({words[2:]})" if words else str(error.strerror)
        return OSError(error.errno, text, f"{self._kind} {what}".strip())


def _set_lower(context: _FileSystem, lower_fds: Sequence[int]) -> None:
    # `lowerdir+` adds one layer at a time (Linux 6.8); before, all stand in one string.
    try:
        context.set_directory("lowerdir+", lower_fds[0])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        joined = ":".join(f"/proc/self/fd/{fd}" for fd in lower_fds)
        if len(joined) >= _FSCONFIG_STRING_BYTES:
            raise OSError(errno.E2BIG, "fsconfig: this kernel takes fewer lower layers", "lowerdir") from None
        context.set_string("lowerdir", joined)
        return
    for fd in lower_fds[1:]:
        context.set_directory("lowerdir+", fd)


class Identity:
    """Act on files as another uid and gid, but with every capability that the process is permitted.

    An overlay keeps the credentials of the one who created it and uses them on its layers.  On an id-mapped upper mount
    the host's root has no id, so the creator must be the container's root; but to write trusted.* it must keep
    CAP_SYS_ADMIN over the host.  setfsuid(2) gives the first, and takes file capabilities, which capset(2) gives back.
    """

    __slots__ = ("_before", "_owner", "_sets")

    def __init__(self, owner: tuple[int, int] | None) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        if self._owner is None:
            return
        uid, gid = self._owner
        self._sets = caps.current()
        gid_before = libc.setfsgid(gid)
        self._before = (libc.setfsuid(uid), gid_before)
        caps.set_effective(self._sets.permitted)

    def __exit__(self, *_: object) -> None:
        if self._owner is None:
            return
        libc.setfsuid(self._before[0])
        libc.setfsgid(self._before[1])
        caps.set_effective(self._sets.effective)
