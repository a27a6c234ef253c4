# SPDX-License-Identifier: Apache-2.0
"""What follows when a container's first process has ended: write it down, free its network, restart or remove it."""

import logging
import threading
import time

from msgspec.structs import replace

from insula.model.errors import ContainerNotFound, InsulaError
from insula.model.lifecycle import AT_REST, Event, Status, after, can
from insula.model.record import ContainerRecord
from insula.model.spec import RestartKind
from insula.runtime.context import Runtime
from insula.runtime.remove import remove_ended
from insula.runtime.start import start_locked
from insula.runtime.supervise import Exit

LOG = logging.getLogger(__name__)

RESTART_DELAY_S = 0.1
"""Doubles with each restart that did not last, up to a minute, as docker's."""
MAX_RESTART_DELAY_S = 60.0
LASTING_S = 10.0
"""A run of this length starts the delays anew."""


def finish(runtime: Runtime, event: Exit) -> None:
    """Take note of an end.  Called in a thread of its own, for ends heard now and for those found at start."""
    if runtime.closing.is_set() or event.exit_code is None:
        return
    with runtime.locked(event.key):
        try:
            record = runtime.store.get_container(event.key)
        except ContainerNotFound:
            runtime.spawner.forget(event.key)
            return
        if record.status is Status.MOVED:
            runtime.spawner.forget(event.key)
            return
        if record.pid != event.pid or not can(record.status, Event.EXIT):
            if record.status in AT_REST:  # its insulad died before it could write that it runs
                runtime.spawner.forget(event.key)
            return
        is_checkpoint = record.status is Status.CHECKPOINTING
        record = _write_down(runtime, record, event)
    with runtime.ended:
        runtime.ended.notify_all()
    if is_checkpoint:
        return  # ended on purpose, to be restored: neither started afresh nor removed
    if wants_restart(record):
        begin_restart(runtime, record)
    elif record.spec.auto_remove:
        remove_ended(runtime, record, volumes=True)


def _write_down(runtime: Runtime, record: ContainerRecord, event: Exit) -> ContainerRecord:
    try:
        oom_killed = event.exit_code == 137 and runtime.group(record).stats().oom_kills > 0
    except OSError:
        oom_killed = False
    if record.attachment is not None:
        runtime.networks.deactivate(record.id)
    ended = replace(
        record,
        status=after(record.status, Event.EXIT, name=record.name),
        pid=0,
        exit_code=event.exit_code,
        finished_at=event.ended_at or time.time(),
        oom_killed=oom_killed,
        error=event.reason,
        ports=(),
    )
    runtime.store.update_container(ended)
    runtime.spawner.forget(event.key)
    LOG.info(
        "container ended", extra={"fields": {"container": record.id[:12], "exit_code": str(event.exit_code)}}
    )
    return ended


def wants_restart(record: ContainerRecord) -> bool:
    """Tell whether the restart policy wants an ended container to run again."""
    policy = record.spec.restart
    if record.stopped_by_user:
        return False
    match policy.kind:
        case RestartKind.ALWAYS | RestartKind.UNLESS_STOPPED:
            return True
        case RestartKind.ON_FAILURE:
            tries_left = policy.max_retries == 0 or record.restart_count < policy.max_retries
            return record.exit_code != 0 and tries_left
        case RestartKind.NO:
            return False


def wants_start(record: ContainerRecord) -> bool:
    """Tell whether an ended container is started when insulad starts: `always` even if somebody stopped it.

    Source: docker's documentation, "Start containers automatically".
    """
    return record.spec.restart.kind is RestartKind.ALWAYS or wants_restart(record)


def begin_restart(runtime: Runtime, record: ContainerRecord) -> None:
    """Start an ended container again after its delay, in a thread of its own."""
    name = f"restart-{record.id[:12]}"
    threading.Thread(target=_restart, args=(runtime, record), name=name, daemon=True).start()


def _restart(runtime: Runtime, record: ContainerRecord) -> None:
    lasted = record.finished_at - record.started_at
    count = 0 if lasted > LASTING_S else record.restart_count
    while not runtime.closing.wait(min(MAX_RESTART_DELAY_S, RESTART_DELAY_S * 2 ** min(count, 20))):
        count += 1
        if not _try_restart(runtime, record.id, count=count):
            return


def _try_restart(runtime: Runtime, container_id: str, *, count: int) -> bool:
    """Start it, unless somebody decided otherwise meanwhile.  Returns: whether to try again later."""
    with runtime.locked(container_id):
        try:
            now = runtime.store.get_container(container_id)
            if now.status is not Status.EXITED or now.stopped_by_user:
                return False
            start_locked(runtime, replace(now, restart_count=count))
        except ContainerNotFound:
            return False
        except InsulaError as error:
            LOG.warning(
                "a restart failed", extra={"fields": {"container": container_id[:12], "error": str(error)}}
            )
            return _wants_another_try(runtime, container_id, count=count, error=error)
    return False


def _wants_another_try(runtime: Runtime, container_id: str, *, count: int, error: InsulaError) -> bool:
    try:
        record = runtime.store.change_container(
            container_id, lambda now: replace(now, restart_count=count, error=error.message)
        )
    except InsulaError:
        return False
    return wants_restart(record)
