# SPDX-License-Identifier: Apache-2.0
"""The kinds of disk that a tenant or a container may have, and which of them the state folder's file system allows.

    project quota   the file system limits folders itself (ext4, xfs mounted with `prjquota`): bytes and files
    btrfs quota     a subvolume with a quota group: bytes only; for owners whose files have no limit
    image           an ext4 in a sparse file, on whatever there is: bytes and files

The first that is there is taken when a disk is made; it is what it is from then on.  Quotas of the file system cost no
loop device, grow and shrink at once, and hold nothing of the host's space.  Whether they are on is the administrator's
decision: they cost everybody who uses that file system.  Each kind lives in its owner's folder, `tenants/<tenant>/` or
`containers/<id>/`, its files in `disk/`.  Out of scope: whose it is (`disks.py`, `own_disk.py`).
"""

import errno
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from insula.kernel import btrfs, disk_image, project_quota
from insula.kernel.disk_image import Room
from insula.runtime.trees import remove_tree

BLOCK_BYTES = 4096
OUR_PROJECTS = 0x40000000
"""Numbers of projects from here on are ours, each with the inode of its owner's folder: those in /etc/projects are small."""


class Disk(Protocol):
    """The disk of one owner."""

    kind: str
    """As people read it."""
    needs_rest: bool
    """It changes its size only while nobody uses it (an image: unless the kernel lets it grow)."""
    counts_files: bool

    def exists(self) -> bool: ...
    def make(self, *, size: int, files: int | None) -> None:
        """Make it empty and ready.  Undo: `remove`.  Raises: OSError."""
        ...

    def attach(self) -> None:
        """Make it ready after a start.  Raises: OSError."""
        ...

    def detach(self, deadline: float) -> bool:
        """Bring it to rest.  Returns: whether nobody uses it any more at the deadline (monotonic seconds)."""
        ...

    def is_ready(self) -> bool: ...
    def room(self) -> Room: ...
    def size(self) -> int:
        """Return its limit of bytes."""
        ...

    def grow(self, *, size: int, files: int | None) -> None:
        """Change it while it is in use.  Raises: OSError: EPERM if it must be at rest; ENOSPC if its files need more."""
        ...

    def resize(self, *, size: int) -> None:
        """Change it while it is at rest.  Raises: OSError."""
        ...

    def remove(self) -> None:
        """Take it away with what is in it."""
        ...


class ImageDisk:
    """A file system in a file."""

    kind = "ext4 in a file"
    needs_rest = True
    counts_files = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._image = folder / "disk.img"
        self._place = folder / "disk"

    def exists(self) -> bool:
        return self._image.exists()

    def make(self, *, size: int, files: int | None) -> None:
        new = self._folder / "disk.new"
        new.unlink(missing_ok=True)
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk_image.make(str(new), size_bytes=size, files=files)
        new.rename(self._image)
        self.attach()
        (self._place / "lost+found").rmdir()

    def attach(self) -> None:
        if not self.is_ready():
            disk_image.attach(str(self._image), str(self._place))

    def detach(self, deadline: float) -> bool:
        return disk_image.detach(str(self._image), str(self._place), deadline=deadline)

    def is_ready(self) -> bool:
        return disk_image.is_attached(str(self._place))

    def room(self) -> Room:
        return disk_image.room(str(self._place))

    def size(self) -> int:
        return self._image.stat().st_size

    def grow(self, *, size: int, files: int | None) -> None:
        if size < self.size():
            raise OSError(errno.EPERM, "resize2fs: a mounted file system cannot shrink", str(self._image))
        disk_image.grow(str(self._image), size_bytes=size)

    def resize(self, *, size: int) -> None:
        disk_image.resize(str(self._image), size_bytes=size)

    def remove(self) -> None:
        remove_tree(self._folder)


class _Quota(ABC):
    """What both kinds have that are limits of the file system itself."""

    needs_rest = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place = folder / "disk"

    def attach(self) -> None:
        return

    def detach(self, deadline: float) -> bool:
        return True

    def room(self) -> Room:
        return disk_image.room(str(self._place))

    def size(self) -> int:
        return self.room().total_bytes

    def grow(self, *, size: int, files: int | None) -> None:
        if size < self.room().used_bytes:
            raise OSError(errno.ENOSPC, "quota: its files need more", str(self._place))
        self._limit(size, files)

    def resize(self, *, size: int) -> None:
        self.grow(size=size, files=None)

    @abstractmethod
    def _limit(self, size: int, files: int | None) -> None:
        """Set both limits.  Raises: OSError."""


class ProjectDisk(_Quota):
    """A folder with a project of its own."""

    kind = "project quota"
    counts_files = True

    @property
    def _project(self) -> int:
        return OUR_PROJECTS | self._folder.stat().st_ino & OUR_PROJECTS - 1

    def exists(self) -> bool:
        try:
            return project_quota.project_of(str(self._place)) == self._project
        except OSError:  # no such folder, or a file system without projects
            return False

    def is_ready(self) -> bool:
        return self.exists()

    def make(self, *, size: int, files: int | None) -> None:
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        project_quota.assign(str(self._place), self._project)
        self._limit(size, files)

    def _limit(self, size: int, files: int | None) -> None:
        project_quota.limit(str(self._place), self._project, size_bytes=size, files=files or 0)

    def remove(self) -> None:
        self._limit(0, None)
        remove_tree(self._folder)


class BtrfsDisk(_Quota):
    """A subvolume with a quota group."""

    kind = "btrfs quota"
    counts_files = False

    def exists(self) -> bool:
        return btrfs.is_subvolume(str(self._place))

    def is_ready(self) -> bool:
        return self.exists()

    def make(self, *, size: int, files: int | None) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._place.is_dir():
            self._place.rmdir()
        btrfs.create(str(self._folder), self._place.name)
        self._place.chmod(0o700)
        self._limit(size, None)

    def room(self) -> Room:
        found, files = btrfs.group(str(self._place)), os.statvfs(self._place)
        return Room(found.used_bytes, found.limit_bytes or files.f_blocks * files.f_frsize, 0, 0)

    def _limit(self, size: int, files: int | None) -> None:
        btrfs.limit(str(self._place), size_bytes=size)

    def remove(self) -> None:
        btrfs.destroy(str(self._folder), self._place.name)
        remove_tree(self._folder)


def whole(size: int) -> int:
    """Return as much of a size as whole blocks have."""
    return size - size % BLOCK_BYTES


def find(folder: Path) -> Disk | None:
    """Return the disk that its owner has.  folder: the owner's, `tenants/<tenant>` or `containers/<id>`."""
    if not (folder / "disk").is_dir():  # most containers: nothing else is asked
        return None
    for each in _kinds(folder):
        if each.exists():
            return each
    return None


def choose(folder: Path, *, limits_files: bool) -> Disk:
    """Return the kind of disk that an owner gets; it is not made yet."""
    image, project, subvolume = _kinds(folder)
    state = str(folder.parent.parent)
    if project_quota.is_enforced(state):
        return project
    if btrfs.has_quotas(state) and not limits_files:
        return subvolume
    return image


def _kinds(folder: Path) -> tuple[ImageDisk, ProjectDisk, BtrfsDisk]:
    return ImageDisk(folder), ProjectDisk(folder), BtrfsDisk(folder)
