# SPDX-License-Identifier: Apache-2.0
"""Take up the streams that an earlier insulad handed to the spawner: attach and exec go on when insulad is killed.

They count among their users' again, and end with the right they stand on.  Which they are is written nowhere and need not
be: the spawner's connections that were accepted at our own sockets.  Whose they are the kernel still knows: who connected.
A stream that was opened with a token stands for the user who showed it, from then on.
Sources: unix(7), SO_PEERCRED, "Pathname sockets"; pidfd_getfd(2).
"""

import contextlib
import functools
import logging
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from insula.api.auth import Caller, Shown
from insula.api.call import Api
from insula.kernel import unix_peer
from insula.model.errors import InsulaError
from insula.model.grant import Action

LOG = logging.getLogger(__name__)


def take_up(api: Api, connections: Iterable[socket.socket], *, run: Path) -> None:
    """Have the streams among these connections counted and judged.  The copies are closed.  run: the folder of our sockets."""
    try:
        for each in connections:
            with each:
                if _is_ours(each, run):
                    _take_up_one(api, each)
    except PermissionError as error:
        LOG.warning("open streams are not counted", extra={"fields": {"reason": str(error)}})


def _take_up_one(api: Api, connection: socket.socket) -> None:
    peer, inode = unix_peer.credentials(connection), os.fstat(connection.fileno()).st_ino
    shown = Shown(uid=peer.uid, groups=unix_peer.groups(connection) | {peer.gid})
    caller = Caller(shown=shown, directory=api.store, admins=api.identity.admins)
    with contextlib.suppress(InsulaError):  # it may nothing any more: it is cut
        api.gate.hand_over(caller.now().tenant, inode)
    api.standing.hand_over(inode, functools.partial(caller.may, Action.ENTER))


def _is_ours(connection: socket.socket, run: Path) -> bool:
    if connection.family != socket.AF_UNIX or connection.type != socket.SOCK_STREAM:
        return False
    name = connection.getsockname()
    return isinstance(name, str) and name.startswith(f"{run}/")
