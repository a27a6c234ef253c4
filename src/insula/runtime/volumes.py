# SPDX-License-Identifier: Apache-2.0
"""Volumes: folders that live longer than a container.  Files in them carry container ids (root is 0).

STATE/volumes/<tenant>/<name>; every folder above a volume is root's alone.
"""

import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from insula.model.errors import InUse, InvalidSpec, NameTaken, VolumeNotFound
from insula.model.record import VolumeRecord
from insula.model.spec import MountKind, VolumeWish
from insula.runtime.store import Store
from insula.runtime.trees import remove_tree

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


class Volumes:
    """The volumes of one host."""

    def __init__(
        self, folder: Path, store: Store, *, ready: Callable[[str], object] = lambda _tenant: None
    ) -> None:
        """ready: makes the place for a tenant's volumes, if they do not lie in the folder (`disks.py`)."""
        self._folder = folder
        self._store = store
        self._ready = ready
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, volume: VolumeRecord) -> Path:
        """Return the volume's folder, without a link on the way: the tenant's may be one (`disks.py`)."""
        return Path(os.path.realpath(self._folder / volume.tenant)) / volume.name

    def create(self, tenant: str, wish: VolumeWish) -> VolumeRecord:
        """Make an empty volume; without a name it is anonymous and gets one.

        Raises: InvalidSpec, NameTaken.
        """
        name = wish.name or secrets.token_hex(32)
        if not _NAME.fullmatch(name):
            raise InvalidSpec(
                f"cannot name a volume `{name[:80]}`", hint="letters, digits, `_`, `.`, `-`, at most 128"
            )
        record = VolumeRecord(
            name=name, tenant=tenant, created_at=time.time(), labels=wish.labels, anonymous=not wish.name
        )
        self._ready(tenant)
        self._store.add_volume(record)
        (self._folder / tenant).mkdir(mode=0o700, exist_ok=True)
        # A folder without a record is what an interrupted removal left: it must not come back to life.
        remove_tree(self.path(record))
        self.path(record).mkdir(mode=0o755)
        return record

    def ensure(self, tenant: str, name: str) -> VolumeRecord:
        """Return the volume of that name, made if there is none.

        Raises: InvalidSpec.
        """
        while True:
            try:
                return self._store.get_volume(tenant, name)
            except VolumeNotFound:
                try:
                    return self.create(tenant, VolumeWish(name=name))
                except NameTaken:
                    continue  # somebody was faster

    def delete(self, tenant: str, name: str) -> None:
        """Remove a volume and its files.

        Raises: VolumeNotFound; InUse while a container, running or not, mounts it.
        """
        record = self._store.get_volume(tenant, name)
        for container in self._store.list_containers(tenant):
            for mount in container.spec.mounts:
                if mount.kind is MountKind.VOLUME and mount.source == name:
                    raise InUse(
                        f"cannot remove volume `{name}`: container `{container.name}` uses it",
                        hint=f"insula rm {container.name}",
                    )
        self._store.delete_volume(tenant, name)
        remove_tree(self.path(record))
