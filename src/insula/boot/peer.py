# SPDX-License-Identifier: Apache-2.0
"""One connection of an insulad to the spawner: requests come in, answers and events go out, and neither ever blocks.

What an insulad does not read at once waits here; one that has stopped reading altogether is hung up on, and finds out
by `hello` what it missed.  Standard library only.
"""

import collections
import os
import selectors
import socket
from collections.abc import Callable, Mapping, Sequence

from insula.boot import protocol
from insula.boot.loop import EventLoop, log

#: Answers and events that wait for one insulad, at most.
QUEUE_MESSAGES = 1024


class Peer:
    """A connection with its queue.  `on_request` owns the descriptors of a message."""

    def __init__(
        self,
        loop: EventLoop,
        connection: socket.socket,
        *,
        on_request: Callable[["Peer", protocol.Message], None],
        on_end: Callable[["Peer"], None],
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._on_request = on_request
        self._on_end = on_end
        self._queue: collections.deque[tuple[Mapping[str, object], Sequence[int]]] = collections.deque()
        self.is_open = True
        connection.setblocking(False)
        self._watch()

    def send(self, fields: Mapping[str, object], *, descriptors: Sequence[int] = ()) -> None:
        """Send a message as soon as it can be taken, and close its descriptors then.  Of one that has gone: nothing."""
        if not self.is_open:
            _close_all(descriptors)
            return
        self._queue.append((fields, descriptors))
        self._flush()
        if len(self._queue) > QUEUE_MESSAGES:
            log("an insulad does not read: hung up", messages=len(self._queue))
            self.drop()

    def drop(self) -> None:
        """Hang up."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.unwatch(self._connection.fileno())
        self._connection.close()
        for _fields, descriptors in self._queue:
            _close_all(descriptors)
        self._queue.clear()
        self._on_end(self)

    def _watch(self) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._queue else 0)
        self._loop.watch(self._connection.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ and self.is_open:
            self._receive()

    def _flush(self) -> None:
        try:
            while self._queue:
                fields, descriptors = self._queue[0]
                protocol.send(self._connection, fields, descriptors=descriptors)
                self._queue.popleft()
                _close_all(descriptors)
        except BlockingIOError:
            pass
        except OSError as error:
            log(f"an insulad has gone: {error}")
            self.drop()
            return
        self._watch()

    def _receive(self) -> None:
        try:
            message = protocol.receive(self._connection)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message = protocol.Message({}, [])
        if not message.fields:
            _close_all(message.descriptors)
            self.drop()
            return
        self._on_request(self, message)


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
