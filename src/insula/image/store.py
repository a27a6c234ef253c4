# SPDX-License-Identifier: Apache-2.0
"""Images by name: what a tenant sees, and how an image comes and goes.

A name is `name[:tag]`, the tag `latest` if none is said, and belongs to one tenant; images of the system (tenant "")
are seen by all, behind the tenant's own.  Persistence is behind `ImageStore`; files are `Layers`' part.
Source of the rules for names: OCI distribution-spec, "Pulling manifests".
"""

import difflib
import hashlib
import re
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from insula.image.host import HOST_IMAGE, HostView
from insula.image.layers import Layers
from insula.image.tarheader import ByteSource
from insula.model.errors import Denied, ImageNotFound, InUse, InvalidImage
from insula.model.record import ImageConfig, ImageRecord, LayerRecord

_NAME = re.compile(r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?")
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")
MAX_NAME = 255
DEFAULT_COMMAND = ("/bin/sh",)


class ImageStore(Protocol):
    """What must be remembered.  Saving moves the record's names to it from other images of the same tenant."""

    def list_images(self) -> Sequence[ImageRecord]: ...
    def save_image(self, record: ImageRecord, /) -> None: ...
    def delete_image(self, image_id: str, /) -> None: ...


def full_name(name: str) -> str:
    """Return a name with its tag.  Raises: InvalidImage."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise InvalidImage(
            f"cannot use image name `{name[:80]}`: not lower-case words with an optional :tag",
            hint="as in web/app:1.2",
        )
    return name if ":" in name else f"{name}:latest"


def image_id(config: ImageConfig, layers: Sequence[LayerRecord], *, tenant: str) -> str:
    """Return the digest of an image.  The tenant is part of it: equal content of two tenants is two images."""
    digest = hashlib.sha256(tenant.encode() + b"\0" + msgspec.json.encode(config, order="deterministic"))
    for layer in layers:
        digest.update(layer.digest.encode())
    return f"sha256:{digest.hexdigest()}"


class Images:
    """The images of one host."""

    def __init__(self, state_folder: Path, store: ImageStore) -> None:
        self._store = store
        self._guard = threading.Lock()
        """Held while the names of an image are read and written again: equal content has one record."""
        self.layers = Layers(state_folder / "layers")
        self.host = HostView(state_folder / "host-view")

    def list(self, tenant: str) -> list[ImageRecord]:
        """Return the images that a tenant may use, its own first."""
        mine = [image for image in self._store.list_images() if image.tenant == tenant and tenant]
        system = [image for image in self._store.list_images() if not image.tenant]
        return [*mine, *system, HOST_IMAGE]

    def find(self, tenant: str, ref: str) -> ImageRecord | None:
        """Return the image of a name (with or without tag), an id, or an unambiguous beginning of an id."""
        images = self.list(tenant)
        name = ref if ":" in ref else f"{ref}:latest"
        for image in images:
            if name in image.names or image.id == ref:
                return image
        match = _ID.fullmatch(ref)
        found = [image for image in images if match and image.id.startswith(f"sha256:{match[1]}")]
        return found[0] if len(found) == 1 else None

    def get(self, tenant: str, ref: str) -> ImageRecord:
        """As `find`.  Raises: ImageNotFound, with names that are near and the way to make an image."""
        image = self.find(tenant, ref)
        if image is not None:
            return image
        names = [name for each in self.list(tenant) for name in each.names]
        names += [name.removesuffix(":latest") for name in names if name.endswith(":latest")]
        near = difflib.get_close_matches(ref, names, n=3)
        cure = "did you mean " + " or ".join(near) + "?" if near else "insula image ls lists what there is"
        raise ImageNotFound(
            f"cannot find image `{ref[:80]}`",
            hint=f"{cure}; `insula image build --debian bookworm NAME` or `insula image import` makes one",
        )

    def tag(self, tenant: str, ref: str, *, name: str) -> ImageRecord:
        """Give an image of the tenant's one more name."""
        with self._guard:
            image = self._own(tenant, ref, verb="tag")
            tagged = full_name(name)
            record = msgspec.structs.replace(image, names=(*(n for n in image.names if n != tagged), tagged))
            self._store.save_image(record)
            return record

    def remove(self, tenant: str, ref: str, *, images_in_use: Collection[str]) -> None:
        """Remove a name, and the image with its last name (or all, when named by id).

        images_in_use: ids of the images of containers.  Layers go with `gc.collect`.
        Raises: ImageNotFound, Denied, InUse.
        """
        with self._guard:
            image = self._own(tenant, ref, verb="remove")
            name = ref if ":" in ref else f"{ref}:latest"
            if name in image.names and len(image.names) > 1:
                kept = tuple(each for each in image.names if each != name)
                self._store.save_image(msgspec.structs.replace(image, names=kept))
                return
            if image.id in images_in_use:
                raise InUse(
                    f"cannot remove image `{ref}`: a container uses it", hint="insula ps -a shows which"
                )
            self._store.delete_image(image.id)

    def import_tar(self, tenant: str, name: str, *, stream: ByteSource) -> ImageRecord:
        """Make an image of one layer from a tar of a root file system.  Raises: InvalidImage, DiskFull."""
        full_name(name)  # refuse a bad name before the work
        layer = self.layers.unpack(stream, media="import")
        return self.add(tenant, name, layers=(layer,), source="import")

    def add(
        self,
        tenant: str,
        name: str,
        *,
        layers: Sequence[LayerRecord],
        source: str,
        config: ImageConfig | None = None,
    ) -> ImageRecord:
        """Name layers that are here an image; the name leaves the image that had it."""
        settings = config or ImageConfig(command=DEFAULT_COMMAND)
        identity, tagged = image_id(settings, layers, tenant=tenant), full_name(name)
        if tagged in HOST_IMAGE.names:
            raise InvalidImage(f"cannot use image name `{name}`: it is the built-in view of this host")
        with self._guard:
            same = next((each for each in self._store.list_images() if each.id == identity), None)
            names = tuple(each for each in same.names if each != tagged) if same else ()
            record = ImageRecord(
                id=identity,
                names=(*names, tagged),
                tenant=tenant,
                layers=tuple(layers),
                config=settings,
                created_at=same.created_at if same else time.time(),
                source=source,
            )
            self._store.save_image(record)
            return record

    def add_from_peer(self, record: ImageRecord) -> ImageRecord:
        """Remember an image that a container brings along.  Its layers are here already; names here are not taken.

        Raises: InvalidImage if the id is not that of its content, ImageNotFound if a layer is absent.
        """
        if record.id == HOST_IMAGE.id:
            return HOST_IMAGE
        if record.id != image_id(record.config, record.layers, tenant=record.tenant):
            raise InvalidImage(f"cannot accept image `{record.id}`: its id is not that of its content")
        self.layer_folders([layer.digest for layer in record.layers])
        with self._guard:
            images = self._store.list_images()
            known = next((each for each in images if each.id == record.id), None)
            if known is not None:
                return known
            taken = {name for each in images if each.tenant == record.tenant for name in each.names}
            names = tuple(name for name in record.names if name not in taken)
            added = msgspec.structs.replace(record, names=names)
            self._store.save_image(added)
            return added

    def layer_folders(self, of: ImageRecord | Sequence[str]) -> tuple[Path, ...]:
        """Return the lower folders of an overlay, bottom first: of an image, or of digests.

        Raises: ImageNotFound if one is absent.
        """
        if isinstance(of, ImageRecord):
            if of.id == HOST_IMAGE.id:
                return self.host.lower_folders()
            of = [layer.digest for layer in of.layers]
        return tuple(self.layers.folder(digest) for digest in of)

    def missing_layers(self, digests: Sequence[str]) -> tuple[str, ...]:
        """Return the layers that are not on this host, in order."""
        return tuple(digest for digest in digests if not self.layers.has(digest))

    def _own(self, tenant: str, ref: str, *, verb: str) -> ImageRecord:
        image = self.get(tenant, ref)
        if image.id == HOST_IMAGE.id or image.tenant != tenant:
            raise Denied(f"cannot {verb} image `{ref}`: it is the system's")
        return image
