# SPDX-License-Identifier: Apache-2.0
"""insulad's end of a restore whose pages are still on another host: hears which are asked for, says which have come.

Source of the messages: `boot/supply.py`.  Out of scope: how pages come here (`migrate/pull.py`).
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from insula.boot.supply import MAX_MESSAGE, REQUEST, Word
from insula.kernel.readable import wait_readable
from insula.runtime.context import Runtime


class Request(NamedTuple):
    """A range of the store that is asked for."""

    start: int
    length: int


class Link:
    """One of the two links; owns its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)

    def close(self) -> None:
        self._socket.close()

    def begin(self) -> None:
        """Have the filler say again what it waits for; what it said to somebody else is thrown away."""
        with suppress(BlockingIOError, ConnectionError):
            while self._socket.recv(MAX_MESSAGE, socket.MSG_DONTWAIT):
                pass
        with suppress(ConnectionError):
            self._socket.send(REQUEST.pack(Word.AGAIN, 0, 0))

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to be heard, if only its end."""
        return bool(wait_readable(self._socket.fileno(), seconds=seconds))

    def take(self) -> Request | None:
        """Return what is asked for; None: nothing new.  Raises: EOFError: the filler has ended."""
        try:
            data = self._socket.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionError:  # it ended with words of ours unread
            data = b""
        if not data:
            raise EOFError
        _word, start, length = REQUEST.unpack(data)
        return Request(start, length)

    def bring(self, request: Request) -> None:
        """Say that it lies in the store."""
        with suppress(ConnectionError):  # `take` tells
            self._socket.send(REQUEST.pack(Word.HAVE, *request))

    def lose(self, reason: str) -> None:
        """Say that no more will come: the container is killed, for that reason."""
        with suppress(ConnectionError):
            self._socket.send(REQUEST.pack(Word.LOST, 0, 0) + reason.encode()[: MAX_MESSAGE - REQUEST.size])


class Supply(NamedTuple):
    """What pages are brought by."""

    store: int
    """The sparse file, the caller's."""
    pids: Mapping[int, int]
    """Slot of the store → whose pages lie there, by the pid in the container."""
    urgent: Link
    rest: Link

    def close(self) -> None:
        os.close(self.store)
        self.urgent.close()
        self.rest.close()


def open_supply(runtime: Runtime, container_id: str) -> Supply | None:
    """Return how absent pages of a container are brought; None if none are."""
    slots, descriptors = runtime.spawner.supply(container_id)
    if not descriptors:
        return None
    store, urgent, rest = descriptors
    return Supply(store, {slots[pid]: pid for pid in slots}, Link(urgent), Link(rest))
