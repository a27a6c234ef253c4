# SPDX-License-Identifier: Apache-2.0
"""A disk for each tenant that has a limit of bytes: a place of its own below the state folder, as large as the limit.

    tenants/<tenant>/disk/         containers/<id>, volumes/<name>: a mounted file system, a folder or a subvolume
    containers/<id>  ─────────────► …/disk/containers/<id>      links, so that every path is as it always was
    volumes/<tenant> ─────────────► …/disk/volumes

What makes it as large as that is chosen by what is there (`disk_kinds.py`); ADR 18.  A tenant without the limit has none,
and loses nothing.  A container may have a disk of its own on it (`own_disk.py`): those are mounted after it, and at rest
before it is.  Out of scope: images, which tenants may share (`quotas`).
"""

import errno
import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from insula.kernel.disk_image import Room
from insula.model.errors import Conflict, InUse, LimitRefused, WrongState
from insula.model.lifecycle import ALIVE
from insula.model.quota import Allowance, Resource
from insula.runtime import disk_kinds, own_disk
from insula.runtime.disk_errors import explained
from insula.runtime.disk_kinds import Disk, ImageDisk
from insula.runtime.store import Store
from insula.runtime.trees import remove_tree
from insula.runtime.undo import attempt

LOG = logging.getLogger(__name__)

LEAVING_SECONDS = 5.0
"""For the kernel to let go of a file system after the last container that used it."""


class Disks:
    """The disks of one host.  Safe to use from several threads."""

    def __init__(self, state: Path, store: Store, allowance: Allowance) -> None:
        self._state = state
        self._store = store
        self._allowance = allowance
        self._guard = threading.RLock()

    def attach_all(self) -> None:
        """Mount every disk, after a start of the host or of insulad.  One that cannot be is logged."""
        for owners in ("tenants/*", "containers/*"):
            for folder, disk in self._all(owners):
                try:
                    disk.attach()
                except OSError as error:
                    LOG.error("a disk is absent", extra={"fields": {"disk": str(folder), "why": str(error)}})

    def detach_all(self) -> None:
        """Unmount every disk: the host comes to rest."""
        for owners in ("containers/*", "tenants/*"):
            for folder, disk in self._all(owners):
                if not _detach(disk):
                    LOG.warning("a disk is still in use", extra={"fields": {"disk": str(folder)}})

    def _all(self, owners: str) -> Iterator[tuple[Path, Disk]]:
        for folder in self._state.glob(owners):
            if (disk := disk_kinds.find(folder.resolve())) is not None:
                yield folder, disk

    def home_of(self, tenant: str) -> Path | None:
        """Return where folders of a tenant's new containers lie; None: in the state folder, as it has no disk.

        The first time the disk is made.  Raises: Unsupported, DiskFull; LimitRefused while the disk is absent.
        """
        with self._guard:
            disk = self._find(tenant)
            if disk is None:
                size = self._allowance.limit(tenant, Resource.DISK)
                if size is None or self._has_files(tenant):
                    return None
                disk = self._make(tenant, size)
            if not disk.is_ready():
                raise LimitRefused(
                    "cannot use the tenant's disk: it is not mounted",
                    hint="an administrator finds the reason in insulad's log",
                )
            return self._place(tenant) / "containers"

    def room(self, tenant: str) -> Room | None:
        """Measure a tenant's disk; None: it has none."""
        disk = self._find(tenant)
        return disk.room() if disk is not None and disk.is_ready() else None

    def kind(self, tenant: str) -> str:
        """Tell what keeps the limit of a tenant's disk, or would."""
        return (self._find(tenant) or self._choose(tenant)).kind

    def apply(self, tenant: str) -> None:
        """Make, enlarge, shrink or remove a tenant's disk, as its limit now is.

        Raises: WrongState, InUse, LimitRefused, DiskFull, Unsupported; then all is as before.
        """
        size = self._allowance.limit(tenant, Resource.DISK)
        with self._guard:
            disk = self._find(tenant)
            if size is None:
                self.remove(tenant)
            elif disk is not None:
                self._resize(tenant, disk, size=size)
            elif self._has_files(tenant):
                self._move_in(tenant, size)

    def apply_files(self, tenant: str) -> None:
        """Limit the files of a tenant's disk, if it has one, as its limit now is.  Raises: Conflict, DiskFull."""
        with self._guard:
            disk = self._find(tenant)
            if disk is None:
                return
            if disk.needs_rest or not disk.counts_files:
                raise Conflict(
                    f"cannot limit the files of tenant `{tenant}` anew: its disk was made for as many as it has",
                    hint="set `inodes` before or together with `disk`",
                )
            self._resize(tenant, disk, size=disk.size())

    def remove(self, tenant: str) -> None:
        """Remove an empty disk.  Raises: InUse."""
        with self._guard:
            disk = self._find(tenant)
            if disk is None:
                return
            if self._has_files(tenant):
                raise InUse(
                    f"cannot take away the disk of tenant `{tenant}`: containers or volumes lie on it",
                    hint="give it a larger one, or remove them first",
                )
            if not _detach(disk):
                raise InUse(f"cannot take away the disk of tenant `{tenant}`: it is in use", hint="try again")
            (self._state / "volumes" / tenant).unlink(missing_ok=True)
            disk.remove()

    def _folder(self, tenant: str) -> Path:
        return self._state / "tenants" / tenant

    def _place(self, tenant: str) -> Path:
        return self._folder(tenant) / "disk"

    def _find(self, tenant: str) -> Disk | None:
        return disk_kinds.find(self._folder(tenant))

    def _choose(self, tenant: str) -> Disk:
        files = self._allowance.limit(tenant, Resource.INODES)
        return disk_kinds.choose(self._folder(tenant), limits_files=files is not None)

    def _has_files(self, tenant: str) -> bool:
        return bool(self._store.count_containers(tenant) or self._store.list_volumes(tenant))

    def _make(self, tenant: str, size: int) -> Disk:
        """Make an empty disk, and lead the tenant's volumes to it."""
        disk, place, volumes = self._choose(tenant), self._place(tenant), self._state / "volumes" / tenant
        with ExitStack() as undo, _explained(tenant):
            undo.callback(_undo_make, disk, self._folder(tenant))
            disk.make(size=disk_kinds.whole(size), files=self._allowance.limit(tenant, Resource.INODES))
            for name in ("containers", "volumes"):
                (place / name).mkdir(mode=0o700)
            if volumes.is_dir() and not volumes.is_symlink() and not any(volumes.iterdir()):
                volumes.rmdir()
            if not volumes.exists():
                volumes.symlink_to(place / "volumes")
            undo.pop_all()
        return disk

    def _move_in(self, tenant: str, size: int) -> None:
        """Make a disk for a tenant that has files already, and carry them there; its containers must not run."""
        self._need_rest(tenant, "given a disk")
        with self._own_at_rest(tenant, moves=True):
            self._carry(tenant, self._make(tenant, size))

    def _carry(self, tenant: str, disk: Disk) -> None:
        places = [self._state / "containers" / each.id for each in self._store.list_containers(tenant)]
        moved: list[tuple[Path, Path]] = []
        try:
            with _explained(tenant):
                for place in places:
                    moved.append((place, self._place(tenant) / "containers" / place.name))
                    _copy(*moved[-1])
                volumes = self._state / "volumes" / tenant
                if volumes.is_dir() and not volumes.is_symlink():
                    moved.append((volumes, self._place(tenant) / "volumes"))
                    _copy(*moved[-1])
        except BaseException:
            _undo_make(disk, self._folder(tenant))
            raise
        for old, new in moved:
            _lead(old, new)

    def _resize(self, tenant: str, disk: Disk, *, size: int) -> None:
        wanted, files = disk_kinds.whole(size), self._allowance.limit(tenant, Resource.INODES)
        if disk.needs_rest and wanted == disk.size():
            return
        try:
            with _explained(tenant, passes=errno.EPERM):
                disk.grow(size=wanted, files=files)
            return
        except PermissionError:  # smaller, or CAP_SYS_RESOURCE is missing: only at rest, then
            pass
        self._need_rest(tenant, "given a disk of another size")
        with self._own_at_rest(tenant):
            try:
                if not _detach(disk):
                    raise WrongState(
                        f"cannot resize the disk of tenant `{tenant}`: it is in use", hint="try again"
                    )
                with _explained(tenant):
                    disk.resize(size=wanted)
            finally:
                attempt(disk.attach)

    @contextmanager
    def _own_at_rest(self, tenant: str, *, moves: bool = False) -> Iterator[None]:
        """Have none of a tenant's containers' own disks mounted.  moves: they come to lie elsewhere meanwhile.

        Raises: Conflict for one that cannot move.
        """
        folders = [self._state / "containers" / each.id for each in self._store.list_containers(tenant)]
        own = [disk for each in folders if (disk := own_disk.find(each)) is not None]
        if moves and any(not isinstance(each, ImageDisk) for each in own):
            raise Conflict(
                f"cannot give tenant `{tenant}` a disk: the file system keeps the limit of a container's own disk",
                hint="remove its containers that have a limit of disk first",
            )
        try:
            for disk in own:
                _detach(disk)
            yield
        finally:
            for each in folders:
                if (found := own_disk.find(each)) is not None:
                    attempt(found.attach)

    def _need_rest(self, tenant: str, what: str) -> None:
        alive = [each.name for each in self._store.list_containers(tenant) if each.status in ALIVE]
        if alive:
            raise WrongState(
                f"cannot have tenant `{tenant}` {what}: `{alive[0]}` and {len(alive) - 1} more run",
                hint="stop its containers first",
            )


def _detach(disk: Disk) -> bool:
    return disk.detach(time.monotonic() + LEAVING_SECONDS)


def _undo_make(disk: Disk, folder: Path) -> None:
    """Take away what was made of a disk, however much that is."""
    if disk.exists():
        _detach(disk)
        attempt(disk.remove)
    remove_tree(folder)


def _copy(old: Path, new: Path) -> None:
    """Copy a folder with owners, times, marks of overlayfs and holes.  Raises: OSError with cp's words."""
    new.mkdir(mode=0o700, exist_ok=True)
    words = ["cp", "--archive", "--sparse=always", "--", f"{old}/.", f"{new}/"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["failed"]
        raise OSError(errno.ENOSPC if "No space" in said[0] else errno.EIO, said[0], str(old))


def _lead(old: Path, new: Path) -> None:
    """Put a link in the place of a folder that was copied."""
    link, gone = old.with_name(f"{old.name}.link"), old.with_name(f"{old.name}.gone")
    link.unlink(missing_ok=True)
    link.symlink_to(new)
    os.rename(old, gone)
    os.rename(link, old)
    remove_tree(gone)


def _explained(tenant: str, *, passes: int = 0) -> AbstractContextManager[None]:
    return explained(f"make the disk of tenant `{tenant}`", passes=passes)
