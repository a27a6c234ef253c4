# SPDX-License-Identifier: Apache-2.0
"""What an event uses, in the words of a profile: folders that are changed, whom is connected to, where is listened.  Pure."""

import posixpath
from collections.abc import Collection, Iterable
from typing import NamedTuple

from insula.model.folders import CUT, common_folder, normal_path
from insula.model.monitor import Event, EventKind
from insula.model.peer import GATEWAY, Peer, parse_peer
from insula.monitor.describe import EXECUTING, is_writing


class Home(NamedTuple):
    """Where a container stands in its network."""

    own: frozenset[str] = frozenset()
    """Its addresses: what goes there stays in it."""
    gateways: frozenset[str] = frozenset()


NOWHERE = Home()
_SENDING = frozenset({"connect", "sendto", "sendmsg", "sendmmsg"})
_NOT_ALLOWED = frozenset({"EACCES", "EPERM", "EROFS"})
_REMOVING = frozenset({"unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2"})


def is_unknown(event: Event) -> bool:
    """Tell whether it is not known where an event's paths lead: no folder and no program is read out of them."""
    return event.is_cut or any(each.startswith(f"{CUT}/") for each in (event.path, event.other_path))


def changed_folders(event: Event) -> tuple[str, ...]:
    """Return the folders that an event has changed something in; empty: it did not.

    Who removes what is not there is told so only where it may: there its folder counts as changed.
    """
    if event.kind is EventKind.NETWORK:
        path = event.address.removeprefix("unix:")
        is_made = event.call == "bind" and not event.error and path != event.address
        return (posixpath.dirname(normal_path(path)),) if is_made and path.startswith("/") else ()
    is_missing = event.error == "ENOENT" and event.call in _REMOVING
    if is_writing(event) or (event.kind is EventKind.FILE and is_missing):
        return _folders(event)
    return ()


def refused_folders(event: Event) -> tuple[str, ...]:
    """Return the folders that somebody may not change something in who tried."""
    return tried_folders(event) if event.error in _NOT_ALLOWED else ()


def tried_folders(event: Event) -> tuple[str, ...]:
    """Return the folders that an event changes something in, or would if it had not failed."""
    return _folders(event) if is_writing(event, is_tried=True) else ()


def _folders(event: Event) -> tuple[str, ...]:
    if event.is_cut:
        return ()
    paths = [event.path, event.other_path]
    if event.call.startswith("symlink"):
        paths = [event.path]
    elif event.call.startswith("link"):
        paths = [event.other_path]
    found = {posixpath.dirname(normal_path(each)) for each in paths if each.startswith("/")}
    if len(found) == 2:
        # Between two mounts nothing can be renamed: they must lie in one.
        found.add(common_folder(*found))
    return tuple(sorted(found))


def started_programs(event: Event) -> tuple[str, ...]:
    """Return the files that a started program was read from: itself and, of a script, its interpreter."""
    if event.kind is not EventKind.EXEC or event.is_cut:
        return ()
    paths = (event.path, event.other_path)
    return tuple(normal_path(each) for each in paths if each.startswith("/"))


def refused_program(event: Event) -> str:
    """Return the program that somebody may not start who tried; empty: none."""
    if event.call in EXECUTING and event.error in _NOT_ALLOWED and event.path.startswith("/"):
        return normal_path(event.path)
    return ""


def outgoing_peer(event: Event, *, home: Home, serving: Collection[int]) -> str:
    """Return whom an event connects to, or sends to; empty: nobody.

    serving: ports of its own at which it answers datagrams.
    """
    if event.call not in _SENDING:
        return ""
    if event.detail == "udp" and event.port in serving:
        return ""
    peer = _peer(event)
    if peer is None or peer.host in home.own:
        return ""
    return str(peer._replace(host=GATEWAY) if peer.host in home.gateways else peer)


def listening_peer(event: Event) -> str:
    """Return where an event listens; empty: nowhere."""
    peer = _peer(event) if event.call == "bind" and not event.error else None
    return "" if peer is None else str(peer)


def serving_ports(listening: Iterable[str]) -> frozenset[int]:
    """Return the ports at which datagrams are answered; one that the kernel picks is a client's."""
    peers = (parse_peer(each) for each in listening)
    return frozenset(each.port for each in peers if "udp" in each.protocols and each.port)


def _peer(event: Event) -> Peer | None:
    try:
        return parse_peer(f"{event.address}/{event.detail}" if event.detail else event.address)
    except ValueError:  # none of IPv4 or IPv6
        return None
