# SPDX-License-Identifier: Apache-2.0
"""What tenants use at this moment: counted from records, control groups, disks and the gate, at each question.

Not counted: what a tenant without a limit of disk has on the disk.  Its files lie among the others', somebody would have to
walk through all of them, and everybody may ask.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from insula.model.quota import Resource
from insula.model.record import OperationStatus
from insula.runtime import quotas
from insula.runtime.context import Runtime
from insula.runtime.disks import Disks

Used = dict[Resource, int]

MOMENT_S = 0.1
"""Between the two looks at the processors' time."""
BUILD = "image-build"
"""The kind of operation that has `build-time`."""


class TenantUse:
    """Counts; any thread may ask."""

    def __init__(
        self,
        runtime: Runtime,
        disks: Disks,
        *,
        count_streams: Callable[[str], int],
        count_requests: Callable[[str], int],
        count_profiles: Callable[[str], int],
    ) -> None:
        """count_streams: of a tenant, open ones.  count_requests: in the last second.  Both as `Gate` has them."""
        self._runtime = runtime
        self._disks = disks
        self._count_streams = count_streams
        self._count_requests = count_requests
        self.count_profiles = count_profiles

    def of(self, names: Sequence[str]) -> dict[str, Used]:
        """Return what each of these tenants uses.  Takes MOMENT_S."""
        cpus = self._cpus(names)
        return {name: self._counted(name) | {Resource.CPUS: cpus[name]} for name in names}

    def _counted(self, name: str) -> Used:
        store = self._runtime.store
        used = {
            Resource.CONTAINERS: store.count_containers(name),
            Resource.NETWORKS: len(self._runtime.networks.list(name)),
            Resource.VOLUMES: store.count_volumes(name),
            Resource.PROFILES: self.count_profiles(name),
            Resource.PORTS: quotas.published(self._runtime, name),
            Resource.STREAMS: self._count_streams(name),
            Resource.REQUESTS: self._count_requests(name),
            Resource.LOG: self._log_bytes(name),
            Resource.IMAGES: store.image_bytes(name),
            Resource.BUILD_TIME: self._build_s(name),
            Resource.MEMORY: 0,
            Resource.PIDS: 0,
        }
        if (room := self._disks.room(name)) is not None:
            used |= {Resource.DISK: room.used_bytes, Resource.INODES: room.used_files}
        if (group := self._runtime.tenant_group(name)).exists():
            stats = group.stats()
            used |= {Resource.MEMORY: stats.memory_bytes, Resource.PIDS: stats.pids}
        return used

    def _cpus(self, names: Sequence[str]) -> dict[str, int]:
        """Return thousandths of a processor that each tenant's group used during the moment that this takes."""
        before = {name: self._cpu_us(name) for name in names}
        begun = time.monotonic()
        self._runtime.closing.wait(MOMENT_S)
        passed_us = max(1.0, (time.monotonic() - begun) * 1e6)
        return {name: max(0, round((self._cpu_us(name) - before[name]) * 1000 / passed_us)) for name in names}

    def _cpu_us(self, name: str) -> int:
        with contextlib.suppress(OSError):  # the group has gone with its last container
            return self._runtime.tenant_group(name).cpu_stats().usage_us
        return 0

    def _log_bytes(self, name: str) -> int:
        """Return what is kept of all containers together; the limit is of each."""
        folders = self._runtime.folders
        logs = (folders.log(each.id) for each in self._runtime.store.list_containers(name))
        return sum(_size(log) + _size(log.with_name(f"{log.name}.1")) for log in logs)

    def _build_s(self, name: str) -> int:
        """Return how long the longest build is under way."""
        under_way = self._runtime.store.list_operations(name, status=OperationStatus.RUNNING)
        begun = [each.created_at for each in under_way if each.kind == BUILD]
        return max(0, round(time.time() - min(begun))) if begun else 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
