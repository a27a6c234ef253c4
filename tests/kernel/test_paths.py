# SPDX-License-Identifier: Apache-2.0
"""Paths inside a root: links, `..` and races do not lead out of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.kernel import paths


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "secret").write_text("outside")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/secret").write_text("inside")
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def read(root: int, path: str) -> str:
    with os.fdopen(paths.open_in_root(root, path, flags=os.O_RDONLY)) as file:
        return file.read()


def link(root: int, target: str, name: str) -> None:
    os.symlink(target, name, dir_fd=root)


@pytest.mark.parametrize("path", ["etc/secret", "/etc/secret", "../etc/secret", "/../../etc/./secret"])
def test_a_path_is_read_as_from_inside(root: int, path: str) -> None:
    assert read(root, path) == "inside"


@pytest.mark.parametrize("target", ["/etc", "../../../etc", "etc"])
def test_a_link_stays_inside(root: int, target: str) -> None:
    link(root, target, "link")
    assert read(root, "link/secret") == "inside"


def test_dots_cannot_reach_the_file_above_the_root(root: int) -> None:
    with pytest.raises(FileNotFoundError, match="openat2"):
        read(root, "../secret")


def test_a_magic_link_is_refused(root: int) -> None:
    proc = os.open("/proc", os.O_PATH)
    try:
        with pytest.raises(OSError, match="Too many levels"):
            paths.open_in_root(proc, "self/root/etc", flags=os.O_PATH)
    finally:
        os.close(proc)


def test_a_circle_of_links_is_refused(root: int) -> None:
    link(root, "circle", "circle")
    with pytest.raises(OSError, match="Too many levels"):
        read(root, "circle")


def test_parents_are_made_inside_even_through_a_link_that_points_out(root: int, tmp_path: Path) -> None:
    link(root, "/../../etc", "out")
    fd = paths.open_in_root(
        root, "out/new/deep/file", flags=os.O_CREAT | os.O_WRONLY, mode=0o600, create_parents=True
    )
    os.close(fd)
    assert (tmp_path / "root/etc/new/deep/file").stat().st_mode & 0o777 == 0o600


def test_directories_are_made_once_and_dots_are_understood(root: int, tmp_path: Path) -> None:
    for _ in range(2):
        os.close(paths.make_directories_in_root(root, "/a/../b/./c/", mode=0o700))
    assert (tmp_path / "root/b/c").stat().st_mode & 0o777 == 0o700


def test_a_link_to_nowhere_is_not_filled_in(root: int, tmp_path: Path) -> None:
    link(root, "/gone", "dangling")
    with pytest.raises(FileNotFoundError):
        paths.make_directories_in_root(root, "dangling/x", mode=0o755)
    assert not (tmp_path / "root/gone").exists()


def test_a_file_in_the_way_is_named(root: int) -> None:
    with pytest.raises(NotADirectoryError):
        paths.make_directories_in_root(root, "etc/secret/x", mode=0o755)
