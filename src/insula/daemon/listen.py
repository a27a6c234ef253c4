# SPDX-License-Identifier: Apache-2.0
"""The TCP port for other hosts: HTTP over TLS goes to the loop, migrations to threads with blocking sockets.

    accept ─► wait for the ClientHello, without taking it (MSG_PEEK) ─┬─ ALPN `insula-migration/1` ─► on_migration
                                                                      └─ anything else ─────────────► on_other

One thread for all connections that have not shown what they are.  They are bounded in number, all together and of one
address (the oldest goes), and in time.  TLS itself, and who may do what, are out of scope: `arrivals.py`, and the API's own server.
Sources: recv(2), epoll(7): edge-triggered, because peeked bytes stay and would wake us for ever.
"""

import logging
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from insula.daemon.hello import MAX_BYTES, Incomplete, protocols
from insula.daemon.pki import split_address
from insula.daemon.strangers import crowded, site_of
from insula.model.errors import BadRequest
from insula.model.migration import PROTOCOL

LOG = logging.getLogger(__name__)

HELLO_S = 5.0
"""How long a connection may keep silent about what it is."""
MAX_SILENT = 128
MAX_SILENT_OF_ADDRESS = 64
BACKLOG = 128
NO_ROOM_S = 0.1
"""How long to rest when the process has no descriptor left for a new connection."""

Taker = Callable[[socket.socket], None]
"""Takes a non-blocking connection, owns it, and returns at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Silent:
    connection: socket.socket
    site: str
    deadline: float


def open_listeners(address: str) -> list[socket.socket]:
    """Listen at every address that `HOST:PORT` means.

    Raises: BadRequest if one cannot be had.
    """
    host, port = split_address(address)
    listeners: list[socket.socket] = []
    try:
        for family, kind, number, _, where in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            listener = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, number)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(where)
            listener.listen(BACKLOG)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise BadRequest(f"cannot listen at `{address}`: {(error.strerror or str(error)).lower()}") from error
    return listeners


class Doorkeeper(threading.Thread):
    """The accept thread.  It owns the listeners."""

    def __init__(self, listeners: Sequence[socket.socket], *, on_migration: Taker, on_other: Taker) -> None:
        super().__init__(name="doorkeeper", daemon=True)
        self._listeners = {each.fileno(): each for each in listeners}
        self._on_migration = on_migration
        self._on_other = on_other
        self._silent: dict[int, _Silent] = {}  # the oldest first
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ended = threading.Event()
        self._poll = select.epoll()
        for descriptor in (self._wake, *self._listeners):
            self._poll.register(descriptor, select.EPOLLIN)

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                for descriptor, _ in self._poll.poll(self._patience_s()):
                    if descriptor in self._listeners:
                        self._accept(self._listeners[descriptor])
                    elif descriptor in self._silent:
                        self._look(descriptor)
                self._drop_late()
        finally:
            for descriptor in list(self._silent):
                self._drop(descriptor)

    def close(self) -> None:
        """Let nobody in any more."""
        self._ended.set()
        os.eventfd_write(self._wake, 1)
        if self.is_alive():
            self.join()
        for listener in self._listeners.values():
            listener.close()
        self._poll.close()
        os.close(self._wake)

    def _patience_s(self) -> float | None:
        for oldest in self._silent.values():
            return max(0.0, oldest.deadline - time.monotonic())
        return None

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            LOG.warning("cannot accept", extra={"fields": {"reason": str(error)}})
            self._ended.wait(NO_ROOM_S)
            return
        connection.setblocking(False)
        came = _Silent(connection=connection, site=site_of(connection), deadline=time.monotonic() + HELLO_S)
        self._make_room(came.site)
        self._silent[connection.fileno()] = came
        self._poll.register(connection.fileno(), select.EPOLLIN | select.EPOLLET)

    def _make_room(self, site: str) -> None:
        sites = Counter(each.site for each in self._silent.values())
        crowd = crowded(sites, site, of_one=MAX_SILENT_OF_ADDRESS, of_all=MAX_SILENT)
        if crowd is not None:
            self._drop(next(number for number, each in self._silent.items() if each.site == crowd))

    def _look(self, descriptor: int) -> None:
        connection = self._silent[descriptor].connection
        try:
            shown = connection.recv(MAX_BYTES, socket.MSG_PEEK)
            if not shown:
                raise ConnectionResetError
            offered = protocols(shown)
        except (BlockingIOError, Incomplete):
            return
        except OSError:
            self._drop(descriptor)
            return
        self._poll.unregister(descriptor)
        del self._silent[descriptor]
        take = self._on_migration if PROTOCOL.encode() in offered else self._on_other
        take(connection)

    def _drop(self, descriptor: int) -> None:
        self._silent.pop(descriptor).connection.close()  # which takes it out of the poll, too

    def _drop_late(self) -> None:
        now = time.monotonic()
        for descriptor in [number for number, each in self._silent.items() if each.deadline <= now]:
            self._drop(descriptor)
