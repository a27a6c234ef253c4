# SPDX-License-Identifier: Apache-2.0
"""How a paired host is reached for a migration: mutual TLS with its pinned certificate, then an HTTP upgrade."""

import json

from insula.daemon.pki import Pki
from insula.migrate.wire import Socket, end_when_silent
from insula.model.errors import TargetRefused, TargetUnreachable, from_code
from insula.model.migration import UPGRADE
from insula.model.record import HostRecord
from insula.runtime.ledger import Ledger

_MAX_HEAD = 16384
PATH = "/v1/peer/migrations"


class PairedHosts:
    """The `Peers` of `migrate/wire.py`."""

    def __init__(self, store: Ledger, pki: Pki) -> None:
        self._store = store
        self._pki = pki

    def find(self, name: str) -> HostRecord:
        """Return a paired host.  Raises: HostNotFound."""
        return self._store.get_host(name)

    def open(self, host: HostRecord) -> Socket:
        """Connect, both sides proven, and upgrade.  Raises: TargetUnreachable, TargetRefused, Denied."""
        connection = self._pki.open_stream(host)
        end_when_silent(connection)
        try:
            request = (
                f"POST {PATH} HTTP/1.1\r\nHost: insula\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n"
                "Content-Length: 0\r\n\r\n"
            )
            connection.sendall(request.encode())
            head = _read_head(connection)
        except OSError as error:
            connection.close()
            raise TargetUnreachable(f"cannot reach host `{host.name}`: {error.strerror or error}") from error
        status = head.split(b" ", 2)[1:2]
        if status != [b"101"]:
            refusal = _refusal(head, connection, host=host)
            connection.close()
            raise refusal
        return connection


def _read_head(connection: Socket) -> bytes:
    # Byte by byte: what follows the head belongs to the migration.
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte or len(head) > _MAX_HEAD:
            raise ConnectionResetError(104, "it hung up")
        head += byte
    return head


def _refusal(head: bytes, connection: Socket, *, host: HostRecord) -> Exception:
    body = connection.recv(_MAX_HEAD)
    try:
        found = json.loads(body)["error"]
        return from_code(str(found["code"]), str(found["message"]), hint=str(found.get("hint", "")))
    except (ValueError, KeyError, TypeError):
        line = head.split(b"\r\n", 1)[0].decode(errors="replace")
        return TargetRefused(f"host `{host.name}` refused: {line}")
