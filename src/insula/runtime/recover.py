# SPDX-License-Identifier: Apache-2.0
"""At the start of insulad: compare what is written down with what the spawner holds, and make the two agree."""

import contextlib
import logging
import threading
import time
from collections.abc import Sequence

from msgspec.structs import replace

from insula.kernel import userfault_permit
from insula.kernel.cgroup import Group
from insula.model.errors import (
    ContainerNotFound,
    InsulaError,
    InUse,
    RestoreFailed,
    SpawnerGone,
    VolumeNotFound,
)
from insula.model.lifecycle import ALIVE, AT_REST, Status
from insula.model.record import ContainerRecord
from insula.network.attach import Running
from insula.network.limit import limit_of
from insula.runtime.callers import open_door
from insula.runtime.context import Runtime
from insula.runtime.dump import release_network, repair
from insula.runtime.finish import begin_restart, finish, wants_restart, wants_start
from insula.runtime.own_disk import remove_folder
from insula.runtime.plan import cpu_limits
from insula.runtime.remove import remove_ended, unplug
from insula.runtime.restore import end_put_back
from insula.runtime.supervise import Exit
from insula.runtime.undo import attempt, until_done

LOG = logging.getLogger(__name__)

ENGINE_SECONDS = 15.0
"""What CRIU may need to roll back after its insulad has died."""
ORPHAN_SECONDS = 5.0
"""For the end of what is killed because its spawner has gone."""
RECONNECT_DELAY_S = 0.1
RECONNECT_DELAY_MAX_S = 30.0
"""Between tries to start a spawner; the first is doubled until the second."""
TAKEN = "taken:"
"""Journal, with the container's id: this host has taken it over, `GENERATION SOURCE`, and the source may not know."""
ARRIVING = "arriving:"
"""Journal, with the container's id: taken over, but not yet written down as running.  Empty: surely never ran here."""
PULLING = "pulling:"
"""Journal, with the container's id: it runs here, and not all of its memory has come from where it was (post-copy)."""
RAN = b"ran"
"""Value of ARRIVING from right before it may run."""


def recover(runtime: Runtime, held: Sequence[Exit]) -> None:
    """Take every container up as it is: running ones run on, ends that nobody heard are written down."""
    with contextlib.suppress(OSError):
        userfault_permit.put_back()
    by_key = {each.key: each for each in held}
    records = runtime.store.list_containers()
    if not runtime.spawner.wait_for_engines(seconds=ENGINE_SECONDS):
        LOG.warning("a CRIU process does not end")
    for record in records:
        if record.status is Status.RESTORING:
            _end_restore(runtime, record, by_key.get(record.id))
        elif record.owner != runtime.host_name and (record.status in ALIVE or record.status is Status.MOVED):
            # Committed: it stays frozen until its new owner has confirmed (`migrate/settle.py`), or is taken back.
            _let_go(runtime, record)
            runtime.store.update_container(replace(record, status=Status.MOVED))
        elif record.status in ALIVE:
            _take_up(runtime, record, by_key.get(record.id))
    known = {each.id for each in records}
    at_rest = {each.id for each in records if each.status in AT_REST}
    for each in held:
        if each.key not in known or each.key in at_rest:
            _drop_unknown(runtime, each)
    _drop_halves(runtime, known)
    runtime.networks.restore_all(
        Running(
            container_id=record.id,
            attachment=record.attachment,
            ports=record.ports,
            names=tuple(filter(None, dict.fromkeys((record.name, record.id[:12], record.spec.hostname)))),
            limit=limit_of(record.profile),
        )
        for record in runtime.store.list_containers()
        # A moved one may be taken back.
        if record.attachment is not None and (record.status in ALIVE or record.status is Status.MOVED)
    )
    for record in runtime.store.list_containers():
        # A delay before a restart ended with the last insulad, or the spawner ended under the container.
        # One whose source may not know that it came here waits for that (`migrate/settle.py`).
        if runtime.store.read_journal(TAKEN + record.id) is None:
            restart_at_rest(runtime, record)
    for each in held:
        if each.exit_code is not None and each.key in known:
            finish(runtime, each)
    runtime.taken_up.set()


def restart_at_rest(runtime: Runtime, record: ContainerRecord) -> None:
    """Start what its restart policy wants started."""
    if record.status is Status.EXITED and record.owner == runtime.host_name and wants_start(record):
        begin_restart(
            runtime,
            runtime.store.change_container(record.id, lambda now: replace(now, stopped_by_user=False)),
        )


def replace_spawner(runtime: Runtime) -> None:
    """The spawner has ended under us, and its containers with it: start another one, and write their ends down.

    Their restart policies bring them back.  Called in a thread of its own.
    """
    # All of them: what it made last may not be written down as running yet.  That one's lock is held until it is.
    before = sorted(runtime.store.list_containers(), key=lambda each: each.status not in ALIVE)
    groups = {each.id: runtime.group(each) for each in before}
    if not _connect_again(runtime):
        return
    runtime.taken_up.wait()
    for record in before:
        try:
            _end_if_lost(runtime, record, groups[record.id])
        except SpawnerGone:
            return  # the next one's end is told, too, and all of them are looked at again


def _connect_again(runtime: Runtime) -> bool:
    """Returns: False if insulad ends before."""
    delay_s = RECONNECT_DELAY_S
    while not runtime.closing.is_set():
        try:
            runtime.spawner.connect()
            return True
        except InsulaError as error:
            LOG.error("no spawner can be started", extra={"fields": {"reason": str(error)}})
        runtime.closing.wait(delay_s)
        delay_s = min(2 * delay_s, RECONNECT_DELAY_MAX_S)
    return False


def _end_if_lost(runtime: Runtime, record: ContainerRecord, group: Group) -> None:
    # Whoever still holds the lock, a dump or a move, finds out by itself and lets go.
    with runtime.locked(record.id):
        try:
            now = runtime.store.get_container(record.id)
        except ContainerNotFound:
            return
        if now.status not in ALIVE or now.owner != runtime.host_name:
            return
        is_another_run = (now.pid, now.started_at) != (record.pid, record.started_at)
        if is_another_run and runtime.spawner.holds(now.id, now.pid):
            return
        _end_orphans(now, group)
        ended = _write_lost(runtime, now)
    _follow(runtime, ended)


def end_lost_arrival(runtime: Runtime, record: ContainerRecord) -> None:
    """Write down that a container's processes are gone, which this host owns; its restart policy brings it back."""
    group = runtime.group(record)
    with contextlib.suppress(InsulaError):
        runtime.spawner.discard(record.id)
    _end_orphans(record, group)
    ended = _write_lost(runtime, runtime.store.get_container(record.id))
    runtime.store.delete_journal(ARRIVING + record.id)
    _follow(runtime, ended)


def _follow(runtime: Runtime, ended: ContainerRecord) -> None:
    with runtime.ended:
        runtime.ended.notify_all()
    if wants_restart(ended):
        begin_restart(runtime, ended)
    elif ended.spec.auto_remove:
        remove_ended(runtime, ended, volumes=True)


def _write_lost(runtime: Runtime, record: ContainerRecord) -> ContainerRecord:
    if record.attachment is not None:
        runtime.networks.deactivate(record.id)
    error = "its spawner has ended, and its exit code with it"
    ended = replace(
        record,
        status=Status.EXITED,
        pid=0,
        exit_code=255,
        finished_at=time.time(),
        ports=(),
        error=error,
    )
    runtime.store.update_container(ended)
    LOG.warning("a container was lost with its spawner", extra={"fields": {"container": record.id[:12]}})
    return ended


def _drop_halves(runtime: Runtime, known: set[str]) -> None:
    """Take back folders and leases of containers and volumes that came or went when the last insulad died."""

    def is_half(container_id: str) -> bool:
        journal = (runtime.store.read_journal(word + container_id) for word in (TAKEN, ARRIVING))
        return container_id not in known and all(line is None for line in journal)

    for network in runtime.store.list_networks():
        for lease in runtime.store.list_leases(network.id):
            if is_half(lease.container):
                runtime.store.delete_lease(network.id, lease.address)
    for folder in (runtime.folders.state / "containers").iterdir():
        if is_half(folder.name):
            remove_folder(folder)
    runtime.volumes.drop_leftovers()


def _take_up(runtime: Runtime, record: ContainerRecord, held: Exit | None) -> None:
    if held is None:
        _end_orphans(record, runtime.group(record))
        _write_lost(runtime, record)
        return
    status = record.status
    if held.exit_code is None and status in (Status.CHECKPOINTING, Status.MIGRATING):
        # CRIU has rolled its dump back when nobody listened any more: it runs on, and may be heard again.
        status = Status.RUNNING
        repair(runtime, record)
        release_network(record)
        _let_go(runtime, record)
        runtime.group(record).thaw()
    runtime.store.update_container(replace(record, status=status, pid=held.pid))


def _let_go(runtime: Runtime, record: ContainerRecord) -> None:
    """Take away what a move holds a program up with: its shut door, and the brake of its rounds (`migrate/precopy.py`)."""
    open_door(record)
    group = runtime.group(record)
    if group.exists():
        attempt(group.limit_cpu, cpu_limits(record.spec))


def _end_orphans(record: ContainerRecord, group: Group) -> None:
    """End what still runs of a container whose spawner has gone: nobody could reap, stop or enter it any more.

    Its first process gets SIGKILL from the kernel with the spawner's end, unless it has asked for another signal.
    """
    if not group.exists():
        return
    deadline = time.monotonic() + ORPHAN_SECONDS
    try:
        group.kill()
        group.thaw()
        group.delete(deadline)
    except (OSError, TimeoutError) as error:
        LOG.warning(
            "a container without a spawner does not end",
            extra={"fields": {"container": record.id[:12], "reason": str(error)}},
        )


def _end_restore(runtime: Runtime, record: ContainerRecord, held: Exit | None) -> None:
    """A restore was going on: it came through without us, or what it made goes."""
    is_arrival = runtime.store.read_journal(ARRIVING + record.id) is not None
    try:
        if record.owner != runtime.host_name:
            raise RestoreFailed("its owner has it")
        pid = held.pid if held is not None else runtime.spawner.adopt(record.id, 0)
        release_network(record)
    except (InsulaError, OSError) as error:
        LOG.warning(
            "a restore ended with insulad",
            extra={"fields": {"container": record.id[:12], "reason": str(error)}},
        )
        if runtime.store.read_journal(ARRIVING + record.id) == RAN:
            end_lost_arrival(runtime, record)
            return
        if is_arrival or record.owner != runtime.host_name:
            _drop_now_or_later(runtime, record)
            return
        runtime.spawner.discard(record.id)
        end_put_back(runtime, record, has_come_through=False)
        words = "its restore was interrupted"
        runtime.store.update_container(replace(record, status=Status.EXITED, pid=0, error=words))
        return
    runtime.store.update_container(replace(record, status=Status.RUNNING, pid=pid))
    runtime.store.delete_journal(ARRIVING + record.id)
    end_put_back(runtime, record, has_come_through=True)


def _drop_now_or_later(runtime: Runtime, record: ContainerRecord) -> None:
    try:
        drop_arrival(runtime, record)
    except (InsulaError, OSError):
        threading.Thread(
            target=_drop_later, args=(runtime, record), name=f"drop-{record.id[:12]}", daemon=True
        ).start()


def _drop_later(runtime: Runtime, record: ContainerRecord) -> None:
    with runtime.locked(record.id):
        until_done(runtime.closing, lambda: drop_arrival(runtime, record), what="drop an arrival")


def drop_arrival(runtime: Runtime, record: ContainerRecord) -> None:
    """Remove what was made here of a container that does not come: processes first, then every trace.

    May be called again after a failure, of which the record is left.  Raises: InsulaError, OSError.
    """
    group = runtime.group(record)
    unplug(record)
    runtime.spawner.discard(record.id)
    _end_orphans(record, group)  # of a spawner that has ended
    runtime.networks.deactivate(record.id)
    runtime.networks.release(record.id)
    drop_volumes(runtime, record)
    remove_folder(runtime.folders.container(record.id))
    with runtime.store.transaction():
        runtime.store.delete_container(record.id)
        runtime.store.delete_journal(TAKEN + record.id)
        runtime.store.delete_journal(ARRIVING + record.id)
        runtime.store.delete_journal(PULLING + record.id)


def drop_volumes(runtime: Runtime, record: ContainerRecord) -> None:
    """Remove the volumes of a container that goes, or does not come, as far as no other uses them."""
    for name in record.spec.volumes():
        with contextlib.suppress(VolumeNotFound, InUse):
            runtime.volumes.delete(record.tenant, name, with_container=record.id)


def _drop_unknown(runtime: Runtime, held: Exit) -> None:
    # Started by an insulad that died before it could write so: nobody knows of it, so nobody may miss it.
    LOG.warning("ending a container that is not written down", extra={"fields": {"container": held.key[:12]}})
    if held.exit_code is None:
        runtime.spawner.signal(held.key, 9)
    else:
        runtime.spawner.forget(held.key)
