# SPDX-License-Identifier: Apache-2.0
"""What changed in a container: an upper folder beside the layers below it."""

import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from insula.image.tarball import OPAQUE
from insula.runtime.diff import ENTRY_BYTES, compare

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts are device nodes")


def grow(folder: Path, *paths: str) -> Path:
    for path in paths:
        place = folder / path
        if path.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("x")
    folder.mkdir(exist_ok=True)
    return folder


def whiteout(folder: Path, path: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    os.mknod(folder / path, stat.S_IFCHR, os.makedev(0, 0))


def shown(upper: Path, *lower: Path) -> list[str]:
    found = compare(upper, lower)
    assert found.is_complete
    return [f"{each.kind} {each.path}" for each in found.changes]


def test_no_upper_folder_is_no_change(tmp_path: Path) -> None:
    assert shown(tmp_path / "absent", grow(tmp_path / "low", "etc/x")) == []


def test_added_and_changed(tmp_path: Path) -> None:
    low = grow(tmp_path / "low", "etc/passwd", "usr/bin/tool")
    up = grow(tmp_path / "up", "etc/passwd", "srv/new")
    assert shown(up, low) == ["C /etc", "C /etc/passwd", "A /srv", "A /srv/new"]


def test_what_insula_writes_is_hidden(tmp_path: Path) -> None:
    low = grow(tmp_path / "low", "etc/passwd")
    up = grow(tmp_path / "up", "etc/hostname", "etc/hosts", "etc/resolv.conf", "dev/", "proc/", "sys/")
    assert shown(up, low) == []


def test_a_folder_with_another_mode_is_changed(tmp_path: Path) -> None:
    low = grow(tmp_path / "low", "srv/")
    up = grow(tmp_path / "up", "srv/")
    (up / "srv").chmod(0o700)
    assert shown(up, low) == ["C /srv"]


def test_a_link_in_the_upper_folder_is_not_followed(tmp_path: Path) -> None:
    up = grow(tmp_path / "up")
    (up / "out").symlink_to("/etc")
    assert shown(up, grow(tmp_path / "low")) == ["A /out"]


@needs_root
def test_whiteouts_are_deletions(tmp_path: Path) -> None:
    low = grow(tmp_path / "low", "etc/old")
    up = grow(tmp_path / "up")
    whiteout(up, "etc/old")
    whiteout(up, "etc/never")
    assert shown(up, low) == ["C /etc", "D /etc/old"]


@needs_root
def test_a_file_that_an_upper_layer_had_removed_is_added(tmp_path: Path) -> None:
    bottom, top = grow(tmp_path / "bottom", "etc/x"), grow(tmp_path / "top")
    whiteout(top, "etc/x")
    assert shown(grow(tmp_path / "up", "etc/x"), top, bottom) == ["C /etc", "A /etc/x"]


@needs_root
def test_an_opaque_folder_deletes_what_it_hides(tmp_path: Path) -> None:
    low = grow(tmp_path / "low", "srv/a", "srv/b")
    up = grow(tmp_path / "up", "srv/b")
    os.setxattr(up / "srv", OPAQUE, b"y")
    assert shown(up, low) == ["C /srv", "D /srv/a", "C /srv/b"]


@needs_root
def test_below_an_opaque_folder_of_a_layer_nothing_is_seen(tmp_path: Path) -> None:
    bottom, top = grow(tmp_path / "bottom", "srv/a"), grow(tmp_path / "top", "srv/")
    os.setxattr(top / "srv", OPAQUE, b"y")
    assert shown(grow(tmp_path / "up", "srv/a"), top, bottom) == ["C /srv", "A /srv/a"]


def test_of_many_changes_no_more_are_held_than_there_is_room_for(tmp_path: Path) -> None:
    up = grow(tmp_path / "up", *(f"srv/{n:04}" for n in range(1000)))
    found = compare(up, [grow(tmp_path / "low", "srv/")], max_bytes=20 * (ENTRY_BYTES + len("srv/0000")))
    assert not found.is_complete
    assert 10 <= len(found.changes) <= 21
    assert {each.kind for each in found.changes if each.path != "/srv"} == {"A"}


def test_exactly_as_many_as_there_is_room_for_are_all(tmp_path: Path) -> None:
    up = grow(tmp_path / "up", *(f"{n:04}" for n in range(20)))
    room = 20 * (ENTRY_BYTES + 4)
    assert compare(up, [], max_bytes=room).is_complete
    cut = compare(up, [], max_bytes=room - 1)
    assert (len(cut.changes), cut.is_complete) == (19, False)


def test_long_paths_are_fewer(tmp_path: Path) -> None:
    up = grow(tmp_path / "up", *(f"{n:0200}" for n in range(20)))
    assert len(compare(up, [], max_bytes=20 * ENTRY_BYTES).changes) < 10


def test_unchanged_folders_take_room_too(tmp_path: Path) -> None:
    folders = [f"{n:04}/" for n in range(1000)]
    found = compare(
        grow(tmp_path / "up", *folders), [grow(tmp_path / "low", *folders)], max_bytes=20 * ENTRY_BYTES
    )
    assert (found.changes, found.is_complete) == ((), False)


@needs_root
def test_what_an_opaque_folder_hides_is_bounded(tmp_path: Path) -> None:
    low = grow(tmp_path / "low", *(f"srv/{n:04}" for n in range(1000)))
    up = grow(tmp_path / "up", "srv/")
    os.setxattr(up / "srv", OPAQUE, b"y")
    found = compare(up, [low], max_bytes=20 * ENTRY_BYTES)
    assert 10 <= len(found.changes) <= 21
    assert not found.is_complete


def test_memory_is_bounded_while_looking(tmp_path: Path) -> None:
    up = grow(tmp_path / "up", *(f"{n:06}" for n in range(20_000)))
    tracemalloc.start()
    compare(up, [], max_bytes=20 * ENTRY_BYTES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


def test_a_folder_is_changed_by_what_is_below_not_beside_it(tmp_path: Path) -> None:
    low = grow(tmp_path / "low", "a/b/", "a-/", "a0/")
    up = grow(tmp_path / "up", "a/b/", "a-/x", "a0/y")
    assert shown(up, low) == ["C /a-", "A /a-/x", "C /a0", "A /a0/y"]
