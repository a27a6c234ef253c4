# SPDX-License-Identifier: Apache-2.0
"""Paths inside a container's root, as handles: resolved once, by the kernel, and never out of that root.

Out of scope: ownership, and what is then done with the descriptor.  A symbolic link inside a container is written by
its user, so it is an attack until proven else: `RESOLVE_IN_ROOT` makes the root of the walk the ceiling of every
`..` and the anchor of every absolute link, and magic links (`/proc/*/fd/*`, `/proc/*/root`) are refused.

Source: openat2(2), `include/uapi/linux/openat2.h`; since Linux 5.6.
"""

import errno
import os
import struct

from insula.kernel import libc

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

#: openat2 answers EAGAIN when a rename or mount anywhere raced with a walk over `..`; a hostile container could go on
#: renaming for ever, so the retries end.
_RACE_RETRIES = 64

_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_AT_FDCWD = -100


def open_in_root(
    root_fd: int, path: str | bytes, *, flags: int, mode: int = 0, create_parents: bool = False
) -> int:
    """Open a path as a process whose root is `root_fd` would see it.

    flags: as open(2); O_CLOEXEC is added.  O_NOFOLLOW in it concerns the last part only.
    mode: of a file that O_CREAT makes.
    create_parents: make missing directories on the way, mode 0755.
    Returns: a descriptor that the caller closes.
    Raises: OSError: ELOOP for a magic link or too many links, ENOENT, EAGAIN if the walk was disturbed all the time.
    """
    parent, name = os.path.split(os.fsencode(path).rstrip(b"/"))
    if create_parents and parent.strip(b"/") and name:
        os.close(make_directories_in_root(root_fd, parent, mode=0o755))
    return _open(root_fd, os.fsencode(path), flags=flags, mode=mode)


def open_beneath(root_fd: int, path: bytes, *, flags: int) -> int:
    """Open a path below a folder: no link on the way, no `..` out of it, no other mount.

    Returns: a descriptor that the caller closes.
    Raises: OSError: ELOOP for a link, EXDEV for a way out or another mount, ENOENT.
    """
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
    return _open(root_fd, path, flags=flags, resolve=resolve)


def open_within(root_fd: int, path: bytes, *, flags: int) -> int:
    """Open a path below a folder, through links and mounts that stay below it.

    Returns: a descriptor that the caller closes.
    Raises: OSError: EXDEV for a way out (an absolute link is one), ELOOP for a magic link, ENOENT.
    """
    return _open(root_fd, path, flags=flags, resolve=RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)


def open_without_links(path: str | bytes, *, flags: int) -> int:
    """Open an absolute path of the host in which no part may be a link: what it was when it was resolved, or nothing.

    Returns: a descriptor that the caller closes.
    Raises: OSError: ELOOP for a link, ENOENT.
    """
    resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
    return _open(_AT_FDCWD, os.fsencode(path), flags=flags, resolve=resolve)


def make_directories_in_root(root_fd: int, path: str | bytes, *, mode: int) -> int:
    """Make every missing directory of a path, as `mkdir -p` of a process whose root is `root_fd`.

    Returns: an O_PATH descriptor of the last one.
    Raises: OSError: ENOTDIR if a part is a file, ENOENT if a part is a link to nowhere, ELOOP as `open_in_root`.
    """
    current = _open(root_fd, b".", flags=_DIRECTORY)
    done = b""
    try:
        for part in os.fsencode(path).split(b"/"):
            if part in (b"", b"."):
                continue
            done = done + b"/" + part
            # The whole prefix is walked anew from the root: a part may be a link, whose target only that walk confines.
            following = _open_or_make(root_fd, done, parent_fd=current, name=part, mode=mode)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def _open_or_make(root_fd: int, path: bytes, *, parent_fd: int, name: bytes, mode: int) -> int:
    try:
        return _open(root_fd, path, flags=_DIRECTORY)
    except FileNotFoundError:
        pass
    try:
        os.mkdir(name, mode, dir_fd=parent_fd)
    except FileExistsError:
        pass  # made by somebody else meanwhile, or a dangling link: the next walk tells
    return _open(root_fd, path, flags=_DIRECTORY)


def _open(
    root_fd: int,
    path: bytes,
    *,
    flags: int,
    mode: int = 0,
    resolve: int = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
) -> int:
    # struct open_how { __u64 flags; __u64 mode; __u64 resolve; }
    creates = flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode if creates else 0, resolve)
    address = libc.address_of(how)
    for attempt in range(_RACE_RETRIES):
        try:
            return libc.openat2(root_fd, path or b".", address, len(how))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR) or attempt == _RACE_RETRIES - 1:
                raise OSError(
                    error.errno, f"openat2: {os.strerror(error.errno or 0)}", os.fsdecode(path)
                ) from None
    raise AssertionError("unreachable: the last attempt raises")
