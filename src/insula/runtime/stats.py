# SPDX-License-Identifier: Apache-2.0
"""What containers use now: from their cgroups, and from the host's ends of their interfaces."""

import time

from insula.kernel.cgroup.values import CPU_PERIOD_US
from insula.kernel.netlink import Counters, Route
from insula.model.errors import WrongState
from insula.model.grant import Grant, scope
from insula.model.lifecycle import ALIVE
from insula.model.record import ContainerRecord, ContainerStats
from insula.runtime import own_disk
from insula.runtime.context import Runtime
from insula.runtime.plan import cpu_limits

_NOTHING = Counters(rx_bytes=0, rx_packets=0, tx_bytes=0, tx_packets=0)


def stats(grant: Grant, runtime: Runtime, ref: str) -> ContainerStats:
    """Measure a running container.

    Raises: ContainerNotFound; WrongState, also if it ends meanwhile.
    """
    record = runtime.find_alive(grant, ref)
    with Route() as route:
        try:
            return _measure(runtime, record, route=route)
        except FileNotFoundError:
            raise WrongState(f"container `{record.name}` is not running: it has just ended") from None


def all_stats(grant: Grant, runtime: Runtime) -> list[ContainerStats]:
    """Measure every running container of the grant's tenant; those that end meanwhile are left out."""
    found = []
    with Route() as route:
        for record in runtime.store.list_containers(scope(grant)):
            if record.status in ALIVE:
                try:
                    found.append(_measure(runtime, record, route=route))
                except FileNotFoundError:
                    continue
    return found


def _measure(runtime: Runtime, record: ContainerRecord, *, route: Route) -> ContainerStats:
    used = runtime.group(record).stats()
    counters = _counters(record, route)
    disk = own_disk.room(runtime.folders.container(record.id), record.spec)
    limits = cpu_limits(record.spec)
    return ContainerStats(
        id=record.id,
        name=record.name,
        cpu_usage_us=used.cpu_usage_us,
        sampled_at=time.monotonic(),
        memory_bytes=used.memory_bytes,
        memory_limit_bytes=used.memory_limit_bytes,
        pids=used.pids,
        pids_limit=used.pids_limit,
        # The host's end sends what the container receives.
        received_bytes=counters.tx_bytes,
        sent_bytes=counters.rx_bytes,
        received_packets=counters.tx_packets,
        sent_packets=counters.rx_packets,
        read_bytes=used.io_read_bytes,
        written_bytes=used.io_write_bytes,
        cpu_user_us=used.cpu_user_us,
        cpu_system_us=used.cpu_system_us,
        throttled_us=used.throttled_us,
        memory_cache_bytes=used.memory_cache_bytes,
        oom_kills=used.oom_kills,
        cpu_wait_us=used.pressure.cpu_us,
        memory_wait_us=used.pressure.memory_us,
        io_wait_us=used.pressure.io_us,
        disk_bytes=disk.used_bytes if disk is not None else None,
        disk_limit_bytes=disk.total_bytes if disk is not None else None,
        tenant=record.tenant,
        image=record.spec.image,
        started_at=record.started_at,
        seen_at=time.time(),
        cpu_quota_us=limits.cpu_quota_us,
        cpu_period_us=CPU_PERIOD_US,
        cpu_periods=used.cpu_periods,
        throttled_periods=used.throttled_periods,
        memory_anonymous_bytes=used.memory_anonymous_bytes,
        memory_working_set_bytes=max(0, used.memory_bytes - used.memory_inactive_file_bytes),
        cpu_stalled_us=used.pressure.cpu_stalled_us,
        memory_stalled_us=used.pressure.memory_stalled_us,
        io_stalled_us=used.pressure.io_stalled_us,
    )


def _counters(record: ContainerRecord, route: Route) -> Counters:
    if record.attachment is None:
        return _NOTHING
    try:
        return route.counters(record.attachment.interface)
    except OSError:  # ENODEV: it goes with the container's last process
        return _NOTHING
