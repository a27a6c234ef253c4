# SPDX-License-Identifier: Apache-2.0
"""The API's verbs for images, networks and volumes, tied to the packages that do the work."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

from insula.api.verbs import Reporter, Result
from insula.image import gc
from insula.image.debian import DEADLINE_S, Patience, Starter, build_debian
from insula.image.layers import Filler
from insula.image.store import Images, full_name
from insula.image.tarball import Limits as TarLimits
from insula.model.errors import ImageTooLarge, TookTooLong
from insula.model.grant import Grant, scope
from insula.model.permit import Permits
from insula.model.quota import Allowance, Resource
from insula.model.record import ImageRecord, LayerRecord, NetworkRecord, Progress, VolumeRecord
from insula.model.spec import ImageBuildWish, NetworkWish, VolumeWish
from insula.network.attach import Networks
from insula.runtime.permitted import check_subnet, check_uplink
from insula.runtime.store import Store
from insula.runtime.volumes import Volumes

TAR_BLOCK = 512


def _wait_on() -> None:
    """An upload takes as long as its sender: the connection has its own deadlines."""


@dataclass(kw_only=True)
class Things:
    """What containers are made of.  A tenant of `*` (an admin's) lists, but does not own."""

    store: Store
    images: Images
    networks: Networks
    volumes: Volumes
    permits: Permits
    allowance: Allowance
    filler_of: Callable[[str, Callable[[], None]], Filler]
    """Tenant, what is asked meanwhile and raises to end it → what unpacks archives, at the tenant's cost."""
    starter_of: Callable[[str], Starter]
    """Tenant → what starts the programs of its builds, at its own cost."""
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
        full_name(name)  # refuse a bad name before the work
        self._make(1)
        try:
            with self._room(grant.tenant) as room:
                filler = self.filler_of(grant.tenant, _wait_on)
                layer = self.images.layers.unpack(source, media="import", limits=room, filler=filler)
            return self._add_image(grant.tenant, name, layer=layer, source="import")
        finally:
            self._make(-1)

    @contextmanager
    def _room(self, tenant: str) -> Iterator[TarLimits | None]:
        """Yield what a tenant's images may still grow by; what becomes larger is refused with the figures.

        Raises: QuotaExceeded.
        """
        limit = self.allowance.limit(tenant, Resource.IMAGES)
        if limit is None:
            yield None
            return
        used = self.store.image_bytes(tenant)
        self.allowance.check(tenant, Resource.IMAGES, used=used)
        room = limit - used
        try:
            # In its canonical tar each entry takes a block beside its content.
            yield TarLimits(entries=1 + room // TAR_BLOCK, size_bytes=room)
        except ImageTooLarge:
            self.allowance.check(tenant, Resource.IMAGES, used=used, more=room + 1)
            raise

    def _add_image(self, tenant: str, name: str, *, layer: LayerRecord, source: str) -> ImageRecord:
        """Name a layer an image, unless it is too much.  Raises: QuotaExceeded; the layer is collected later."""
        with self.store.transaction():
            has = any(
                layer in image.layers for image in self.store.list_images(tenant) if image.tenant == tenant
            )
            if not has:
                used = self.store.image_bytes(tenant)
                self.allowance.check(tenant, Resource.IMAGES, used=used, more=layer.size_bytes)
            return self.images.add(tenant, name, layers=(layer,), source=source)

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

        seconds = self.allowance.limit(grant.tenant, Resource.BUILD_TIME)
        patience = Patience(
            time.monotonic() + (DEADLINE_S if seconds is None else seconds), lambda: reporter.cancelled
        )
        self._make(1)
        try:
            with self._room(grant.tenant) as room:
                layer = build_debian(
                    wish.debian,
                    wish.packages,
                    layers=self.images.layers,
                    start=self.starter_of(grant.tenant),
                    patience=patience,
                    filler=self.filler_of(grant.tenant, patience.check),
                    mirror=wish.mirror,
                    progress=tell,
                    limits=room,
                )
            image = self._add_image(grant.tenant, wish.name, layer=layer, source="debian")
        except TookTooLong:
            self.allowance.check(grant.tenant, Resource.BUILD_TIME, used=seconds or 0)
            raise
        finally:
            self._make(-1)
        return {"image": image.id}

    def list_networks(self, grant: Grant) -> list[NetworkRecord]:
        return list(self.networks.list(scope(grant)))

    def get_network(self, grant: Grant, ref: str) -> NetworkRecord:
        return self.networks.get(grant.tenant, ref)

    def create_network(self, grant: Grant, wish: NetworkWish) -> NetworkRecord:
        permit = self.permits.of_caller(grant)
        check_uplink(wish.uplink, permit)
        for subnet in (wish.subnet, wish.subnet6):
            check_subnet(subnet, permit, pool=self.networks.pool)
        return self.networks.create(grant.tenant, wish, is_admin=True)

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
