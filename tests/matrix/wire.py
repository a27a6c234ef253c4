# SPDX-License-Identifier: Apache-2.0
"""A connection that is read by lines and exact lengths, and the words for what a client may not see.

Standard library only, as all that the client's process imports.
"""

import re
import socket
from typing import Protocol

SILENCE_S = 20.0
"""After which a request counts as failed."""


class WrongAnswer(Exception):
    """An answer that shows a lost write, a write done twice, or another's data."""


class Connection:
    """TCP, or two pipes of a process that looks the same."""

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.create_connection((address, port), timeout=SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _more(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._rest += data

    def line(self) -> bytes:
        """Return the next line without its end."""
        while b"\n" not in self._rest:
            self._more()
        line, _, self._rest = self._rest.partition(b"\n")
        return line.rstrip(b"\r")

    def exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._more()
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def rest(self) -> bytes:
        """Return all up to the end of the connection."""
        try:
            while True:
                self._more()
        except ConnectionResetError:
            raise
        except ConnectionError:
            return self._rest

    def expect(self, prefix: bytes) -> bytes:
        """Return the next line.  Raises: ConnectionError if it does not begin so."""
        line = self.line()
        if not line.startswith(prefix):
            raise ConnectionError(f"got {line[:100]!r} instead of {prefix!r}")
        return line

    def until(self, pattern: bytes) -> re.Match[bytes]:
        """Return the match of the first line that matches wholly."""
        while True:
            if found := re.fullmatch(pattern, self.line()):
                return found


class Session(Protocol):
    """One connection of a client: asks one thing after the other."""

    def ask(self, number: int) -> None:
        """Do the `number`th request.  Raises: OSError if it broke, WrongAnswer."""

    def verify(self, total: int) -> None:
        """Read back what 1 … total wrote.  Raises: OSError, WrongAnswer."""

    def close(self) -> None: ...


class Counted:
    """Judges answers that a program counts up by itself."""

    def __init__(self) -> None:
        self._last: int | None = None

    @property
    def has_begun(self) -> bool:
        return self._last is not None

    def take(self, answer: int) -> None:
        """Note the program's own number.  Raises: WrongAnswer unless it follows the last one."""
        if self._last is not None and answer != self._last + 1:
            raise WrongAnswer(f"the program counted to {answer} after {self._last}")
        self._last = answer


SHARED = Counted()
"""Of a program that counts over all connections."""


def same(found: object, wanted: object) -> None:
    """Compare an answer.  Raises: WrongAnswer."""
    if found != wanted:
        raise WrongAnswer(f"got {found!r:.120} instead of {wanted!r:.120}")
