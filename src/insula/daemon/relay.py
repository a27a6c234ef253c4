# SPDX-License-Identifier: Apache-2.0
"""A trace that is opened on the host where a container goes, and passed on to those who watched it here.

    open (a thread) ── POST /v1/peer/containers/ID/trace ──► the target's collector watches it, before it runs
      ◄── {"type": "began"} ── the move may commit ── events, passed on until the trace there ends

If the move fails the trace there ends with the arrival that is undone, and nobody here is told.
"""

import http.client
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus

import msgspec

from insula.daemon.peers import post
from insula.daemon.pki import Pki
from insula.kernel.threads import begin
from insula.model.errors import ContainerNotFound, InsulaError
from insula.model.lifecycle import Status
from insula.model.monitor import Began, Ended, TraceLine
from insula.monitor.collect import Collector
from insula.monitor.subscription import Subscription
from insula.runtime.store import Store

LOG = logging.getLogger(__name__)

OPEN_S = 2.0
"""How long a move waits, frozen, until a trace is open on the other host."""
MAX_LINE_BYTES = 1 << 20

_LINE = msgspec.json.Decoder(TraceLine)


class Relay:
    """One trace at another host, for one subscription here.  Reads in a thread of its own until either side ends it."""

    def __init__(self, connect: Callable[[], ssl.SSLSocket], subscription: Subscription) -> None:
        """Raises: OSError if there may be no more threads."""
        self.subscription = subscription
        self.is_open = threading.Event()
        self._has_moved = False
        """The container runs there: its end there is the end."""
        self._has_ended = False
        self._connect = connect
        self._lock = threading.Lock()
        self._connection: ssl.SSLSocket | None = None
        self._is_closed = False
        begin(threading.Thread(target=self._run, name="relay", daemon=True))

    def take_over(self) -> bool:
        """From now on its watcher hears this alone.  Returns: False if there is nothing to hear."""
        with self._lock:
            if self._has_ended or not self.is_open.is_set():
                return False
            self._has_moved = self.subscription.is_elsewhere = True
        self.subscription.on_close(self.close)
        return True

    def close(self) -> None:
        """Stop reading, or do not begin."""
        with self._lock:
            self._is_closed = True
            connection = self._connection
        if connection is not None:
            try:
                # Not SSLSocket's own, which would let the reader go on in plain text.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:  # the other side was faster
                pass

    def _run(self) -> None:
        why = "the connection to it was lost"
        try:
            with self._connect() as connection:
                with self._lock:
                    self._connection = connection
                    if self._is_closed:
                        return
                why = self._read(connection)
        except (InsulaError, OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            why = str(error)
            LOG.info("a trace could not go on", extra={"fields": {"reason": why}})
        with self._lock:
            self._has_ended = True
            has_moved = self._has_moved
        if has_moved:
            self.subscription.end(why)

    def _read(self, connection: ssl.SSLSocket) -> str:
        """Pass lines on.  Returns: why nothing more comes."""
        subject = self.subscription.subject
        path = f"/v1/peer/containers/{subject.container}/trace"
        response = post(connection, path, msgspec.json.encode(self.subscription.wish))
        if response.status != HTTPStatus.OK:
            return f"it answered {response.status}"
        connection.settimeout(None)
        while text := response.readline(MAX_LINE_BYTES):
            line = _LINE.decode(text)
            match line:
                case Began():
                    self.is_open.set()
                case Ended():
                    return line.reason
                case _:
                    self.subscription.give([line])
        return "the connection to its host was lost"


class Relays:
    """The relays of this host, by container."""

    def __init__(self, collector: Collector, *, store: Store, pki: Pki) -> None:
        self._collector = collector
        self._store = store
        self._pki = pki
        self._relays: dict[str, list[Relay]] = {}
        self._lock = threading.Lock()

    def open(self, container_id: str, *, host: str) -> None:
        """Begin to watch a container on the host where it is about to run, for everybody who watches it here."""
        watchers = self._collector.watchers(container_id)
        if watchers:
            target = self._store.get_host(host)
            relays = []
            try:
                for watcher in watchers:
                    relays.append(Relay(lambda: self._pki.open_stream(target), watcher))
            except OSError as error:  # the move goes on; who is not among these hears of its end
                LOG.warning("a trace could not go on", extra={"fields": {"reason": str(error)}})
            with self._lock:
                earlier = self._relays.get(container_id, [])
                self._relays[container_id] = relays
            _close(earlier)
            if not self._is_leaving(container_id):  # its end was told before these were known
                self.give_up(container_id)

    def wait_open(self, container_id: str) -> None:
        """Wait until they are open, for OPEN_S at most."""
        deadline = time.monotonic() + OPEN_S
        for relay in self._relays.get(container_id, ()):
            relay.is_open.wait(max(0.0, deadline - time.monotonic()))

    def take_over(self, container_id: str, *, host: str) -> None:
        """The container has moved: from now on the relays are what its watchers hear, and the rest hear of its end."""
        _close(each for each in self._taken(container_id) if not each.take_over())
        self._collector.end(container_id, reason=f"moved to host {host}, which does not tell more")

    def give_up(self, container_id: str) -> None:
        """The move has failed: the container runs on here, or nowhere."""
        _close(self._taken(container_id))

    def _taken(self, container_id: str) -> list[Relay]:
        with self._lock:
            return self._relays.pop(container_id, [])

    def _is_leaving(self, container_id: str) -> bool:
        try:
            return self._store.get_container(container_id).status in (Status.MIGRATING, Status.MOVED)
        except ContainerNotFound:
            return False


def _close(relays: Iterable[Relay]) -> None:
    for each in relays:
        each.close()
