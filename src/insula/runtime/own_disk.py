# SPDX-License-Identifier: Apache-2.0
"""A disk for a container that has a limit of bytes: what it writes into its root ends there, and nobody else's does.

    containers/<id>/disk/          upper, work: a mounted file system, a folder with a project, or a subvolume
    containers/<id>/disk.img       the file that it is in, where it is in one
    containers/<id>/log, …         beside it: not counted

The kinds are those of tenants' disks (`disk_kinds.py`).  On a tenant's disk it is always a file system in a file: the file
counts against the tenant, while projects and quota groups would not (ADR 30).  What a container has is told by its folder
alone, so that a half of one is found and removed after a crash.  Out of scope: volumes, logs, checkpoints.
"""

import os
import time
from enum import StrEnum
from pathlib import Path

from insula.kernel.disk_image import Room
from insula.model.errors import LimitRefused
from insula.model.spec import Spec
from insula.model.units import format_size
from insula.runtime import disk_kinds
from insula.runtime.disk_errors import explained
from insula.runtime.disk_kinds import Disk, ImageDisk
from insula.runtime.fault import fault
from insula.runtime.trees import remove_tree
from insula.runtime.undo import attempt


class Step(StrEnum):
    """Where a test may have insulad end."""

    MADE = "disk.made"
    DETACHED = "disk.detached"


def find(folder: Path) -> Disk | None:
    """Return the disk that a container has.  folder: `containers/<id>`, or a link to where that lies."""
    return disk_kinds.find(folder.resolve())


def make(folder: Path, spec: Spec, *, is_nested: bool) -> None:
    """Make a container's disk in its folder, if it wishes for one.  is_nested: on its tenant's disk.  Undo: `remove_folder`.

    Raises: DiskFull, Unsupported with the cure, LimitRefused.
    """
    if spec.disk_bytes is None:
        return
    place = folder.resolve()
    _refuse_more_than_all(place, spec)
    disk = ImageDisk(place) if is_nested else disk_kinds.choose(place, limits_files=spec.inodes is not None)
    with explained(f"make the disk of container `{spec.name}`", if_full="free some space"):
        disk.make(size=disk_kinds.whole(spec.disk_bytes), files=spec.inodes)
    fault(Step.MADE)


def _refuse_more_than_all(place: Path, spec: Spec) -> None:
    found = os.statvfs(place)
    there = found.f_blocks * found.f_frsize
    if spec.disk_bytes is not None and spec.disk_bytes > there:
        raise LimitRefused(
            f"cannot make the disk of container `{spec.name}`: {format_size(spec.disk_bytes)} is more than all of the"
            f" disk on which it would lie, {format_size(there)}",
            hint="a smaller --disk",
        )


def make_ready(folder: Path, spec: Spec) -> None:
    """Have a container's disk mounted before it starts: it may have failed when insulad started.

    Raises: LimitRefused: without its disk a container would write without limit.
    """
    if spec.disk_bytes is None:
        return
    disk = find(folder)
    if disk is None:
        raise LimitRefused(
            f"cannot start `{spec.name}`: its disk is gone",
            hint="an administrator may have a backup of it; else remove the container",
        )
    if not disk.is_ready():
        with explained(f"mount the disk of container `{spec.name}`"):
            disk.attach()


def room(folder: Path, spec: Spec) -> Room | None:
    """Measure a container's disk; None: it has none, or it cannot be asked now."""
    if spec.disk_bytes is None:
        return None
    disk = find(folder)
    try:
        return disk.room() if disk is not None and disk.is_ready() else None
    except OSError:  # it has just gone
        return None


def remove_folder(folder: Path) -> None:
    """Remove a container's folder and the disk in it, however much of both is there.  That it is gone is no error.

    A device that somebody uses for another moment (a start copies all mounts) goes with its last user.
    """
    place = folder.resolve()
    if (place / "disk").is_dir():
        disk = disk_kinds.find(place) or ImageDisk(place)  # its file may be gone, and its mount not
        attempt(disk.detach, time.monotonic())
        fault(Step.DETACHED)
        attempt(disk.remove)
    remove_tree(folder)
