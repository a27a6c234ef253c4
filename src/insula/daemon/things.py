# SPDX-License-Identifier: Apache-2.0
"""The API's verbs for images, networks and volumes, tied to the packages that do the work."""

import threading
from dataclasses import dataclass, field
from typing import BinaryIO

from insula.api.verbs import Reporter, Result
from insula.image import gc
from insula.image.debian import build_debian
from insula.image.store import Images, full_name
from insula.model.grant import Grant
from insula.model.record import ImageRecord, NetworkRecord, Progress, VolumeRecord
from insula.model.spec import ImageBuildWish, NetworkWish, VolumeWish
from insula.network.attach import Networks
from insula.runtime.store import Store
from insula.runtime.volumes import Volumes
from insula.tenant.check import scope


@dataclass(kw_only=True)
class Things:
    """What containers are made of.  A tenant of `*` (an admin's) lists, but does not own."""

    store: Store
    images: Images
    networks: Networks
    volumes: Volumes
    _making: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def list_images(self, grant: Grant) -> list[ImageRecord]:
        if scope(grant) is None:
            return [*self.store.list_images(), *self.images.list("")[-1:]]
        return list(self.images.list(grant.tenant))

    def get_image(self, grant: Grant, ref: str) -> ImageRecord:
        return self.images.get(grant.tenant, ref)

    def delete_image(self, grant: Grant, ref: str) -> None:
        with self._lock:
            containers = self.store.list_containers()
            self.images.remove(grant.tenant, ref, images_in_use={record.image for record in containers})
            if self._making == 0:
                gc.collect(self.images.layers, images=self.store.list_images(), containers=containers)

    def _make(self, change: int) -> None:
        # While an image is made its layers stand before its record: nothing may be collected.
        with self._lock:
            self._making += change

    def import_image(self, grant: Grant, name: str, *, source: BinaryIO) -> ImageRecord:
        self._make(1)
        try:
            return self.images.import_tar(grant.tenant, name, stream=source)
        finally:
            self._make(-1)

    def build_image(self, grant: Grant, wish: ImageBuildWish, *, reporter: Reporter) -> Result:
        full_name(wish.name)
        reporter.phase(phase := "build")

        def tell(progress: Progress) -> None:
            nonlocal phase
            if progress.phase not in ("", phase):
                phase = progress.phase
                reporter.phase(phase)
            reporter.progress(progress.done, progress.total, unit=progress.unit)
            if progress.message:
                reporter.message(progress.message)

        self._make(1)
        try:
            layer = build_debian(
                wish.debian,
                wish.packages,
                layers=self.images.layers,
                mirror=wish.mirror,
                progress=tell,
                is_cancelled=lambda: reporter.cancelled,
            )
            image = self.images.add(grant.tenant, wish.name, layers=(layer,), source="debian")
        finally:
            self._make(-1)
        return {"image": image.id}

    def list_networks(self, grant: Grant) -> list[NetworkRecord]:
        return list(self.networks.list(scope(grant)))

    def get_network(self, grant: Grant, ref: str) -> NetworkRecord:
        return self.networks.get(grant.tenant, ref)

    def create_network(self, grant: Grant, wish: NetworkWish) -> NetworkRecord:
        return self.networks.create(grant.tenant, wish, is_admin=grant.principal.is_admin)

    def delete_network(self, grant: Grant, ref: str) -> None:
        self.networks.remove(grant.tenant, ref)

    def list_volumes(self, grant: Grant) -> list[VolumeRecord]:
        return self.store.list_volumes(scope(grant))

    def get_volume(self, grant: Grant, name: str) -> VolumeRecord:
        return self.store.get_volume(grant.tenant, name)

    def create_volume(self, grant: Grant, wish: VolumeWish) -> VolumeRecord:
        return self.volumes.create(grant.tenant, wish)

    def delete_volume(self, grant: Grant, name: str) -> None:
        self.volumes.delete(grant.tenant, name)
