# SPDX-License-Identifier: Apache-2.0
"""A container's disk of each kind, on the file system that has it; whatever half of one is there goes without a trace."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
from insula.kernel import disk_image
from insula.model.errors import LimitRefused, Unsupported
from insula.model.spec import Spec
from insula.runtime import own_disk
from insula.runtime.disk_kinds import ImageDisk
from loops import is_free, shown
from waiting import DEADLINE_S, wait_until

TOO_MUCH = (errno.EDQUOT, errno.ENOSPC)
IMAGE = "ext4 in a file"


def spec(size: int | None = 16 * MIB, inodes: int | None = None) -> Spec:
    return Spec(image="x", name="c", disk_bytes=size, inodes=inodes)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of a container, whatever the file system below; nothing of it may stay."""
    place = tmp_path / "state/containers/c"
    place.mkdir(parents=True)
    yield place
    own_disk.remove_folder(place)
    assert not place.exists() and not os.path.ismount(place / "disk")


@pytest.fixture(params=[IMAGE, "project quota", "btrfs quota"])
def kind_and_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    with ExitStack() as stack:
        place = tmp_path
        if request.param == "project quota":
            place = stack.enter_context(ext4_with_projects(tmp_path))
        if request.param == "btrfs quota":
            place = stack.enter_context(btrfs_file_system(tmp_path))
            enable_btrfs_quotas(place, FULL)
        folder = place / "state/containers/c"
        folder.mkdir(parents=True)
        stack.callback(own_disk.remove_folder, folder)
        yield request.param, folder


def test_it_is_of_that_kind_as_large_as_wished_and_goes(kind_and_folder: tuple[str, Path]) -> None:
    kind, folder = kind_and_folder
    own_disk.make(folder, spec(), is_nested=False)
    disk = own_disk.find(folder)
    assert disk is not None and disk.kind == kind
    assert fill(folder / "disk/x", 8 * MIB) == 0
    assert fill(folder / "disk/y", 16 * MIB) in TOO_MUCH
    os.sync()
    room = own_disk.room(folder, spec())
    assert room is not None and 8 * MIB <= room.used_bytes <= room.total_bytes <= 16 * MIB
    assert fill(folder / "beside", 24 * MIB) == 0
    own_disk.remove_folder(folder)
    assert not folder.exists()
    folder.mkdir()
    own_disk.make(folder, spec(), is_nested=False)
    assert fill(folder / "disk/x", 8 * MIB) == 0


def test_on_a_tenants_disk_or_with_files_counted_it_is_a_file(kind_and_folder: tuple[str, Path]) -> None:
    kind, folder = kind_and_folder
    own_disk.make(folder, spec(), is_nested=True)
    disk = own_disk.find(folder)
    assert disk is not None and disk.kind == IMAGE
    own_disk.remove_folder(folder)
    folder.mkdir()
    own_disk.make(folder, spec(inodes=200), is_nested=False)
    disk = own_disk.find(folder)
    assert disk is not None and disk.kind == (kind if kind == "project quota" else IMAGE)
    assert make_files(folder / "disk", 300) in TOO_MUCH


def test_who_wishes_for_none_has_none(folder: Path) -> None:
    own_disk.make(folder, spec(None), is_nested=False)
    own_disk.make_ready(folder, spec(None))
    assert own_disk.find(folder) is None and own_disk.room(folder, spec(None)) is None
    assert [*folder.iterdir()] == []


def test_it_is_mounted_again_for_a_start_or_there_is_no_start(folder: Path) -> None:
    own_disk.make(folder, spec(), is_nested=False)
    (folder / "disk/kept").touch()
    assert ImageDisk(folder).detach(time.monotonic() + DEADLINE_S)
    assert own_disk.room(folder, spec()) is None
    own_disk.make_ready(folder, spec())
    assert (folder / "disk/kept").exists()
    assert ImageDisk(folder).detach(time.monotonic() + DEADLINE_S)
    (folder / "disk.img").unlink()
    with pytest.raises(LimitRefused, match="its disk is gone"):
        own_disk.make_ready(folder, spec())


def test_it_is_found_and_removed_behind_a_link(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    own_disk.make(link, spec(), is_nested=True)
    own_disk.make_ready(link, spec())
    device = shown(folder / "disk.img")
    own_disk.remove_folder(link)
    assert not link.is_symlink() and not folder.exists()
    wait_until(lambda: is_free(device), what="its device is free")


def _only_begun(folder: Path) -> None:
    (folder / "disk").mkdir()
    (folder / "disk.new").write_bytes(b"half")


def _not_mounted(folder: Path) -> None:
    (folder / "disk").mkdir()
    disk_image.make(str(folder / "disk.img"), size_bytes=16 * MIB, files=None)


def _mounted(folder: Path) -> None:
    _not_mounted(folder)
    disk_image.attach(str(folder / "disk.img"), str(folder / "disk"))


def _nearly_gone(folder: Path) -> None:
    _mounted(folder)
    (folder / "disk.img").unlink()


@pytest.mark.parametrize("half", [_only_begun, _not_mounted, _mounted, _nearly_gone])
def test_any_half_of_it_is_removed(folder: Path, half: Callable[[Path], None]) -> None:
    half(folder)
    own_disk.remove_folder(folder)
    assert not folder.exists()


def test_without_e2fsprogs_it_is_refused_with_the_cure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_image, "_PATH", str(tmp_path))
    with pytest.raises(Unsupported, match=r"disk of container `c`.*mkfs\.ext4: not installed") as refused:
        own_disk.make(folder, spec(), is_nested=False)
    assert "apt-get install e2fsprogs" in refused.value.hint


def test_more_than_there_is_at_all_is_refused_with_the_figure(folder: Path) -> None:
    found = os.statvfs(folder)
    with pytest.raises(LimitRefused, match="is more than all of the disk"):
        own_disk.make(folder, spec(found.f_blocks * found.f_frsize * 2), is_nested=False)
