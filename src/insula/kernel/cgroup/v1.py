# SPDX-License-Identifier: Apache-2.0
"""One controller's directory of a group in a v1 hierarchy: its limits and its counters, by function of the controller.

Source: `Documentation/admin-guide/cgroup-v1/{memory,pids,cpusets,devices}.rst`, `Documentation/scheduler/sched-bwc.rst`.
"""

import os
from collections.abc import Iterable

from insula.kernel.cgroup import files
from insula.kernel.cgroup.values import CPU_PERIOD_US, CpuStats, Device, Limits, MemoryStats

#: Those that every group gets.  cpuset comes when a limit asks for it; freezing is v2's.
CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "devices")

#: mknod of any device gives nothing without the right to open it.
_NODES = ("c *:* m", "b *:* m")


def limit_memory(directory: str, limits: Limits) -> None:
    """Limit memory, and memory with swap where the kernel counts swap.  Raises: OSError: EBUSY if below the usage."""
    memory = -1 if limits.memory_bytes is None else limits.memory_bytes
    both = -1 if limits.memory_swap_bytes is None else limits.memory_swap_bytes
    if not os.path.exists(os.path.join(directory, "memory.memsw.limit_in_bytes")):
        files.write(directory, "memory.limit_in_bytes", value=str(memory))
        return
    # At every moment memory ≤ memory with swap, so the order depends on the direction.
    files.write(directory, "memory.memsw.limit_in_bytes", value="-1")
    files.write(directory, "memory.limit_in_bytes", value=str(memory))
    if both != -1:
        files.write(directory, "memory.memsw.limit_in_bytes", value=str(both))


def limit_cpu(directory: str, limits: Limits) -> None:
    """Limit the share and the time of processors."""
    weight = 100 if limits.cpu_weight is None else limits.cpu_weight
    files.write(directory, "cpu.shares", value=str(max(2, weight * 1024 // 100)))
    if not os.path.exists(os.path.join(directory, "cpu.cfs_quota_us")):
        if limits.cpu_quota_us is not None:
            raise OSError(95, "write: this kernel has no CFS bandwidth control", "cpu.cfs_quota_us")
        return
    # First without a quota: old quota and new period together may be refused.
    files.write(directory, "cpu.cfs_quota_us", value="-1")
    files.write(directory, "cpu.cfs_period_us", value=str(limits.cpu_period_us or CPU_PERIOD_US))
    if limits.cpu_quota_us is not None:
        files.write(directory, "cpu.cfs_quota_us", value=str(limits.cpu_quota_us))


def limit_pids(directory: str, limits: Limits) -> None:
    """Limit the number of processes and threads."""
    files.write(directory, "pids.max", value="max" if limits.pids is None else str(limits.pids))


def create_cpuset(base: str, relative: str) -> str:
    """Make the directories of a group in the cpuset tree; each starts with what the one above has, else no task may enter.

    Returns: the last directory.
    """
    directory = base
    for part in relative.split("/"):
        above, directory = directory, os.path.join(directory, part)
        os.makedirs(directory, mode=0o755, exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not files.read(directory, name).strip():
                files.write(directory, name, value=files.read(above, name).strip())
    return directory


def limit_devices(directory: str, allowed: Iterable[Device]) -> None:
    """Allow these devices and no others."""
    files.write(directory, "devices.deny", value="a")
    rules = (
        f"{each.kind} {each.major}:{'*' if each.minor is None else each.minor} {each.access}"
        for each in allowed
    )
    for rule in (*_NODES, *rules):
        files.write(directory, "devices.allow", value=rule)


def cpu_stats(cpu: str | None, *, cpuacct: str | None) -> CpuStats:
    """Read processor time, from nanoseconds."""
    text = files.read(cpu, "cpu.stat") if cpu else ""
    throttled, *periods = (
        files.key_of(text, key) for key in ("throttled_time", "nr_periods", "nr_throttled")
    )
    if cpuacct is None:
        return CpuStats(0, 0, 0, throttled // 1000, *periods)
    used = [
        files.read_number(cpuacct, name)
        for name in ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys")
    ]
    return CpuStats(used[0] // 1000, used[1] // 1000, used[2] // 1000, throttled // 1000, *periods)


def memory_stats(directory: str) -> MemoryStats:
    """Read memory, those below included."""
    text = files.read(directory, "memory.stat")
    return MemoryStats(
        files.read_number(directory, "memory.usage_in_bytes"),
        files.read_limit(directory, "memory.limit_in_bytes"),
        files.key_of(text, "total_cache"),
        files.key_of(files.read(directory, "memory.oom_control"), "oom_kill"),
        files.key_of(text, "total_rss"),
        files.key_of(text, "total_inactive_file"),
    )
