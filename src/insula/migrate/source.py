# SPDX-License-Identifier: Apache-2.0
"""The source's side of a migration: the phases of `model/migration.py`, read from top to bottom.

CRIU waits at `post-dump` while everything else is sent and the target restores: until the commit, the processes stand
here, whole, and run on if anything fails.  Meanwhile their cgroup is frozen, too, so that not even the death of
insulad or CRIU can wake them while it is open who owns them.
"""

import logging
import os
import time
from contextlib import ExitStack
from typing import Protocol

from msgspec.structs import replace

from insula.image.pack import pack_tree
from insula.image.tarball import Form
from insula.migrate import settle
from insula.migrate.fault import Point, fault
from insula.migrate.pages import PageSender
from insula.migrate.preflight import describe
from insula.migrate.wire import Peers, Wire
from insula.model.errors import InsulaError, MigrationFailed
from insula.model.grant import Grant
from insula.model.lifecycle import Event, Status, after
from insula.model.migration import (
    Accept,
    Commit,
    File,
    Held,
    Layer,
    Offer,
    Phase,
    Restore,
    Resumed,
    Tree,
)
from insula.model.record import ContainerRecord
from insula.model.spec import MigrateWish
from insula.runtime import dump
from insula.runtime.context import Runtime
from insula.runtime.delete import remove_moved
from insula.runtime.plan import StartPlan, start_plan

LOG = logging.getLogger(__name__)

Result = dict[str, str | int | float | bool]
_PIECE = 1 << 20


class Reporter(Protocol):
    """How a long action tells how far it is."""

    def check(self) -> None: ...
    def phase(self, name: str) -> None: ...
    def progress(self, done: int, total: int, *, unit: str = "bytes") -> None: ...
    def message(self, text: str) -> None: ...
    def forbid_cancel(self) -> None: ...


def migrate(
    grant: Grant, runtime: Runtime, ref: str, *, wish: MigrateWish, peers: Peers, reporter: Reporter
) -> Result:
    """Move a running container to a paired host.

    Raises: WrongState, HostNotFound, TargetUnreachable, TargetFull, IncompatibleCpu, CheckpointFailed, RestoreFailed,
    MigrationFailed: in every case it runs on here.
    """
    found = runtime.find(grant, ref)
    host = peers.find(wish.target)
    with runtime.locked(found.id):
        record = runtime.store.get_container(found.id)
        status = after(record.status, Event.MIGRATE, name=record.name)
        if record.spec.tty:
            LOG.info("moving a terminal", extra={"fields": {"container": record.id[:12]}})
        reporter.phase(Phase.PREFLIGHT)
        offer = describe(runtime, record)
        wire = Wire(peers.open(host))
        try:
            runtime.store.update_container(replace(record, status=status))
            move = Move(runtime, record, wire=wire, target=host.name, reporter=reporter, peers=peers)
            move.run(offer)
        finally:
            wire.close()
        remove_moved(runtime, record)
    return {
        "target": host.name,
        "frozen_ms": move.frozen_ms,
        "moved_bytes": wire.sent_bytes,
        "memory_bytes": move.memory_bytes,
        "seconds": round(time.monotonic() - move.began, 3),
        **move.watch.results(),
    }


class Move:
    """One migration on its way."""

    def __init__(
        self,
        runtime: Runtime,
        record: ContainerRecord,
        *,
        wire: Wire,
        target: str,
        reporter: Reporter,
        peers: Peers,
    ) -> None:
        self._runtime = runtime
        self._record = record
        self._wire = wire
        self._target = target
        self._reporter = reporter
        self._peers = peers
        self._committed = False
        self._confirmed = False
        self._frozen_at = 0.0
        self.began = time.monotonic()
        self.watch = dump.Stopwatch()
        self.frozen_ms = 0.0
        self.memory_bytes = 0

    def run(self, offer: Offer) -> None:
        """Go through the phases.  On failure before the commit the source runs on."""
        try:
            accepted = self._reserve(offer)
            self._precopy(accepted)
            self._freeze_and_send(offer)
        except BaseException:
            if not self._committed:
                settle.thaw(self._runtime, self._record.id)
            raise

    def _enter(self, phase: Phase, *, after_phase: Phase) -> None:
        self.watch.lap(after_phase.value)
        self._reporter.phase(phase)

    def _reserve(self, offer: Offer) -> Accept:
        self._enter(Phase.RESERVE, after_phase=Phase.PREFLIGHT)
        self._wire.send(offer)
        accepted = self._wire.expect(Accept)
        fault(Point.SOURCE_ACCEPTED)
        return accepted

    def _precopy(self, accepted: Accept) -> None:
        self._enter(Phase.PRECOPY, after_phase=Phase.RESERVE)
        for digest in accepted.missing_layers:
            self._reporter.check()
            self._wire.send(Layer(digest=digest))
            self._wire.send_stream(self._runtime.images.layers.pack(digest))
        self._reporter.check()

    def _freeze_and_send(self, offer: Offer) -> None:
        self._enter(Phase.FREEZE, after_phase=Phase.PRECOPY)
        plan = start_plan(self._runtime, self._record)
        with ExitStack() as held:
            images = held.enter_context(dump.memory_folder())
            pages = PageSender(
                self._wire, on_progress=lambda done: self._reporter.progress(done, offer.memory_bytes)
            )
            held.callback(pages.stop)
            pages.start()
            self._dump(plan, images=images, pages=pages, offer=offer)
        self._enter(Phase.CLEANUP, after_phase=Phase.RESUME)

    def _dump(self, plan: StartPlan, *, images: int, pages: PageSender, offer: Offer) -> None:
        def frozen() -> None:
            self._frozen_at = time.monotonic()
            fault(Point.SOURCE_FROZEN)

        def dumped() -> None:
            pages.theirs.close()
            pages.join()
            if pages.failure is not None:
                raise pages.failure
            self.memory_bytes = pages.page_bytes
            # From here on not even a dying CRIU wakes them: it is for the owner to decide.
            self._runtime.group(self._record.id).freeze()
            fault(Point.SOURCE_DUMPED)
            self._transfer(images, offer)
            self._commit()

        try:
            dump.dump(
                self._runtime,
                self._record,
                plan,
                images=images,
                leave_running=False,
                on_frozen=frozen,
                on_dumped=dumped,
                page_socket=pages.theirs.fileno(),
            )
        except InsulaError:
            if self._confirmed:  # only the killing of the frozen source can have failed
                LOG.warning(
                    "CRIU failed after the commit", extra={"fields": {"container": self._record.id[:12]}}
                )
                return
            if pages.failure is not None:
                raise pages.failure from None
            raise

    def _transfer(self, images: int, offer: Offer) -> None:
        self._enter(Phase.TRANSFER, after_phase=Phase.FREEZE)
        self._send_tree(self._runtime.folders.upper(self._record.id), name="")
        for volume in offer.volumes:
            self._send_tree(self._runtime.volumes.path(volume), name=volume.name)
        for name in sorted(os.listdir(images)):
            if name != dump.DUMP_LOG:
                self._wire.send(File(name=name))
                self._wire.send_stream(_pieces(images, name))

    def _send_tree(self, folder: os.PathLike[str], *, name: str) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._wire.send(Tree(volume=name))
            self._wire.send_stream(pack_tree(descriptor, form=Form.UPPER))
        finally:
            os.close(descriptor)

    def _commit(self) -> None:
        """The point of no return: a durable compare-and-set of the owner."""
        self._enter(Phase.RESTORE, after_phase=Phase.TRANSFER)
        self._wire.send(Restore())
        self._wire.expect(Held)
        fault(Point.SOURCE_HELD)
        self._enter(Phase.COMMIT, after_phase=Phase.RESTORE)
        self._reporter.check()
        self._reporter.forbid_cancel()
        generation = self._record.generation
        if not self._runtime.store.commit_owner(self._record.id, generation, new_owner=self._target):
            raise MigrationFailed(
                f"cannot commit the move of `{self._record.name}`: its owner has changed meanwhile"
            )
        self._committed = True
        fault(Point.SOURCE_COMMITTED)
        moved = self._runtime.store.change_container(
            self._record.id, lambda now: replace(now, status=Status.MOVED)
        )
        self._enter(Phase.RESUME, after_phase=Phase.COMMIT)
        try:
            self._wire.send(Commit(generation=generation + 1))
            self._wire.expect(Resumed)
        except InsulaError as error:
            self._ask_the_target(moved, reason=str(error))
        self._confirmed = True
        fault(Point.SOURCE_RESUMED)
        self.frozen_ms = round((time.monotonic() - self._frozen_at) * 1000, 1)

    def _ask_the_target(self, moved: ContainerRecord, *, reason: str) -> None:
        """The target's word is missing: it has taken over, or it never will, and here it stays frozen until we know."""

        def say(why: str) -> None:
            self._reporter.message(f"frozen until `{self._target}` answers: {why}")

        LOG.warning("the target did not confirm", extra={"fields": {"reason": reason}})
        if not settle.confirm_or_take_back(self._runtime, moved, peers=self._peers, on_silence=say):
            self._committed = False
            raise MigrationFailed(
                f"cannot move `{moved.name}`: host `{self._target}` lost it and has none of it left; it runs here"
            )


def _pieces(folder: int, name: str):  # type: ignore[no-untyped-def]
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        while piece := file.read(_PIECE):
            yield piece
