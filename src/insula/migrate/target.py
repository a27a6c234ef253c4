# SPDX-License-Identifier: Apache-2.0
"""The target's side of a migration: reserve, receive, restore and hold, run when told that it is ours."""

import contextlib
import logging
import os
import time
from contextlib import ExitStack

from msgspec.structs import replace

from insula.image.host import HOST_IMAGE
from insula.image.tarball import Limits
from insula.kernel.hold import LIMIT_BYTES, replay, unpack
from insula.migrate.fault import Point
from insula.migrate.fileapply import FileTarget
from insula.migrate.heartbeat import Heart
from insula.migrate.images import receive_images
from insula.migrate.lend import serve_pull
from insula.migrate.memory import MemoryStore
from insula.migrate.neighbours import announce_arrival
from insula.migrate.preflight import SPARE_BYTES, available_memory, check, check_identity, check_memory
from insula.migrate.pull import begin_pull
from insula.migrate.recall import serve_recall
from insula.migrate.relays import answer_published, begin_relay, forget_relay
from insula.migrate.settle import answer_question, forget_taken_later, learn_commit
from insula.migrate.sharedstore import SharedStore
from insula.migrate.wire import ZSTD, Peers, Socket, StreamFile, Wire
from insula.model import span
from insula.model.errors import InsulaError, MigrationFailed, NameTaken, ProtocolError
from insula.model.grant import Grant
from insula.model.lifecycle import Event, Status, after
from insula.model.migration import (
    Accept,
    Answer,
    Commit,
    Ended,
    FileRound,
    Files,
    Frames,
    Held,
    Layer,
    Logs,
    Memory,
    Missing,
    Offer,
    Phase,
    Prepare,
    Probe,
    Published,
    Pull,
    Question,
    Recall,
    Restore,
    Resumed,
    SharedImage,
    SharedPages,
)
from insula.model.record import ContainerRecord
from insula.model.spec import VolumeWish
from insula.runtime import dump, lazy, quotas
from insula.runtime.context import Runtime
from insula.runtime.create import make_folders, write_down
from insula.runtime.fault import fault
from insula.runtime.logs import import_logs
from insula.runtime.own_disk import remove_folder
from insula.runtime.plan import StartPlan, start_plan
from insula.runtime.recover import (
    ARRIVING,
    PULLING,
    RAN,
    TAKEN,
    drop_arrival,
    end_lost_arrival,
)
from insula.runtime.start import bring_up_network
from insula.runtime.translate import from_arrival
from insula.runtime.undo import attempt, until_done

LOG = logging.getLogger(__name__)


def receive(grant: Grant, runtime: Runtime, *, connection: Socket, peers: Peers) -> None:
    """Serve one connection of a paired host: a container that arrives, or a question who owns one."""
    wire = Wire(connection)
    try:
        first = wire.receive()
        match first:
            case Offer():
                _receive_traced(runtime, first, wire=wire, peer=grant.principal.name, peers=peers)
            case Pull():
                serve_pull(runtime, first, wire=wire, peer=grant.principal.name)
            case Question():
                wire.send(answer_question(runtime, first))
            case Published():
                wire.send(answer_published(runtime, first))
            case Recall():
                serve_recall(grant, runtime, first, wire=wire, peer=grant.principal.name, peers=peers)
            case _:
                raise ProtocolError(f"cannot begin with {type(first).__name__}")
    except (InsulaError, OSError) as error:
        if not wire.has_heard:  # it asked only whether this host can be reached: a drain does
            return
        told = error if isinstance(error, InsulaError) else from_arrival(error, "it")
        fields = {"code": told.code, "reason": str(error), "cause": str(error.__cause__ or "")}
        LOG.warning("a migration did not come through", extra={"fields": fields})
        wire.refuse(told)
        wire.drain()
    finally:
        wire.close()


def _receive_traced(runtime: Runtime, offer: Offer, *, wire: Wire, peer: str, peers: Peers) -> None:
    attributes = {**span.about(offer.record), "insula.source": peer}
    with runtime.tracer.root("receive", parent=offer.traceparent, attributes=attributes):
        span.enter_phase(Phase.RESERVE)
        _receive_container(runtime, offer, wire=wire, peer=peer, peers=peers)


def _receive_container(runtime: Runtime, offer: Offer, *, wire: Wire, peer: str, peers: Peers) -> None:
    check_identity(runtime, offer)
    with runtime.locked(offer.record.id), ExitStack() as undo:
        try:
            check(runtime, offer)
            record = _reserve(runtime, offer, peer=peer, undo=undo)
            fault(Point.TARGET_RESERVED)
            missing = runtime.images.missing_layers(record.layers)
            can_pull = runtime.spawner.can_fill_later
            span.enter_phase(Phase.PRECOPY)
            wire.send(Accept(missing_layers=missing, unpacks=(ZSTD,), can_pull=can_pull, ports=record.ports))
            _take_in(runtime, record, offer=offer, wire=wire, undo=undo, peers=peers)
        except InsulaError as error:
            wire.refuse(error)  # first, since the source may stand still
            raise
        except OSError as error:
            told = from_arrival(error, offer.record.name)
            wire.refuse(told)
            raise told from error
        undo.pop_all()
        forget_relay(runtime, offer.record.id)
    try:
        wire.expect(Ended)
        runtime.store.delete_journal(TAKEN + offer.record.id)
    except InsulaError:
        forget_taken_later(runtime, offer.record.id, peers=peers)


def _take_in(
    runtime: Runtime, record: ContainerRecord, *, offer: Offer, wire: Wire, undo: ExitStack, peers: Peers
) -> None:
    limit_bytes = offer.memory_bytes * 2 + SPARE_BYTES
    with dump.memory_folder() as images, MemoryStore(limit_bytes=limit_bytes) as memory:
        arrival = Arrival(
            runtime, record, offer=offer, wire=wire, undo=undo, images=images, memory=memory, peers=peers
        )
        with contextlib.closing(arrival):
            arrival.run()


def _drop(runtime: Runtime, record: ContainerRecord) -> None:
    """Take away what was made, however long a full disk or a lost spawner makes that."""
    runtime.dropping.add(record.id)  # the source may know already
    try:
        until_done(runtime.closing, lambda: drop_arrival(runtime, record), what="drop an arrival")
    finally:
        runtime.dropping.discard(record.id)
    begin_relay(runtime, record.id)  # it may have been here before, and gone on


def _reserve(runtime: Runtime, offer: Offer, *, peer: str, undo: ExitStack) -> ContainerRecord:
    """Take name, address and folders for it; the owner is still the source."""
    offered = offer.record
    if any(each.name == offered.name for each in runtime.store.list_containers(offered.tenant)):
        raise NameTaken(
            f"cannot take `{offered.name}`: this host has a container of that name",
            hint=f"insula rename {offered.name} …",
        )
    if any(each.id == offered.id for each in runtime.store.list_containers()):
        raise NameTaken(f"cannot take `{offered.name}`: this host has a container of that id")
    if offered.generation < runtime.store.left_generation(offered.id):
        raise ProtocolError(f"cannot take `{offered.name}`: it has been here since then, and left")
    quotas.check_wish(runtime, offered.tenant, offered.spec)
    quotas.ready_group(runtime, offered.tenant)
    attachment = None
    if offered.attachment is not None and offer.network is not None:
        networks = runtime.networks
        network = (
            networks.default_for(offered.tenant)
            if offer.network.name == "default"
            else networks.get(offered.tenant, offer.network.name)
        )
        attachment = networks.lease(
            network, offered.id, wished_address=offered.attachment.address, wished_mac=offered.attachment.mac
        )
        undo.callback(attempt, networks.release, offered.id)
    for volume in offer.volumes:
        if any(each.name == volume.name for each in runtime.store.list_volumes(offered.tenant)):
            raise NameTaken(
                f"cannot take `{offered.name}`: this host has a volume `{volume.name}`",
                hint=f"insula volume rm {volume.name}, if it is not needed any more",
            )
        runtime.volumes.create(offered.tenant, VolumeWish(name=volume.name))
        undo.callback(attempt, runtime.volumes.delete, offered.tenant, volume.name)
    remove_folder(runtime.folders.container(offered.id))
    undo.callback(remove_folder, runtime.folders.container(offered.id))
    make_folders(runtime, offered.id, tenant=offered.tenant, spec=offered.spec)
    record = replace(
        offered,
        status=Status.RESTORING,
        uid_base=runtime.uid_base_of(offered.tenant),
        attachment=attachment,
        owner=peer,
        came_from=peer,
        creator="",
        creator_uid=None,
        creator_is_admin=False,
        pid=0,
        ports=(),
    )
    write_down(runtime, record)
    undo.pop_all()
    undo.callback(_drop, runtime, record)
    return bring_up_network(runtime, record, undo=undo, before=offered.ports)


class Arrival:
    """A container on its way in."""

    def __init__(
        self,
        runtime: Runtime,
        record: ContainerRecord,
        *,
        offer: Offer,
        wire: Wire,
        undo: ExitStack,
        images: int,
        memory: MemoryStore,
        peers: Peers,
    ) -> None:
        self._runtime = runtime
        self._record = record
        self._offer = offer
        self._wire = wire
        self._undo = undo
        self._plan: StartPlan | None = None
        self._trees: dict[str, FileTarget] = {}
        self._engine: dump.Engine | None = None
        self._engines = ExitStack()
        self._images = images
        self._memory = memory
        self._shared = SharedStore(images, limit_bytes=offer.memory_bytes * 2 + SPARE_BYTES)
        self._peers = peers
        self._has_run = False
        self._heart = Heart(wire)

    def run(self) -> None:
        """Take what comes, in the source's order, until it says `Restore`; restore, hold, run."""
        while True:
            message = self._wire.receive()
            match message:
                case Layer(digest=digest):
                    self._receive_layer(digest)
                case Probe():
                    for _piece in self._wire.receive_stream():
                        pass
                    self._wire.send(Answer())
                case Memory():
                    fault(Point.TARGET_LAST_PAGES if self._plan else Point.TARGET_PAGES)
                    self._receive_memory(message)
                case Prepare(stdio=stdio):
                    self._make_room(stdio)
                    fault(Point.TARGET_PREPARED)
                    span.enter_phase(Phase.TRANSFER)
                    self._wire.send(Answer())
                case FileRound():
                    self._tree(message.volume).receive(message, self._wire)
                case SharedPages():
                    self._shared.receive(message, self._wire.receive_stream())
                case SharedImage(area=area):
                    self._shared.make_image(area)
                case Files():
                    self._receive_images(message)
                case Restore():
                    missing = self._memory.missing(self._images)
                    if self._offer.is_later:
                        self._memory.make_slots(missing)
                    elif missing:
                        self._wire.send(Missing(pages={pid: tuple(missing[pid]) for pid in missing}))
                        continue
                    self._restore()
                    return
                case _:
                    raise ProtocolError(f"cannot go on: the source sent {type(message).__name__}")

    def _receive_layer(self, digest: str) -> None:
        sizes = {each.digest: each.size_bytes for each in self._offer.image.layers}
        if digest not in sizes:
            raise ProtocolError(f"cannot take layer `{digest[:80]}`: it was not offered")
        stream = StreamFile(self._wire.receive_stream())
        limits = Limits(size_bytes=sizes[digest] + SPARE_BYTES)
        self._runtime.images.layers.unpack(stream, expected=digest, limits=limits)
        stream.drain()

    def _make_room(self, stdio: tuple[str, ...]) -> None:
        if self._plan is not None:
            raise ProtocolError("cannot prepare twice")
        if self._offer.is_later:
            self._runtime.store.write_journal(PULLING + self._record.id, self._record.owner.encode())
        if self._offer.image.id != HOST_IMAGE.id:
            self._runtime.images.add_from_peer(self._offer.image)
        self._plan = start_plan(self._runtime, self._record)
        self._runtime.spawner.prepare(self._plan)
        self._undo.callback(attempt, self._runtime.spawner.discard, self._record.id)
        self._runtime.before_start(self._record)
        if stdio:
            self._engine = dump.ask_ahead(
                self._runtime, self._engines, images=self._images, plan=self._plan, stdio=stdio
            )

    def _receive_memory(self, message: Memory) -> None:
        arriving = self._memory.begin(message.pid, message.ranges)
        for piece in self._wire.receive_stream():
            arriving.feed(piece)
        arriving.finish()

    def _tree(self, volume: str) -> FileTarget:
        """Return the folder that rounds of that name go to.  Raises: ProtocolError for one that was not offered."""
        if volume not in self._trees:
            if volume and volume not in {each.name for each in self._offer.volumes}:
                raise ProtocolError(f"cannot take volume `{volume}`: it was not offered")
            folder = (
                self._runtime.volumes.path(self._runtime.store.get_volume(self._record.tenant, volume))
                if volume
                else self._runtime.folders.upper(self._record.id)
            )
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._trees[volume] = FileTarget(descriptor)
            finally:
                os.close(descriptor)
        return self._trees[volume]

    def close(self) -> None:
        """Let go of the folders, and of a CRIU that waits in vain."""
        self._engines.close()
        self._shared.close()
        for each in self._trees.values():
            each.close()

    def _receive_images(self, message: Files) -> None:
        # They lie in memory, and as many as CRIU likes were never offered: there must be room for them now.
        needed = sum(size for _name, size in message.files) + SPARE_BYTES
        check_memory(self._record.name, needed=needed, available=available_memory())
        receive_images(
            message,
            self._wire.receive_stream(),
            self._images,
            is_inventory_kept=self._engine is not None,
        )
        self._memory.expect(self._images, (name for name, _size in message.files))

    def _restore(self) -> None:
        if self._plan is None:
            raise ProtocolError("cannot restore: it was not told to prepare")
        pid = self._restore_or_find(self._plan)
        fault(Point.TARGET_RESTORED)
        if pid:
            until_done(self._runtime.closing, lambda: self._write_running(pid), what="write that it runs")
        fault(Point.TARGET_RESUMED)
        with contextlib.suppress(InsulaError, OSError):  # the source can find out by itself
            span.enter_phase(Phase.CLEANUP)
            self._wire.send(Resumed())
            self._take_frames()
            self._wire.expect(Logs)
            import_logs(self._runtime, self._record, self._wire.receive_stream())
            span.end()  # before the source can know, and end its own
            self._wire.send(Answer())

    def _restore_or_find(self, plan: StartPlan) -> int:
        try:
            with self._heart:
                span.enter_phase(Phase.RESTORE)
                fault(Point.TARGET_RESTORE)
                return self._restore_beating(plan)
        except (InsulaError, OSError) as error:
            if not self._has_run:
                # Also if it is ours already: nothing of it ran, the source, which stands frozen, takes it back.
                raise
            return self._find_running(error)

    def _restore_beating(self, plan: StartPlan) -> int:
        return dump.restore(
            self._runtime,
            self._record,
            plan,
            images=self._images,
            engine=self._engine,
            stages=dump.RestoreStages(
                waiting=self._heart.check,
                restored=self._hold_until_commit,
                unlock=self._note_that_it_runs,
                resume=self._announce,
                running=self._take_frames,
            ),
            memory=lazy.Memory(
                store=self._memory.descriptor,
                slots=self._memory.slots,
                bring=self._begin_pull if self._offer.is_later else None,
            ),
        )

    def _begin_pull(self) -> None:
        begin_pull(
            self._runtime,
            self._record,
            source=self._record.owner,
            generation=self._record.generation + 1,
            peers=self._peers,
        )

    def _hold_until_commit(self) -> None:
        fault(Point.TARGET_HELD)
        self._heart.stop()
        span.enter_phase(Phase.COMMIT)
        with contextlib.suppress(MigrationFailed):  # lost: it may have committed, and is asked
            self._wire.send(Held())
        generation = self._wait_for_commit()
        span.enter_phase(Phase.RESUME)
        self._take_over(generation)

    def _announce(self, pid: int) -> None:
        if self._record.attachment is not None:
            announce_arrival(self._record.attachment, pid, closing=self._runtime.closing)

    def _write_running(self, pid: int) -> None:
        running = after(Status.RESTORING, Event.RESTORED)
        with self._runtime.store.transaction():
            self._runtime.store.change_container(
                self._record.id, lambda now: replace(now, status=running, pid=pid, ports=self._record.ports)
            )
            self._runtime.store.delete_journal(ARRIVING + self._record.id)

    def _find_running(self, error: Exception) -> int:
        """It may have run and been heard, so it is ours, whatever CRIU says.  Returns: its pid, 0 if it has ended."""
        fields = {"container": self._record.id[:12], "reason": str(error)}
        LOG.error("a restore failed at its very end", extra={"fields": fields})
        try:
            return self._runtime.spawner.adopt(self._record.id, 0)
        except InsulaError:
            self._write_end()
            return 0

    def _write_end(self) -> None:
        runtime, now = self._runtime, replace(self._record, owner=self._runtime.host_name)
        until_done(runtime.closing, lambda: end_lost_arrival(runtime, now), what="write its end down")

    def _take_frames(self) -> None:
        """Give the container what neighbours sent to it while it was on its way; they would send again, but later."""
        try:
            self._wire.expect(Frames)
            data = self._wire.receive_bytes(limit=LIMIT_BYTES)
            if self._record.attachment is not None:
                replay(unpack(data), self._record.attachment.interface)
        except (InsulaError, OSError, ValueError) as error:
            LOG.warning("frames are lost", extra={"fields": {"reason": str(error)}})

    def _wait_for_commit(self) -> int:
        """Wait for the source's word.  While it is missing everything is held, and the source asked."""
        try:
            return self._wire.expect(Commit).generation
        except MigrationFailed as error:
            LOG.warning("lost the source while holding", extra={"fields": {"reason": str(error)}})
            return learn_commit(self._runtime, self._record, peers=self._peers)

    def _take_over(self, generation: int) -> None:
        """Write down that this host owns it.  Until it may run it can still be lost, and given back."""
        store = self._runtime.store
        with store.transaction():
            store.change_container(
                self._record.id,
                lambda now: replace(
                    now, owner=self._runtime.host_name, generation=generation, started_at=time.time()
                ),
            )
            store.write_journal(TAKEN + self._record.id, b"%d %s" % (generation, self._record.owner.encode()))
            store.write_journal(ARRIVING + self._record.id, b"")
        fault(Point.TARGET_COMMITTED)

    def _note_that_it_runs(self) -> None:
        """Write down, on disk, that it may have run here: from now on nothing is undone, and nobody else runs it.

        One synchronisation for both: without it the power's loss takes the owner with it, and the source takes it back.
        """
        with self._runtime.store.transaction(durable=True):
            self._runtime.store.write_journal(ARRIVING + self._record.id, RAN)
        self._has_run = True
        self._undo.pop_all()
