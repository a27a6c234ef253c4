# SPDX-License-Identifier: Apache-2.0
"""What a host tells of containers while a test looks, such as what their profiles lack."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hosted import Person


class Events:
    """What the host tells of containers from now on."""

    def __init__(self, person: Person) -> None:
        self._socket = person.asking("GET", "/v1/events")
        self._file = self._socket.makefile("rb")
        while self._file.readline().strip():  # its head: from here on everything is told
            pass
        self.seen: list[dict[str, Any]] = []
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            for line in self._file:
                if line.startswith(b"{"):
                    self.seen.append(json.loads(line))

    def drifts(self) -> list[str]:
        return [each["detail"] for each in list(self.seen) if each.get("event") == "profile_drift"]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._file.close()
        self._socket.close()


@contextmanager
def events(person: Person) -> Iterator[Events]:
    made = Events(person)
    try:
        yield made
    finally:
        made.close()
