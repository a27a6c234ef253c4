# SPDX-License-Identifier: Apache-2.0
"""Take a host down: containers are asked to end, then spawner, bridges, rules, disks and cgroups go.  The state folder stays.

For a host that comes to rest (before insula is removed, at the end of tests); insulad itself never needs it.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from insula.daemon.wiring import Daemon
from insula.kernel.cgroup import delete_parent, own_name
from insula.model.errors import ContainerNotFound
from insula.model.grant import EVERY_TENANT, Action, Grant, Principal, Role
from insula.model.lifecycle import ALIVE
from insula.runtime.context import Runtime
from insula.runtime.stop import stop
from insula.tenant.check import check

LOG = logging.getLogger(__name__)

AT_ONCE = 16
"""Containers that are ended at the same time."""


def tear_down(daemon: Daemon) -> None:
    """End everything that runs on this host and take away what was made for it.

    Raises: WrongState if a container does not end.
    """
    runtime = daemon.runtime
    administrator = Principal(name="root", uid=0, role=Role.ADMIN)
    grant = check(administrator, Action.CONTROL, target_tenant=EVERY_TENANT)
    alive = [record.id for record in runtime.store.list_containers() if record.status in ALIVE]
    with ThreadPoolExecutor(AT_ONCE) as workers:
        list(workers.map(lambda each: _end(grant, runtime, each), alive))
    hierarchies = runtime.hierarchies()
    runtime.spawner.shutdown()
    runtime.networks.remove_all()
    daemon.disks.detach_all()
    for group in (runtime.cgroup_parent, own_name(runtime.cgroup_parent)):
        delete_parent(hierarchies, group)
    LOG.info("the host is down", extra={"fields": {"ended": len(alive)}})


def _end(grant: Grant, runtime: Runtime, container_id: str) -> None:
    with suppress(ContainerNotFound):  # --rm was faster
        stop(grant, runtime, container_id)
