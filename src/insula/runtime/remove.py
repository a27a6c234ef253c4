# SPDX-License-Identifier: Apache-2.0
"""Remove a container that has ended: the parts of `delete.py` that ends, failed starts (`--rm`) and arrivals need as well."""

import contextlib
import logging

from insula.kernel import netlink
from insula.model.errors import ContainerNotFound, InsulaError
from insula.model.lifecycle import Event, after
from insula.model.record import ContainerRecord
from insula.model.spec import MountKind
from insula.runtime.context import Runtime
from insula.runtime.own_disk import remove_folder

LOG = logging.getLogger(__name__)


def remove_ended(runtime: Runtime, record: ContainerRecord, *, volumes: bool) -> None:
    """Remove a container that has ended.  That somebody else was faster is no error."""
    with runtime.locked(record.id):
        try:
            now = runtime.store.get_container(record.id)
        except ContainerNotFound:
            return
        after(now.status, Event.REMOVE, name=now.name)
        runtime.networks.deactivate(now.id)
        runtime.networks.release(now.id)
        remove_folder(runtime.folders.container(now.id))
        runtime.store.delete_container(now.id)
    with runtime.ended:
        runtime.ended.notify_all()
    if volumes:
        _remove_volumes(runtime, now)


def unplug(record: ContainerRecord) -> None:
    """Take its interface away: connections that outlive its processes would hold the namespace, and it, for minutes."""
    if record.attachment is not None:
        with netlink.Route() as route, contextlib.suppress(OSError):  # it went with its namespace
            route.delete(record.attachment.interface)


def _remove_volumes(runtime: Runtime, record: ContainerRecord) -> None:
    for mount in record.spec.mounts:
        if mount.kind is not MountKind.VOLUME:
            continue
        try:
            if runtime.store.get_volume(record.tenant, mount.source).anonymous:
                runtime.volumes.delete(record.tenant, mount.source)
        except InsulaError as error:
            LOG.info(
                "an anonymous volume stays", extra={"fields": {"volume": mount.source, "why": str(error)}}
            )
