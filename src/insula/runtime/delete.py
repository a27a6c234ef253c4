# SPDX-License-Identifier: Apache-2.0
"""Remove a container: its record, its address, its files."""

import contextlib
import logging
import time

from msgspec.structs import replace

from insula.kernel.cgroup import Group
from insula.kernel.tcp_repair import begin_repair
from insula.model.errors import ContainerNotFound, InvalidSpec, NameTaken, WrongState
from insula.model.grant import Grant
from insula.model.lifecycle import ALIVE
from insula.model.record import ContainerRecord
from insula.runtime.context import Runtime
from insula.runtime.create import NAME
from insula.runtime.recover import drop_volumes
from insula.runtime.remove import remove_ended, unplug
from insula.runtime.stop import stop

LOG = logging.getLogger(__name__)

END_SECONDS = 15.0
"""After SIGKILL; what then still lives hangs in the kernel."""


def delete(grant: Grant, runtime: Runtime, ref: str, *, force: bool = False, volumes: bool = False) -> None:
    """Remove a container that does not run; with `force` a running one is killed first.

    volumes: its anonymous volumes go, too.  Raises: WrongState.
    """
    record = runtime.find(grant, ref)
    if not force:
        remove_ended(runtime, record, volumes=volumes)
        return
    try:
        _end_and_remove(grant, runtime, record, volumes=volumes)
    except WrongState:  # it was started after it had been looked at
        _end_and_remove(grant, runtime, record, volumes=volumes)


def _end_and_remove(grant: Grant, runtime: Runtime, record: ContainerRecord, *, volumes: bool) -> None:
    with contextlib.suppress(ContainerNotFound):  # it has just been removed
        stop(grant, runtime, record.id, signal="KILL", timeout_s=0)
    remove_ended(runtime, record, volumes=volumes)


def remove_moved(runtime: Runtime, record: ContainerRecord) -> None:
    """End what is left of a container that another host owns, and forget it, its address, files and volumes.

    May be called again after a failure.
    """
    group = runtime.group(record)
    deadline = time.monotonic() + END_SECONDS
    unplug(record)
    if group.exists():
        _silence(group)
        group.kill()
        group.thaw()
        try:
            group.wait_empty(deadline)
        except TimeoutError:
            LOG.warning("a moved container does not end", extra={"fields": {"container": record.id[:12]}})
    while not runtime.spawner.forget(record.id) and time.monotonic() < deadline:
        runtime.closing.wait(0.002)
    if group.exists():  # of a spawner that has ended
        try:
            group.delete(deadline)
        except (OSError, TimeoutError) as error:
            LOG.warning("cgroups of a moved container stay", extra={"fields": {"reason": str(error)}})
    # The record last: as long as it is there, the next insulad goes on with this.
    drop_volumes(runtime, record)
    with contextlib.suppress(ContainerNotFound):
        remove_ended(runtime, record, volumes=False)


def _silence(group: Group) -> None:
    """Have connections end without a word: a CRIU that was killed, or has rolled back, took them out of repair."""
    for pid in group.pids():
        with contextlib.suppress(OSError):  # it has just ended
            begin_repair(pid)


def rename(grant: Grant, runtime: Runtime, ref: str, *, name: str) -> None:
    """Give a container another name.  Raises: InvalidSpec, NameTaken."""
    if not NAME.fullmatch(name):
        raise InvalidSpec(
            f"cannot name a container `{name[:80]}`", hint="letters, digits, `_`, `.`, `-`, at most 63"
        )
    found = runtime.find(grant, ref)
    with runtime.locked(found.id):
        record = runtime.store.get_container(found.id)
        if record.name == name:
            raise NameTaken(f"cannot rename `{name}`: it has that name")
        record = replace(record, name=name, spec=replace(record.spec, name=name))
        runtime.store.update_container(record)
        if record.attachment is not None and record.status in ALIVE:
            names = {name, record.id[:12], record.spec.hostname} - {""}
            runtime.networks.rename(record.id, name)
            runtime.networks.set_running_names(record.id, record.attachment, names=names)
