# SPDX-License-Identifier: Apache-2.0
"""Removal of a container's folders, whose content its users wrote: no link in them is ever followed, and no depth is too great.

A folder in a folder is moved up before it is emptied itself, so that neither Python's stack nor open descriptors nor the
lengths of paths grow with what somebody has dug; `shutil.rmtree` gives up at a thousand.
"""

import contextlib
import itertools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours and all below it.  That it is not there, or goes meanwhile, is no error.

    The folder itself may be a link of ours to where it lies (`disks.py`): then both go.
    """
    if folder.is_symlink():
        _remove(folder.readlink())
        folder.unlink(missing_ok=True)
        return
    _remove(folder)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, _FOLDER)
        try:
            _empty(descriptor)
        finally:
            os.close(descriptor)
        os.rmdir(folder)


def _empty(root: int) -> None:
    # Names that nobody can have taken ahead.
    prefix = secrets.token_hex(8)
    names = (f"{prefix}-{number}" for number in itertools.count())
    changes = 1
    while changes and (folders := _unlink_files(root)):
        changes = sum(_lift(each, root, names=names) for each in folders)


def _unlink_files(folder: int) -> list[str]:
    """Remove what is no folder.  Returns: the names of the folders."""
    folders = []
    with os.scandir(folder) as entries:
        for each in entries:
            if each.is_dir(follow_symlinks=False):
                folders.append(each.name)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(each.name, dir_fd=folder)
    return folders


def _lift(name: str, root: int, *, names: Iterator[str]) -> int:
    """Move the folders of a folder up to its own place and remove it.  Returns: what that changed."""
    changes = 0
    with contextlib.suppress(OSError):
        inner = os.open(name, _FOLDER, dir_fd=root)
        try:
            for each in _unlink_files(inner):
                with contextlib.suppress(OSError):
                    os.rename(each, next(names), src_dir_fd=inner, dst_dir_fd=root)
                    changes += 1
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=root)
        changes += 1
    return changes
