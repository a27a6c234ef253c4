# SPDX-License-Identifier: Apache-2.0
"""Ask before a tenant uses more: at create, start, publish, and when a container arrives or is restored.

What is used is counted from what is there, never remembered, so it is right after every crash.  The kernel holds the
sum of memory, processors and processes in the tenant's cgroup (`ready_group`).  Out of scope: limits themselves
(`model/quota.py`, `tenant/quota.py`), requests and open streams (`api/gate.py`).
"""

import errno
import logging
from pathlib import Path

from insula.kernel.cgroup import Limits, own_name, weigh
from insula.kernel.cgroup.values import CPU_PERIOD_US
from insula.model.errors import LimitRefused
from insula.model.lifecycle import ALIVE
from insula.model.quota import MAX_WEIGHT, USUAL_WEIGHT, Allowance, Quota, Resource
from insula.model.spec import Spec
from insula.network import ports
from insula.runtime.context import Runtime

LOG = logging.getLogger(__name__)

MINIMUM_QUOTA_US = 1000
"""The kernel's."""
MAX_CONTAINERS = 2000
"""A record and a folder each; half of those that one host can watch."""
MAX_NETWORKS = 200
"""A bridge each, and of the addresses that all tenants share one part in twenty."""
MAX_VOLUMES = 1000
"""A record each."""
MAX_PROFILES = 200
"""Up to 1 MiB each."""
OWN_TIMES = 4
"""insulad's share beside that of all containers together: it wants little, but at once (ADR 29)."""


def built_in() -> Quota:
    """Return the limits that count where an administrator set none.

    A third of the processes that the kernel can number, as systemd gives each user (TasksMax of `user-.slice`): so that
    a fork bomb leaves the others theirs.  And so many of what is kept in the state folder itself, beside every disk.
    """
    most = (Path("/proc/sys/kernel", name).read_text(encoding="ascii") for name in ("pid_max", "threads-max"))
    pids = min(map(int, most)) // 3
    return Quota(
        limits={
            Resource.PIDS: pids,
            Resource.CONTAINERS: MAX_CONTAINERS,
            Resource.NETWORKS: MAX_NETWORKS,
            Resource.VOLUMES: MAX_VOLUMES,
            Resource.PROFILES: MAX_PROFILES,
        }
    )


def check_wish(runtime: Runtime, tenant: str, spec: Spec) -> None:
    """Refuse a container that is more than its tenant may have at all, or one too many.  Raises: QuotaExceeded."""
    check = runtime.allowance.check
    for resource, wished in (
        (Resource.MEMORY, spec.memory_bytes),
        (Resource.CPUS, spec.cpus_milli),
        (Resource.PIDS, spec.pids),
        (Resource.INODES, spec.inodes),
    ):
        check(tenant, resource, used=0, more=wished or 0)
    check(tenant, Resource.PORTS, used=0, more=ports.count(spec.ports))
    check_count(runtime, tenant)
    check_disk(runtime, tenant, spec)


def check_count(runtime: Runtime, tenant: str) -> None:
    """Refuse one more container.  In a transaction with its record, no other comes between.  Raises: QuotaExceeded."""
    if runtime.allowance.limit(tenant, Resource.CONTAINERS) is not None:
        runtime.allowance.check(tenant, Resource.CONTAINERS, used=runtime.store.count_containers(tenant))


def check_disk(runtime: Runtime, tenant: str, spec: Spec) -> None:
    """Refuse a container's own disk if together with the others' it is larger than its tenant's.  Raises: QuotaExceeded.

    A file system in a file that finds no room beneath it fails in ways that programs do not expect.
    """
    if spec.disk_bytes is not None and runtime.allowance.limit(tenant, Resource.DISK) is not None:
        promised = sum(each.spec.disk_bytes or 0 for each in runtime.store.list_containers(tenant))
        runtime.allowance.check(tenant, Resource.DISK, used=promised, more=spec.disk_bytes)


def published(runtime: Runtime, tenant: str) -> int:
    """Count the ports that a tenant's running containers publish."""
    alive = (each for each in runtime.store.list_containers(tenant) if each.status in ALIVE)
    return sum(ports.count(each.ports) for each in alive)


def ready_group(runtime: Runtime, tenant: str) -> None:
    """Give a tenant's cgroup its limits before something starts in it; without limits the spawner makes it.

    Raises: LimitRefused.
    """
    weigh_all(runtime)
    limits = group_limits(runtime.allowance, tenant)
    if limits != Limits() and runtime.spawner.knows_tenants:
        set_group(runtime, tenant, limits)


def weigh_all(runtime: Runtime) -> None:
    """Have all containers together weigh what their tenants weigh, each as much as a service of this host.

    Else one tenant that uses all processors would leave the others nothing of what containers may have together.
    insulad, which answers all of them, weighs more: it would wait longer the more tenants there are.
    """
    tenants = [each.name for each in runtime.store.list_tenants()]
    together = sum(runtime.allowance.limit(each, Resource.WEIGHT) or USUAL_WEIGHT for each in tenants)
    weight = min(MAX_WEIGHT, max(USUAL_WEIGHT, together))
    if weight == runtime.weight:
        return
    try:
        weigh(runtime.hierarchies(), runtime.cgroup_parent, weight)
        weigh(runtime.hierarchies(), own_name(runtime.cgroup_parent), min(MAX_WEIGHT, OWN_TIMES * weight))
        runtime.weight = weight
    except OSError as error:
        LOG.warning("containers have no weight", extra={"fields": {"reason": str(error)}})


def apply_limits(runtime: Runtime, tenant: str) -> None:
    """Give a tenant's cgroup its limits as they are now, if it has one.  Raises: LimitRefused: more is in use."""
    weigh_all(runtime)
    if runtime.spawner.knows_tenants and runtime.tenant_group(tenant).exists():
        set_group(runtime, tenant, group_limits(runtime.allowance, tenant))


def set_group(runtime: Runtime, tenant: str, limits: Limits) -> None:
    """Make a tenant's cgroup with these limits.  Raises: LimitRefused."""
    group = runtime.tenant_group(tenant)
    try:
        group.create()
        group.set_limits(limits)
    except OSError as error:
        reason = "more is in use" if error.errno == errno.EBUSY else f"{error.strerror}".lower()
        raise LimitRefused(
            f"cannot limit tenant `{tenant}`: {reason} ({error.filename})",
            hint="stop some of its containers first" if error.errno == errno.EBUSY else "",
        ) from error


def group_limits(allowance: Allowance, tenant: str) -> Limits:
    """Translate a tenant's limits for the kernel.  Its memory is memory and swap together: no limit is slept around."""
    memory = allowance.limit(tenant, Resource.MEMORY)
    cpus = allowance.limit(tenant, Resource.CPUS)
    quota = None if cpus is None else max(MINIMUM_QUOTA_US, cpus * CPU_PERIOD_US // 1000)
    return Limits(
        memory_bytes=memory,
        memory_swap_bytes=memory,
        cpu_quota_us=quota,
        cpu_period_us=None if quota is None else CPU_PERIOD_US,
        cpu_weight=allowance.limit(tenant, Resource.WEIGHT),
        pids=allowance.limit(tenant, Resource.PIDS),
    )
