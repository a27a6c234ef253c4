# SPDX-License-Identifier: Apache-2.0
"""A tenant's disk of each kind, on the file system that has it: as large as its limit, changed, and gone without a trace."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from file_systems import (
    FULL,
    MIB,
    btrfs_file_system,
    enable_btrfs_quotas,
    ext4_with_projects,
    fill,
    make_files,
)
from insula.model.errors import Conflict, DiskFull
from insula.model.quota import Resource
from insula.runtime.disks import Disks
from insula.runtime.store import Store


@dataclass
class Limits:
    """What alice may use."""

    of: dict[Resource, int | None] = field(default_factory=dict)

    def limit(self, tenant: str, resource: Resource) -> int | None:
        return self.of.get(resource)

    def check(self, tenant: str, resource: Resource, *, used: int, more: int = 1) -> None:
        return


@dataclass
class Place:
    """A state folder on some file system."""

    kind: str
    state: Path
    limits: Limits
    disks: Disks

    def set(self, **limits: int | None) -> None:
        self.limits.of |= {Resource(name): value for name, value in limits.items()}


@pytest.fixture(params=["ext4 in a file", "project quota", "btrfs quota"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        folder = tmp_path
        if request.param == "project quota":
            folder = stack.enter_context(ext4_with_projects(tmp_path))
        if request.param == "btrfs quota":
            folder = stack.enter_context(btrfs_file_system(tmp_path))
            enable_btrfs_quotas(folder, FULL)
        (folder / "state/volumes").mkdir(parents=True)
        store = Store(tmp_path / "db.sqlite")
        stack.callback(store.close)
        limits = Limits({Resource.DISK: 16 * MIB})
        disks = Disks(folder / "state", store, limits)
        stack.callback(disks.detach_all)
        yield Place(request.param, folder / "state", limits, disks)


TOO_MUCH = (errno.EDQUOT, errno.ENOSPC)


def home(place: Place) -> Path:
    found = place.disks.home_of("alice")
    assert found is not None
    return found


def test_it_is_of_that_kind_and_as_large_as_its_limit(place: Place) -> None:
    assert place.disks.kind("alice") == place.kind
    assert fill(home(place) / "x", 8 * MIB) == 0
    assert place.disks.kind("alice") == place.kind
    assert fill((place.state / "volumes/alice").resolve() / "y", 16 * MIB) in TOO_MUCH
    os.sync()
    room = place.disks.room("alice")
    assert room is not None
    assert 8 * MIB <= room.used_bytes <= 16 * MIB
    assert 12 * MIB <= room.total_bytes <= 16 * MIB


def test_it_grows_at_rest_or_at_once_and_never_below_what_is_in_it(place: Place) -> None:
    assert fill(home(place) / "x", 12 * MIB) == 0
    place.set(disk=64 * MIB)
    place.disks.apply("alice")
    assert fill(home(place) / "y", 30 * MIB) == 0
    os.sync()
    place.set(disk=32 * MIB)
    with pytest.raises(DiskFull):
        place.disks.apply("alice")
    (home(place) / "y").unlink()
    os.sync()
    place.disks.apply("alice")
    assert (home(place) / "x").stat().st_size == 12 * MIB


def test_another_insulad_finds_it_and_its_end_leaves_nothing(place: Place) -> None:
    assert fill(home(place) / "x", MIB) == 0
    place.disks.detach_all()
    other = Disks(place.state, place.disks._store, place.limits)
    other.attach_all()
    assert other.kind("alice") == place.kind
    assert (home(place) / "x").exists()
    (home(place) / "x").unlink()
    place.set(disk=None)
    other.apply("alice")
    assert [*(place.state / "tenants").iterdir()] == []
    assert [*(place.state / "volumes").iterdir()] == []


def test_files_end_where_a_limit_says_whatever_counts_them(place: Place) -> None:
    place.set(inodes=1000)
    folder = home(place)
    assert place.disks.kind("alice") == (
        "project quota" if place.kind == "project quota" else "ext4 in a file"
    )
    assert make_files(folder, 1500) in TOO_MUCH
    place.set(inodes=2000)
    if place.kind == "project quota":
        place.disks.apply_files("alice")
        (folder / "one more").touch()
    else:
        with pytest.raises(Conflict, match="made for as many"):
            place.disks.apply_files("alice")
