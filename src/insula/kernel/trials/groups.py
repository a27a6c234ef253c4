# SPDX-License-Identifier: Apache-2.0
"""Trials of cgroups: which hierarchies are mounted, which controllers limit, and whether the v2 freezer freezes.

Each makes one cgroup of its own and removes it.  Sources: cgroups(7), `Documentation/admin-guide/cgroup-v2.rst`.
"""

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from insula.kernel.trials import Absent

_FREEZE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """One mounted cgroup hierarchy; `controllers` of v1 are its mount options, of v2 what its root offers."""

    version: int
    path: Path
    controllers: frozenset[str]


def find_hierarchies() -> tuple[Hierarchy, ...]:
    """Return every mounted cgroup hierarchy.  Source: proc_pid_mountinfo(5)."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split()[:3]
            path = Path(left.split()[4])
            if kind == "cgroup":
                found.append(Hierarchy(version=1, path=path, controllers=frozenset(options.split(","))))
            elif kind == "cgroup2":
                offered = (path / "cgroup.controllers").read_text(encoding="ascii").split()
                found.append(Hierarchy(version=2, path=path, controllers=frozenset(offered)))
    return tuple(found)


def mode() -> str:
    """Tell how cgroups are mounted: v1, hybrid or v2."""
    versions = {hierarchy.version for hierarchy in find_hierarchies()}
    if not versions:
        raise Absent("no cgroup hierarchy is mounted")
    return {frozenset((1,)): "v1", frozenset((2,)): "v2"}.get(frozenset(versions), "hybrid")


def memory() -> str:
    """Look for a limit of memory."""
    return _controller("memory", v1_file="memory.limit_in_bytes")


def cpu() -> str:
    """Look for a limit of cpu time."""
    return _controller("cpu", v1_file="cpu.cfs_quota_us")


def pids() -> str:
    """Look for a limit of the number of processes."""
    return _controller("pids", v1_file="pids.max")


def devices() -> str:
    """Look for a guard of devices: the v1 controller, or BPF on v2 (tried by another trial)."""
    for hierarchy in find_hierarchies():
        if hierarchy.version == 1 and "devices" in hierarchy.controllers:
            return _in_new_group(hierarchy, lambda group: _look_for(group / "devices.deny", "v1"))
    for hierarchy in find_hierarchies():
        if hierarchy.version == 2:
            return "v2, by BPF"
    raise Absent("neither the v1 controller nor a v2 hierarchy is mounted")


def freezer() -> str:
    """Freeze and thaw a process by the v2 freezer."""
    for hierarchy in find_hierarchies():
        if hierarchy.version == 2:
            return _in_new_group(hierarchy, _freeze_a_child)
    raise Absent("no v2 hierarchy is mounted")


def _controller(name: str, *, v1_file: str) -> str:
    for hierarchy in find_hierarchies():
        if name not in hierarchy.controllers:
            continue
        if hierarchy.version == 2:
            return "v2"
        return _in_new_group(hierarchy, lambda group: _look_for(group / v1_file, "v1"))
    raise Absent(f"no mounted hierarchy has the {name} controller")


def _look_for(file: Path, found: str) -> str:
    if not file.exists():
        raise Absent(f"a new cgroup has no {file.name}")
    return found


def _in_new_group(hierarchy: Hierarchy, trial: Callable[[Path], str]) -> str:
    group = hierarchy.path / f"insula-probe-{os.getpid()}"
    group.mkdir()
    try:
        return trial(group)
    finally:
        group.rmdir()


def _freeze_a_child(group: Path) -> str:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        (group / "cgroup.procs").write_text(str(child), encoding="ascii")
        (group / "cgroup.freeze").write_text("1", encoding="ascii")
        _wait_frozen(group / "cgroup.events")
        (group / "cgroup.freeze").write_text("0", encoding="ascii")
    finally:
        os.kill(child, signal.SIGKILL)
        with suppress(FileNotFoundError, PermissionError):
            (group / "cgroup.freeze").write_text("0", encoding="ascii")
        os.waitpid(child, 0)
    return ""


def _wait_frozen(events: Path) -> None:
    # A change of cgroup.events is told as POLLPRI; the state is read first, so that no change is missed.
    with events.open("rb", buffering=0) as file:
        poller = select.poll()
        poller.register(file, select.POLLPRI)
        while True:
            file.seek(0)
            if b"frozen 1" in file.read(256):
                return
            if not poller.poll(_FREEZE_SECONDS * 1000):
                raise Absent(f"a process is not frozen after {_FREEZE_SECONDS:.0f} s")
