# SPDX-License-Identifier: Apache-2.0
"""Names of images, and whose they are."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from insula.image.gc import collect
from insula.image.host import HOST_IMAGE
from insula.image.store import Images, full_name
from insula.model.errors import Denied, ImageNotFound, InUse, InvalidImage
from insula.model.record import ImageRecord, LayerRecord


@dataclasses.dataclass
class MemoryStore:
    images: dict[str, ImageRecord] = dataclasses.field(default_factory=dict)

    def list_images(self) -> list[ImageRecord]:
        return list(self.images.values())

    def save_image(self, record: ImageRecord, /) -> None:
        for other in self.list_images():
            if other.tenant == record.tenant and other.id != record.id:
                kept = tuple(name for name in other.names if name not in record.names)
                self.images[other.id] = msgspec.structs.replace(other, names=kept)
        self.images[record.id] = record

    def delete_image(self, image_id: str, /) -> None:
        del self.images[image_id]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path, MemoryStore())


def layer(letter: str) -> LayerRecord:
    return LayerRecord(digest="sha256:" + letter * 64, size_bytes=1)


def test_an_image_is_found_by_name_tag_id_and_prefix(images: Images) -> None:
    made = images.add("ann", "web", layers=[layer("a")], source="import")
    for ref in ("web", "web:latest", made.id, made.id[7:], made.id[7:19]):
        assert images.get("ann", ref) == made


def test_names_belong_to_a_tenant(images: Images) -> None:
    images.add("ann", "web", layers=[layer("a")], source="import")
    assert images.find("bob", "web") is None
    assert images.get("ann", "web").id != images.add("bob", "web", layers=[layer("a")], source="import").id


def test_an_images_of_the_system_is_seen_by_all_and_changed_by_none(images: Images) -> None:
    images.add("", "base", layers=[layer("a")], source="debian")
    assert images.get("ann", "base").tenant == ""
    with pytest.raises(Denied):
        images.remove("ann", "base", images_in_use=())
    with pytest.raises(Denied):
        images.tag("ann", "host", name="mine")


def test_an_unknown_image_is_named_with_its_neighbours(images: Images) -> None:
    images.add("ann", "redis", layers=[layer("a")], source="import")
    with pytest.raises(ImageNotFound, match="did you mean redis"):
        images.get("ann", "rediss")


def test_removing_a_name_keeps_the_image_while_it_has_another(images: Images) -> None:
    images.add("ann", "web", layers=[layer("a")], source="import")
    images.tag("ann", "web", name="web:1")
    images.remove("ann", "web:1", images_in_use=())
    image = images.get("ann", "web")
    with pytest.raises(InUse):
        images.remove("ann", "web", images_in_use={image.id})
    images.remove("ann", "web", images_in_use=())
    assert images.list("ann") == [HOST_IMAGE]


def test_a_record_of_a_peer_is_checked(images: Images) -> None:
    record = ImageRecord(id="sha256:" + "0" * 64, layers=(layer("a"),), tenant="ann")
    with pytest.raises(InvalidImage):
        images.add_from_peer(record)
    assert images.missing_layers([layer("a").digest]) == (layer("a").digest,)
    assert images.add_from_peer(HOST_IMAGE) == HOST_IMAGE


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "-x", "a:", "a:b:c", "../x", "/x", "a" * 300, "a\n"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidImage):
        full_name(name)


def test_collection_of_nothing_removes_nothing(images: Images) -> None:
    assert collect(images.layers, images=[], containers=[]) == []


class _SlowStore(MemoryStore):
    """Lets others run between what is read and what is written."""

    def list_images(self) -> list[ImageRecord]:
        found = super().list_images()
        threading.Event().wait(0.001)
        return found


def test_names_given_at_once_are_all_kept(tmp_path: Path) -> None:
    images = Images(tmp_path, _SlowStore())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: images.add("anna", f"n{n}", layers=[layer("a")], source="import"), range(16)))
    (image,) = [each for each in images.list("anna") if each.tenant == "anna"]
    assert sorted(image.names) == sorted(f"n{number}:latest" for number in range(16))
