# SPDX-License-Identifier: Apache-2.0
"""Open paths of the host with a user's own rights, as if that user did it.

A thread of its own takes the user's file-system ids and groups and opens; with the ids of root go the capabilities that
pass over permissions (CAP_DAC_OVERRIDE and its like).  The thread ends afterwards, and with it whatever could not be
taken back.  A path that hangs (a file system of the user's own) holds up nobody but who asked for it.
Sources: setfsuid(2), capabilities(7) "Effect of user ID changes on capabilities", openat2(2).  Standard library only.
"""

import array
import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from insula.kernel import libc, paths

__all__ = ["Ids", "open_below"]

_UNCHANGED = 0xFFFFFFFF
"""As an id: setfsuid changes nothing and answers what it is."""


class Ids(NamedTuple):
    uid: int
    gid: int
    groups: Sequence[int]


def open_below(ids: Ids, folder: str, *, path: str, writable: bool) -> int:
    """Open a folder or regular file below another folder, which both the user may read.

    folder: the ceiling: no link and no `..` of the path leads out of it.  path: relative to it.
    writable: the user may write it, too.
    Returns: a descriptor (O_PATH), the caller's.
    Raises: OSError: EACCES; EXDEV for a way out; ELOOP for a magic link; ENOENT; EINVAL for what is neither.
    """
    return _in_thread(lambda: _open_below(ids, folder, path=path, writable=writable))


def _open_below(ids: Ids, folder: str, *, path: str, writable: bool) -> int:
    _become(ids)
    ceiling = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = paths.open_within(ceiling, os.fsencode(path), flags=os.O_PATH)
    finally:
        os.close(ceiling)
    try:
        _require_access(found, path, writable=writable)
    except OSError:
        os.close(found)
        raise
    return found


def _require_access(descriptor: int, path: str, *, writable: bool) -> None:
    kind = os.fstat(descriptor).st_mode
    if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
        raise OSError(errno.EINVAL, "open: neither a folder nor a regular file", path)
    wanted = os.R_OK | (os.X_OK if stat.S_ISDIR(kind) else 0) | (os.W_OK if writable else 0)
    if not os.access(f"/proc/self/fd/{descriptor}", wanted, effective_ids=True):
        raise OSError(errno.EACCES, f"faccessat2: {os.strerror(errno.EACCES)}", path)


def _become(ids: Ids) -> None:
    groups = array.array("I", ids.groups)
    libc.setgroups(len(groups), groups.buffer_info()[0] if groups else None)
    libc.setfsgid(ids.gid)
    libc.setfsuid(ids.uid)
    # These two never fail aloud.
    if libc.setfsuid(_UNCHANGED) != ids.uid or libc.setfsgid(_UNCHANGED) != ids.gid:
        raise OSError(errno.EPERM, f"setfsuid: {os.strerror(errno.EPERM)}")


def _in_thread(work: Callable[[], int]) -> int:
    results: list[int] = []
    errors: list[OSError] = []

    def run() -> None:
        try:
            results.append(work())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="as user")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
