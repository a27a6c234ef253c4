# SPDX-License-Identifier: Apache-2.0
"""The source's side of a migration: the phases of `model/migration.py`, read from top to bottom.

Memory and files travel in rounds while the program runs (`precopy.py`).  Then CRIU stops it and dumps everything but memory,
while the last written pages are sent, and waits at `post-dump` until the target has restored: up to the commit, the
processes stand here, whole, and run on if anything fails.  Meanwhile their cgroup is frozen, too, so that not even the
death of insulad or CRIU can wake them while it is open who owns them.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol

from msgspec.structs import replace

from insula.kernel.hold import Hold, pack, replay
from insula.kernel.pagemap import Range
from insula.migrate import settle
from insula.migrate.absent import complete_images, list_hidden
from insula.migrate.beside import Beside
from insula.migrate.fault import Point
from insula.migrate.heartbeat import Pages, await_held, held_within_s
from insula.migrate.images import send_images
from insula.migrate.lend import check_can_pull
from insula.migrate.modes import open_tracker, rules_of
from insula.migrate.packed import PackedSource
from insula.migrate.plan import Load, plan_move
from insula.migrate.precopy import Brake, Precopy
from insula.migrate.preflight import describe
from insula.migrate.relays import note_relay
from insula.migrate.shared import SharedSource
from insula.migrate.stopwatch import Stopwatch
from insula.migrate.trees import open_trees
from insula.migrate.wire import ZSTD, Peers, Wire
from insula.model import span
from insula.model.errors import (
    Cancelled,
    CheckpointBusy,
    InsulaError,
    MigrationFailed,
    ProtocolError,
)
from insula.model.grant import Grant
from insula.model.lifecycle import Event, Status, after
from insula.model.migration import (
    Accept,
    Answer,
    Commit,
    Ended,
    Frames,
    Layer,
    Logs,
    Offer,
    Phase,
    Prepare,
    Refuse,
    Resumed,
)
from insula.model.record import ContainerRecord, HostRecord
from insula.model.spec import MigrateWish, Mode
from insula.model.units import format_size
from insula.runtime import callers, dump
from insula.runtime.context import Runtime
from insula.runtime.fault import fault
from insula.runtime.hidden import HiddenMemory
from insula.runtime.leavers import Leavers
from insula.runtime.logs import export_logs
from insula.runtime.plan import StartPlan, cpu_limits, start_plan
from insula.runtime.undo import attempt

LOG = logging.getLogger(__name__)

Result = dict[str, str | int | float | bool]
FREEZES = 5
"""Tries, if CRIU meets what passes by itself; each is a pause, shorter than the one that succeeds."""


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
    """Move a running container to a paired host; or say what that would be like.

    Raises: WrongState, HostNotFound, TargetUnreachable, TargetFull, IncompatibleCpu, CheckpointFailed, RestoreFailed,
    PauseTooLong, MigrationFailed: in every case it runs on here.
    """
    found = runtime.find(grant, ref)
    host = peers.find(wish.target)
    with runtime.locked(found.id), ExitStack() as held:
        record = runtime.store.get_container(found.id)
        status = after(record.status, Event.MIGRATE, name=record.name)
        span.note({**span.about(record), "insula.target": host.name, "insula.mode": wish.mode.value})
        reporter.phase(Phase.PREFLIGHT)
        offer = replace(
            describe(runtime, record),
            is_later=wish.mode is Mode.POST_COPY,
            traceparent=span.traceparent(),
        )
        wire = held.enter_context(_connected(peers, host))
        group = runtime.group(record)
        tracker = open_tracker(runtime, record, mode=wish.mode)
        held.callback(tracker.close)
        rules = rules_of(wish, record, tracker=tracker, processes=len(group.pids()))
        shared, packed = SharedSource(group.pids), PackedSource(record.pid)
        held.callback(shared.close)
        if wish.plan:
            load = Load(tracker=tracker, shared=shared, packed=packed, rules=rules)
            seen = plan_move(runtime, offer, wire=wire, load=load)
            _turn_back(wire)
            return {
                **seen,
                "target": host.name,
                "mode": wish.mode.value,
            }
        brake = Brake(group, limits=cpu_limits(record.spec))
        held.callback(brake.release)
        trees = open_trees(runtime, record, offer.volumes, held=held)
        precopy = Precopy(
            wire,
            tracker=tracker,
            trees=(packed, shared, *trees),
            brake=brake,
            rules=rules,
            reporter=reporter,
        )
        move = Move(
            runtime,
            record,
            wire=wire,
            target=host.name,
            reporter=reporter,
            peers=peers,
            precopy=precopy,
            shared=shared,
        )
        runtime.store.update_container(replace(record, status=status))
        move.run_and_end(offer, in_rounds=wish.mode is not Mode.STOP_COPY and tracker.kind != "none")
    return {"tracker": tracker.kind, **move.result()}


@contextmanager
def _connected(peers: Peers, host: HostRecord) -> Iterator[Wire]:
    """Open a connection to a paired host; if the move fails the target is told."""
    wire = Wire(peers.open(host))
    try:
        yield wire
    except BaseException:
        _turn_back(wire)
        raise
    finally:
        wire.close()


def _turn_back(wire: Wire) -> None:
    """Tell the target that nothing will come, and wait until it has undone its part."""
    with suppress(InsulaError):
        wire.send(Refuse(code=Cancelled.code, message="the source goes no further"))
        wire.drain()


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
        precopy: Precopy,
        shared: SharedSource,
    ) -> None:
        self._runtime = runtime
        self._record = record
        self._wire = wire
        self._target = target
        self._reporter = reporter
        self._peers = peers
        self._precopy = precopy
        self._shared = shared
        self._hold: Hold | None = None
        self._kept: list[bytes] = []
        self._sent_images: tuple[str, ...] = ()
        self._turn = ExitStack()
        self.is_committed = False
        self._confirmed = False
        self._is_later = False
        self._frozen_at = 0.0
        self.began = time.monotonic()
        self.watch = Stopwatch()
        self.frozen_ms = 0.0

    def result(self) -> Result:
        """Return what it cost."""
        return {
            "target": self._target,
            "rounds": len(self._precopy.rounds),
            "frozen_ms": self.frozen_ms,
            "moved_bytes": self._wire.sent_bytes,
            "raw_bytes": self._wire.raw_bytes,
            "memory_bytes": self._precopy.memory_bytes,
            "shared_bytes": self._shared.spared_bytes,
            "seconds": round(time.monotonic() - self.began, 3),
            **self.watch.results(),
        }

    def run_and_end(self, offer: Offer, *, in_rounds: bool) -> None:
        """Move it, and remove what is left of it here; after the commit that is done however often it takes."""
        try:
            self.run(offer, in_rounds=in_rounds)
            settle.remove_lost(self._runtime, self._record)
        except BaseException:
            if self.is_committed:
                settle.settle_later(self._runtime, self._record.id, peers=self._peers)
            raise
        with suppress(InsulaError):  # it will ask
            self._wire.send(Ended())

    def run(self, offer: Offer, *, in_rounds: bool) -> None:
        """Go through the phases.  On failure before the commit the source runs on."""
        self._is_later = offer.is_later
        try:
            accepted = self._reserve(offer)
            self._send_ahead(accepted, in_rounds=in_rounds)
            with self._turn:
                if self._turn.enter_context(self._runtime.turns.take()) and in_rounds:
                    self._precopy.run()  # what was written meanwhile
                self._have_room_made(accepted)
                self._freeze_and_send()
        except BaseException:
            if not self.is_committed:
                settle.thaw(self._runtime, self._record.id)
                self._give_back_frames()
            raise

    def _give_back_frames(self) -> None:
        """It runs on here: give it what neighbours sent meanwhile."""
        if self._kept and self._record.attachment is not None:
            with suppress(OSError):  # they will send again
                replay(self._kept, self._record.attachment.interface)

    def _enter(self, phase: Phase, *, after_phase: Phase) -> None:
        self.watch.lap(after_phase.value)
        self._reporter.phase(phase)
        self._runtime.on_phase(self._record.id, phase, self._target)

    def _reserve(self, offer: Offer) -> Accept:
        self._enter(Phase.RESERVE, after_phase=Phase.PREFLIGHT)
        self._wire.send(offer)
        accepted = self._wire.expect(Accept)
        check_can_pull(offer, accepted)
        if ZSTD in accepted.unpacks:
            self._wire.compress()
        fault(Point.SOURCE_ACCEPTED)
        if not set(accepted.missing_layers) <= {each.digest for each in offer.image.layers}:
            raise ProtocolError("cannot send layers: the other host asks for what is not of this image")
        return accepted

    def _send_ahead(self, accepted: Accept, *, in_rounds: bool) -> None:
        self._enter(Phase.PRECOPY, after_phase=Phase.RESERVE)
        for digest in accepted.missing_layers:
            self._reporter.check()
            self._wire.send(Layer(digest=digest))
            self._wire.send_stream(self._runtime.images.layers.pack(digest))
        if in_rounds:
            self._precopy.run()
        else:
            self._precopy.check_whole()
        fault(Point.SOURCE_ROUND)

    def _have_room_made(self, accepted: Accept) -> None:
        settle.note_leaving(self._runtime, self._record, target=self._target)
        target = self._peers.find(self._target)
        note_relay(self._runtime, self._record, target=target, ports=accepted.ports)
        self._wire.send(Prepare(stdio=dump.stdio_of(self._record.pid)))
        self._wire.expect(Answer)
        self._reporter.check()

    def _freeze_and_send(self) -> None:
        """Freeze it and send the rest; again, if CRIU met what passes by itself: until then nothing has changed anywhere."""
        self._enter(Phase.FREEZE, after_phase=Phase.PRECOPY)
        plan = start_plan(self._runtime, self._record)
        for tried in range(FREEZES):
            try:
                self._freeze_once(plan, is_again=tried > 0)
                break
            except CheckpointBusy as error:
                if tried == FREEZES - 1:
                    raise
                self._give_back_frames()
                self._reporter.message(f"frozen in vain, again: {error.message}")
                self._reporter.check()
        self._enter(Phase.CLEANUP, after_phase=Phase.PULL if self._is_later else Phase.RESUME)

    def _freeze_once(self, plan: StartPlan, *, is_again: bool) -> None:
        self._hold = hold = _hold_for(self._record)
        leavers = Leavers(self._runtime, self._record)
        with ExitStack() as held:
            if hold is not None:
                held.callback(hold.stop)
            held.enter_context(callers.taken_in(self._runtime, self._record, hold=hold, is_again=is_again))
            leavers.see_off()
            images = held.enter_context(dump.memory_folder())
            self._hold_all()
            try:
                self._dump(plan, images=images, leavers=leavers)
            finally:
                self._kept = hold.frames() if hold is not None else []

    def _hold_all(self) -> None:
        """Keep what comes for the container from now on; a move goes on without."""
        try:
            if self._hold is not None:
                self._hold.start()
        except OSError as error:
            LOG.warning("packets are not held", extra={"fields": {"reason": str(error)}})

    def _dump(self, plan: StartPlan, *, images: int, leavers: Leavers) -> None:
        hidden = HiddenMemory(self._runtime.group(self._record).pids())
        rest, told = Beside(lambda: self._finish(images, hidden)), Beside(hidden.check)

        def stopped() -> None:
            self._frozen_at = time.monotonic()
            leavers.see_off_last(seconds=self._precopy.rules.max_pause_s / 4)

        def frozen() -> None:
            hidden.show()
            fault(Point.SOURCE_FROZEN)
            self._shared.stand()
            rest.start()

        def dumped() -> None:
            self.watch.lap("dump")
            rest.result()
            # From here on not even a dying CRIU wakes them: it is for the owner to decide.
            self._runtime.group(self._record).freeze()
            complete_images(images, self._precopy.last, seen=hidden.seen)
            fault(Point.SOURCE_DUMPED)
            told.start()
            self._transfer(images)
            self._commit(told)

        try:
            with hidden:
                dump.dump(
                    self._runtime,
                    self._record,
                    plan,
                    images=images,
                    leave_running=False,
                    stages=dump.DumpStages(stopped=stopped, frozen=frozen, dumped=dumped),
                    is_lazy=True,
                    page_maps=hidden.descriptor,
                )
        except InsulaError as error:
            if not self._confirmed:
                hidden.blame(error)
                if isinstance(
                    error, CheckpointBusy
                ):  # it runs, and is heard while the last pages are still sent
                    attempt(dump.release_network, self._record)
                raise
            # Only the killing of the frozen source can have failed.
            LOG.warning("CRIU failed after the commit", extra={"fields": {"container": self._record.id[:12]}})
        finally:
            rest.join()
            told.join()

    def _finish(self, images: int, hidden: HiddenMemory) -> None:
        """Send what is left, beside CRIU's dump."""
        self._precopy.finish()
        last, earlier = self._precopy.last, self._sent_images
        self._sent_images = list_hidden(images, last, seen=hidden.seen, earlier=earlier)
        send_images(self._wire, images, self._sent_images)

    def _transfer(self, images: int) -> None:
        self._enter(Phase.TRANSFER, after_phase=Phase.FREEZE)
        held = self._shared.held_images(images)
        done = {*held, *self._sent_images, dump.DUMP_LOG}
        send_images(self._wire, images, sorted(set(os.listdir(images)) - done))
        for area in held.values():
            self._shared.send_image(self._wire, area=area)

    def _commit(self, told: Beside) -> None:
        """The point of no return: a durable compare-and-set of the owner.  told: whether CRIU saw what is."""
        self._enter(Phase.RESTORE, after_phase=Phase.TRANSFER)
        await_held(
            self._wire,
            within_s=held_within_s(self._precopy.rules.max_pause_s),
            on_missing=self._send_missing,
            check=self._reporter.check,
        )
        told.result()
        fault(Point.SOURCE_HELD)
        self._enter(Phase.COMMIT, after_phase=Phase.RESTORE)
        self._reporter.check()
        self._reporter.forbid_cancel()
        generation = self._record.generation
        if not self._runtime.store.commit_owner(self._record.id, generation, new_owner=self._target):
            raise MigrationFailed(
                f"cannot commit the move of `{self._record.name}`: its owner has changed meanwhile"
            )
        self.is_committed = True
        fault(Point.SOURCE_COMMITTED)
        moved = replace(self._record, owner=self._target, generation=generation + 1, status=Status.MOVED)
        attempt(self._write_moved)
        self._enter(Phase.RESUME, after_phase=Phase.COMMIT)
        try:
            self._wire.send(Commit(generation=generation + 1))
            self._send_frames()
            self._wire.expect(Resumed)
        except InsulaError as error:
            LOG.warning("the target did not confirm", extra={"fields": {"reason": str(error)}})
            self._ask_the_target(moved)
        self._confirmed = not self._is_later
        self.frozen_ms = round((time.monotonic() - self._frozen_at) * 1000, 1)
        self._turn.close()
        fault(Point.SOURCE_RESUMED)
        with suppress(InsulaError, OSError):  # it runs there, whatever becomes of these
            self._send_frames()
            self._wire.send(Logs())
            self._wire.send_stream(export_logs(self._runtime, self._record))
            self._wire.expect(Answer)
        if self._is_later:
            self._enter(Phase.PULL, after_phase=Phase.RESUME)
            if self._hold is not None:
                self._hold.stop()
            self._ask_the_target(moved)
            self._confirmed = True

    def _write_moved(self) -> None:
        self._runtime.store.change_container(self._record.id, lambda now: replace(now, status=Status.MOVED))

    def _send_frames(self) -> None:
        """Send what neighbours said to the container meanwhile."""
        self._wire.send(Frames())
        self._wire.send_stream((pack(self._hold.frames()),) if self._hold is not None else ())

    def _send_missing(self, pages: Pages) -> None:
        """Send what CRIU wants there and no round has brought."""
        self._precopy.send_missing(
            {pid: tuple(Range(*each) for each in ranges) for pid, ranges in pages.items()}
        )

    def _ask_the_target(self, moved: ContainerRecord) -> None:
        """It has taken over, or it never will, and here it stays frozen until we know, and until it has all memory."""
        total = 0

        def say(why: str) -> None:
            self._reporter.message(f"frozen until `{self._target}` answers: {why}")

        def tell(missing: int) -> None:
            nonlocal total
            total = max(total, missing)
            self._reporter.progress(total - missing, total)
            self._reporter.message(f"runs on `{self._target}`; {format_size(missing)} of its memory are here")

        if not settle.confirm_or_take_back(
            self._runtime, moved, peers=self._peers, on_silence=say, on_missing=tell
        ):
            self.is_committed = False
            raise MigrationFailed(
                f"cannot move `{moved.name}`: host `{self._target}` lost it and has none of it left; it runs here"
            )


def _hold_for(record: ContainerRecord) -> Hold | None:
    """Return what can keep frames for the container."""
    if record.attachment is None:
        return None
    place = record.attachment
    return Hold(place.bridge, mac=place.mac, address=place.address, address6=place.address6)
