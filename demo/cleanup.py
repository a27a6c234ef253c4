# SPDX-License-Identifier: Apache-2.0
"""Take everything of a run off this machine again, and prove it.

Nothing here trusts that the product's own removal worked: processes are found as our descendants (this process is made the
reaper of orphans) and by cgroup, mounts by folder, cgroups by name.  Whatever else is on the machine is not touched.
Sources: prctl(2) PR_SET_CHILD_SUBREAPER; proc_pid_mountinfo(5); `nft list tables`.
"""

import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from insula.kernel import libc
from insula.kernel.cgroup import own_name
from insula.kernel.netlink import Route

CGROUPS = Path("/sys/fs/cgroup")
PR_SET_CHILD_SUBREAPER = 36
MNT_DETACH = 2
DEADLINE_S = 60.0
_INTERVAL_S = 0.02
LOCK = "\0insula-demo"
ALONE_S = 180.0


def adopt_orphans() -> None:
    """Make this process the parent of what its descendants leave behind (the spawner, containers)."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def let_orphans_go() -> None:
    """Leave orphans to the machine's init again: who runs on after us must not collect them."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def wait_until(condition: Callable[[], bool], *, deadline_s: float = DEADLINE_S) -> bool:
    """Ask again and again until it holds or the deadline passes; returns whether it holds."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        select.select([], [], [], _INTERVAL_S)
    return True


@contextmanager
def alone(what: str) -> Iterator[None]:
    """Have this machine for one run: two would share users and processors.  Ends this process after ALONE_S.

    The lock is an abstract socket (unix(7)): it leaves no file, and goes with its process.
    """
    with socket.socket(socket.AF_UNIX) as lock:
        if not _bind(lock):
            print(f"{what}: another run works on this machine; waiting for its end", flush=True)
            if not wait_until(lambda: _bind(lock), deadline_s=ALONE_S):
                raise SystemExit(f"{what}: the other run has not ended for {ALONE_S:.0f} s")
        yield


def _bind(lock: socket.socket) -> bool:
    try:
        lock.bind(LOCK)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


# -- processes ---------------------------------------------------------------------------------------------------------


def parents() -> dict[int, int]:
    """Return every process of this machine with its parent."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            # proc_pid_stat(5): the name in parentheses may hold anything; then state and parent.
            fields = _read(Path("/proc", name, "stat")).rpartition(") ")[2].split()
            if len(fields) > 1:
                found[int(name)] = int(fields[1])
    return found


def descendants(ancestor: int, tree: dict[int, int]) -> set[int]:
    """Return all below a process in a table of parents."""
    found: set[int] = set()
    is_growing = True
    while is_growing:
        more = {pid for pid, parent in tree.items() if parent == ancestor or parent in found} - found
        found |= more
        is_growing = bool(more)
    return found


def members(group: str) -> set[int]:
    """Return the processes in a cgroup of this name, in whichever hierarchy, or below it."""
    names = (name for name in os.listdir("/proc") if name.isdigit())
    return {int(name) for name in names if is_in_cgroup(_read(Path("/proc", name, "cgroup")), group)}


def is_in_cgroup(table: str, group: str) -> bool:
    """Tell whether a /proc/PID/cgroup names the group as one folder of a path."""
    return any(group in line.split(":", 2)[-1].split("/") for line in table.splitlines())


def in_network(descriptor: int) -> set[int]:
    """Return the processes in a network namespace, without this one."""
    wanted = os.fstat(descriptor)
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                seen = os.stat(f"/proc/{name}/ns/net")
            except OSError:  # it has just ended
                continue
            if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.add(int(name))
    return found


def kill(pids: Iterable[int], *, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal processes that may have ended meanwhile."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def reap() -> None:
    """Collect what has ended among our children."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def end_all(find: Callable[[], set[int]]) -> bool:
    """Kill until none is found any more; returns whether that came about."""

    def is_over() -> bool:
        found = find()
        kill(found)
        reap()
        return not found

    return wait_until(is_over)


def own_processes() -> set[int]:
    return descendants(os.getpid(), parents())


# -- files, mounts, cgroups --------------------------------------------------------------------------------------------


def mounts_below(folder: Path, table: str) -> list[str]:
    """Return the mount points in or below a folder, deepest first, out of a mountinfo table."""
    points = [line.split()[4].replace("\\040", " ") for line in table.splitlines()]
    inside = [point for point in points if point == str(folder) or point.startswith(f"{folder}/")]
    return sorted(inside, key=len, reverse=True)


def unmount_below(folder: Path) -> None:
    """Unmount everything below a folder; what is in use goes when it is let go of."""
    for point in mounts_below(folder, _read(Path("/proc/self/mountinfo"))):
        libc.umount2(point.encode(), MNT_DETACH)


def remove_folder(folder: Path) -> None:
    """Remove a run's folder, never across a mount."""
    unmount_below(folder)
    shutil.rmtree(folder, ignore_errors=True)


def cgroups_named(name: str, *, root: Path = CGROUPS) -> list[Path]:
    """Return the cgroups of this name and insulad's own beside them, wherever they stand, and all below; deepest first."""
    wanted = {name, own_name(name)}
    found = [Path(folder) for folder, _, _ in os.walk(root) if wanted.intersection(Path(folder).parts)]
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def remove_cgroups(name: str) -> None:
    """Remove the cgroups of this name; the kernel needs a moment after the last process."""

    def is_over() -> bool:
        for path in cgroups_named(name):
            try:
                path.rmdir()
            except OSError:  # busy, or gone
                continue
        return not cgroups_named(name)

    wait_until(is_over, deadline_s=3.0)


# -- the proof ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run could leave on this machine."""

    links: frozenset[str]
    tables: frozenset[str]
    namespaces: frozenset[str]


def look() -> Machine:
    """Take down what is there now in the machine's own network namespace."""
    with Route() as route:
        links = frozenset(link.name for link in route.links())
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    folder = Path("/run/netns")
    named = frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()
    return Machine(links=links, tables=frozenset(listed.splitlines()), namespaces=named)


def appeared(before: Machine, after: Machine, *, marks: tuple[str, ...]) -> list[str]:
    """Return a line for each thing that came and whose name begins with a mark of ours: others work here too."""
    came = [
        *(("interface", name, name) for name in after.links - before.links),
        *(("nft", line, line.split()[-1]) for line in after.tables - before.tables),
        *(("network namespace", name, name) for name in after.namespaces - before.namespaces),
    ]
    return sorted(f"{kind} {words}" for kind, words, name in came if name.startswith(marks))


def leftovers(
    before: Machine,
    *,
    folder: Path,
    groups: Iterable[str],
    networks: Iterable[int],
    marks: tuple[str, ...],
) -> list[str]:
    """Return what stayed of a run: its processes, mounts, cgroups, interfaces, rules, namespaces, files.

    networks: inode numbers of the network namespaces that the run made.  marks: what its names begin with in the machine's
    own network namespace, where nothing of it belongs.
    """
    reap()
    lines = [f"process {pid} {_command(pid)}" for pid in sorted(own_processes())]
    lines += [f"mount {point}" for point in mounts_below(folder, _read(Path("/proc/self/mountinfo")))]
    lines += [f"cgroup {path}" for name in groups for path in cgroups_named(name)]
    lines += [f"network namespace {number} ({who})" for number, who in _users_of(set(networks))]
    lines += appeared(before, look(), marks=marks)
    return lines + ([f"folder {folder}"] if folder.exists() else [])


def _users_of(numbers: set[int]) -> list[tuple[int, str]]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                number = os.stat(f"/proc/{name}/ns/net").st_ino
            except OSError:  # it has just ended
                continue
            if number in numbers:
                found.append((number, f"held by {name} {_command(int(name))}"))
    return found


def _command(pid: int) -> str:
    words = _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()
    return (words or _read(Path(f"/proc/{pid}/comm")).strip())[:100]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has just ended
        return ""
