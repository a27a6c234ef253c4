# SPDX-License-Identifier: Apache-2.0
"""Folders and paths by their names, as profiles and rules name them.  Pure: nothing is looked up, links mean nothing."""

import os.path
import posixpath
from collections.abc import Iterable

#: Mounts of insula's own in each container: they are not its root, and stay as they are.
OURS = ("/dev", "/proc", "/sys")
#: What a path begins with of which only the innermost folders are known.
CUT = "…"


def is_within(path: str, folder: str) -> bool:
    """Tell whether a path is a folder, or below it.  Both absolute and normalized."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def normal_path(path: str) -> str:
    """Return a path without `.`, `..` and repeated slashes; above the known folders of one that is cut all are unknown."""
    beginning = CUT if path.startswith(f"{CUT}/") else ""
    rest = path.removeprefix(beginning)
    if rest.startswith("/"):
        return beginning + posixpath.normpath("/" + rest.lstrip("/"))
    return posixpath.normpath(path) if path else ""


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
