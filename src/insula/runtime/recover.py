# SPDX-License-Identifier: Apache-2.0
"""At the start of insulad: compare what is written down with what the spawner holds, and make the two agree."""

import logging
from collections.abc import Sequence

from msgspec.structs import replace

from insula.model.lifecycle import ALIVE, Status
from insula.model.record import ContainerRecord
from insula.network.attach import Running
from insula.runtime.context import Runtime
from insula.runtime.finish import finish
from insula.runtime.supervise import Exit

LOG = logging.getLogger(__name__)


def recover(runtime: Runtime, held: Sequence[Exit]) -> None:
    """Take every container up as it is: running ones run on, ends that nobody heard are written down."""
    by_key = {each.key: each for each in held}
    records = runtime.store.list_containers()
    for record in records:
        if record.status in ALIVE or record.status is Status.RESTORING:
            _take_up(runtime, record, by_key.get(record.id))
    known = {each.id for each in records}
    for each in held:
        if each.key not in known:
            _drop_unknown(runtime, each)
    runtime.networks.restore_all(
        Running(
            container_id=record.id,
            attachment=record.attachment,
            ports=record.ports,
            names=tuple(sorted({record.name, record.id[:12], record.spec.hostname} - {""})),
        )
        for record in runtime.store.list_containers()
        if record.attachment is not None and record.status in ALIVE
    )
    for each in held:
        if each.exit_code is not None and each.key in known:
            finish(runtime, each)


def _take_up(runtime: Runtime, record: ContainerRecord, held: Exit | None) -> None:
    if held is None:
        error = "its spawner has ended, and its exit code with it"
        ended = replace(record, status=Status.EXITED, pid=0, exit_code=255, error=error)
        runtime.store.update_container(ended)
        LOG.warning("a container was lost with its spawner", extra={"fields": {"container": record.id[:12]}})
        return
    status = record.status
    if held.exit_code is None and status in (Status.CHECKPOINTING, Status.RESTORING):
        # CRIU rolls a dump back when nobody listens any more; the program runs.
        status = Status.RUNNING
        runtime.group(record.id).thaw()
    runtime.store.update_container(replace(record, status=status, pid=held.pid))


def _drop_unknown(runtime: Runtime, held: Exit) -> None:
    # Started by an insulad that died before it could write so: nobody knows of it, so nobody may miss it.
    LOG.warning("ending a container that is not written down", extra={"fields": {"container": held.key[:12]}})
    if held.exit_code is None:
        runtime.spawner.signal(held.key, 9)
    else:
        runtime.spawner.forget(held.key)
