# SPDX-License-Identifier: Apache-2.0
"""What a folder looks like, by names and statuses, and what changed since it was last looked at.

No contents.  Whoever can say which names were touched (`watch.py`) has only those looked at again; else all.
A status is taken before the content is read, so what changes meanwhile differs the next time.  Clocks of file systems
may be coarse (a tick, before Linux 6.13): what changed just before it was looked at counts as changed once more.
Sources: stat(2), openat2(2).
"""

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from insula.image.tarball import is_too_deep
from insula.kernel.paths import open_beneath
from insula.model.errors import MigrationFailed

TICK_NS = 20_000_000
"""More than a tick of any kernel's coarse clock."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_GONE = (FileNotFoundError, NotADirectoryError)


class Status(NamedTuple):
    """Of one name."""

    inode: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    links: int
    device: int

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_whiteout(self) -> bool:
        return stat.S_ISCHR(self.mode) and self.device == 0


class Edit(NamedTuple):
    """A name before and now; None: there was or is none."""

    before: Status | None
    now: Status | None


Edits = dict[bytes, Edit]


def status_of(found: os.stat_result) -> Status:
    is_whiteout = stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
    is_folder = stat.S_ISDIR(found.st_mode)
    return Status(
        inode=0
        if is_whiteout
        else found.st_ino,  # overlayfs links its whiteouts together: that means nothing
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size if stat.S_ISREG(found.st_mode) else 0,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=0 if is_whiteout else found.st_ctime_ns,
        links=1 if is_whiteout or is_folder else found.st_nlink,
        device=found.st_rdev,
    )


def join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def refuse_depth(name: bytes) -> None:
    """Refuse what lies too deep for the other side (`fileapply.py`), and for walks on this one.  Raises: MigrationFailed."""
    if is_too_deep(name):
        shown = name[:40].decode(errors="replace")
        raise MigrationFailed(
            f"cannot send `{shown}…`: it lies too deep",
            hint="remove it in the container, or pack it there into an archive",
        )


class Snapshot:
    """A folder as it was last seen.  The root has the empty name."""

    def __init__(self, root: int) -> None:
        self._root = root
        self.names: dict[bytes, Status] = {}
        self.folders: dict[bytes, set[bytes]] = {}
        """Folder → the full names of what is in it."""
        self.by_inode: dict[int, set[bytes]] = {}
        """Files, links and so on, not folders and whiteouts."""
        self._young: set[bytes] = set()

    def look_at_all(self) -> Edits:
        """Look at everything."""
        edits: Edits = {}
        self._look({b""}, edits, has_all=True)
        return edits

    def look_at(self, touched: Iterable[bytes]) -> Edits:
        """Look at these names, at what is linked to them, and at what was too young to be believed."""
        edits: Edits = {}
        self._look({b"", *touched, *self._young}, edits, has_all=False)
        return edits

    def _look(self, names: set[bytes], edits: Edits, *, has_all: bool) -> None:
        # In order: a folder before what is in it, which its own look may have dealt with.
        self._since_ns = time.time_ns() - TICK_NS
        young, self._young = self._young, set()
        pending = sorted(names)
        while pending:
            for name in pending:
                if name not in edits:
                    self._look_at_one(name, edits, young=young, has_all=has_all)
            pending = sorted(self._linked(edits) - edits.keys())

    def _linked(self, edits: Edits) -> set[bytes]:
        inodes = {each.inode for edit in edits.values() for each in edit if each and not each.is_folder}
        return {name for inode in inodes for name in self.by_inode.get(inode, ())}

    def _look_at_one(self, name: bytes, edits: Edits, *, young: set[bytes], has_all: bool) -> None:
        refuse_depth(name)
        above = os.path.dirname(name)
        if name and above not in self.names and above not in edits:
            self._look_at_one(above, edits, young=young, has_all=has_all)
            if name in edits:
                return
        now = self._stat(name)
        before = self.names.get(name)
        is_same = now == before and name not in young
        if now is not None and now.ctime_ns >= self._since_ns:
            self._young.add(name)
        if before is not None and before.is_folder and (now is None or not now.is_folder):
            for below in list(self._below(name)):
                edits[below] = Edit(self._forget(below), None)
        if not is_same or has_all:
            if not is_same:
                edits[name] = Edit(before, now)
                self._forget(name)
                if now is not None:
                    self._remember(name, now)
            if now is not None and now.is_folder:
                is_another = before is not None and before.inode != now.inode
                self._look_into(name, edits, young=young, has_all=has_all or is_another)

    def _look_into(self, folder: bytes, edits: Edits, *, young: set[bytes], has_all: bool) -> None:
        known = self.folders.setdefault(folder, set())
        found = {join(folder, name) for name in self._list(folder)}
        for name in sorted(found | set(known)):
            if name not in edits and (has_all or name not in known or name not in found):
                self._look_at_one(name, edits, young=young, has_all=has_all)

    def _list(self, folder: bytes) -> list[bytes]:
        try:
            descriptor = open_beneath(self._root, folder or b".", flags=_FOLDER)
        except _GONE:
            return []
        try:
            return [os.fsencode(name) for name in os.listdir(descriptor)]
        finally:
            os.close(descriptor)

    def _stat(self, name: bytes) -> Status | None:
        try:
            descriptor = open_beneath(self._root, name or b".", flags=os.O_PATH | os.O_NOFOLLOW)
        except _GONE:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # what was a folder is a link now
                return None
            raise
        try:
            return status_of(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _below(self, folder: bytes) -> Iterator[bytes]:
        for name in list(self.folders.get(folder, ())):
            if name in self.folders:
                yield from self._below(name)
            yield name

    def _remember(self, name: bytes, status: Status) -> None:
        self.names[name] = status
        if name:
            self.folders.setdefault(os.path.dirname(name), set()).add(name)
        if status.is_folder:
            self.folders.setdefault(name, set())
        elif status.inode:
            self.by_inode.setdefault(status.inode, set()).add(name)

    def _forget(self, name: bytes) -> Status | None:
        status = self.names.pop(name, None)
        if status is None:
            return None
        if name:
            self.folders.get(os.path.dirname(name), set()).discard(name)
        if status.is_folder and not self.folders.get(name):
            self.folders.pop(name, None)
        if status.inode in self.by_inode:
            self.by_inode[status.inode].discard(name)
            if not self.by_inode[status.inode]:
                del self.by_inode[status.inode]
        return status
