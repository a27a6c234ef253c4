# SPDX-License-Identifier: Apache-2.0
"""Overlays of layers beneath detached mounts, on every kernel.

Linux 6.15 and later take such layers by descriptor (`mount.overlay`).  Older ones take only layers that are mounted in the
caller's own mount namespace, and by name.  So a child process with a mount namespace of its own attaches them there, mounts
the overlay by mount(2) with short relative names (its options are one page, those of fsconfig 255 bytes each) and sends a
detached clone of it back.  Nobody else sees those mounts, and they vanish with the child, however it ends.  The overlay
holds private clones of its layers.  Costs a fork; can go when no supported kernel is older than 6.15.

Only for single-threaded processes, since it may fork.  Source: mount(2), `clone_private_mount` in fs/namespace.c.
"""

import errno
import os
import socket
from collections.abc import Sequence
from typing import NoReturn

from insula.kernel import libc, mount
from insula.kernel.namespace import CLONE_NEWNS

#: Where the child puts its mounts: a directory that every system has and the child does not need.
_STAGE = "/dev"
_ANSWER_BYTES = 4096


def make(
    *,
    lower_fds: Sequence[int],
    upper_fd: int | None,
    work_fd: int | None,
    source: str,
    options: Sequence[str] = mount.OVERLAY_OPTIONS,
    owner: tuple[int, int] | None = None,
    attributes: int = 0,
) -> int:
    """Make an overlay: `mount.overlay`, or where this kernel wants attached layers, in the way for that."""
    try:
        if not _found.wants_attached:
            return mount.overlay(
                lower_fds=lower_fds, upper_fd=upper_fd, work_fd=work_fd, source=source, options=options,
                owner=owner, attributes=attributes,
            )  # fmt: skip
    except OSError as error:
        # EOPNOTSUPP: no descriptors at all (before 6.5); EINVAL: not of detached mounts (before 6.15).
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP) or len(lower_fds) > mount.OVERLAY_LAYERS:
            raise
    made = make_attached(
        lower_fds=lower_fds, upper_fd=upper_fd, work_fd=work_fd, source=source, options=options,
        owner=owner, attributes=attributes,
    )  # fmt: skip
    _found.wants_attached = True
    return made


class _Found:
    """What this process has learned of its kernel: a try that fails leaves a line in the kernel's log."""

    wants_attached = False


_found = _Found()


def make_attached(
    *,
    lower_fds: Sequence[int],
    upper_fd: int | None,
    work_fd: int | None,
    source: str,
    options: Sequence[str] = mount.OVERLAY_OPTIONS,
    owner: tuple[int, int] | None = None,
    attributes: int = 0,
) -> int:
    """Make an overlay in a child that attaches the layers.  Arguments and errors: as `mount.overlay`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = os.fork()
        if child == 0:
            wish = (tuple(lower_fds), upper_fd, work_fd, source, tuple(options), owner)
            _answer(theirs, wish)
        theirs.close()
        try:
            words, made, _, _ = socket.recv_fds(ours, _ANSWER_BYTES, 1)
        finally:
            os.waitpid(child, 0)
    if not made:
        number, _, text = words.decode(errors="replace").partition(" ")
        raise OSError(int(number or errno.EIO), text or "mount: the child died", source)
    try:
        if attributes:
            mount.set_attributes(made[0], set=attributes)
    except OSError:
        os.close(made[0])
        raise
    return made[0]


_Wish = tuple[tuple[int, ...], int | None, int | None, str, tuple[str, ...], tuple[int, int] | None]


def _answer(socket_: socket.socket, wish: _Wish) -> NoReturn:
    # The copy of the caller ends here, whatever happens.
    try:
        try:
            socket.send_fds(socket_, [b"0"], [_mount(wish)])
        except OSError as error:
            socket_.send(f"{error.errno or errno.EIO} {error.strerror}".encode()[:_ANSWER_BYTES])
    finally:
        os._exit(0)


def _mount(wish: _Wish) -> int:
    lower_fds, upper_fd, work_fd, source, options, owner = wish
    libc.unshare(CLONE_NEWNS)
    mount.set_propagation("/", propagation=mount.MS_PRIVATE)
    # Before anything is attached: from then on, the way up leads out of a mount.
    attached = _Attached([fd for fd in (*lower_fds, upper_fd, work_fd) if fd is not None])
    stage = mount.tmpfs(source="insula")
    mount.attach(stage, _STAGE)
    os.fchdir(stage)
    os.mkdir("made")
    words = [*options, "lowerdir=" + ":".join(attached.name_of(fd) for fd in lower_fds)]
    if upper_fd is not None and work_fd is not None:
        words += [f"upperdir={attached.name_of(upper_fd)}", f"workdir={attached.name_of(work_fd)}"]
    with mount.Identity(owner):
        libc.mount(os.fsencode(source), b"made", b"overlay", 0, os.fsencode(",".join(words)))
    made = os.open("made", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return mount.clone(made)


class _Attached:
    """Layers at short names in the working directory, each mount once."""

    def __init__(self, fds: Sequence[int]) -> None:
        self._paths = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in fds}
        self._roots = {fd: _root_of(fd) for fd in fds}  # closed by the child's end
        self._places: dict[tuple[int, int, int], str] = {}
        self._bound: dict[str, str] = {}

    def name_of(self, fd: int) -> str:
        """Attach the mount of a directory, unless that is done, and return the directory's name."""
        root = self._roots[fd]
        try:
            place = self._places.get(_identity(root)) or self._attach(root)
            name = place + self._paths[fd].rstrip("/")
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ELOOP):
                raise
            name = self._bind(fd)
        if not os.path.samestat(os.stat(name), os.fstat(fd)):
            raise OSError(errno.ESTALE, f"mount: {os.strerror(errno.ESTALE)}", self._paths[fd])
        return name

    def _attach(self, root: int) -> str:
        key, place = _identity(root), str(len(os.listdir()))
        os.mkdir(place)
        mount.attach(root, place)
        self._places[key] = place
        return place

    def _bind(self, fd: int) -> str:
        # Of a mount of the host's own tree, which this namespace has a copy of: its parent, for upper and work
        # folder must be beneath one mount.
        parent, name = os.path.split(self._paths[fd])
        if parent not in self._bound:
            self._bound[parent] = str(len(os.listdir()))
            os.mkdir(self._bound[parent])
            libc.mount(os.fsencode(parent), os.fsencode(self._bound[parent]), None, mount.MS_BIND, None)
        return f"{self._bound[parent]}/{name}"


def _root_of(fd: int) -> int:
    """Open the root of a directory's mount, or of the host's tree if it is attached there."""
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    while True:
        above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
        if _identity(above) == _identity(here):
            os.close(above)
            return here
        os.close(here)
        here = above


def _identity(fd: int) -> tuple[int, int, int]:
    # proc_pid_fdinfo(5): two mounts of one folder differ in nothing but this.
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        number = next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
    found = os.fstat(fd)
    return number, found.st_dev, found.st_ino
