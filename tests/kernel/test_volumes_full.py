# SPDX-License-Identifier: Apache-2.0
"""A volume on a disk that has no inode left."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.kernel import mount
from insula.model.errors import DiskFull
from insula.model.spec import VolumeWish
from insula.runtime.store import Store
from insula.runtime.volumes import Volumes


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where volumes lie; the tenant's part is a file system with room for one."""
    place = tmp_path / "volumes/alice"
    place.mkdir(parents=True)
    made = mount.tmpfs(size_bytes=1 << 20, inodes=2)
    try:
        mount.attach(made, str(place))
    finally:
        os.close(made)
    yield place.parent
    mount.detach(str(place))


def test_a_disk_without_inodes_is_told_and_leaves_no_record(folder: Path) -> None:
    store = Store(folder.with_name("db.sqlite"))
    volumes = Volumes(folder, store)
    volumes.create("alice", VolumeWish(name="first"))
    with pytest.raises(DiskFull, match="cannot make volume `second`: No space left on device") as caught:
        volumes.create("alice", VolumeWish(name="second"))
    assert "larger disk" in caught.value.hint
    assert [each.name for each in store.list_volumes()] == ["first"]
    volumes.delete("alice", "first")
    volumes.create("alice", VolumeWish(name="second"))
    store.close()
