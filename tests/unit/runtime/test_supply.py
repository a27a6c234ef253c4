# SPDX-License-Identifier: Apache-2.0
"""insulad's end of a link to the filler."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from insula.boot.supply import REQUEST, Word
from insula.runtime.supply import Link, Request
from waiting import DEADLINE_S


@pytest.fixture
def filler() -> Iterator[tuple[socket.socket, Link]]:
    """Both ends; ours has the number that it gets in an insulad of a thousand connections."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    high = fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD_CLOEXEC, 1500)
    ours.close()
    with theirs, closing(Link(high)) as link:
        yield theirs, link


def test_what_is_asked_for_is_heard(filler: tuple[socket.socket, Link]) -> None:
    theirs, link = filler
    assert not link.wait(0)
    assert link.take() is None
    theirs.send(REQUEST.pack(Word.WANT, 4096, 8192))
    assert link.wait(DEADLINE_S)
    assert link.take() == Request(4096, 8192)


def test_the_end_of_the_filler_is_heard(filler: tuple[socket.socket, Link]) -> None:
    theirs, link = filler
    theirs.close()
    assert link.wait(DEADLINE_S)
    with pytest.raises(EOFError):
        link.take()
    link.bring(Request(0, 4096))
    link.lose("too late")


def test_words_that_somebody_else_has_heard_are_thrown_away(filler: tuple[socket.socket, Link]) -> None:
    theirs, link = filler
    theirs.send(REQUEST.pack(Word.WANT, 0, 4096))
    link.begin()
    assert link.take() is None
    assert REQUEST.unpack(os.read(theirs.fileno(), 1024))[0] == Word.AGAIN
