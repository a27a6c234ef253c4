# SPDX-License-Identifier: Apache-2.0
"""Containers that are held to a profile, watched for what it lacks: told as `profile_drift`, counted, given to rules.

From a start on, or an arrival, or insulad's own start.  What the programs in the kernel are asked for is little: of files
what changes them, of the network what goes out, of system calls the first of each that the profile lacks.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from msgspec.structs import replace

from insula.daemon.following import Following
from insula.daemon.sight import Sight
from insula.daemon.watching import Watching
from insula.kernel import seccomp_policy, syscalls
from insula.kernel.covered_calls import allowed_by
from insula.model.change import Change, drift_of
from insula.model.errors import WrongState
from insula.model.grant import Grant, scope
from insula.model.lifecycle import ALIVE
from insula.model.monitor import Event, EventKind, Lost, TraceLine, TraceWish
from insula.model.profile import ContainerDrifts, Drifts
from insula.model.record import ContainerRecord
from insula.model.spec import AppliedProfile, Enforce, MountKind
from insula.monitor.collect import Collector
from insula.monitor.drift import CALLS, Judge, Ledger, told
from insula.monitor.subscription import Scope, Subject
from insula.monitor.usage import Home
from insula.runtime.context import Runtime
from insula.runtime.plan import capabilities_of

LOG = logging.getLogger(__name__)

_WISH = TraceWish(
    kinds=(EventKind.DRIFT, EventKind.EXEC, EventKind.CAPABILITY, EventKind.FILE, EventKind.NETWORK)
)


class DriftDesk:
    """What was found of whom since its last start."""

    def __init__(
        self,
        runtime: Runtime,
        collector: Collector,
        watching: Watching,
        *,
        sight: Sight,
        announce: Callable[[Change], None],
    ) -> None:
        self._runtime = runtime
        self._collector = collector
        self._sight = sight
        self._announce = announce
        self._lock = threading.Lock()
        self._ledgers: dict[str, Ledger] = {}
        self._subjects: dict[str, Subject] = {}
        """Whose ledgers they are: the last run of each container."""
        self._following = Following(
            runtime, collector, watching, wish_of=_wish_of, take=self._take, name="drift",
            scope=Scope.CHANGES, beside=self._knowing,
        )  # fmt: skip

    def before_start(self, record: ContainerRecord) -> None:
        """Take up a container of which nothing runs yet."""
        self._following.before_start(record)

    def close(self) -> None:
        """Watch no more."""
        self._following.close()

    def note(self, container_id: str, record: ContainerRecord | None) -> None:
        """Take a change of a container."""
        self._following.note(container_id, record)
        if record is None:
            with self._lock:
                self._ledgers.pop(container_id, None)
                self._subjects.pop(container_id, None)

    def _knowing(self, record: ContainerRecord, subject: Subject) -> AbstractContextManager[None]:
        """Begin a run of a container: what was found of the one before is old."""
        with self._lock:
            self._ledgers[record.id] = Ledger()
            self._subjects[record.id] = subject
        return self._collector.knowing(subject, known_calls(record.profile))

    def _take(self, record: ContainerRecord, lines: Iterable[TraceLine]) -> None:
        if record.profile is None:
            return
        judge = _judge_of(record, record.profile)
        is_any_lost = False
        for line in lines:
            match line:
                case Lost():
                    is_any_lost = True
                    self._take_loss(record, line)
                case Event():
                    self._take_event(record, judge, event=line)
                case _:
                    pass
        if is_any_lost:
            self._take_counts(record)

    def _take_loss(self, record: ContainerRecord, lost: Lost) -> None:
        with self._lock:
            self._ledgers.setdefault(record.id, Ledger()).lost_events += lost.events
        fields = {"container": record.id[:12], "events": lost.events}
        LOG.warning("drift was not looked for in lost events", extra={"fields": fields})

    def _take_event(self, record: ContainerRecord, judge: Judge, *, event: Event) -> None:
        for found in judge.judge(event):
            with self._lock:
                ledger = self._ledgers.setdefault(record.id, Ledger())
                telling = ledger.add(found, event)
            if not telling.is_told:
                continue
            seen = told(event, found, count=telling.times)
            if found.part != CALLS:  # these the kernel has told by itself
                self._collector.tell(record.id, seen)
            if telling.is_announced:
                self._announce_drift(record, seen)

    def _take_counts(self, record: ContainerRecord) -> None:
        """Take in the system calls that the kernel counted: where events were lost the first of one may be among them."""
        with self._lock:
            subject = self._subjects.get(record.id)
        counts = self._collector.strange(subject) if subject is not None else {}
        is_refused = record.profile is not None and record.profile.enforce is Enforce.DENY
        with self._lock:
            ledger = self._ledgers.get(record.id, Ledger())
            if not ledger.lost_events:  # what is not known yet is on its way
                counts = {call: count for call, count in counts.items() if ledger.knows_call(call)}
            new = ledger.count_calls(counts, is_refused=is_refused)
        for found, telling in new:
            event = Event(
                at=time.time(), container=record.id, name=record.name, kind=EventKind.DRIFT, call=found.thing
            )
            seen = told(event, found, count=telling.times)
            self._collector.tell(record.id, seen)
            if telling.is_announced:
                self._announce_drift(record, seen)

    def _announce_drift(self, record: ContainerRecord, seen: Event) -> None:
        profile = record.profile.name if record.profile else ""
        self._announce(drift_of(record, profile=profile, seen=seen))

    def drifts(self, grant: Grant, ref: str) -> Drifts:
        """Return what a container has done since its last start that its profile lacks.

        Raises: ContainerNotFound; WrongState if it is held to none.
        """
        record = self._runtime.find(grant, ref)
        if record.profile is None:
            raise WrongState(
                f"`{record.name}` is held to no profile since its last start",
                hint=f"insula profile apply PROFILE {record.name}; it counts from the next start on",
            )
        hidden = self._sight.of_reader(grant.principal, record.tenant)
        found = self._of(record)
        return replace(found, drifts=tuple(map(hidden.drift, found.drifts)))

    def counts(self, grant: Grant) -> list[ContainerDrifts]:
        """Return how often what kind of it was found of the caller's containers that run."""
        return [
            ContainerDrifts.of(record.id, record.name, self._of(record).drifts)
            for record in self._runtime.store.list_containers(scope(grant))
            if record.profile is not None and record.status in ALIVE
        ]

    def _of(self, record: ContainerRecord) -> Drifts:
        self._take_counts(record)
        with self._lock:
            return self._ledgers.get(record.id, Ledger()).report()


def _wish_of(record: ContainerRecord) -> TraceWish | None:
    return None if record.profile is None else _WISH


def known_calls(profile: AppliedProfile | None) -> frozenset[str]:
    """Return the system calls that are no drift; without any in the profile it says nothing of them."""
    if profile is None or not profile.calls:
        return syscalls.names()
    allowed = allowed_by(profile.calls, refused=profile.refused_calls)
    return allowed | seccomp_policy.ALWAYS_NEEDED | frozenset(profile.refused_calls)


def home_of(record: ContainerRecord) -> Home:
    """Return where a container stands in its network."""
    place = record.attachment
    if place is None:
        return Home()
    return Home(
        own=frozenset(filter(None, (place.address, place.address6))),
        gateways=frozenset(filter(None, (place.gateway, place.gateway6))),
    )


def _judge_of(record: ContainerRecord, profile: AppliedProfile) -> Judge:
    free = tuple(each.target for each in record.spec.mounts if each.kind is MountKind.TMPFS)
    held = frozenset(capabilities_of(record.spec))
    return Judge(profile, home=home_of(record), capabilities=held, free=free)
