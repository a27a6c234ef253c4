# SPDX-License-Identifier: Apache-2.0
"""What the filler asks for, and what it does not ask for again."""

import socket
from collections.abc import Iterator

import pytest

from insula.boot.supply import (
    MAX_MESSAGE,
    MAX_WANTS,
    PIECE_BYTES,
    REQUEST,
    SMALL_BYTES,
    WINDOW_BYTES,
    Lost,
    Supply,
    Word,
)
from insula.kernel.pieces import Piece

PAGE = 4096
WINDOW = WINDOW_BYTES // PIECE_BYTES


class Ends:
    """A supply, and the far ends of its links."""

    def __init__(self) -> None:
        (self.urgent, inner_urgent), (self.rest, inner_rest) = (
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)
        )
        self.supply = Supply(inner_urgent, inner_rest)

    def heard(self, end: socket.socket) -> list[tuple[int, int]]:
        found = []
        while True:
            try:
                word, start, length = REQUEST.unpack(end.recv(MAX_MESSAGE, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return found
            assert word == Word.WANT
            found.append((start, length))

    def bring(self, end: socket.socket, start: int, length: int) -> None:
        end.send(REQUEST.pack(Word.HAVE, start, length))
        link = self.supply.links[end is self.rest]
        assert link.hear() == (start, length)
        self.supply.forget(start, start + length)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    for each in (made.urgent, made.rest, *(link.connection for link in made.supply.links)):
        each.close()


def test_the_rest_is_asked_for_in_order_a_window_at_a_time(ends: Ends) -> None:
    ends.supply.expect(0, 20 * PIECE_BYTES)
    ends.supply.ask_rest()
    ends.supply.ask_rest()
    asked = ends.heard(ends.rest)
    assert asked == [(number * PIECE_BYTES, PIECE_BYTES) for number in range(WINDOW)]
    ends.bring(ends.rest, *asked[3])
    ends.supply.ask_rest()
    assert ends.heard(ends.rest) == [(WINDOW * PIECE_BYTES, PIECE_BYTES)]


def test_small_ranges_come_first(ends: Ends) -> None:
    ends.supply.expect(0, 20 * PIECE_BYTES)
    small = [(number * PIECE_BYTES, SMALL_BYTES - PAGE) for number in (30, 40)]
    for start, length in small:
        ends.supply.expect(start, start + length)
    ends.supply.forget(small[0][0], small[0][0] + PAGE)
    ends.supply.ask_rest()
    first, second, third, *_others = ends.heard(ends.rest)
    assert (first, second) == ((small[0][0] + PAGE, small[0][1] - PAGE), small[1])
    assert third == (0, PIECE_BYTES)


def test_all_of_it_comes_whatever_is_forgotten_meanwhile(ends: Ends) -> None:
    ends.supply.expect(PAGE, 3 * PIECE_BYTES)
    ends.supply.expect(10 * PIECE_BYTES, 11 * PIECE_BYTES)
    ends.supply.forget(2 * PIECE_BYTES, 2 * PIECE_BYTES + PAGE)
    came = 0
    while not ends.supply.is_complete:
        ends.supply.ask_rest()
        for start, length in ends.heard(ends.rest):
            came += length
            ends.bring(ends.rest, start, length)
    assert came == 4 * PIECE_BYTES - 2 * PAGE


def test_what_somebody_waits_for_is_asked_for_once(ends: Ends) -> None:
    ends.supply.expect(0, 100 * PAGE)
    piece = Piece(0x7000_0000, 0x7000_0000 + 2 * PAGE, 10 * PAGE)
    assert ends.supply.lacks(piece)
    ends.supply.ask([piece])
    ends.supply.ask([piece])
    assert ends.heard(ends.urgent) == [(10 * PAGE, 2 * PAGE)]
    ends.bring(ends.urgent, 10 * PAGE, 2 * PAGE)
    assert not ends.supply.lacks(piece)


def test_only_so_much_is_urgent_at_a_time(ends: Ends) -> None:
    ends.supply.expect(0, 1000 * PAGE)
    for number in range(0, 1000, 2):
        ends.supply.ask([Piece(0, PAGE, number * PAGE)])
    asked = ends.heard(ends.urgent)
    assert len(asked) == MAX_WANTS
    ends.bring(ends.urgent, *asked[0])
    ends.supply.ask([Piece(0, PAGE, 998 * PAGE)])
    assert ends.heard(ends.urgent) == [(998 * PAGE, PAGE)]


def test_what_had_no_room_is_asked_for_once_more_when_there_is_some(ends: Ends) -> None:
    ends.supply.expect(0, 1000 * PAGE)
    for number in range(0, 2 * MAX_WANTS, 2):
        ends.supply.ask([Piece(0, PAGE, number * PAGE)])
    assert not ends.supply.take_refused(), "all had room"
    ends.supply.ask([Piece(0, PAGE, 998 * PAGE)])
    assert not ends.supply.take_refused(), "there is none yet"
    ends.bring(ends.urgent, *ends.heard(ends.urgent)[0])
    assert ends.supply.take_refused()
    assert not ends.supply.take_refused(), "once"


def test_another_insulad_is_told_what_has_not_come(ends: Ends) -> None:
    ends.supply.expect(0, 3 * PIECE_BYTES)
    ends.supply.ask_rest()
    first, *others = ends.heard(ends.rest)
    ends.bring(ends.rest, *first)
    ends.rest.send(REQUEST.pack(Word.AGAIN, 0, 0))
    assert ends.supply.links[1].hear() is None
    assert ends.heard(ends.rest) == others


def test_what_will_never_come_says_why(ends: Ends) -> None:
    ends.rest.send(REQUEST.pack(Word.LOST, 0, 0) + b"host `alpha` is gone")
    with pytest.raises(Lost, match="host `alpha` is gone"):
        ends.supply.links[1].hear()
