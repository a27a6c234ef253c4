# SPDX-License-Identifier: Apache-2.0
"""Read the names of protocols (ALPN) out of the first bytes of a TLS connection, before anybody answers it.

Only to tell connections apart: nothing of it is believed, the handshake reads the same bytes again.  Pure.
Sources: RFC 8446, 4.1.2 and 5.1; RFC 7301, 3.1.
"""

MAX_BYTES = 5 + (1 << 14)
"""One record; a ClientHello that is cut into several is nobody's of ours."""

_HANDSHAKE, _CLIENT_HELLO, _ALPN = 22, 1, 16
_RECORD_HEADER = 5
_VERSION_AND_RANDOM = 2 + 32


class Incomplete(Exception):
    """More bytes have to come before this can be read."""


class _Reader:
    """Bytes from the front; reading beyond the end raises IndexError."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bool__(self) -> bool:
        return bool(self._data)

    def take(self, count: int) -> bytes:
        if count > len(self._data):
            raise IndexError
        found, self._data = self._data[:count], self._data[count:]
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> "_Reader":
        """Take what follows its own length, which has so many bytes."""
        return _Reader(self.take(self.number(size)))


def protocols(data: bytes) -> tuple[bytes, ...]:
    """Return the protocols that a ClientHello offers; none of what is no ClientHello.

    Raises: Incomplete while the record is not whole.
    """
    if data and data[0] != _HANDSHAKE:
        return ()
    if len(data) < _RECORD_HEADER:
        raise Incomplete
    length = int.from_bytes(data[3:_RECORD_HEADER], "big")
    if length > MAX_BYTES - _RECORD_HEADER:
        return ()
    if len(data) < _RECORD_HEADER + length:
        raise Incomplete
    try:
        return _offered(_Reader(data[_RECORD_HEADER : _RECORD_HEADER + length]))
    except IndexError:
        return ()


def _offered(record: _Reader) -> tuple[bytes, ...]:
    if record.number(1) != _CLIENT_HELLO:
        return ()
    hello = record.block(3)
    hello.take(_VERSION_AND_RANDOM)
    hello.block(1)  # session
    hello.block(2)  # ciphers
    hello.block(1)  # compression
    extensions = hello.block(2)
    while extensions:
        kind, content = extensions.number(2), extensions.block(2)
        if kind == _ALPN:
            names, found = content.block(2), []
            while names:
                length = names.number(1)
                found.append(names.take(length))
            return tuple(found)
    return ()
