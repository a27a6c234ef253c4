# SPDX-License-Identifier: Apache-2.0
"""What is asked of a cgroup, and what it tells: the same words for v1 and v2."""

from typing import NamedTuple

from insula.kernel.cgroup.pressure import Pressure


class Limits(NamedTuple):
    """None lifts a limit (of `cpuset`: leaves it).

    memory_swap_bytes: memory and swap together, as docker counts.  cpu_weight: 1 to 10000, usual is 100.
    cpuset: a list of processors, such as `0-1,4`.
    """

    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    cpu_weight: int | None = None
    pids: int | None = None
    cpuset: str | None = None


class Stats(NamedTuple):
    """Use since the group was made; bytes and processes: now.  memory_bytes includes memory_cache_bytes."""

    cpu_usage_us: int
    cpu_user_us: int
    cpu_system_us: int
    memory_bytes: int
    memory_limit_bytes: int | None
    memory_cache_bytes: int
    pids: int
    pids_limit: int | None
    io_read_bytes: int
    io_write_bytes: int
    oom_kills: int
    throttled_us: int
    pressure: Pressure
    cpu_periods: int
    """Of the CPU limit."""
    throttled_periods: int
    memory_anonymous_bytes: int
    memory_inactive_file_bytes: int


class Glance(NamedTuple):
    """The few figures that are looked at every few seconds, as in `Stats`."""

    cpu_usage_us: int
    memory_bytes: int
    pids: int
    pressure: Pressure


class CpuStats(NamedTuple):
    usage_us: int
    user_us: int
    system_us: int
    throttled_us: int
    periods: int
    throttled_periods: int


class MemoryStats(NamedTuple):
    used_bytes: int
    limit_bytes: int | None
    cache_bytes: int
    oom_kills: int
    anonymous_bytes: int
    inactive_file_bytes: int


class Device(NamedTuple):
    """What may be done with a device, or with all of a kind."""

    kind: str
    """`c` or `b`: character or block."""
    major: int
    minor: int | None = None
    """None: all of them."""
    access: str = "rwm"
    """r read, w write, m make nodes: the words of the v1 controller."""


#: Devices that hold nothing of the host: null zero full random urandom tty console ptmx pts.
HARMLESS_DEVICES = (
    *(Device("c", 1, minor) for minor in (3, 5, 7, 8, 9)),
    *(Device("c", 5, minor) for minor in (0, 1, 2)),
    Device("c", 136),
)

#: Linux's default, and docker's.
CPU_PERIOD_US = 100_000


def check(limits: Limits) -> None:
    """Refuse what no kernel takes, before anything is written.  Raises: ValueError naming the limit."""
    for name in ("memory_bytes", "memory_swap_bytes", "pids"):
        value = getattr(limits, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1")
    if limits.cpu_weight is not None and not 1 <= limits.cpu_weight <= 10_000:
        raise ValueError(f"cpu_weight is {limits.cpu_weight}, but must be 1 to 10000")
    if limits.cpu_quota_us is not None and limits.cpu_quota_us < 1000:
        raise ValueError(f"cpu_quota_us is {limits.cpu_quota_us}, but must be at least 1000")
    if limits.cpu_period_us is not None and not 1000 <= limits.cpu_period_us <= 1_000_000:
        raise ValueError(f"cpu_period_us is {limits.cpu_period_us}, but must be 1000 to 1000000")
    swap, memory = limits.memory_swap_bytes, limits.memory_bytes
    if swap is not None and (memory is None or swap < memory):
        raise ValueError(
            "memory_swap_bytes counts memory and swap together, so it must be at least memory_bytes"
        )
