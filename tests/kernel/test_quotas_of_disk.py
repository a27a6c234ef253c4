# SPDX-License-Identifier: Apache-2.0
"""Limits that file systems keep themselves: project quotas of ext4, quota groups of btrfs.  On loop-mounted images."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from file_systems import (
    FULL,
    MIB,
    SIMPLE,
    btrfs_file_system,
    enable_btrfs_quotas,
    ext4_with_projects,
    fill,
    make_files,
)
from insula.kernel import btrfs, project_quota


@pytest.fixture
def with_projects(tmp_path: Path) -> Iterator[Path]:
    with ext4_with_projects(tmp_path) as place:
        yield place


@pytest.fixture
def on_btrfs(tmp_path: Path) -> Iterator[Path]:
    with btrfs_file_system(tmp_path) as place:
        yield place


def test_a_project_ends_where_its_limit_says(with_projects: Path) -> None:
    assert project_quota.is_enforced(str(with_projects))
    folder = with_projects / "folder"
    folder.mkdir()
    project_quota.assign(str(folder), 77)
    project_quota.limit(str(folder), 77, size_bytes=8 * MIB, files=10)
    (folder / "below").mkdir()
    assert project_quota.project_of(str(folder / "below")) == 77
    assert fill(folder / "below/x", 4 * MIB) == 0
    room = os.statvfs(folder)
    assert (room.f_blocks * room.f_frsize, room.f_files) == (8 * MIB, 10)
    assert fill(folder / "y", 8 * MIB) in (errno.EDQUOT, errno.ENOSPC)
    assert fill(with_projects / "outside", 16 * MIB) == 0
    assert make_files(folder, 20) in (errno.EDQUOT, errno.ENOSPC)


def test_where_they_are_not_they_are_not_found(tmp_path: Path) -> None:
    for known in (project_quota.is_enforced, btrfs.has_quotas, btrfs.is_subvolume):
        assert not known("/proc")
        assert known is btrfs.is_subvolume or not known("/dev/shm")
    assert not btrfs.is_subvolume(str(tmp_path / "nothing"))


@pytest.mark.parametrize("how", [FULL, SIMPLE], ids=["full", "simple"])
def test_a_subvolume_ends_where_its_limit_says(on_btrfs: Path, how: int) -> None:
    assert not btrfs.has_quotas(str(on_btrfs))
    enable_btrfs_quotas(on_btrfs, how)
    assert btrfs.has_quotas(str(on_btrfs))
    btrfs.create(str(on_btrfs), "mine")
    mine = on_btrfs / "mine"
    assert btrfs.is_subvolume(str(mine)) and not btrfs.is_subvolume(str(on_btrfs / "image"))
    assert btrfs.group(str(mine)).limit_bytes is None
    btrfs.limit(str(mine), size_bytes=16 * MIB)
    assert fill(mine / "x", 8 * MIB) == 0
    os.sync()
    used, most = btrfs.group(str(mine))
    assert 8 * MIB <= used < 9 * MIB
    assert most == 16 * MIB
    assert fill(mine / "y", 16 * MIB) == errno.EDQUOT
    assert fill(on_btrfs / "outside", 24 * MIB) == 0
    btrfs.limit(str(mine), size_bytes=None)
    assert btrfs.group(str(mine)).limit_bytes is None
    btrfs.destroy(str(on_btrfs), "mine")
    assert not mine.exists()
