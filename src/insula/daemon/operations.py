# SPDX-License-Identifier: Apache-2.0
"""Long actions: run in a thread each, told about, followed, cancelled, remembered.

A running operation's progress lives in memory; its start, its phases and its end are in the store, so that after a
crash `recover.py` knows what was interrupted.  One `asyncio.Event` per follower: who is slow sees fewer steps, never
old ones.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from insula.api.errors import body_of
from insula.api.verbs import Reporter, Result, Work
from insula.daemon.tenant_use import BUILD
from insula.kernel.threads import begin
from insula.model import span
from insula.model.errors import (
    Cancelled,
    InsulaError,
    LimitRefused,
    OperationNotFound,
    QuotaExceeded,
    WrongState,
)
from insula.model.record import ErrorBody, OperationRecord, OperationStatus, Progress
from insula.model.span import Tracer
from insula.runtime.ledger import Ledger

LOG = logging.getLogger(__name__)

KEPT = 500
"""Ended operations of a tenant that are remembered: nobody's displace another's."""
AT_ONCE = 64
"""Operations that users of one tenant may have under way at the same time: each is a thread."""
AT_ONCE_OF = {BUILD: 2}
"""As AT_ONCE, of one kind."""


@dataclass(kw_only=True)
class _Running:
    record: OperationRecord
    asker: str
    """The tenant of who asked."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    followers: set[asyncio.Event] = field(default_factory=set)
    """Only touched in the loop's thread."""


class OperationReporter:
    """What a running action tells; also how it hears that it should stop.  From any thread."""

    def __init__(self, operations: "OperationRegistry", running: _Running) -> None:
        self._operations = operations
        self._running = running

    @property
    def cancelled(self) -> bool:
        return self._running.cancelled.is_set()

    def check(self) -> None:
        """Stop here if the user wants to.

        Raises: Cancelled.
        """
        if self.cancelled:
            raise Cancelled(f"cancelled `{self._running.record.kind}` of `{self._running.record.subject}`")

    def phase(self, name: str) -> None:
        """Begin a new phase; its progress is 0 of unknown."""
        span.enter_phase(name)
        self._change(lambda record: replace(record, progress=Progress(phase=name)), persist=True)

    def progress(self, done: int, total: int, *, unit: str = "bytes") -> None:
        """Tell how far the phase is.  total: 0 if unknown."""
        self._change(
            lambda record: replace(
                record, progress=replace(record.progress, done=done, total=total, unit=unit)
            )
        )

    def message(self, text: str) -> None:
        """Tell something for people."""
        self._change(lambda record: replace(record, progress=replace(record.progress, message=text)))

    def forbid_cancel(self) -> None:
        """From here there is no way back.

        Raises: Cancelled if the user was faster.
        """
        with self._operations.lock:
            self.check()
            self._change(lambda record: replace(record, may_cancel=False), persist=True)

    def _change(self, change: Callable[[OperationRecord], OperationRecord], *, persist: bool = False) -> None:
        self._operations.change(self._running, change, persist=persist)


class OperationRegistry:
    """All operations of this host."""

    def __init__(
        self, store: Ledger, loop: asyncio.AbstractEventLoop, *, tracer: Tracer | None = None
    ) -> None:
        self._tracer = tracer or Tracer()
        self._store = store
        self._loop = loop
        self.lock = threading.RLock()
        self._running: dict[str, _Running] = {}

    def start(
        self,
        work: Work,
        *,
        kind: str,
        tenant: str,
        asker: str,
        subject: str,
        container: str = "",
        may_cancel: bool,
    ) -> OperationRecord:
        """Begin an action in a thread of its own.

        asker: the tenant of who asks; its bound counts, so that no tenant keeps an administrator out.
        container: id of the one that it is done to.
        Raises: QuotaExceeded if the asker has enough under way.
        """
        record = OperationRecord(
            id=secrets.token_hex(8),
            kind=kind,
            tenant=tenant,
            subject=subject,
            container=container,
            status=OperationStatus.RUNNING,
            may_cancel=may_cancel,
            created_at=time.time(),
        )
        running = _Running(record=record, asker=asker)
        with self.lock:
            self._refuse_too_many(kind, asker)
            self._store.save_operation(record)
            self._running[record.id] = running
        name = f"{kind} {record.id}"
        asked_by = span.origin()
        try:
            begin(threading.Thread(target=self._run, args=(running, work, asked_by), name=name, daemon=True))
        except OSError as error:  # else it would be under way for ever
            refused = LimitRefused(
                f"cannot begin `{kind}` of `{subject}`: {error.strerror}", hint="try again later"
            )
            self._end(running, OperationStatus.FAILED, error=body_of(refused))
            return running.record
        return record

    def _refuse_too_many(self, kind: str, asker: str) -> None:
        under_way = [
            each.record.kind
            for each in self._running.values()
            if each.asker == asker and each.record.status is OperationStatus.RUNNING
        ]
        for what, count, most in (
            ("operation", len(under_way), AT_ONCE),
            (f"`{kind}`", under_way.count(kind), AT_ONCE_OF.get(kind, AT_ONCE)),
        ):
            if count >= most:
                raise QuotaExceeded(
                    f"cannot begin another {what}: {count} of {most} are under way",
                    hint="wait for one, or cancel it; insula operation ls lists them",
                )

    def _run(self, running: _Running, work: Work, asked_by: str) -> None:
        reporter: Reporter = OperationReporter(self, running)
        try:
            self._end(
                running,
                OperationStatus.DONE,
                result=self._traced(running.record, work, reporter=reporter, asked_by=asked_by),
            )
        except Cancelled as error:
            self._end(running, OperationStatus.CANCELLED, error=body_of(error))
        except InsulaError as error:
            self._end(running, OperationStatus.FAILED, error=body_of(error))
        except Exception:
            LOG.exception("operation failed", extra={"fields": {"operation": running.record.id}})
            body = ErrorBody(code=InsulaError.code, message="internal error", hint="see the daemon's log")
            self._end(running, OperationStatus.FAILED, error=body)

    def _traced(self, record: OperationRecord, work: Work, *, reporter: Reporter, asked_by: str) -> Result:
        attributes = {
            "insula.operation": record.id,
            span.TENANT: record.tenant,
            "insula.subject": record.subject,
        }
        with self._tracer.root(record.kind, parent=asked_by, attributes=attributes):
            result = work(reporter)
            span.note({f"insula.{name}": value for name, value in result.items()})
            return result

    def _end(
        self,
        running: _Running,
        status: OperationStatus,
        *,
        result: Result | None = None,
        error: ErrorBody | None = None,
    ) -> None:
        def change(record: OperationRecord) -> OperationRecord:
            return replace(
                record,
                status=status,
                may_cancel=False,
                result=result or {},
                error=error,
                finished_at=time.time(),
            )

        with self.lock:
            # Followers wake last: who has seen the end may close the store.
            ended = change(running.record)
            if self._persist(ended):
                del self._running[running.record.id]
            self.change(running, lambda _: ended, persist=False)
        fields = {"operation": running.record.id, "kind": running.record.kind, "status": status.value}
        LOG.info("operation ended", extra={"fields": fields})

    def change(
        self, running: _Running, change: Callable[[OperationRecord], OperationRecord], *, persist: bool
    ) -> None:
        """Replace the record of a running operation and wake its followers."""
        with self.lock:
            running.record = change(running.record)
            if persist:
                self._persist(running.record)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_wake, running)

    def _persist(self, record: OperationRecord) -> bool:
        """Write a record down, and forget its tenant's oldest when it has ended.

        On a full disk it is remembered in memory alone: the action goes on.
        """
        try:
            self._store.save_operation(record)
            if record.status is not OperationStatus.RUNNING:
                self._store.prune_operations(record.tenant, keep=KEPT)
        except InsulaError as error:
            LOG.warning(
                "an operation was not written down",
                extra={"fields": {"operation": record.id, "reason": str(error)}},
            )
            return False
        return True

    def list(self, tenant: str | None) -> list[OperationRecord]:
        """Return the tenant's operations, oldest first, with their progress."""
        with self.lock:
            records = self._store.list_operations(tenant)
            return [running.record if (running := self._running.get(r.id)) else r for r in records]

    def get(self, tenant: str | None, operation_id: str) -> OperationRecord:
        """Return an operation.

        Raises: OperationNotFound, also for another tenant's.
        """
        with self.lock:
            running = self._running.get(operation_id)
            record = running.record if running else self._store.get_operation(operation_id)
        if tenant is not None and record.tenant != tenant:
            raise OperationNotFound(
                f"cannot find operation `{operation_id}`", hint="insula operation ls lists them"
            )
        return record

    def cancel(self, tenant: str | None, operation_id: str) -> OperationRecord:
        """Ask an operation to stop; it ends as soon as it can.

        Raises: OperationNotFound; WrongState if it ended, or is past its point of no return.
        """
        with self.lock:
            record = self.get(tenant, operation_id)
            running = self._running.get(operation_id)
            if running is None or record.status is not OperationStatus.RUNNING:
                raise WrongState(f"cannot cancel operation `{operation_id}`: it is {record.status.value}")
            if not record.may_cancel:
                raise WrongState(f"cannot cancel operation `{operation_id}`: there is no way back")
            running.cancelled.set()
            return record

    async def follow(self, tenant: str | None, operation_id: str) -> AsyncIterator[OperationRecord]:
        """Yield the record now, at each change, and last when the operation has ended."""
        with self.lock:  # else it may end between the two looks
            record = self.get(tenant, operation_id)
            running = self._running.get(operation_id)
        if running is None:
            yield record
            return
        changed = asyncio.Event()
        running.followers.add(changed)
        try:
            while True:
                changed.clear()
                record = running.record
                yield record
                if record.status is not OperationStatus.RUNNING:
                    return
                await changed.wait()
        finally:
            running.followers.discard(changed)


def _wake(running: _Running) -> None:
    for follower in running.followers:
        follower.set()
