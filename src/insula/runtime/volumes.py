# SPDX-License-Identifier: Apache-2.0
"""Volumes: folders that live longer than a container.  Files in them carry container ids (root is 0).

STATE/volumes/<tenant>/<name>; every folder above a volume is root's alone.  A record has its folder at every moment: names
are taken and given back under one lock for each tenant, and what was removed is emptied elsewhere.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from insula.model.errors import Conflict, InUse, InvalidSpec, NameTaken
from insula.model.labels import check_labels
from insula.model.quota import Allowance, Resource, Unlimited
from insula.model.record import VolumeRecord
from insula.model.spec import Spec, VolumeWish
from insula.runtime.disk_errors import explained
from insula.runtime.locks import Locks
from insula.runtime.store import Store, volume_name_taken
from insula.runtime.trees import remove_tree

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_LEFT = ".left-"
"""Before the names of folders that are being emptied: no tenant's begins so."""
_IF_FULL = "remove files or volumes of the tenant, or give it a larger disk"


class Volumes:
    """The volumes of one host."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        *,
        allowance: Allowance | None = None,
        ready: Callable[[str], object] = lambda _tenant: None,
    ) -> None:
        """ready: makes the place for a tenant's volumes, if they do not lie in the folder (`disks.py`)."""
        self._folder = folder
        self._store = store
        self._allowance = allowance or Unlimited()
        self._ready = ready
        self._locks = Locks()
        """By tenant: names and folders change together."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, volume: VolumeRecord) -> Path:
        """Return the volume's folder, without a link on the way: the tenant's may be one (`disks.py`)."""
        return Path(os.path.realpath(self._folder / volume.tenant)) / volume.name

    def create(self, tenant: str, wish: VolumeWish) -> VolumeRecord:
        """Make an empty volume; without a name it is anonymous and gets one.

        Raises: InvalidSpec, NameTaken, QuotaExceeded, DiskFull.
        """
        name = wish.name or secrets.token_hex(32)
        if not _NAME.fullmatch(name):
            raise InvalidSpec(
                f"cannot name a volume `{name[:80]}`", hint="letters, digits, `_`, `.`, `-`, at most 128"
            )
        check_labels(wish.labels)
        record = VolumeRecord(
            name=name, tenant=tenant, created_at=time.time(), labels=wish.labels, anonymous=not wish.name
        )
        self._ready(tenant)
        with self._locks.hold(tenant):
            if self._store.find_volume(tenant, name) is not None:
                raise volume_name_taken(name)
            self._allowance.check(tenant, Resource.VOLUMES, used=self._store.count_volumes(tenant))
            left = self._make(record)
        remove_tree(left)
        return record

    def _make(self, record: VolumeRecord) -> Path:
        """Make a volume's folder, then its record: none is without the other.  The tenant's lock is held.

        Returns: the folder to be emptied, if there is one.
        """
        with explained(f"make volume `{record.name}`", if_full=_IF_FULL), ExitStack() as undo:
            (self._folder / record.tenant).mkdir(mode=0o700, exist_ok=True)
            path = self.path(record)
            # A folder without a record is what an interrupted removal left: it must not come back to life.
            left = _put_away(path)
            undo.callback(remove_tree, left)
            path.mkdir(mode=0o755)
            undo.callback(path.rmdir)
            self._store.add_volume(record)
            undo.pop_all()
        return left

    def ensure(
        self, tenant: str, name: str, *, on_made: Callable[[VolumeRecord], object] = lambda _record: None
    ) -> VolumeRecord:
        """Return the volume of that name, made if there is none; without a name a new anonymous one.

        on_made: told if it was made here.  Raises: InvalidSpec, QuotaExceeded, DiskFull.
        """
        while (found := self._store.find_volume(tenant, name)) is None:
            with contextlib.suppress(NameTaken):  # somebody was faster
                made = self.create(tenant, VolumeWish(name=name))
                on_made(made)
                return made
        return found

    def delete(self, tenant: str, name: str, *, with_container: str = "") -> None:
        """Remove a volume and its files.

        with_container: id of one that goes as well.
        Raises: VolumeNotFound; InUse while a container, running or not, mounts it.
        """
        with self._locks.hold(tenant):
            with self._store.transaction():
                record = self._store.get_volume(tenant, name)
                for container in self._store.list_containers(tenant):
                    if container.id != with_container and name in container.spec.volumes():
                        raise InUse(
                            f"cannot remove volume `{name}`: container `{container.name}` uses it",
                            hint=f"insula rm {container.name}",
                        )
                self._store.delete_volume(tenant, name)
            left = _put_away(self.path(record))
        remove_tree(left)  # for as long as it takes: the name is free

    def need(self, tenant: str, spec: Spec) -> None:
        """Refuse a container whose volume somebody removed before it was written down.  In a transaction with that.

        Raises: Conflict.
        """
        for name in spec.volumes():
            if self._store.find_volume(tenant, name) is None:
                raise Conflict(
                    f"cannot use volume `{name}`: somebody has removed it meanwhile", hint="try again"
                )

    def drop_leftovers(self) -> None:
        """Remove what removals left that a crash interrupted."""
        places = {self._folder, *(Path(os.path.realpath(each)).parent for each in self._folder.iterdir())}
        for place in places:
            for each in place.glob(f"{_LEFT}*"):
                remove_tree(each)


def _put_away(path: Path) -> Path:
    """Take a volume's folder from its name, so that it can be emptied without hurry.  Returns: where it is, if it was there.

    Beside the tenant's folder, in the same file system: among volumes it would count as one (`disks.py`).
    """
    left = path.parent.with_name(f"{_LEFT}{secrets.token_hex(8)}")
    try:
        os.rename(path, left)
    except FileNotFoundError:
        pass
    except OSError:  # a full disk may have no room for another name
        remove_tree(path)
    return left
