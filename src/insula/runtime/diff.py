# SPDX-License-Identifier: Apache-2.0
"""What a container changed in the files of its image: its writable layer, compared with the layers below.

Left out is what insula writes itself.  The upper folder belongs to a program that runs: it is read by handles only, and
may hold millions of files, of which only so many are told as insulad has memory for.
Source: overlayfs.rst, "whiteouts and opaque directories".
"""

import os
import stat
from bisect import bisect_left
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

MAX_BYTES = 16 << 20
"""Of paths, about 100,000 of them."""
ENTRY_BYTES = 100
"""What each costs beside its length."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What was added, changed and deleted, by path."""

    changes: tuple[ChangedPath, ...]
    is_complete: bool
    """False: there are more, which ones are missing is left to chance."""


def diff(grant: Grant, runtime: Runtime, ref: str) -> Difference:
    """List what was added, changed and deleted.

    Raises: ContainerNotFound, ImageNotFound.
    """
    record = runtime.find(grant, ref)
    lower = [Path(each) for each in start_plan(runtime, record).root.lower]
    return compare(runtime.folders.upper(record.id), lower)


def compare(upper: Path, lower: Sequence[Path], *, max_bytes: int = MAX_BYTES) -> Difference:
    """Compare an upper folder with the folders below it, topmost first.  No upper folder: nothing changed.

    max_bytes: what paths may take, with ENTRY_BYTES for each.
    """
    try:
        root_fd = os.open(upper, _DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Difference(changes=(), is_complete=True)
    try:
        return _Comparison(root_fd, max_bytes=max_bytes).run([each for each in lower if each.is_dir()])
    finally:
        os.close(root_fd)


@dataclass(frozen=True, slots=True)
class _Folder:
    path: str
    lower: tuple[Path, ...]
    """The folders of that path whose content is merged, topmost first."""


class _Comparison:
    def __init__(self, root_fd: int, *, max_bytes: int) -> None:
        self._root_fd = root_fd
        self._found: dict[str, str] = {}
        self._unchanged: list[str] = []
        """Folders that are in the upper layer only because of what is in them."""
        self._left_bytes = max_bytes
        self._is_complete = True

    def run(self, lower: Sequence[Path]) -> Difference:
        waiting = [_Folder("", tuple(lower))]
        while waiting and self._is_complete:
            folder = waiting.pop()
            try:
                fd = open_in_root(self._root_fd, folder.path or ".", flags=_DIRECTORY)
            except OSError:
                continue  # gone, something else by now, or deeper than any path
            try:
                waiting += self._folder(fd, folder)
            finally:
                os.close(fd)
        paths = sorted(self._found)
        self._found |= {path: CHANGED for path in self._unchanged if _has_below(paths, path)}
        changes = tuple(ChangedPath(kind=self._found[path], path=path) for path in sorted(self._found))
        return Difference(changes=changes, is_complete=self._is_complete)

    def _folder(self, fd: int, folder: _Folder) -> list[_Folder]:
        below = []
        with os.scandir(fd) as entries:  # a list of them may be longer than what is told
            for name in (each.name for each in entries):
                status = _status(name, folder_fd=fd)
                if status is None:
                    continue
                path = os.path.join(folder.path, name)
                following = self._entry(path, status, candidates=[each / name for each in folder.lower])
                if not self._is_complete:
                    return []
                if following is not None:
                    below.append(following)
        if _is_opaque(fd):
            self._note_hidden(fd, folder)
        return below

    def _note_hidden(self, fd: int, folder: _Folder) -> None:
        for each in folder.lower:
            with os.scandir(each) as entries:
                for name in (entry.name for entry in entries):
                    if not self._is_complete:
                        return
                    is_hidden = _status(name, folder_fd=fd) is None
                    if is_hidden and _find([low / name for low in folder.lower]) is not None:
                        self._note(os.path.join(folder.path, name), DELETED)

    def _entry(self, path: str, status: os.stat_result, *, candidates: Sequence[Path]) -> _Folder | None:
        before = _find(candidates)
        if _is_whiteout(status):
            if before is not None:
                self._note(path, DELETED)
            return None
        if path in WRITTEN_BY_US:
            return None
        if path in MOUNT_POINTS and stat.S_ISDIR(status.st_mode):
            return _Folder(path, _folders(candidates))
        if before is None:
            self._note(path, ADDED)
        elif not _is_same_folder(before, status):
            self._note(path, CHANGED)
        elif self._has_room(path):
            self._unchanged.append("/" + path)
        if not stat.S_ISDIR(status.st_mode):
            return None
        lower = _folders(candidates)
        return _Folder(path, lower) if self._has_room(path, times=len(lower)) else None

    def _note(self, path: str, kind: str) -> None:
        told = "/" + path
        if told not in self._found and self._has_room(path):
            self._found[told] = kind

    def _has_room(self, path: str, *, times: int = 1) -> bool:
        """Take room for a path.  If there is none nothing more is looked for."""
        cost = (ENTRY_BYTES + len(path)) * times
        if cost > self._left_bytes:
            self._is_complete = False
            return False
        self._left_bytes -= cost
        return True


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


def _status(path: Path | str, *, folder_fd: int | None = None) -> os.stat_result | None:
    try:
        return os.stat(path, dir_fd=folder_fd, follow_symlinks=False)
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


def _has_below(paths: Sequence[str], folder: str) -> bool:
    """Tell whether one of the paths, which are sorted, is below a folder."""
    at = bisect_left(paths, folder + "/")
    return at < len(paths) and paths[at].startswith(folder + "/")
