# SPDX-License-Identifier: Apache-2.0
"""A disk that is truly full, and limits of cgroups above ours, as the preflight of a target sees them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.kernel import mount
from insula.kernel.cgroup.hierarchy import Hierarchies
from insula.kernel.cgroup.room import memory_room
from insula.migrate.preflight import check_disk
from insula.model.errors import TargetFull

MIB = 1 << 20


@pytest.fixture
def tiny() -> Iterator[Path]:
    """A file system of 8 MiB that nobody else sees."""
    made = mount.tmpfs(size_bytes=8 * MIB, inodes=16)
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=made)
    yield Path(f"/proc/self/fd/{folder}")
    os.close(folder)
    os.close(made)


def test_a_full_disk_is_refused(tiny: Path) -> None:
    check_disk(tiny, "c", needed=7 * MIB)
    with pytest.raises(TargetFull, match="needs 9 MiB of disk, 8 MiB are free"):
        check_disk(tiny, "c", needed=9 * MIB)
    with pytest.raises(OSError, match="No space left"), (tiny / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(MIB)):
            pass
    with pytest.raises(TargetFull, match="0 MiB are free"):
        check_disk(tiny, "c", needed=MIB)


def test_a_disk_without_inodes_is_refused(tiny: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        for number in range(64):
            (tiny / str(number)).touch()
    with pytest.raises(TargetFull, match="no inode left"):
        check_disk(tiny, "c", needed=1)


def test_limits_above_count() -> None:
    hierarchies = Hierarchies.detect()
    memory = hierarchies.find_v1("memory") or hierarchies.v2
    assert memory is not None
    parent = f"insula-room-{os.getpid()}"
    folder = Path(memory.base, parent)
    before = memory_room(hierarchies, parent)
    folder.mkdir()
    try:
        name = "memory.limit_in_bytes" if memory.version == 1 else "memory.max"
        if not (folder / name).exists():
            return  # the controller is not given to this subtree
        (folder / name).write_text(str(50 * MIB))
        found = memory_room(hierarchies, parent)
        assert found is not None and found <= 50 * MIB
        assert before is None or before >= found
    finally:
        folder.rmdir()
