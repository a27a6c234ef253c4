# SPDX-License-Identifier: Apache-2.0
"""What a container changed in the files of its image: its writable layer, compared with the layers below.

Left out is what insula writes itself.  The upper folder belongs to a program that runs: it is read by handles only.
Source: overlayfs.rst, "whiteouts and opaque directories".
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from insula.image.tarball import OPAQUE
from insula.kernel.paths import open_in_root
from insula.model.grant import Grant
from insula.model.record import ChangedPath
from insula.runtime.context import Runtime
from insula.runtime.plan import start_plan

ADDED, CHANGED, DELETED = "A", "C", "D"

WRITTEN_BY_US = frozenset({"etc/hostname", "etc/hosts", "etc/resolv.conf"})
MOUNT_POINTS = frozenset({"dev", "proc", "sys", ".insula"})

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def diff(grant: Grant, runtime: Runtime, ref: str) -> list[ChangedPath]:
    """List what was added, changed and deleted, by path.

    Raises: ContainerNotFound, ImageNotFound.
    """
    record = runtime.find(grant, ref)
    lower = [Path(each) for each in start_plan(runtime, record).root.lower]
    return compare(runtime.folders.upper(record.id), lower)


def compare(upper: Path, lower: Sequence[Path]) -> list[ChangedPath]:
    """Compare an upper folder with the folders below it, topmost first.  No upper folder: nothing changed."""
    try:
        root_fd = os.open(upper, _DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        found = _Comparison(root_fd).run([each for each in lower if each.is_dir()])
    finally:
        os.close(root_fd)
    return [ChangedPath(kind=found[path], path="/" + path) for path in sorted(found)]


@dataclass(frozen=True, slots=True)
class _Folder:
    path: str
    lower: tuple[Path, ...]
    """The folders of that path whose content is merged, topmost first."""


class _Comparison:
    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._found: dict[str, str] = {}
        self._unchanged: list[str] = []
        """Folders that are in the upper layer only because of what is in them."""

    def run(self, lower: Sequence[Path]) -> dict[str, str]:
        waiting = [_Folder("", tuple(lower))]
        while waiting:
            folder = waiting.pop()
            try:
                fd = open_in_root(self._root_fd, folder.path or ".", flags=_DIRECTORY)
            except OSError:
                continue  # gone, something else by now, or deeper than any path
            try:
                waiting += self._folder(fd, folder)
            finally:
                os.close(fd)
        parents = {parent for path in self._found for parent in _parents(path)}
        return self._found | {path: CHANGED for path in self._unchanged if path in parents}

    def _folder(self, fd: int, folder: _Folder) -> list[_Folder]:
        names = set(os.listdir(fd))
        below = []
        for name in names:
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            path = os.path.join(folder.path, name)
            following = self._entry(path, status, candidates=[each / name for each in folder.lower])
            if following is not None:
                below.append(following)
        if _is_opaque(fd):
            self._found |= {
                os.path.join(folder.path, each): DELETED for each in _merged(folder.lower) - names
            }
        return below

    def _entry(self, path: str, status: os.stat_result, *, candidates: Sequence[Path]) -> _Folder | None:
        before = _find(candidates)
        if _is_whiteout(status):
            if before is not None:
                self._found[path] = DELETED
            return None
        if path in WRITTEN_BY_US:
            return None
        if path in MOUNT_POINTS and stat.S_ISDIR(status.st_mode):
            return _Folder(path, _folders(candidates))
        if before is None:
            self._found[path] = ADDED
        elif _is_same_folder(before, status):
            self._unchanged.append(path)
        else:
            self._found[path] = CHANGED
        return _Folder(path, _folders(candidates)) if stat.S_ISDIR(status.st_mode) else None


def _find(candidates: Sequence[Path]) -> os.stat_result | None:
    for each in candidates:
        status = _status(each)
        if status is not None:
            return None if _is_whiteout(status) else status
    return None


def _folders(candidates: Sequence[Path]) -> tuple[Path, ...]:
    # Merging stops at what is no folder, and below an opaque one.
    found = []
    for each in candidates:
        status = _status(each)
        if status is None:
            continue
        if not stat.S_ISDIR(status.st_mode):
            break
        found.append(each)
        if _is_opaque(each):
            break
    return tuple(found)


def _merged(folders: Sequence[Path]) -> set[str]:
    names = {entry.name for each in folders for entry in os.scandir(each)}
    return {name for name in names if _find([each / name for each in folders]) is not None}


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(place: int | Path) -> bool:
    try:
        return os.getxattr(place, OPAQUE) == b"y"
    except OSError:
        return False


def _is_same_folder(before: os.stat_result, now: os.stat_result) -> bool:
    return stat.S_ISDIR(now.st_mode) and (before.st_mode, before.st_uid, before.st_gid) == (
        now.st_mode,
        now.st_uid,
        now.st_gid,
    )


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: at + 1]) for at in range(len(parts))]
