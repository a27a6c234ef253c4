# SPDX-License-Identifier: Apache-2.0
"""A restore whose pages are still elsewhere: the program runs, waits for what it touches, and sees no zero.

The test is the insulad that brings them, out of a copy of the memory that it made before.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

import carried
from insula.boot.supply import MAX_MESSAGE, REQUEST, Word
from insula.migrate.memory import MemoryStore
from insula.model import stream
from spawned import Spawned, Started, is_alive, wait_until
from waiting import DEADLINE_S


@pytest.fixture
def elsewhere() -> Iterator[MemoryStore]:
    """What the other host has."""
    with MemoryStore(limit_bytes=carried.LIMIT_BYTES) as made:
        yield made


LONG_S = 120.0
"""For all that a loaded machine does meanwhile."""


@dataclass
class Bringer:
    """Brings pages from one store into another, when it is let."""

    host: Spawned
    key: str
    elsewhere: MemoryStore
    may_bring_rest: threading.Event = field(default_factory=threading.Event)
    brought: list[tuple[int, int]] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    links: list[socket.socket] = field(default_factory=list)

    def begin(self) -> None:
        fields, (store, *links) = self.host.client.ask_for_descriptors("supply", key=self.key)
        assert {int(pid): slot for pid, slot in fields["slots"].items()} == self.elsewhere.slots
        self.links = [socket.socket(fileno=each) for each in links]
        for number, link in enumerate(self.links):
            thread = threading.Thread(target=self._bring, args=(link, os.dup(store), number), daemon=True)
            thread.start()
            self.threads.append(thread)
        os.close(store)

    def _bring(self, link: socket.socket, store: int, number: int) -> None:
        link.send(REQUEST.pack(Word.AGAIN, 0, 0))
        try:
            while data := link.recv(MAX_MESSAGE):
                word, start, length = REQUEST.unpack(data)
                assert word == Word.WANT
                if number == 1:
                    assert self.may_bring_rest.wait(LONG_S)
                os.pwrite(store, os.pread(self.elsewhere.descriptor, length, start), start)
                self.brought.append((number, length))
                link.send(REQUEST.pack(Word.HAVE, start, length))
        except OSError:  # the filler has ended
            return
        finally:
            os.close(store)

    def lose(self, reason: str) -> None:
        self.links[1].send(REQUEST.pack(Word.LOST, 0, 0) + reason.encode())

    def end(self) -> None:
        """Hear the filler end: nothing is absent any more, or its container has gone."""
        self.may_bring_rest.set()
        for each in self.threads:
            each.join(DEADLINE_S)
            assert not each.is_alive(), "the filler goes on"
        for link in self.links:
            link.close()


def carry_later(
    host: Spawned, container: Started, images: int, elsewhere: MemoryStore
) -> tuple[Bringer, int]:
    links = carried.dump_and_let_go(host, container, images, elsewhere)
    bringer = Bringer(host, container.key, elsewhere)
    with MemoryStore(limit_bytes=carried.LIMIT_BYTES) as empty:
        for pid in elsewhere.slots:
            empty.begin(pid, ())
        assert dict(empty.slots) == dict(elsewhere.slots)
        filler = carried.begin_restore(
            host, container, images, empty, links, fill="fill-later", on_filling=bringer.begin
        )
    return bringer, filler


def test_every_byte_comes_when_it_is_asked_for(host: Spawned, images: int, elsewhere: MemoryStore) -> None:
    container = carried.start(host, carried.EVERYTHING, ready=4)
    bringer, filler = carry_later(host, container, images, elsewhere)
    carried.end_well(host, container)
    assert {number for number, _length in bringer.brought} == {0}
    host.client.ask("forget", key=container.key)
    wait_until(lambda: not is_alive(filler), what="the filler has ended")
    bringer.end()


def test_the_rest_comes_without_being_asked_for(host: Spawned, images: int, elsewhere: MemoryStore) -> None:
    container = carried.start(host, carried.EVERYTHING, ready=4)
    bringer, _filler = carry_later(host, container, images, elsewhere)
    bringer.may_bring_rest.set()
    carried.wait_filled(host, container)
    bringer.end()
    carried.end_well(host, container)


def test_pages_that_never_come_end_it_with_the_reason(
    host: Spawned, images: int, elsewhere: MemoryStore
) -> None:
    container = carried.start(host, BIG)
    bringer, _filler = carry_later(host, container, images, elsewhere)
    bringer.lose("host `alpha` has ended")
    assert host.client.wait_exit(container.key) == 137
    event = next(each for each in host.client.events if each["key"] == container.key)
    assert event["reason"] == "its memory did not arrive: host `alpha` has ended"
    bringer.end()


def test_a_killed_filler_ends_it(host: Spawned, images: int, elsewhere: MemoryStore) -> None:
    container = carried.start(host, BIG)
    bringer, filler = carry_later(host, container, images, elsewhere)
    os.kill(filler, signal.SIGKILL)
    assert host.client.wait_exit(container.key) == 137
    assert "good" not in container.logged()
    bringer.end()


def test_what_another_bringer_left_is_told_again(host: Spawned, images: int, elsewhere: MemoryStore) -> None:
    container = carried.start(host, BIG)
    bringer, _filler = carry_later(host, container, images, elsewhere)
    # The first one takes what is asked for, and never brings it.
    assert host.execute_shell(container, "touch /root/go").code == 0
    wait_until(lambda: bool(bringer.brought), what="something was asked for")
    second = Bringer(host, container.key, elsewhere)
    second.may_bring_rest.set()
    second.begin()
    code = host.client.wait_exit(container.key)
    assert (code, container.logged().split()[-1]) == (0, "good"), container.logged(stream.STDERR)
    second.end()
    bringer.end()


BIG = "memory = anonymous(100)\nsay('ready')\nwait('go')\ncheck(memory, 7)\nsay('good')\n"


@pytest.mark.parametrize("with_rest", [False, True])
def test_mappings_that_change_while_pages_are_absent(
    host: Spawned, images: int, elsewhere: MemoryStore, *, with_rest: bool
) -> None:
    container = carried.start(host, carried.changes(64))
    bringer, filler = carry_later(host, container, images, elsewhere)
    if with_rest:
        bringer.may_bring_rest.set()
    carried.end_well(host, container)
    host.client.ask("forget", key=container.key)
    wait_until(lambda: not is_alive(filler), what="the filler has ended")
    bringer.end()
