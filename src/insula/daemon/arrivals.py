# SPDX-License-Identifier: Apache-2.0
"""Connections of migrations: TLS, who it is, may they; then a thread of its own with a blocking socket.

Bounded: connections that are served, and those of which nobody knows yet whose they are, until they are served or told
why not: all together and of one address, as other strangers (`strangers.py`); the oldest goes.  Who is not paired is told
so by a `Refuse`, as long as their TLS lets us speak: a certificate that we never knew ends the handshake.
Out of scope: what is then said, `migrate/target.py`.
"""

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from insula.api import auth
from insula.daemon.pki import HANDSHAKE_S, fingerprint
from insula.daemon.strangers import crowded, site_of
from insula.kernel.threads import begin
from insula.migrate.wire import Wire, tune
from insula.model.errors import InsulaError, TargetRefused
from insula.model.grant import Action, Grant, Kind, Principal
from insula.model.migration import PROTOCOL, Refuse, Welcome
from insula.model.record import HostRecord
from insula.tenant.audit import Audit
from insula.tenant.audit_entry import Entry
from insula.tenant.check import check

LOG = logging.getLogger(__name__)

MAX_SERVED = 64
"""Moves and questions at once; each has a thread."""
MAX_UNPROVEN = 256
MAX_UNPROVEN_OF_ADDRESS = 128
"""Connections that have not shown who they are, each with a thread.  A host that is drained begins as many as it likes."""
END_S = 2.0
"""How long those that are cut at the end of insulad have to clean up; the next insulad does the rest."""
WARN_EVERY_S = 10.0
"""How often the log says that there are no threads left: anybody may cause it."""

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
        self._served = threading.BoundedSemaphore(MAX_SERVED)
        self._lock = threading.Lock()
        self._open: dict[ssl.SSLSocket, threading.Thread] = {}
        self._unproven: dict[ssl.SSLSocket, str] = {}
        """Those of `_open` that are not served, the oldest first; each with its site."""
        self._warned_at = -WARN_EVERY_S
        self._is_ended = False

    def take(self, connection: socket.socket) -> None:
        """Serve a connection in a thread.  One too many that are not proven, and the oldest is cut."""
        site = site_of(connection)
        try:
            connection.setblocking(True)
            tune(connection)
            secured = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except OSError:  # it has hung up
            connection.close()
            return
        thread = threading.Thread(target=self._run, args=(secured,), name="migration in", daemon=True)
        with self._lock:
            if self._is_ended or not self._starts(thread):
                secured.close()
                return
            self._make_room(site)
            self._open[secured] = thread
            self._unproven[secured] = site

    def close(self) -> None:
        """Cut all connections and wait a moment for those who serve them."""
        with self._lock:
            self._is_ended = True
            threads = list(self._open.values())
            for secured in self._open:
                _cut(secured)
        deadline = time.monotonic() + END_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _starts(self, thread: threading.Thread) -> bool:
        try:
            begin(thread)
        except OSError as error:  # as many as there may be; the door stays open
            now = time.monotonic()
            if now - self._warned_at >= WARN_EVERY_S:
                self._warned_at = now
                LOG.warning("cannot serve a migration", extra={"fields": {"reason": str(error)}})
            return False
        return True

    def _make_room(self, site: str) -> None:
        sites = Counter(self._unproven.values())
        crowd = crowded(sites, site, of_one=MAX_UNPROVEN_OF_ADDRESS, of_all=MAX_UNPROVEN)
        if crowd is not None:
            oldest = next(each for each, its in self._unproven.items() if its == crowd)
            del self._unproven[oldest]
            _cut(oldest)

    def _run(self, secured: ssl.SSLSocket) -> None:
        try:
            if self._shake_hands(secured):
                self._admit(secured)
        finally:
            with self._lock:
                del self._open[secured]
                self._unproven.pop(secured, None)
                secured.close()

    def _shake_hands(self, secured: ssl.SSLSocket) -> bool:
        try:
            secured.settimeout(HANDSHAKE_S)  # of the whole handshake
            secured.do_handshake()
        except OSError as error:
            LOG.debug("no handshake", extra={"fields": {"reason": str(error)}})
            return False
        return True

    def _admit(self, secured: ssl.SSLSocket) -> None:
        wire = Wire(secured)
        principal, result = auth.NOBODY, "internal"
        try:
            principal = self._identify(secured)
            grant = check(principal, Action.PEER)
            with self._one_of_the_served(secured):
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
    def _one_of_the_served(self, secured: ssl.SSLSocket) -> Iterator[None]:
        if not self._served.acquire(blocking=False):
            raise TargetRefused("cannot serve another migration: too many at once", hint="try again later")
        try:
            with self._lock:
                self._unproven.pop(secured, None)
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


def _cut(secured: ssl.SSLSocket) -> None:
    """End what a thread does with a connection; the thread closes it."""
    with contextlib.suppress(OSError):  # not connected any more
        # Not SSLSocket's own, which would let the other thread go on in plain text.
        socket.socket.shutdown(secured, socket.SHUT_RDWR)
