# SPDX-License-Identifier: Apache-2.0
"""One container's cgroup: one face over its directories in the v1 hierarchies and in the v2 tree.

Out of scope: which limits a tenant may set.  Limits go through the hierarchy that has the controller; ids, freezing,
emptiness and killing always through v2 (findings: the v1 freezer with one stopped process hangs CRIU for ever).
"""

import contextlib
import errno
import itertools
import os
import select
import time
from collections.abc import Sequence
from typing import NamedTuple

from insula.kernel import bpf
from insula.kernel.cgroup import files, pressure, v1, v2
from insula.kernel.cgroup.hierarchy import Hierarchies
from insula.kernel.cgroup.values import (
    HARMLESS_DEVICES,
    CpuStats,
    Device,
    Glance,
    Limits,
    MemoryStats,
    Stats,
    check,
)

#: How often a removal is tried again while the kernel still counts a dead process.
_RETRY_MS = 1


class Doors(NamedTuple):
    """Open ways into a group for a process that joins by itself: no other process has to wait for that.

    Moving a process from outside takes the kernel's lock on every thread group: a grace period of several ms for each
    hierarchy.  Being born into the v2 group (CLONE_INTO_CGROUP), and a thread writing `0` into a v1 `tasks` file, take
    none (`cgroup_procs_write_start` in kernel/cgroup/cgroup.c).
    """

    v2: int
    """The v2 directory, for `namespace.spawn`; -1 without a v2 tree."""
    tasks: tuple[int, ...]

    def enter(self) -> None:
        """Move the calling thread, the only one of its process, into the v1 groups."""
        for descriptor in self.tasks:
            os.write(descriptor, b"0")

    def close(self) -> None:
        for descriptor in (self.v2, *self.tasks):
            if descriptor >= 0:
                os.close(descriptor)


class Group:
    """The cgroup `parent_name/name` beneath our own, in every hierarchy that matters.

    parent_name: one name, or several joined by `/`: a tenant's containers stand in the tenant's group.
    """

    __slots__ = ("_directories", "_hierarchies", "_relative", "_v2")

    def __init__(self, hierarchies: Hierarchies, parent_name: str, name: str) -> None:
        for part in (*parent_name.split("/"), name):
            if part in ("", ".", "..") or "/" in part or part.startswith("cgroup."):
                raise ValueError(f"`{part}` cannot name a cgroup")
        self._hierarchies = hierarchies
        self._relative = f"{parent_name}/{name}"
        self._v2 = os.path.join(hierarchies.v2.base, self._relative) if hierarchies.v2 else None
        self._directories: dict[str, str] = {}
        for controller in (*v1.CONTROLLERS, "cpuset"):
            hierarchy = hierarchies.find_v1(controller)
            if hierarchy is not None:
                self._directories[controller] = os.path.join(hierarchy.base, self._relative)

    def create(self) -> None:
        """Make the group everywhere; one that exists is taken as it is.  Undo: `delete`."""
        for controller in v1.CONTROLLERS:
            if controller in self._directories:
                os.makedirs(self._directories[controller], mode=0o755, exist_ok=True)
        if self._hierarchies.v2 is not None:
            v2.create(self._hierarchies.v2.base, self._relative)

    def exists(self) -> bool:
        """Answer whether any part of the group is there."""
        return any(os.path.isdir(each) for each in self._everywhere())

    def children(self) -> list[str]:
        """Return the names of the groups directly below, in any hierarchy."""
        names = (files.groups_below(each) for each in self._everywhere())
        return sorted(set(itertools.chain.from_iterable(names)))

    def attach(self, pid: int) -> None:
        """Move a process, with its threads, into the group in every hierarchy.  Raises: OSError: ESRCH if it is gone."""
        for directory in self._everywhere():
            if os.path.isdir(directory):
                files.write(directory, "cgroup.procs", value=str(pid))

    def open_doors(self) -> Doors:
        """Open the group for a child that will be born into it.  The caller closes."""
        opened: list[int] = []
        try:
            for directory in dict.fromkeys(self._directories.values()):
                if os.path.isdir(directory):
                    opened.append(os.open(f"{directory}/tasks", os.O_WRONLY | os.O_CLOEXEC))
            return Doors(self.open_v2_fd() if self._v2 is not None else -1, tuple(opened))
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise

    def open_v2_fd(self) -> int:
        """Open the v2 directory, for CLONE_INTO_CGROUP.  The caller closes."""
        return os.open(self.v2_directory(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def v2_directory(self) -> str:
        """Return the path of the v2 directory.  Raises: OSError: ENOTSUP if no v2 tree is mounted."""
        if self._v2 is None:
            raise OSError(errno.ENOTSUP, "mount: no cgroup v2 tree is mounted", self._relative)
        return self._v2

    def v2_id(self) -> int:
        """Return the cgroup id that eBPF and the kernel's traces show."""
        return os.stat(self.v2_directory()).st_ino

    def set_limits(self, limits: Limits) -> None:
        """Set all limits; None lifts one.

        Raises: ValueError if no kernel takes the value; OSError naming file and value: EBUSY if the memory in use is
        more, ENOTSUP if this host has no such controller.
        """
        check(limits)
        self._limit("memory", limits, is_asked=limits.memory_bytes is not None)
        self._limit("pids", limits, is_asked=limits.pids is not None)
        self.limit_cpu(limits)
        if limits.cpuset is not None:
            self._limit_cpuset(limits.cpuset)

    def limit_cpu(self, limits: Limits) -> None:
        """Set the limits of processor time alone, of a container that runs.  Raises: as `set_limits`."""
        check(limits)
        self._limit("cpu", limits, is_asked=(limits.cpu_quota_us or limits.cpu_weight) is not None)

    def freeze(self) -> None:
        """Ask the kernel to stop every process; `wait_frozen` tells when they stand.  Undo: `thaw`."""
        v2.freeze(self.v2_directory(), value="1")

    def thaw(self) -> None:
        """Let every process go on.  A group that has gone meanwhile has none."""
        with contextlib.suppress(FileNotFoundError):
            v2.freeze(self.v2_directory(), value="0")

    def is_frozen(self) -> bool:
        """Answer whether every process stands."""
        return v2.event(self.v2_directory(), "frozen") == 1

    def wait_frozen(self, deadline: float) -> None:
        """Wait until every process stands.  deadline: monotonic seconds.  Raises: TimeoutError."""
        v2.wait_event(self.v2_directory(), key="frozen", value=1, deadline=deadline)

    def pids(self) -> list[int]:
        """Return the processes in the group and in groups below it, as the caller's pid namespace counts them."""
        directory = self._v2 or self._directories.get("pids")
        return files.processes_below(directory) if directory else []

    def kill(self) -> None:
        """Send SIGKILL to all; `wait_empty` tells when they are gone."""
        v2.kill(self.v2_directory())

    def wait_empty(self, deadline: float) -> None:
        """Wait until no process is left.  deadline: monotonic seconds.  Raises: TimeoutError."""
        v2.wait_event(self.v2_directory(), key="populated", value=0, deadline=deadline)

    def limit_devices(self, more: Sequence[Device] = ()) -> None:
        """Forbid all devices but the harmless and these: by the v1 controller, or on v2 by an eBPF program.

        Raises: OSError: ENOTSUP where neither is; EPERM if this process may not load programs.
        """
        allowed = (*HARMLESS_DEVICES, *more)
        if "devices" in self._directories:
            v1.limit_devices(self._directories["devices"], allowed)
        else:
            bpf.limit_devices(self.v2_directory(), allowed)

    def delete(self, deadline: float) -> None:
        """Remove the group, and those made below it, everywhere; no group is no error.

        Raises: OSError: EBUSY if a process is still in it at the deadline (monotonic seconds).
        """
        for directory in self._everywhere():
            while True:
                try:
                    files.remove_tree(directory)
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                        raise
                    self._wait_for_removal(deadline)

    def stats(self) -> Stats:
        """Read use and limits.  What this host does not count is 0.  Raises: OSError: ENOENT if the group is gone."""
        cpu, memory = self.cpu_stats(), self._memory_stats()
        read, written = self.io_bytes()
        directory = self._directory_of("pids")
        return Stats(
            cpu_usage_us=cpu.usage_us,
            cpu_user_us=cpu.user_us,
            cpu_system_us=cpu.system_us,
            memory_bytes=memory.used_bytes,
            memory_limit_bytes=memory.limit_bytes,
            memory_cache_bytes=memory.cache_bytes,
            pids=files.read_number(directory, "pids.current") if directory else len(self.pids()),
            pids_limit=files.read_limit(directory, "pids.max") if directory else None,
            io_read_bytes=read,
            io_write_bytes=written,
            oom_kills=memory.oom_kills,
            throttled_us=cpu.throttled_us,
            pressure=pressure.read(self._v2) if self._v2 is not None else pressure.NONE,
            cpu_periods=cpu.periods,
            throttled_periods=cpu.throttled_periods,
            memory_anonymous_bytes=memory.anonymous_bytes,
            memory_inactive_file_bytes=memory.inactive_file_bytes,
        )

    def glance(self) -> Glance:
        """Read what is wanted of many groups every few seconds.  Raises: OSError: ENOENT or ENODEV if the group is gone."""
        if "cpuacct" in self._directories or self._v2 is None:
            used_us = self._short("cpuacct", v1_name="cpuacct.usage", v2_name="") // 1000
        else:
            used_us = v2.cpu_usage_us(self._v2)
        return Glance(
            used_us,
            self._short("memory", v1_name="memory.usage_in_bytes", v2_name="memory.current"),
            self._short("pids", v1_name="pids.current", v2_name="pids.current"),
            pressure.read(self._v2) if self._v2 is not None else pressure.NONE,
        )

    def cpu_stats(self) -> CpuStats:
        """Read what processor time was used and withheld.  Raises: OSError: ENOENT if the group is gone."""
        if "cpuacct" in self._directories or self._v2 is None:
            return v1.cpu_stats(self._directories.get("cpu"), cpuacct=self._directories.get("cpuacct"))
        return v2.cpu_stats(self._v2)

    def _everywhere(self) -> list[str]:
        # v1 hierarchies with several controllers have one directory for all of them.
        return list(dict.fromkeys([*self._directories.values(), *([self._v2] if self._v2 else [])]))

    def _directory_of(self, controller: str) -> str | None:
        if controller in self._directories:
            return self._directories[controller]
        return self._v2 if self._v2 and v2.has(self._v2, controller) else None

    def _short(self, controller: str, *, v1_name: str, v2_name: str) -> int:
        """Read one number; 0 where v2 has no such controller.  A v1 directory that is not there is an OSError."""
        if controller in self._directories:
            return int(files.read_short(self._directories[controller], v1_name))
        try:
            return int(files.read_short(self._v2, v2_name)) if self._v2 is not None else 0
        except FileNotFoundError:
            return 0

    def _limit(self, controller: str, limits: Limits, *, is_asked: bool) -> None:
        directory = self._directory_of(controller)
        if directory is None:
            if is_asked:
                raise OSError(errno.ENOTSUP, f"write: no cgroup controller `{controller}`", self._relative)
            return
        functions = {
            "memory": (v1.limit_memory, v2.limit_memory),
            "cpu": (v1.limit_cpu, v2.limit_cpu),
            "pids": (v1.limit_pids, v2.limit_pids),
        }
        functions[controller][0 if controller in self._directories else 1](directory, limits)

    def _limit_cpuset(self, cpus: str) -> None:
        hierarchy = self._hierarchies.find_v1("cpuset")
        if hierarchy is None:
            directory = self._directory_of("cpuset")
            if directory is None:
                raise OSError(errno.ENOTSUP, "write: no cgroup controller `cpuset`", self._relative)
            v2.limit_cpuset(directory, cpus)
            return
        directory = v1.create_cpuset(hierarchy.base, self._relative)
        files.write(directory, "cpuset.cpus", value=cpus)
        for pid in self.pids():
            try:
                files.write(directory, "cgroup.procs", value=str(pid))
            except ProcessLookupError:
                pass

    def _wait_for_removal(self, deadline: float) -> None:
        # A living process is waited for by event; one that is dying by the shortest possible pause.
        if self._v2 is not None and os.path.isdir(self._v2):
            self.wait_empty(deadline)
        select.poll().poll(_RETRY_MS)

    def _memory_stats(self) -> MemoryStats:
        directory = self._directory_of("memory")
        if directory is None:
            return MemoryStats(0, None, 0, 0, 0, 0)
        return v1.memory_stats(directory) if "memory" in self._directories else v2.memory_stats(directory)

    def io_bytes(self) -> tuple[int, int]:
        """Return bytes that were read from disks and written to them.  Raises: OSError: ENOENT if the group is gone."""
        if self._v2 is not None and v2.has(self._v2, "io"):
            return v2.io_bytes(self._v2)
        # v1's blkio does not count buffered writes; the processes do, with the children that they have waited for.
        read = written = 0
        for pid in self.pids():
            try:
                with open(f"/proc/{pid}/io", encoding="ascii") as file:
                    text = file.read().replace(":", "")
            except OSError:  # gone
                continue
            read += files.key_of(text, "read_bytes")
            written += files.key_of(text, "write_bytes")
        return read, written


def delete_parent(hierarchies: Hierarchies, parent_name: str) -> None:
    """Remove the groups that stood above containers' groups.  Raises: OSError: EBUSY if a process is in one."""
    for hierarchy in (*hierarchies.v1, *([hierarchies.v2] if hierarchies.v2 else [])):
        files.remove_tree(os.path.join(hierarchy.base, parent_name))
