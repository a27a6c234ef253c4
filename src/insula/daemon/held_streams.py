# SPDX-License-Identifier: Apache-2.0
"""Take up the streams that an earlier insulad handed to the spawner: attach and exec go on when insulad is killed.

They count among their users' again, and end with the right they stand on.  Which they are is written nowhere and need not
be: the spawner's connections that were accepted at our own sockets.  Whose they are the kernel still knows: who connected;
into which container, and so which tenant, the spawner.  A stream that was opened with a token stands for the user who
showed it, from then on: it ends if that user may not enter the container.
Sources: unix(7), SO_PEERCRED, "Pathname sockets"; pidfd_getfd(2).
"""

import contextlib
import functools
import logging
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from insula.api.auth import Caller, Shown
from insula.api.call import Api
from insula.kernel import unix_peer
from insula.model.errors import ContainerNotFound, InsulaError
from insula.model.grant import Action

LOG = logging.getLogger(__name__)


def take_up(
    api: Api, connections: Iterable[socket.socket], *, containers: Mapping[int, str], run: Path
) -> None:
    """Have the streams among these connections counted and judged.  The copies are closed.

    containers: inode of a connection → id of the container.  run: the folder of our sockets.
    """
    try:
        for each in connections:
            with each:
                if _is_ours(each, run):
                    _take_up_one(api, each, containers=containers)
    except PermissionError as error:
        LOG.warning("open streams are not counted", extra={"fields": {"reason": str(error)}})


def _take_up_one(api: Api, connection: socket.socket, *, containers: Mapping[int, str]) -> None:
    peer, inode = unix_peer.credentials(connection), os.fstat(connection.fileno()).st_ino
    shown = Shown(uid=peer.uid, groups=unix_peer.groups(connection) | {peer.gid})
    caller = Caller(shown=shown, directory=api.store, admins=api.identity.admins)
    tenant = ""
    with contextlib.suppress(InsulaError):  # it may nothing any more: it is cut
        tenant = caller.now().tenant
        api.gate.hand_over(tenant, inode)
    # Of which container it is may be unknown: to an older spawner, or because what is left of it is only its last output.
    with contextlib.suppress(ContainerNotFound):
        tenant = api.store.get_container(containers.get(inode, "")).tenant
    api.standing.hand_over(inode, functools.partial(caller.may, Action.ENTER, target_tenant=tenant))


def _is_ours(connection: socket.socket, run: Path) -> bool:
    if connection.family != socket.AF_UNIX or connection.type != socket.SOCK_STREAM:
        return False
    name = connection.getsockname()
    return isinstance(name, str) and name.startswith(f"{run}/")
