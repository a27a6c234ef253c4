# SPDX-License-Identifier: Apache-2.0
"""Folders by their paths, as profiles name them.  Pure: nothing is looked up, links mean nothing."""

import os.path
from collections.abc import Iterable

#: Mounts of insula's own in each container: they are not its root, and stay as they are.
OURS = ("/dev", "/proc", "/sys")


def is_within(path: str, folder: str) -> bool:
    """Tell whether a path is a folder, or below it.  Both absolute and normalized."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def merged_folders(folders: Iterable[str]) -> tuple[str, ...]:
    """Return the folders of a container's root, sorted, without those that lie below another one."""
    found: list[str] = []
    for each in sorted(set(folders), key=lambda path: path.rstrip("/") + "/"):
        if any(is_within(each, ours) for ours in OURS) or (found and is_within(each, found[-1])):
            continue
        found.append(each)
    return tuple(found)


def common_folder(one: str, other: str) -> str:
    """Return the innermost folder that two absolute paths lie below."""
    return os.path.commonpath((one, other))
