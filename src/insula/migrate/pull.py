# SPDX-License-Identifier: Apache-2.0
"""The target's side of post-copy: a container that runs here already, and whose memory is still on its source.

    boot/filler.py   knows which pages are absent; asks for those that somebody waits for, and, beside that, for the rest in order
    two lanes        carry what it asks for: each a thread, a link to the filler and a connection to the source of its own,
                     so that who waits never stands behind the rest
    the journal      `PULLING`, from before it may run until the filler has ended: the next insulad goes on

A cut link, or an insulad that dies on either side, is mended by connecting again: nothing is known here but what the filler
asks for.  A source that says that the memory is lost, that is silent for GIVE_UP_SECONDS, or that an administrator gives up
ends the container: it is killed while every absent page still blocks whoever touches it, so that it never sees a zero.

Out of scope: the source's side (`lend.py`).
"""

import contextlib
import logging
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from insula.kernel.missing_pages import SLOT_BYTES
from insula.kernel.pagemap import PAGE_BYTES
from insula.kernel.whole import write_at
from insula.migrate.fault import Point
from insula.migrate.wire import ZSTD, Peers, Wire
from insula.model.errors import ContainerNotFound, InsulaError, MemoryLost, ProtocolError
from insula.model.migration import Answer, Ended, Pull, Want
from insula.model.record import ContainerRecord
from insula.model.spec import Resolution
from insula.model.units import format_size
from insula.runtime import lazy
from insula.runtime.context import Runtime
from insula.runtime.fault import fault
from insula.runtime.recover import PULLING, drop_arrival
from insula.runtime.supply import Link, Request, Supply, open_supply
from insula.runtime.undo import until_done

LOG = logging.getLogger(__name__)

GIVE_UP_SECONDS = 300.0
"""A source that is silent for so long is taken for dead."""
IDLE_SECONDS = 10.0
"""A connection by which nothing was asked for so long is closed; another one is opened when it is needed."""
LOOK_SECONDS = 1.0
"""Between two looks whether insulad ends."""
PAUSE_S = 0.2
MAX_PAUSE_S = 2.0
END_SECONDS = 10.0


def missing_bytes(runtime: Runtime, container_id: str) -> int:
    """Return how much of the memory of a container that runs here is still on its source."""
    if runtime.store.read_journal(PULLING + container_id) is None:
        return 0
    return max(1, lazy.left_bytes(runtime, container_id))


def resume_pulls(runtime: Runtime, peers: Peers) -> None:
    """At the start of insulad: go on with what the last one left."""
    for key in runtime.store.list_journal(PULLING):
        container_id = key.removeprefix(PULLING)
        try:
            record = runtime.store.get_container(container_id)
        except ContainerNotFound:
            runtime.store.delete_journal(key)
            continue
        begin_pull(runtime, record, source=record.came_from, generation=record.generation, peers=peers)


def begin_pull(
    runtime: Runtime, record: ContainerRecord, *, source: str, generation: int, peers: Peers
) -> None:
    """Bring absent pages of a container, in threads of their own, until all are there or it has gone.

    generation: that of this host's ownership, present or to come.  Raises: SpawnerGone.
    """
    supply = open_supply(runtime, record.id)
    work = partial(_note_the_end, runtime, record.id)
    if supply is not None:
        pull = Pull(container=record.id, generation=generation, unpacks=(ZSTD,))
        work = partial(_bring_all, _Way(runtime, record, supply, source, pull, peers))
    threading.Thread(target=work, name=f"pull-{record.id[:12]}", daemon=True).start()


@dataclass(frozen=True, slots=True)
class _Way:
    """How the pages of one container come here."""

    runtime: Runtime
    record: ContainerRecord
    supply: Supply
    source: str
    pull: Pull
    peers: Peers

    def open(self) -> Wire:
        """Connect to the source.  Raises: MemoryLost if it can never give them; other InsulaErrors, OSError."""
        wire = Wire(self.peers.open(self.peers.find(self.source)))
        try:
            wire.send(self.pull)
            wire.expect(Answer)
        except BaseException:
            wire.close()
            raise
        return wire


def _bring_all(way: _Way) -> None:
    with contextlib.closing(way.supply):
        urgent = threading.Thread(
            target=_Lane(way, way.supply.urgent).run, name=f"urgent-{way.record.id[:12]}", daemon=True
        )
        urgent.start()
        _DecidingLane(way, way.supply.rest).run()
        urgent.join()
    _note_the_end(way.runtime, way.record.id)


def _note_the_end(runtime: Runtime, container_id: str) -> None:
    """The filler has ended, or is about to: all is there, or the container is dead."""

    def note() -> None:
        while not lazy.wait_for_filler(runtime, container_id, seconds=LOOK_SECONDS):
            if runtime.closing.is_set():
                return
        if not runtime.closing.is_set():
            runtime.store.delete_journal(PULLING + container_id)

    until_done(runtime.closing, note, what="write the end of a pull down")


class _Lane:
    """Carries what one link asks for."""

    def __init__(self, way: _Way, link: Link) -> None:
        self._way = way
        self._link = link
        self._closing = way.runtime.closing
        self._pause_s = PAUSE_S
        self._asked = deque[Request]()
        """What has not come, whatever became of the connection by which it was asked for."""

    def run(self) -> None:
        """Carry until the filler has ended, or insulad does."""
        try:
            self._link.begin()
            while not self._closing.is_set():
                self._hear()
                if self._asked:
                    self._try_to_carry()
                else:
                    self._link.wait(LOOK_SECONDS)
        except EOFError:
            return

    def _hear(self) -> list[Request]:
        """Return what is newly asked for.  Raises: EOFError when the filler has ended."""
        new = []
        while (request := self._link.take()) is not None:
            new.append(request)
        self._asked += new
        return new

    def _try_to_carry(self) -> None:
        try:
            with contextlib.closing(self._way.open()) as wire:
                self._carry(wire)
        except MemoryLost as error:
            self._lose(error.message)
        except (InsulaError, OSError) as error:
            LOG.info("no pages come", extra={"fields": {"source": self._way.source, "reason": str(error)}})
            self._is_silent()

    def _is_heard(self) -> None:
        """Hear that pages come."""
        self._pause_s = PAUSE_S

    def _is_silent(self) -> None:
        self._closing.wait(self._next_pause())

    def _next_pause(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, MAX_PAUSE_S)
        return pause_s

    def _lose(self, reason: str) -> None:
        """No more will come.  Raises: EOFError when the filler has ended, and with it the container."""
        LOG.error(
            "memory is lost", extra={"fields": {"container": self._way.record.id[:12], "reason": reason}}
        )
        self._link.lose(reason)
        while not self._closing.is_set():
            if self._link.wait(LOOK_SECONDS):
                self._link.take()

    def _carry(self, wire: Wire) -> None:
        new = list(self._asked)
        while not self._closing.is_set():
            for request in new:
                wire.send(self._wanted(request))
            if self._asked:
                self._receive(wire, self._asked[0])
                self._asked.popleft()
                self._is_heard()
            elif not self._link.wait(IDLE_SECONDS):
                wire.send(Ended())
                return
            new = self._hear()

    def _wanted(self, request: Request) -> Want:
        slot, address = divmod(request.start, SLOT_BYTES)
        return Want(pid=self._way.supply.pids[slot], start=address, pages=request.length // PAGE_BYTES)

    def _receive(self, wire: Wire, request: Request) -> None:
        wire.expect(Answer)
        place, end = request.start, sum(request)
        for piece in wire.receive_stream():
            if place + len(piece) > end:
                raise ProtocolError("cannot take memory: more bytes than were asked for")
            write_at(self._way.supply.store, piece, place)
            place += len(piece)
        if place != end:
            raise ProtocolError(f"cannot take memory: {end - place} bytes did not come")
        fault(Point.TARGET_PULL)
        self._link.bring(request)


class _DecidingLane(_Lane):
    """The one that always waits for something while anything is absent: it decides when the source is silent for too long."""

    def __init__(self, way: _Way, link: Link) -> None:
        super().__init__(way, link)
        self._silent_since = 0.0
        self._doubt = ExitStack()

    def run(self) -> None:
        with self._doubt:
            super().run()

    def _is_heard(self) -> None:
        super()._is_heard()
        self._silent_since = 0.0
        self._doubt.close()

    def _is_silent(self) -> None:
        way, now = self._way, time.monotonic()
        if not self._silent_since:
            self._silent_since = now
            self._doubt.enter_context(way.runtime.doubts.entered(way.record.id))
        if now - self._silent_since > GIVE_UP_SECONDS:
            self._lose(
                f"{self._absent()} on host `{way.source}`, which is silent for {GIVE_UP_SECONDS:.0f} s"
            )
        match way.runtime.doubts.wait(way.record.id, seconds=self._next_pause()):
            case Resolution.KEEP:
                self._lose(f"{self._absent()} on host `{way.source}`, which an administrator has given up")
            case Resolution.GIVE_UP:
                until_done(self._closing, self._give_back, what="give a container back")
                raise EOFError
            case None:
                return

    def _absent(self) -> str:
        try:
            left = format_size(missing_bytes(self._way.runtime, self._way.record.id))
        except InsulaError:  # the spawner has ended
            left = "pages"
        return f"{left} of it are"

    def _give_back(self) -> None:
        """Nothing of it stays here; its source, when it asks, takes it back as it was when it was frozen."""
        runtime, record = self._way.runtime, self._way.record
        with runtime.locked(record.id):
            group = runtime.group(record)
            if group.exists():  # before its filler ends, without which absent pages would be zeros
                group.kill()
                group.wait_empty(time.monotonic() + END_SECONDS)
            drop_arrival(runtime, record)
