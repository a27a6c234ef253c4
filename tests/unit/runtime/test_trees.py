# SPDX-License-Identifier: Apache-2.0
"""Whatever a container has left in its folders goes with it, and nothing else does."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from insula.runtime.trees import remove_tree

DEPTH = 3000
"""More than Python's stack bears, than a path can name, and than a process has descriptors."""


@contextmanager
def few_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def dig(folder: Path, *, depth: int) -> None:
    """Make folders in folders, each with a file and one more folder."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=here)
        os.mkdir("b", dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_a_tree_goes_however_deep_it_is(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    dig(tree, depth=DEPTH)
    with few_descriptors():
        remove_tree(tree)
    assert not tree.exists()


def test_no_link_is_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "folder").mkdir(parents=True)
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "out").symlink_to(kept)
    (tree / "below/out").symlink_to(kept / "folder")
    remove_tree(tree)
    assert not tree.exists()
    assert (kept / "folder").is_dir()


def test_a_link_of_ours_goes_with_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk/tree/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk/tree")
    remove_tree(tmp_path / "link")
    assert os.listdir(tmp_path) == ["disk"]
    assert os.listdir(tmp_path / "disk") == []


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")
