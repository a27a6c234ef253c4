# SPDX-License-Identifier: Apache-2.0
"""How a paired host is reached: mutual TLS with its pinned certificate; for a migration its welcome, else HTTP.

The other side is `arrivals.py`.  In TLS 1.3 a server judges our certificate after our side of the handshake: only its
first word tells that we are known there.
"""

import http.client
import ssl

from insula.daemon.pki import Pki
from insula.migrate.wire import Socket, Wire, tune
from insula.model.errors import Denied, MigrationFailed, TargetRefused, TargetUnreachable
from insula.model.migration import PROTOCOL, Welcome
from insula.model.record import HostRecord
from insula.runtime.ledger import Ledger


class PairedHosts:
    """The `Peers` of `migrate/wire.py`."""

    def __init__(self, store: Ledger, pki: Pki) -> None:
        self._store = store
        self._pki = pki

    def find(self, name: str) -> HostRecord:
        """Return a paired host.  Raises: HostNotFound."""
        return self._store.get_host(name)

    def open(self, host: HostRecord) -> Socket:
        """Connect, both sides proven and welcome.  Raises: TargetUnreachable, TargetRefused, Denied, ProtocolError."""
        connection = self._pki.open_stream(host, protocol=PROTOCOL)
        try:
            tune(connection)
            if connection.selected_alpn_protocol() != PROTOCOL:
                raise TargetRefused(
                    f"cannot move to host `{host.name}`: its insulad does not speak `{PROTOCOL}`",
                    hint="both hosts need the same version of insula",
                )
            _await_welcome(connection, host=host)
        except BaseException:
            connection.close()
            raise
        return connection


def _await_welcome(connection: ssl.SSLSocket, *, host: HostRecord) -> None:
    try:
        Wire(connection).expect(Welcome)
    except TargetRefused:
        raise
    except MigrationFailed as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise Denied(
                f"cannot reach host `{host.name}`: it does not know this host's certificate",
                hint="pair again: insula host token there, insula host add here",
            ) from error
        raise TargetUnreachable(f"cannot reach host `{host.name}`: it hung up") from error


def post(connection: ssl.SSLSocket, path: str, body: bytes) -> http.client.HTTPResponse:
    """Ask a host's API for something; the answer's body is still to be read.  Raises: OSError, HTTPException."""
    head = f"POST {path} HTTP/1.1\r\nHost: insula\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
    except BaseException:
        response.close()  # it holds the connection, too
        raise
    return response
