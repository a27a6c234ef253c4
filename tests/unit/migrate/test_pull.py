# SPDX-License-Identifier: Apache-2.0
"""A lane carries what the filler asks for, however often the connection breaks, and says when it never comes."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from types import SimpleNamespace
from typing import cast

import pytest

from insula.boot.supply import MAX_MESSAGE, REQUEST, Word
from insula.kernel.missing_pages import SLOT_BYTES
from insula.migrate import pull
from insula.migrate.lend import serve_pull
from insula.migrate.settle import LEAVING
from insula.migrate.wire import Peers, Wire
from insula.model.errors import ContainerNotFound, MemoryLost, MigrationFailed
from insula.model.lifecycle import Status
from insula.model.migration import Answer, Pull, Want
from insula.model.record import ContainerRecord
from insula.model.spec import Resolution
from insula.runtime.context import Runtime
from insula.runtime.doubt import Doubts
from insula.runtime.supervise import Filling
from insula.runtime.supply import Link, Supply
from waiting import DEADLINE_S

ID = "a" * 64
PAGE = 4096


class Source:
    """The other host: each connection is served by the next of its manners, the last one for ever."""

    def __init__(self, *manners: str) -> None:
        self.manners = list(manners)
        self.threads: list[threading.Thread] = []

    def find(self, name: str) -> str:
        return name

    def open(self, _host: str) -> socket.socket:
        manner = self.manners.pop(0) if len(self.manners) > 1 else self.manners[0]
        if manner == "silent":
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(Wire(theirs), manner), daemon=True)
        thread.start()
        self.threads.append(thread)
        return ours

    def _serve(self, wire: Wire, manner: str) -> None:
        with closing(wire), suppress(MigrationFailed):  # it has hung up
            self._talk(wire, manner)

    def _talk(self, wire: Wire, manner: str) -> None:
        assert wire.expect(Pull).container == ID
        if manner == "lost":
            wire.refuse(MemoryLost("its processes have ended"))
        else:
            wire.send(Answer())
        while manner in ("good", "breaks"):
            match wire.receive():
                case Want(pid=pid, start=start, pages=pages):
                    wire.send(Answer())
                    if manner == "breaks":
                        return
                    wire.send_stream((page(pid, start) * pages,))
                case _:
                    return


def page(pid: int, start: int) -> bytes:
    return pid.to_bytes(8, "little") + start.to_bytes(8, "little") * (PAGE // 8 - 1)


class Far:
    """The filler's end of a lane, and what the lane runs on."""

    def __init__(self, source: Source) -> None:
        self.link, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.settimeout(DEADLINE_S)
        self.store = os.memfd_create("test")
        self.closing, self.doubts = threading.Event(), Doubts()
        runtime = SimpleNamespace(
            closing=self.closing,
            doubts=self.doubts,
            store=SimpleNamespace(read_journal=lambda _key: b"alpha"),
            spawner=SimpleNamespace(filling=lambda _key: (Filling(state="filling", left_bytes=3 << 20), -1)),
        )
        link = Link(ours.detach())
        self.way = pull._Way(
            cast(Runtime, runtime),
            cast(ContainerRecord, SimpleNamespace(id=ID)),
            Supply(self.store, {2: 17}, link, link),
            "alpha",
            Pull(container=ID, generation=2),
            cast(Peers, source),
        )
        self.thread = threading.Thread(target=pull._DecidingLane(self.way, link).run, daemon=True)
        self.thread.start()
        assert self.link.recv(MAX_MESSAGE) == REQUEST.pack(Word.AGAIN, 0, 0)

    def want(self, address: int, pages: int) -> None:
        self.link.send(REQUEST.pack(Word.WANT, 2 * SLOT_BYTES + address, pages * PAGE))

    def hear(self) -> tuple[Word, int, str]:
        data = self.link.recv(MAX_MESSAGE)
        word, start, _length = REQUEST.unpack_from(data)
        return Word(word), start - 2 * SLOT_BYTES, data[REQUEST.size :].decode()

    def end(self) -> None:
        self.link.close()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        self.way.supply.rest.close()
        os.close(self.store)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "PAUSE_S", 0.01)


@pytest.fixture
def made() -> Iterator[list[Far]]:
    found: list[Far] = []
    yield found
    for each in found:
        each.end()


@pytest.mark.parametrize("manners", [("good",), ("breaks", "good"), ("silent", "breaks", "breaks", "good")])
def test_pages_come_to_their_place(made: list[Far], manners: tuple[str, ...]) -> None:
    far = Far(Source(*manners))
    made.append(far)
    far.want(0x10000, 1)
    far.want(0x40000, 4)
    assert [far.hear()[:2] for _ in range(2)] == [(Word.HAVE, 0x10000), (Word.HAVE, 0x40000)]
    assert os.pread(far.store, PAGE, 2 * SLOT_BYTES + 0x10000) == page(17, 0x10000)
    assert os.pread(far.store, 4 * PAGE, 2 * SLOT_BYTES + 0x40000) == page(17, 0x40000) * 4


def test_a_source_that_has_lost_them_is_believed_at_once(made: list[Far]) -> None:
    far = Far(Source("lost"))
    made.append(far)
    far.want(0x10000, 1)
    word, _, reason = far.hear()
    assert (word, reason) == (Word.LOST, "its processes have ended")


def test_a_silent_source_is_given_up_after_a_while(made: list[Far], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "GIVE_UP_SECONDS", 0.05)
    far = Far(Source("silent"))
    made.append(far)
    far.want(0x10000, 1)
    word, _, reason = far.hear()
    assert word is Word.LOST
    assert reason.startswith("3.0MiB of it are on host `alpha`, which is silent for"), reason


def test_an_administrator_may_end_the_wait(made: list[Far]) -> None:
    far = Far(Source("silent"))
    made.append(far)
    far.want(0x10000, 1)
    end = threading.Event()
    while not far.doubts.decide(ID, Resolution.KEEP):
        assert not end.wait(0.01)
    word, _, reason = far.hear()
    assert word is Word.LOST and "an administrator has given up" in reason


def _lender(record: object, *, leaving: bytes | None = None) -> Runtime:
    def get(_container: str) -> object:
        if record is None:
            raise ContainerNotFound("there is none")
        return record

    journal = {LEAVING + ID: leaving}
    store = SimpleNamespace(get_container=get, read_journal=journal.get)
    group = SimpleNamespace(exists=lambda: False)
    return cast(Runtime, SimpleNamespace(store=store, host_name="alpha", group=lambda _record: group))


def _record(**fields: object) -> object:
    return SimpleNamespace(
        **{"id": ID, "name": "c", "owner": "beta", "generation": 2, "status": Status.MOVED, **fields}
    )


@pytest.mark.parametrize(
    ("record", "leaving"),
    [
        pytest.param(None, None, id="no such container"),
        pytest.param(_record(owner="gamma"), None, id="another's"),
        pytest.param(_record(generation=3), None, id="of another generation"),
        pytest.param(
            _record(owner="alpha", generation=1, status=Status.RUNNING), b"beta", id="not on its way"
        ),
        pytest.param(
            _record(owner="alpha", generation=1, status=Status.MIGRATING),
            b"gamma",
            id="on its way to another",
        ),
    ],
)
def test_memory_is_given_to_nobody_else(record: object, leaving: bytes | None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(MemoryLost):
        serve_pull(
            _lender(record, leaving=leaving),
            Pull(container=ID, generation=2),
            wire=Wire(ours),
            peer="beta",
        )


@pytest.mark.parametrize("record", [_record(), _record(owner="alpha", generation=1, status=Status.MIGRATING)])
def test_processes_that_have_ended_are_no_zeros(record: object) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(MemoryLost, match="its processes have ended"):
        serve_pull(
            _lender(record, leaving=b"beta"), Pull(container=ID, generation=2), wire=Wire(ours), peer="beta"
        )
