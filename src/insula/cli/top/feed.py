# SPDX-License-Identifier: Apache-2.0
"""A stream of the API, read by a thread of its own, and opened anew when it breaks."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

from insula.client.http import Answer, Client
from insula.model.errors import InsulaError

AGAIN_S = 2.0
"""After a failure."""


class Feed:
    """Begins to read at once; what is told comes in the feed's thread."""

    def __init__(
        self,
        client: Client,
        path: str,
        query: dict[str, str],
        *,
        tell: Callable[[Feed, Any], None],
        fail: Callable[[Feed, str], None],
    ) -> None:
        """tell: gets each value.  fail: gets why there are none for now; `tell` comes again when there are."""
        self._client = client
        self._path = path
        self._query = query
        self._tell = tell
        self._fail = fail
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._thread = threading.Thread(target=self._run, name=f"feed {path}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up.  The daemon then stops what it did for this stream."""
        self._closing.set()
        with self._lock:
            if self._answer is not None:
                try:
                    self._answer.detach().shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has ended by itself

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._read()
                reason = "the stream has ended"
            except (InsulaError, OSError, ValueError) as error:
                reason = error.message if isinstance(error, InsulaError) else str(error)
            if not self._closing.is_set():
                self._fail(self, reason)
                self._closing.wait(AGAIN_S)

    def _read(self) -> None:
        answer = self._client.open("GET", self._path, query=self._query)
        with answer:
            with self._lock:
                self._answer = answer
            try:
                for line in answer.lines():
                    if self._closing.is_set():
                        return
                    if line.strip():
                        self._tell(self, json.loads(line))
            finally:
                with self._lock:
                    self._answer = None
