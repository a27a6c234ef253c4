# SPDX-License-Identifier: Apache-2.0
"""Start a container: network ready, spawner asked, written down.  Every failure undoes what was made."""

import signal
import time
from contextlib import ExitStack, suppress

from msgspec.structs import replace

from insula.boot.protocol import AttachPlan
from insula.model import span
from insula.model.errors import InsulaError, PortInUse, WrongState
from insula.model.grant import Grant
from insula.model.lifecycle import Event, Status, after
from insula.model.record import Attachment, ContainerRecord
from insula.model.spec import PortMapping
from insula.network.limit import limit_of
from insula.runtime import binds, own_disk, quotas
from insula.runtime.context import Runtime
from insula.runtime.fault import Note, fault
from insula.runtime.plan import start_plan
from insula.runtime.remove import remove_ended
from insula.runtime.undo import attempt


def start(
    grant: Grant, runtime: Runtime, ref: str, *, attach: AttachPlan | None = None, connection: int = -1
) -> ContainerRecord:
    """Start a created or ended container.

    attach, connection: a client's connection that gets the streams from the first byte on.
    Raises: WrongState, PortInUse, StartFailed, CommandNotFound, CommandNotExecutable, LimitRefused, ImageNotFound,
    QuotaExceeded.
    """
    found = runtime.find(grant, ref)
    with runtime.locked(found.id):
        record = runtime.store.get_container(found.id)
        after(record.status, Event.START, name=record.name)
        if record.owner != runtime.host_name:
            raise WrongState(f"cannot start `{record.name}`: host `{record.owner}` owns it")
        try:
            return start_locked(runtime, record, attach=attach, connection=connection)
        except InsulaError:
            if record.spec.auto_remove:
                remove_ended(runtime, record, volumes=True)
            raise


def start_locked(
    runtime: Runtime, record: ContainerRecord, *, attach: AttachPlan | None = None, connection: int = -1
) -> ContainerRecord:
    """As `start`, by who holds the container's lock."""
    with ExitStack() as undo:
        undo.callback(_remember_failure, runtime, record)
        record = _take_profile(runtime, record)
        permit = binds.permitted_now(runtime, record)
        span.note(span.about(record))
        span.enter_phase("network")
        record = bring_up_network(runtime, record, undo=undo)
        span.enter_phase("groups")
        quotas.ready_group(runtime, record.tenant)
        runtime.before_start(record)
        own_disk.make_ready(runtime.folders.container(record.id), record.spec)
        span.enter_phase("spawn")
        with binds.opened(record, start_plan(runtime, record), permit=permit) as plan:
            pid = runtime.spawner.start(plan, attach=attach, connection=connection)
        undo.callback(attempt, runtime.spawner.signal, record.id, signal.SIGKILL)
        fault(Note.START)
        started = replace(
            record,
            status=after(record.status, Event.START, name=record.name),
            pid=pid,
            started_at=time.time(),
            finished_at=0.0,
            exit_code=None,
            oom_killed=False,
            error="",
            stopped_by_user=False,
        )
        runtime.store.update_container(started)
        undo.pop_all()
    return started


def _take_profile(runtime: Runtime, record: ContainerRecord) -> ContainerRecord:
    """Hold a container to what is wished, from this start on: written down before anything runs."""
    if record.profile == record.spec.profile:
        return record
    return runtime.store.change_container(record.id, lambda now: replace(now, profile=now.spec.profile))


def bring_up_network(
    runtime: Runtime, record: ContainerRecord, *, undo: ExitStack, before: tuple[PortMapping, ...] = ()
) -> ContainerRecord:
    """Make bridge, rules, ports and names ready for a container's interface.

    before: how its ports were published where it comes from; what was picked there is kept if it is free here.
    """
    attachment = record.attachment
    if attachment is None:
        return record
    runtime.networks.activate(attachment, container_id=record.id, limit=limit_of(record.profile))
    undo.callback(runtime.networks.deactivate, record.id)
    ports = _publish(runtime, attachment, record, before=before)
    names = {record.name, record.id[:12], record.spec.hostname} - {""}
    runtime.networks.set_running_names(record.id, attachment, names=names)
    return replace(record, ports=ports)


def _publish(
    runtime: Runtime, attachment: Attachment, record: ContainerRecord, *, before: tuple[PortMapping, ...]
) -> tuple[PortMapping, ...]:
    wished = record.spec.ports
    if len(before) == len(wished):
        as_before = tuple(
            replace(wish, host_port=wish.host_port or known.host_port)
            for wish, known in zip(wished, before, strict=True)
        )
        with suppress(PortInUse):
            return runtime.networks.publish(attachment, as_before, container_id=record.id, name=record.name)
    return runtime.networks.publish(attachment, wished, container_id=record.id, name=record.name)


def _remember_failure(runtime: Runtime, record: ContainerRecord) -> None:
    # Only reached on failure; why it failed is what the caller is told, here it is only counted as an end.
    if record.status is Status.EXITED:
        return
    try:
        runtime.store.change_container(record.id, lambda now: replace(now, error="the last start failed"))
    except InsulaError:
        return
