# SPDX-License-Identifier: Apache-2.0
"""The filler's end of a restore whose pages are still on another host: which are absent, and asking for them.

    filler                                       insulad (`runtime/supply.py`), on each of two links
      │ WANT  place in the store, length ─────────► │   brings it from the other host, writes it into the store
      │ ◄───────── HAVE  place in the store, length │
      │ ◄──────────────────────────────────── AGAIN │   another insulad, or another connection: what do you wait for?
      │ ◄───────────────────────────── LOST, reason │   it will never come

One link is for what somebody waits for, so that it never stands behind the other's rest, which is asked for a window at a time:
first what lies in small ranges (stacks, data of libraries, a small heap: what a program touches first), then all in order.  Nothing is known of it anywhere else: an insulad may end at any moment, and the next one begins with AGAIN.
Two WANTs for the same page do no harm.

Out of scope: putting pages into memory (`filler.py`).  Standard library only.
"""

import select
import socket
import struct
from collections import deque
from collections.abc import Iterable
from enum import IntEnum

from insula.kernel.pieces import Piece, Pieces

PIECE_BYTES = 512 << 10
"""Of one WANT of the rest, at most."""
SMALL_BYTES = 256 << 10
"""Ranges up to here come first."""
WINDOW_BYTES = 4 << 20
"""Of the rest, under way at a time."""
MAX_WANTS = 64
"""Under way on one link; what comes later is asked for when one of them has come."""
ORPHAN_SECONDS = 5.0
REQUEST = struct.Struct("=BxxxxxxxQQ")
MAX_MESSAGE = 1024


class Word(IntEnum):
    """First byte of a message."""

    WANT = 1
    HAVE = 2
    AGAIN = 3
    LOST = 4


class Lost(Exception):
    """Pages that will never come."""


class Link:
    """One of the two, with what was asked for by it and has not come."""

    def __init__(self, connection: socket.socket, *, most_bytes: int) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._most_bytes = most_bytes
        self._asked: dict[int, int] = {}

    def fileno(self) -> int:
        return self.connection.fileno()

    @property
    def has_room(self) -> bool:
        return len(self._asked) < MAX_WANTS and sum(self._asked.values()) < self._most_bytes

    @property
    def is_idle(self) -> bool:
        return not self._asked

    def ask(self, start: int, length: int) -> bool:
        """Ask for a range, unless that was done.  Returns: False if not now."""
        if self._asked.get(start, 0) >= length:
            return True
        if not self.has_room or not self._send(start, length):
            return False
        self._asked[start] = length
        return True

    def _send(self, start: int, length: int) -> bool:
        try:
            self.connection.send(REQUEST.pack(Word.WANT, start, length))
        except BlockingIOError:
            return False
        return True

    def hear(self) -> tuple[int, int] | None:
        """Read one message.  Returns: the range that has come, if it says so.  Raises: Lost, OSError."""
        try:
            data = self.connection.recv(MAX_MESSAGE)
        except BlockingIOError:
            return None
        if not data:
            # The spawner has ended, and the kernel kills the container: until it is dead nothing may read as zeros.
            select.select([], [], [], ORPHAN_SECONDS)
            raise Lost("the spawner has ended")
        word, start, length = REQUEST.unpack_from(data)
        match word:
            case Word.LOST:
                raise Lost(data[REQUEST.size :].decode(errors="replace"))
            case Word.AGAIN:
                for place, wanted in self._asked.items():
                    self._send(place, wanted)
                return None
        self._asked.pop(start, None)
        return start, length


class Supply:
    """All absent pages of one container, by their place in the store.  urgent, rest: our ends of the links."""

    def __init__(self, urgent: socket.socket, rest: socket.socket) -> None:
        self._absent = Pieces()
        self._next = 0
        self._first: deque[Piece] | None = None
        self._urgent = Link(urgent, most_bytes=MAX_WANTS * PIECE_BYTES)
        self._rest = Link(rest, most_bytes=WINDOW_BYTES)
        self.links = (self._urgent, self._rest)
        self._had_no_room = False

    @property
    def is_complete(self) -> bool:
        return not len(self._absent)

    def expect(self, start: int, end: int) -> None:
        """Hear of pages that are to come."""
        self._absent.add(start, end, source=start)

    def forget(self, start: int, end: int) -> None:
        """Hear that nobody needs these any more, or that they have come."""
        self._absent.cut(start, end)

    def lacks(self, piece: Piece) -> bool:
        """Tell whether some of it is still to come."""
        return bool(self._absent.within(piece.source, piece.source + piece.end - piece.start))

    def ask(self, pieces: Iterable[Piece]) -> None:
        """Ask for what somebody waits for."""
        for each in pieces:
            for absent in self._absent.within(each.source, each.source + each.end - each.start):
                if not self._urgent.ask(absent.start, absent.end - absent.start):
                    self._had_no_room = True

    def take_refused(self) -> bool:
        """Tell whether there was no room since the last time for what somebody waits for: it must be asked for once more.

        Nobody else would: who waits for a page says so once.
        """
        if not (self._had_no_room and self._urgent.has_room):
            return False
        self._had_no_room = False
        return True

    def ask_rest(self) -> None:
        """Ask for as much of the rest as may be under way; begun when all that is to come is known."""
        if self._first is None:
            self._first = deque(each for each in self._absent.all() if each.end - each.start <= SMALL_BYTES)
        while self._first and self._rest.has_room:
            small = self._first[0]
            for absent in self._absent.within(small.start, small.end):
                if not self._rest.ask(absent.start, absent.end - absent.start):
                    return
            self._first.popleft()
        while self._rest.has_room:
            piece = self._absent.first_from(self._next, limit=PIECE_BYTES)
            if piece is None:
                if not self._rest.is_idle or self.is_complete:
                    return
                self._next = 0  # what the link had no room for
                continue
            if not self._rest.ask(piece.start, piece.end - piece.start):
                return
            self._next = piece.end
