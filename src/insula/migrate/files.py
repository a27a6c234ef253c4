# SPDX-License-Identifier: Apache-2.0
"""A folder travels in rounds: all of it first, then what changed since, at last, in the pause, the little that is left.

The other side is `fileapply.py`.  Which names may have changed `watch.py` tells; without it all are compared.
Sockets travel as nodes; devices other than whiteouts do not.  Sources: overlayfs.rst; listxattr(2).
"""

import errno
import os
import stat
from collections.abc import Iterator

from insula.image.tarball import MAX_ID, OPAQUE, REDIRECT
from insula.kernel.paths import open_beneath
from insula.migrate.contents import Known, changes
from insula.migrate.edits import (
    Attributes,
    Link,
    Make,
    Move,
    Open,
    Remove,
    encode,
    parents,
)
from insula.migrate.snapshot import Edit, Edits, Snapshot, Status
from insula.migrate.watch import Watch
from insula.migrate.wire import Wire
from insula.model.errors import MigrationFailed
from insula.model.migration import FileRound

KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_", OPAQUE, REDIRECT)
_REPLACED = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENODATA)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class FileSource:
    """One folder on the source, and what the other side has of it."""

    def __init__(self, folder: int, *, name: str, mount_root: int | None) -> None:
        """folder: owned by the caller, open until `close`.  name: of the volume, empty for the writable layer.

        mount_root: the same folder as the container sees it (an overlay mount, the volume's mount point): what is
        written through it is noticed.  None: each round compares all.
        """
        self._folder = os.dup(folder)
        self._name = name
        self._snapshot = Snapshot(self._folder)
        self._known: dict[int, Known] = {}
        self._watch = Watch(self._folder, mount_root) if mount_root is not None else None
        self._is_first = True
        self.work_bytes = 0
        """What the last round sent, or compared, if that is more: to find a block costs about what it costs to send it."""

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        os.close(self._folder)

    def send_round(self, wire: Wire) -> int:
        """Send what changed since the last round, the first time all.  Returns: bytes sent, before they are compressed.

        Raises: MigrationFailed for an owner outside of the container's ids, or if the peer is gone; OSError.
        """
        before, touched_bytes = wire.raw_bytes, 0 if self._is_first else self.dirty_estimate()
        edits = self._look()
        wire.send(FileRound(volume=self._name))
        wire.send_stream(self._records(edits))
        self._is_first = False
        self.work_bytes = max(touched_bytes, wire.raw_bytes - before)
        return wire.raw_bytes - before

    def dirty_estimate(self) -> int:
        """Return how large the touched files are: the most that the next round sends.  0 before the first one."""
        if self._watch is None:
            return sum(each.size for each in self._snapshot.names.values())
        found = 0
        for name in self._watch.peek():
            status = self._snapshot.names.get(name)
            found += status.size if status is not None else 0
        return found

    def _look(self) -> Edits:
        if self._watch is None:
            return self._snapshot.look_at_all()
        touched = self._watch.take()
        if touched is None or self._is_first:
            self._watch.begin()
            return self._snapshot.look_at_all()
        edits = self._snapshot.look_at(touched)
        # New folders are watched first and then looked at again: what happened between is seen by one of the two.
        while new := [
            name for name, edit in edits.items() if edit.now and edit.now.is_folder and self._watch.add(name)
        ]:
            more = self._snapshot.look_at(
                [*new, *(each for name in new for each in self._snapshot.folders[name])]
            )
            for name, edit in more.items():
                edits[name] = Edit(edits[name].before if name in edits else edit.before, edit.now)
        return edits

    # -- what is sent

    def _records(self, edits: Edits) -> Iterator[bytes]:
        plan = _Plan(edits, self._snapshot)
        yield from (encode(Move(name, number)) for number, name in sorted(plan.moves.items()))
        for name in sorted(plan.removals, key=lambda each: (each.count(b"/"), each), reverse=True):
            yield encode(Remove(name))
        for name in sorted(name for name, edit in edits.items() if edit.now and edit.now.is_folder):
            before = edits[name].before
            if name and (before is None or not before.is_folder):
                yield encode(Make(name, stat.S_IFDIR))
        done: set[int] = set()
        for name in sorted(edits):
            now = edits[name].now
            if now is not None and not now.is_folder and (now.is_whiteout or now.inode not in done):
                done.add(now.inode)
                yield from self._object(plan.names(now, name), now, plan=plan)
        self._forget_contents(edits)
        folders = {name for name, edit in edits.items() if edit.now and edit.now.is_folder}
        for name in [*edits]:
            folders |= {each for each in parents(name) if each in self._snapshot.names}
        for name in sorted({b"", *folders}, key=lambda each: (each.count(b"/"), each), reverse=True):
            yield from self._attributes(name)

    def _object(self, names: list[bytes], now: Status, *, plan: "_Plan") -> Iterator[bytes]:
        if stat.S_ISBLK(now.mode) or (stat.S_ISCHR(now.mode) and not now.is_whiteout):
            return
        here = [name for name in names if plan.stays(name)]
        first = here[0] if here else names[0]
        if not here:
            number = now.inode if now.inode in plan.moves else 0
            if not number:
                self._known.pop(now.inode, None)
            target = b""
            if stat.S_ISLNK(now.mode):
                try:
                    target = self._target(first)
                except OSError:  # gone or replaced: the next round tells
                    return
            yield encode(Make(first, stat.S_IFMT(now.mode), number, target))
        yield from (encode(Link(name, first)) for name in names if name != first and name not in here)
        if now.is_file:
            yield from self._content(first, now)
        yield from self._attributes(first)

    def _content(self, name: bytes, now: Status) -> Iterator[bytes]:
        try:
            descriptor = open_beneath(self._folder, name, flags=_READ)
        except OSError as error:
            if error.errno in _REPLACED:
                return  # gone or replaced: the next round tells
            raise
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_ino != now.inode:
                return
            yield encode(Open(name, now.size))
            for each in changes(descriptor, size=now.size, known=self._known.get(now.inode)):
                if isinstance(each, Known):
                    self._known[now.inode] = each
                else:
                    yield each
        finally:
            os.close(descriptor)

    def _forget_contents(self, edits: Edits) -> None:
        for edit in edits.values():
            if edit.before is not None and edit.before.inode not in self._snapshot.by_inode:
                self._known.pop(edit.before.inode, None)

    def _attributes(self, name: bytes) -> Iterator[bytes]:
        status = self._snapshot.names[name]
        if status.uid > MAX_ID or status.gid > MAX_ID:
            shown = name.decode(errors="replace")
            raise MigrationFailed(
                f"cannot send `{shown}`: its owner {status.uid}:{status.gid} is not within 0 to {MAX_ID}"
            )
        xattrs: tuple[tuple[str, bytes], ...] = ()
        if status.is_folder or status.is_file:
            try:
                xattrs = self._xattrs(name)
            except OSError as error:
                if error.errno in _REPLACED:  # the next round tells
                    return
                raise
        yield encode(
            Attributes(name, stat.S_IMODE(status.mode), status.uid, status.gid, status.mtime_ns, xattrs)
        )

    def _xattrs(self, name: bytes) -> tuple[tuple[str, bytes], ...]:
        descriptor = open_beneath(self._folder, name or b".", flags=_READ)
        try:
            names = [each for each in os.listxattr(descriptor) if each.startswith(KEPT_XATTRS)]
            return tuple((each, os.getxattr(descriptor, each)) for each in sorted(names))
        finally:
            os.close(descriptor)

    def _target(self, name: bytes) -> bytes:
        descriptor = open_beneath(self._folder, name, flags=os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink(b"", dir_fd=descriptor)
        finally:
            os.close(descriptor)


class _Plan:
    """How the names of objects get from before to now.

    An object whose names have all changed is moved out of the way first, so that its content need not travel.
    """

    def __init__(self, edits: Edits, snapshot: Snapshot) -> None:
        self._edits = edits
        self._snapshot = snapshot
        self.moves: dict[int, bytes] = {}
        self.staying: set[bytes] = set()
        """Names that go on naming the same object."""
        self.removals: set[bytes] = set()
        for name, (before, now) in edits.items():
            if before is None:
                continue
            if now is not None and _is_same(before, now):
                self.staying.add(name)
            else:
                self.removals.add(name)
        kept = {edits[name].now.inode for name in self.staying if not edits[name].now.is_folder}  # type: ignore[union-attr]
        for name in sorted(self.removals):
            before = edits[name].before
            if before is not None and before.is_file and before.inode not in kept and self._lives_on(before):
                self.moves.setdefault(before.inode, name)
        self.removals -= set(self.moves.values())

    def _lives_on(self, before: Status) -> bool:
        names = self._snapshot.by_inode.get(before.inode, set())
        return any(self._snapshot.names[name].is_file for name in names)

    def stays(self, name: bytes) -> bool:
        return name in self.staying or name not in self._edits

    def names(self, now: Status, name: bytes) -> list[bytes]:
        return sorted(self._snapshot.by_inode[now.inode]) if now.inode else [name]


def _is_same(before: Status, now: Status) -> bool:
    if stat.S_IFMT(before.mode) != stat.S_IFMT(now.mode) or before.device != now.device:
        return False
    if before.is_file:
        return before.inode == now.inode
    # A link's target or a node cannot change without another ctime; made anew it is as good.
    return before.is_folder or (before.is_whiteout and now.is_whiteout)
