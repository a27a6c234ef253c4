# SPDX-License-Identifier: Apache-2.0
"""Which names in some folders were touched: a thin face of inotify.

Policy (which folders, what to do when events were lost) is out of scope.
Source: inotify(7), `include/uapi/linux/inotify.h`.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from insula.kernel import libc

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ISDIR = 0x40000000
IN_ONLYDIR = 0x01000000

TOUCHED = (
    IN_MODIFY
    | IN_ATTRIB
    | IN_CLOSE_WRITE
    | IN_MOVED_FROM
    | IN_MOVED_TO
    | IN_CREATE
    | IN_DELETE
    | IN_DELETE_SELF
    | IN_MOVE_SELF
)
_EVENT = struct.Struct("=iIII")
_BUFFER_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Event:
    watch: int
    mask: int
    name: bytes
    """Empty for the folder itself."""


class Inotify:
    """One queue of events."""

    def __init__(self) -> None:
        self._descriptor = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)

    def close(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        """Return what `select` waits by."""
        return self._descriptor

    def add(self, folder: int) -> int:
        """Watch a folder, given by a descriptor (O_PATH will do).

        Returns: the number in its events; a folder that is watched already keeps its number.
        Raises: OSError: ENOSPC at the limit fs.inotify.max_user_watches.
        """
        path = b"/proc/self/fd/%d" % folder
        return libc.inotify_add_watch(self._descriptor, path, TOUCHED | IN_ONLYDIR)

    def remove(self, watch: int) -> None:
        """Watch a folder no longer.  Raises: OSError: EINVAL if it has gone."""
        libc.inotify_rm_watch(self._descriptor, watch)

    def drain(self) -> Iterator[Event]:
        """Yield what has happened so far, without waiting."""
        while True:
            try:
                data = os.read(self._descriptor, _BUFFER_BYTES)
            except BlockingIOError:
                return
            position = 0
            while position < len(data):
                watch, mask, _cookie, length = _EVENT.unpack_from(data, position)
                position += _EVENT.size
                yield Event(watch, mask, data[position : position + length].rstrip(b"\0"))
                position += length
