# SPDX-License-Identifier: Apache-2.0
"""A group's directory in the v2 tree: life, freezing and death of its processes, and, where it has controllers, limits.

Source: `Documentation/admin-guide/cgroup-v2.rst`; cgroup.freeze since Linux 5.2, cgroup.kill since 5.14.
"""

import errno
import os
import select
import signal
import time

from insula.kernel.cgroup import files
from insula.kernel.cgroup.hierarchy import LEAF
from insula.kernel.cgroup.values import CPU_PERIOD_US, CpuStats, Limits, MemoryStats

#: Those that limits and counters need.
CONTROLLERS = ("cpu", "memory", "pids", "io", "cpuset")

#: cgroup.kill and fork may cross on kernels without it: SIGKILL is sent until nobody is left, so often at most.
_KILL_ROUNDS = 100


def create(base: str, relative: str) -> None:
    """Make a group, and hand down the controllers to it on the way."""
    directory = base
    for part in relative.split("/"):
        _enable_controllers(directory)
        directory = os.path.join(directory, part)
        os.makedirs(directory, mode=0o755, exist_ok=True)


def _enable_controllers(directory: str) -> None:
    offered = files.read(directory, "cgroup.controllers").split()
    enabled = files.read(directory, "cgroup.subtree_control").split()
    wanted = [f"+{name}" for name in CONTROLLERS if name in offered and name not in enabled]
    if not wanted:
        return
    try:
        files.write(directory, "cgroup.subtree_control", value=" ".join(wanted))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # "No internal processes": whoever is here, us among them, moves into a leaf.
        _move_into_leaf(directory)
        files.write(directory, "cgroup.subtree_control", value=" ".join(wanted))


def _move_into_leaf(directory: str) -> None:
    leaf = os.path.join(directory, LEAF)
    os.makedirs(leaf, mode=0o755, exist_ok=True)
    for pid in files.read(directory, "cgroup.procs").split():
        try:
            files.write(leaf, "cgroup.procs", value=pid)
        except ProcessLookupError:
            pass


def has(directory: str, controller: str) -> bool:
    """Answer whether a group can be limited by a controller."""
    return controller in files.read(directory, "cgroup.controllers").split()


def freeze(directory: str, *, value: str) -> None:
    """Ask for frozen ("1") or running ("0"); the kernel gets there soon after."""
    files.write(directory, "cgroup.freeze", value=value)


def wait_event(directory: str, *, key: str, value: int, deadline: float) -> None:
    """Wait until a line of cgroup.events has a value.  Raises: TimeoutError at the deadline; OSError if the group is gone."""
    handle = os.open(os.path.join(directory, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLPRI)
        while files.key_of(os.pread(handle, 4096, 0).decode(), key) != value:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, f"poll: {key} did not become {value} in time", directory)
            poll.poll(left * 1000 + 1)
    finally:
        os.close(handle)


def event(directory: str, key: str) -> int:
    """Return a number of cgroup.events."""
    return files.key_of(files.read(directory, "cgroup.events"), key)


def kill(directory: str) -> None:
    """Send SIGKILL to every process in and below a group; frozen ones die too."""
    try:
        files.write(directory, "cgroup.kill", value="1")
        return
    except FileNotFoundError:
        if not os.path.isdir(directory):
            raise
    for _ in range(_KILL_ROUNDS):
        found = files.processes_below(directory)
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def limit_memory(directory: str, limits: Limits) -> None:
    """Limit memory and swap.  Raises: OSError: EBUSY if below the usage, where the kernel itself would kill."""
    memory = limits.memory_bytes
    if memory is not None and files.read_number(directory, "memory.current") > memory:
        _reclaim(directory, memory)
    files.write(directory, "memory.max", value=_or_max(memory))
    if os.path.exists(os.path.join(directory, "memory.swap.max")):
        both = limits.memory_swap_bytes
        swap = None if both is None or memory is None else both - memory
        files.write(directory, "memory.swap.max", value=_or_max(swap))


def _reclaim(directory: str, wanted: int) -> None:
    used = files.read_number(directory, "memory.current")
    try:
        files.write(directory, "memory.reclaim", value=str(used - wanted))
    except OSError:
        pass  # no such file before Linux 5.19; EAGAIN if not all could be reclaimed: what counts is the usage
    if files.read_number(directory, "memory.current") > wanted:
        raise OSError(errno.EBUSY, f"write: {os.strerror(errno.EBUSY)}", f"memory.max = {wanted}")


def limit_cpu(directory: str, limits: Limits) -> None:
    """Limit the share and the time of processors."""
    files.write(directory, "cpu.weight", value=str(limits.cpu_weight or 100))
    quota, period = _or_max(limits.cpu_quota_us), limits.cpu_period_us or CPU_PERIOD_US
    files.write(directory, "cpu.max", value=f"{quota} {period}")


def limit_pids(directory: str, limits: Limits) -> None:
    """Limit the number of processes and threads."""
    files.write(directory, "pids.max", value=_or_max(limits.pids))


def limit_cpuset(directory: str, cpus: str) -> None:
    """Limit to a list of processors."""
    files.write(directory, "cpuset.cpus", value=cpus)


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(value)


def cpu_usage_us(directory: str) -> int:
    """Read the processor time used; the first line of cpu.stat."""
    first, _, _ = files.read_short(directory, "cpu.stat").partition(b"\n")
    return int(first.removeprefix(b"usage_usec "))


def cpu_stats(directory: str) -> CpuStats:
    """Read processor time."""
    text = files.read(directory, "cpu.stat")
    keys = ("usage_usec", "user_usec", "system_usec", "throttled_usec", "nr_periods", "nr_throttled")
    return CpuStats(*(files.key_of(text, key) for key in keys))


def memory_stats(directory: str) -> MemoryStats:
    """Read memory, those below included."""
    text = files.read(directory, "memory.stat")
    return MemoryStats(
        files.read_number(directory, "memory.current"),
        files.read_limit(directory, "memory.max"),
        files.key_of(text, "file"),
        files.key_of(files.read(directory, "memory.events"), "oom_kill"),
        files.key_of(text, "anon"),
        files.key_of(text, "inactive_file"),
    )


def io_bytes(directory: str) -> tuple[int, int]:
    """Return bytes read and written, of all devices."""
    words = [word.partition("=") for word in files.read(directory, "io.stat").split() if "=" in word]
    read = sum(int(value) for key, _, value in words if key == "rbytes")
    return read, sum(int(value) for key, _, value in words if key == "wbytes")
