# SPDX-License-Identifier: Apache-2.0
"""What changed in a container: an upper folder beside the layers below it."""

import os
import stat
from pathlib import Path

import pytest

from insula.image.tarball import OPAQUE
from insula.runtime.diff import compare

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
    return [f"{each.kind} {each.path}" for each in compare(upper, lower)]


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
