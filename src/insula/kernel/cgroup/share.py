# SPDX-License-Identifier: Apache-2.0
"""Shares of the processors: of all groups below a parent together, and of insulad's own group beside it.

A nice value would not do: it counts among the processes of one group, or of one session (sched(7), autogroups), never
beside containers; and what insulad starts would inherit it.  Out of scope: a container's share (`group.py`).

Sources: cgroup-v2.rst, "cpu.weight"; `Documentation/scheduler/sched-design-CFS.rst` (cpu.shares).
"""

import contextlib
import errno
import os

from insula.kernel.cgroup import files, v1, v2
from insula.kernel.cgroup.hierarchy import LEAF, OWN_SUFFIX, Hierarchies
from insula.kernel.cgroup.values import Limits, check


def own_name(parent_name: str) -> str:
    """Return the name of the group for the insulad whose containers stand below this parent."""
    return f"{parent_name.replace('/', '-')}{OWN_SUFFIX}"


def weigh(hierarchies: Hierarchies, name: str, weight: int) -> None:
    """Set the share of a group and all below it, beside what else this host runs; the group is made if there is none.

    weight: as of `Limits`.  A host without the controller has nothing to share.  Raises: OSError.
    """
    limits = Limits(cpu_weight=weight)
    check(limits)
    directory = _make(hierarchies, name)
    if directory is not None:
        (v2 if hierarchies.find_v1("cpu") is None else v1).limit_cpu(directory, limits)


def enter(hierarchies: Hierarchies, name: str) -> None:
    """Move this process, with its threads, into a group where processors are shared; what it starts is born there.

    Raises: OSError: ENOTSUP if this host shares processors nowhere; EACCES, EROFS.
    """
    directory = _make(hierarchies, name)
    if directory is None:
        raise OSError(errno.ENOTSUP, "write: no cgroup controller `cpu`", name)
    files.write(directory, "cgroup.procs", value=str(os.getpid()))


def leave(hierarchies: Hierarchies, name: str) -> None:
    """Go back from a group that `enter` was asked for, and remove it unless somebody else is in it."""
    hierarchy = hierarchies.find_v1("cpu") or hierarchies.v2
    if hierarchy is None:
        return
    leaf = os.path.join(hierarchy.base, LEAF)
    with contextlib.suppress(OSError):  # on v2 there may be no place left that takes processes
        files.write(leaf if os.path.isdir(leaf) else hierarchy.base, "cgroup.procs", value=str(os.getpid()))
        os.rmdir(os.path.join(hierarchy.base, name))


def _make(hierarchies: Hierarchies, name: str) -> str | None:
    """Returns: the group's directory; None if this host shares processors nowhere."""
    hierarchy = hierarchies.find_v1("cpu")
    if hierarchy is not None:
        directory = os.path.join(hierarchy.base, name)
        os.makedirs(directory, mode=0o755, exist_ok=True)
        return directory
    if hierarchies.v2 is None:
        return None
    v2.create(hierarchies.v2.base, name)
    directory = os.path.join(hierarchies.v2.base, name)
    return directory if v2.has(directory, "cpu") else None
