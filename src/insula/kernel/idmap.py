# SPDX-License-Identifier: Apache-2.0
"""User and group id mappings: of a user namespace, and of a mount.

Out of scope: which range belongs to whom.  A mapping reads as in user_namespaces(7): ids from `inside` on, as seen in
the namespace (for a mount: as stored on disk), are ids from `outside` on, as seen on the host.

Sources: user_namespaces(7); mount_setattr(2), MOUNT_ATTR_IDMAP, since Linux 5.12 (as layers of an overlay since 5.19).
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from insula.kernel import libc, mount

CLONE_NEWUSER = 0x10000000


class Range(NamedTuple):
    """`length` ids from `inside` on are the host's ids from `outside` on."""

    inside: int
    outside: int
    length: int


def write_maps(pid: int, *, uids: Sequence[Range], gids: Sequence[Range]) -> None:
    """Map the ids of the user namespace of a process.  Works once per namespace.

    Raises: OSError naming the file: EPERM if mapped before, EINVAL if ranges overlap or there are more than 340.
    """
    _write_map(f"/proc/{pid}/gid_map", gids)
    _write_map(f"/proc/{pid}/uid_map", uids)


def user_namespace(*, uids: Sequence[Range], gids: Sequence[Range]) -> int:
    """Make a user namespace that holds a mapping and no process.

    Forks, so only for single-threaded processes.
    Returns: its descriptor, for `idmapped_clone` or setns.
    """
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    done_read, done_write = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(ready_read)
        os.close(done_write)
        _hold_user_namespace(ready=ready_write, done=done_read)
    os.close(ready_write)
    os.close(done_read)
    try:
        _raise_sent_error(os.read(ready_read, 16))
        write_maps(child, uids=uids, gids=gids)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_read)
        os.close(done_write)  # lets the child go
        os.waitpid(child, 0)


def idmapped_clone(path_fd: int, userns_fd: int, *, recursive: bool = False, read_only: bool = False) -> int:
    """Clone the mount below a path, detached, showing the ids on disk through the mapping of a user namespace.

    recursive: with all mounts below it, each of which must allow id mapping.
    Returns: a mount descriptor for `mount.attach`, or to open layers of an overlay beneath it.
    Raises: OSError: EINVAL if the file system knows no id mapping or is mapped already, EPERM.
    """
    clone = mount.clone(path_fd, recursive=recursive)
    attributes = mount.MOUNT_ATTR_IDMAP | (mount.MOUNT_ATTR_RDONLY if read_only else 0)
    try:
        mount.set_attributes(clone, set=attributes, recursive=recursive, userns_fd=userns_fd)
    except OSError:
        os.close(clone)
        raise
    return clone


def _hold_user_namespace(*, ready: int, done: int) -> None:
    # The child: answers b"0" or an errno, then stays until the parent closes its end.
    try:
        libc.unshare(CLONE_NEWUSER)
        os.write(ready, b"0")
        os.read(done, 1)
    except OSError as error:
        os.write(ready, b"%d" % (error.errno or 0))
    finally:
        os._exit(0)


def _raise_sent_error(answer: bytes) -> None:
    if answer != b"0":
        code = int(answer or b"10")
        raise OSError(code, f"unshare: {os.strerror(code)}", "user namespace")


def _write_map(path: str, ranges: Sequence[Range]) -> None:
    # The kernel takes a map in one write only.
    text = "".join(f"{each.inside} {each.outside} {each.length}\n" for each in ranges)
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"write: {os.strerror(error.errno or 0)}", path) from None
    finally:
        os.close(handle)
