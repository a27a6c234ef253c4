# SPDX-License-Identifier: Apache-2.0
"""Lines to a syslog: over its local socket, UDP or TCP.

Out of scope: TLS (RFC 5425), which a relay on this host does better.
Sources: RFC 5424, 6 (the line); RFC 5426 (one a datagram); RFC 6587, 3.4.1 (TCP: its length before each).
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

from insula.export.sink import Unavailable
from insula.model.errors import InvalidSpec

Item = TypeVar("Item", contravariant=True)

SEND_S = 5.0
"""A local socket, or a TCP peer, that takes nothing for so long is down."""
MAX_BYTES = 32 << 10
"""Of a line; the rest is cut off.  RFC 5424 asks receivers for 2 KiB, a datagram of UDP has room for 64."""
DEFAULT_PORT = 514
_NAME = "insulad"


class Facility(IntEnum):
    DAEMON = 3
    AUTHPRIV = 10


class Severity(IntEnum):
    WARNING = 4
    INFO = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What is to be told."""

    text: str
    at: float
    """UTC seconds since the epoch."""
    severity: Severity = Severity.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a syslog listens: a path, or host and port."""

    path: str = ""
    host: str = ""
    port: int = 0
    is_tcp: bool = False

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read `/dev/log`, `HOST:PORT`, `udp://HOST:PORT` or `tcp://HOST:PORT`.  Raises: InvalidSpec."""
        if text.startswith("/"):
            return cls(path=text)
        scheme, found, rest = text.rpartition("://")
        host, colon, port = rest.rpartition(":")
        host, port = (host, port) if colon else (port, str(DEFAULT_PORT))
        if (
            not host
            or not port.isdigit()
            or not 0 < int(port) < 1 << 16
            or (found and scheme not in ("udp", "tcp"))
        ):
            raise InvalidSpec(
                f"cannot use `{text}` as a syslog", hint="/dev/log, udp://HOST:PORT or tcp://HOST:PORT"
            )
        return cls(host=host.strip("[]"), port=int(port), is_tcp=scheme == "tcp")


def line_of(line: Line, *, host: str, facility: Facility, message_id: str) -> bytes:
    """Return a line as RFC 5424 has it."""
    seconds = int(line.at)
    at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int((line.at - seconds) * 1e6):06d}Z"
    head = f"<{facility * 8 + line.severity}>1 {at} {host} {_NAME} - {message_id} - "
    return (head + line.text).encode("utf-8", "backslashreplace")[:MAX_BYTES]


class Syslog(Generic[Item]):
    """A `Carrier` of what can be put into a line."""

    def __init__(
        self,
        address: Address,
        words: Callable[[Item], Line],
        *,
        host: str,
        facility: Facility,
        message_id: str,
    ) -> None:
        self._address = address
        self._words = words
        self._host = host
        self._facility = facility
        self._message_id = message_id
        self._connection: socket.socket | None = None

    def carry(self, items: Sequence[Item]) -> int:
        for number, each in enumerate(items):
            data = line_of(
                self._words(each), host=self._host, facility=self._facility, message_id=self._message_id
            )
            if self._address.is_tcp:
                data = b"%d %s" % (len(data), data)
            try:
                self._connected().sendall(data)
            except OSError as error:
                self.close()
                raise Unavailable(error.strerror or str(error), carried=number) from error
        return 0

    def _connected(self) -> socket.socket:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> socket.socket:
        address = self._address
        if address.is_tcp:
            return socket.create_connection((address.host, address.port), timeout=SEND_S)
        if address.path:
            connection, where = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), address.path
            return _connected_to(connection, where)
        family, kind, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
        return _connected_to(socket.socket(family, kind), place)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connected_to(connection: socket.socket, place: str | tuple[str | int | bytes, ...]) -> socket.socket:
    connection.settimeout(SEND_S)
    try:
        connection.connect(place)
    except OSError:
        connection.close()
        raise
    return connection
