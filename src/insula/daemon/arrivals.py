# SPDX-License-Identifier: Apache-2.0
"""Connections of migrations: TLS, who it is, may they; then a thread of its own with a blocking socket.

Bounded: handshakes that go on (with a deadline) and connections that are served.  Who is not paired is told so by a
`Refuse`, as long as their TLS lets us speak: a certificate that we never knew ends the handshake.
Out of scope: what is then said, `migrate/target.py`.
"""

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

from insula.api import auth
from insula.daemon.pki import HANDSHAKE_S, fingerprint
from insula.migrate.wire import Wire, tune
from insula.model.errors import InsulaError, TargetRefused
from insula.model.grant import Action, Grant, Kind, Principal
from insula.model.migration import PROTOCOL, Refuse, Welcome
from insula.model.record import HostRecord
from insula.tenant.audit import Audit
from insula.tenant.audit_entry import Entry
from insula.tenant.check import check

LOG = logging.getLogger(__name__)

MAX_UNPROVEN = 128
MAX_SERVED = 64
"""Moves and questions at once; each has a thread."""
END_S = 2.0
"""How long those that are cut at the end of insulad have to clean up; the next insulad does the rest."""

FindHost = Callable[[str], HostRecord | None]
"""By the fingerprint of its certificate."""
Serve = Callable[[Grant, ssl.SSLSocket], None]


class Arrivals:
    """What comes in through the door for migrations."""

    def __init__(self, context: ssl.SSLContext, *, find_host: FindHost, audit: Audit, serve: Serve) -> None:
        self._context = context
        self._find_host = find_host
        self._audit = audit
        self._serve = serve
        self._unproven = threading.BoundedSemaphore(MAX_UNPROVEN)
        self._served = threading.BoundedSemaphore(MAX_SERVED)
        self._lock = threading.Lock()
        self._open: dict[ssl.SSLSocket, threading.Thread] = {}
        self._is_ended = False

    def take(self, connection: socket.socket) -> None:
        """Serve a connection in a thread; too many at once, and it is closed."""
        if not self._unproven.acquire(blocking=False):
            connection.close()
            return
        try:
            connection.setblocking(True)
            tune(connection)
            secured = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except OSError:  # it has hung up
            self._unproven.release()
            connection.close()
            return
        thread = threading.Thread(target=self._run, args=(secured,), name="migration in", daemon=True)
        with self._lock:
            if self._is_ended:
                secured.close()
                return
            self._open[secured] = thread
        thread.start()

    def close(self) -> None:
        """Cut all connections and wait a moment for those who serve them."""
        with self._lock:
            self._is_ended = True
            threads = list(self._open.values())
            for secured in self._open:
                with contextlib.suppress(OSError):  # not connected any more
                    # Not SSLSocket's own, which would let the other thread go on in plain text.
                    socket.socket.shutdown(secured, socket.SHUT_RDWR)
        deadline = time.monotonic() + END_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, secured: ssl.SSLSocket) -> None:
        try:
            if self._shake_hands(secured):
                self._admit(secured)
        finally:
            with self._lock:
                del self._open[secured]
                secured.close()

    def _shake_hands(self, secured: ssl.SSLSocket) -> bool:
        try:
            secured.settimeout(HANDSHAKE_S)  # of the whole handshake
            secured.do_handshake()
        except OSError as error:
            LOG.debug("no handshake", extra={"fields": {"reason": str(error)}})
            return False
        finally:
            self._unproven.release()
        return True

    def _admit(self, secured: ssl.SSLSocket) -> None:
        wire = Wire(secured)
        principal, result = auth.NOBODY, "internal"
        try:
            principal = self._identify(secured)
            grant = check(principal, Action.PEER)
            with self._one_of_the_served():
                wire.send(Welcome())
                result = "ok"
                self._record(principal, result=result, tenant=grant.tenant)
                self._serve(grant, secured)
        except InsulaError as error:
            if result == "ok":
                raise
            self._record(principal, result=error.code)
            with contextlib.suppress(InsulaError):
                wire.send(Refuse(code=error.code, message=error.message, hint=error.hint))
                wire.drain()

    def _identify(self, secured: ssl.SSLSocket) -> Principal:
        certificate = secured.getpeercert(binary_form=True)
        host = self._find_host(fingerprint(certificate)) if certificate else None
        return Principal(name=host.name, kind=Kind.HOST) if host else auth.NOBODY

    @contextlib.contextmanager
    def _one_of_the_served(self) -> Iterator[None]:
        if not self._served.acquire(blocking=False):
            raise TargetRefused("cannot serve another migration: too many at once", hint="try again later")
        try:
            yield
        finally:
            self._served.release()

    def _record(self, principal: Principal, *, result: str, tenant: str = "") -> None:
        entry = Entry(
            principal=principal,
            action=Action.PEER,
            method="TLS",
            path=PROTOCOL,
            tenant=tenant,
            result=result,
        )
        self._audit.record(entry)
