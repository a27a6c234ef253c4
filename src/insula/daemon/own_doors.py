# SPDX-License-Identifier: Apache-2.0
"""A socket for each user beside the one for all: in the queue of its own nobody waits behind others' connections.

    RUN/api.sock           root:GROUP 0660   everybody's
    RUN/users/             root:GROUP 0710   who leaves the group gets to no socket in it
    RUN/users/UID.sock     UID 0600          made when the uid first connects to the other; clients try it first

Only the kernel's queue is another one: who calls is asked as ever.  They go with insulad.  Source: unix(7), "Pathname
sockets": connecting needs write permission on the socket and search permission on its folder.
"""

import contextlib
import os
import socket
from pathlib import Path

MAX_DOORS = 256
"""Each is a descriptor; the longest unused one goes."""
BACKLOG = 64
FOLDER = "users"


class OwnDoors:
    """The folder of sockets."""

    def __init__(self, run: Path, *, group: int) -> None:
        self._folder = run / FOLDER
        self.clear()
        self._folder.mkdir(mode=0o700)
        _give(self._folder, 0, group)
        self._folder.chmod(0o710)

    def open(self, uid: int) -> socket.socket:
        """Listen for one uid.  Raises: OSError."""
        path = self._path(uid)
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(BACKLOG)
            _give(path, uid, -1)
        except OSError:
            listener.close()
            raise
        return listener

    def remove(self, uid: int) -> None:
        """Take a socket's name away."""
        self._path(uid).unlink(missing_ok=True)

    def clear(self) -> None:
        """Take all away, also what a killed insulad left."""
        with contextlib.suppress(FileNotFoundError):
            for each in self._folder.iterdir():
                each.unlink()
            self._folder.rmdir()

    def _path(self, uid: int) -> Path:
        return self._folder / f"{uid}.sock"


def _give(path: Path, uid: int, gid: int) -> None:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chown(path.name, uid, gid, dir_fd=folder, follow_symlinks=False)
    finally:
        os.close(folder)
