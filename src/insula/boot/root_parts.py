# SPDX-License-Identifier: Apache-2.0
"""Parts of a container's root that are mounted over themselves, because there other things hold than in the rest of it.

For a container that is held to a profile: folders that can be written in although the root is read-only; the folders of
programs, from which nothing can be started (`noexec`: neither by execve(2) nor by the loader, which maps a program into
itself); and in these the few programs that can.  CRIU is told of each as of an external mount.

Source: mount_setattr(2); a mount keeps its flags when it is cloned.  Standard library only.
"""

import os
import stat
from typing import NamedTuple

from insula.boot.protocol import RootPlan
from insula.kernel import mount, paths

_PROGRAMS = ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin")

_ATTRIBUTES = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOEXEC


class Part(NamedTuple):
    """A folder, or a program, of the root."""

    path: str
    """Without links, as the container sees it."""
    attributes: int


def name(path: str) -> str:
    """Return what CRIU calls the mount of a part."""
    return "part-" + os.fsencode(path).hex()


def find(root: int, plan: RootPlan) -> list[Part]:
    """Return the parts of a root in the order in which they are attached.  Raises: OSError."""
    fixed = mount.MOUNT_ATTR_RDONLY if plan.read_only else 0
    writable = _folders(root, plan.writable)
    if plan.programs is None:
        return [Part(path, 0) for path in writable]
    files = _files(root, plan.programs)
    # What is started from where it is written may be written anew, which a mount over it would not let happen.
    parts = [Part(path, 0 if _has_any(path, files) else mount.MOUNT_ATTR_NOEXEC) for path in writable]
    closed = [path for path in _folders(root, _PROGRAMS) if path not in writable]
    parts += [Part(path, fixed | mount.MOUNT_ATTR_NOEXEC) for path in closed]
    started = [path for path in files if _lies_in(path, closed) and not _lies_in(path, writable)]
    return [*sorted(parts), *(Part(path, fixed) for path in started)]


def open_part(root: int, part: Part) -> tuple[int, int]:
    """Return a part's place and a mount of it, not yet there.  `root` is attached: an older kernel clones no other mount."""
    place = paths.open_in_root(root, part.path, flags=os.O_PATH)
    try:
        made = mount.bind_fd(place)
        # It comes with the attributes of the part that it lies in.
        mount.set_attributes(made, set=part.attributes, clear=_ATTRIBUTES & ~part.attributes)
        return place, made
    except OSError:
        os.close(place)
        raise


def _folders(root: int, wanted: tuple[str, ...]) -> list[str]:
    return [path for path, mode in _found(root, wanted) if stat.S_ISDIR(mode)]


def _files(root: int, wanted: tuple[str, ...]) -> list[str]:
    return [path for path, mode in _found(root, wanted) if stat.S_ISREG(mode)]


def _found(root: int, wanted: tuple[str, ...]) -> list[tuple[str, int]]:
    """Return those that are there, each once, without links, and what they are."""
    found: dict[str, int] = {}
    top = os.readlink(f"/proc/self/fd/{root}").rstrip("/")
    for each in wanted:
        try:
            place = paths.open_in_root(root, each, flags=os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            continue
        path = os.readlink(f"/proc/self/fd/{place}").removeprefix(top) or "/"
        found[path] = os.fstat(place).st_mode
        os.close(place)
    return list(found.items())


def _lies_in(path: str, folders: list[str]) -> bool:
    return any(path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _has_any(folder: str, files: list[str]) -> bool:
    return any(_lies_in(each, [folder]) for each in files)
