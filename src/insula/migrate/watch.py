# SPDX-License-Identifier: Apache-2.0
"""Which names of a container's folder may have changed: inotify on its folders, and files that are open or mapped.

Two watches per folder: as it is on disk (names, owners, modes; copies that overlayfs makes) and as the container sees it
(writes through an overlay need not notify the folder below it).  Stores through a shared mapping notify nobody: files
that a process of that mount namespace holds open for writing, or mapped, now or at the last round, are always looked at.
They are written out first, so that the next store is a page fault, which changes the file's times.  Where times do not
change so (tmpfs), such a file must be looked into.
Lost events, or no room for watches: `take` says None, and all has to be compared.
Sources: inotify(7); proc(5): maps, fdinfo, mountinfo; `mm/page-writeback.c`, folio_clear_dirty_for_io.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator

from insula.kernel.inotify import (
    IN_CREATE,
    IN_DELETE,
    IN_IGNORED,
    IN_ISDIR,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_Q_OVERFLOW,
    Inotify,
)
from insula.kernel.paths import open_beneath
from insula.migrate.snapshot import join

LOG = logging.getLogger(__name__)

_RENAMED = IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
_SHARED = re.compile(rb"^\S+ .w.s \S+ \S+ \d+ +(/.*)$", re.MULTILINE)
_MOUNT = re.compile(rb"^mnt_id:\s*(\d+)", re.MULTILINE)
_FLAGS = re.compile(rb"^flags:\s*(\d+)", re.MULTILINE)
_ESCAPED = re.compile(rb"\\([0-7]{3})")


class Watch:
    """The names in a folder that were touched."""

    def __init__(self, folder: int, seen: int) -> None:
        self._folder = folder
        self._seen = os.dup(seen)
        self._queue: Inotify | None = None
        self._names: dict[int, set[bytes]] = {}
        self._watches: dict[bytes, set[int]] = {}
        self._touched: set[bytes] = set()
        self._held: set[bytes] = set()
        self._is_lost = True

    def close(self) -> None:
        if self._queue is not None:
            self._queue.close()
        os.close(self._seen)

    def begin(self) -> None:
        """Watch all folders, anew.  What happens from here on is told."""
        if self._queue is not None:
            self._queue.close()
        self._queue = None
        self._names.clear()
        self._watches.clear()
        self._touched.clear()
        self._is_lost = False
        try:
            self._queue = Inotify()
            waiting = [b""]
            while waiting and not self._is_lost:
                folder = waiting.pop()
                self.add(folder)
                waiting += self._folders_in(folder)
        except OSError as error:
            self._lose(str(error))
        self._held = self._write_out()

    def add(self, folder: bytes) -> bool:
        """Watch a folder.  Returns: False if it is watched already, or not any more."""
        if folder in self._watches or self._queue is None:
            return False
        found: set[int] = set()
        for root in (self._folder, self._seen):
            try:
                descriptor = open_beneath(root, folder or b".", flags=os.O_PATH | os.O_DIRECTORY)
            except OSError:
                continue  # gone, or hidden in the container by another mount
            try:
                found.add(self._queue.add(descriptor))
            except OSError as error:
                self._lose(str(error))
                return False
            finally:
                os.close(descriptor)
        for number in found:
            self._names.setdefault(number, set()).add(folder)
        if found:
            self._watches[folder] = found
        return bool(found)

    def peek(self) -> set[bytes]:
        """Return what was touched so far."""
        self._drain()
        return self._touched

    def take(self) -> set[bytes] | None:
        """Return what may have changed since the last time; None: anything."""
        self._drain()
        held = self._write_out()
        touched = self._touched | held | self._held
        self._touched, self._held = set(), held
        return None if self._is_lost else touched

    def _drain(self) -> None:
        if self._queue is None:
            return
        for event in self._queue.drain():
            if event.mask & IN_Q_OVERFLOW:
                self._lose("events were lost")
            elif event.mask & IN_IGNORED:
                self._names.pop(event.watch, None)
            else:
                for folder in tuple(self._names.get(event.watch, ())):
                    self._touched.add(join(folder, event.name) if event.name else folder)
                    if event.mask & _RENAMED:
                        self._touched.add(folder)
                    if event.name and event.mask & IN_ISDIR and event.mask & _RENAMED:
                        self._forget(join(folder, event.name))

    def _forget(self, folder: bytes) -> None:
        # It has another name now: it and what is in it will be watched anew.
        for name in [each for each in self._watches if each == folder or each.startswith(folder + b"/")]:
            for number in self._watches.pop(name):
                self._names.get(number, set()).discard(name)

    def _lose(self, reason: str) -> None:
        LOG.info("changes of files cannot be told, all are compared", extra={"fields": {"reason": reason}})
        self._is_lost = True

    def _folders_in(self, folder: bytes) -> list[bytes]:
        try:
            descriptor = open_beneath(self._folder, folder or b".", flags=os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return []
        try:
            with os.scandir(descriptor) as entries:
                return [
                    join(folder, os.fsencode(each.name))
                    for each in entries
                    if each.is_dir(follow_symlinks=False)
                ]
        finally:
            os.close(descriptor)

    def _write_out(self) -> set[bytes]:
        """Write out files that are open for writing or mapped; returns their names."""
        found: set[bytes] = set()
        for path in _held_paths(self._seen):
            with contextlib.suppress(OSError):  # of the image, or gone
                descriptor = open_beneath(
                    self._folder, path, flags=os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
                )
                found.add(path)
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)
        return found


def _held_paths(seen: int) -> Iterator[bytes]:
    """Yield paths below a mount that processes hold open for writing or have mapped shared and writable."""
    top = os.readlink(b"/proc/self/fd/%d" % seen).rstrip(b"/") + b"/"
    number = _first(_MOUNT, _read(b"/proc/self/fdinfo/%d" % seen))
    has_mount: dict[bytes, bool] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        folder = b"/proc/" + pid.encode()
        with contextlib.suppress(OSError):  # it has just ended
            namespace = os.readlink(folder + b"/ns/mnt")
            if namespace not in has_mount:
                mounts = {line.split(b" ", 1)[0] for line in _read(folder + b"/mountinfo").splitlines()}
                has_mount[namespace] = number in mounts
            if has_mount[namespace]:
                for path in (*_mapped(folder), *_opened(folder)):
                    if path.startswith(top):
                        yield path.removeprefix(top)


def _mapped(process: bytes) -> list[bytes]:
    found = _SHARED.findall(_read(process + b"/maps"))
    return [_ESCAPED.sub(lambda each: bytes([int(each[1], 8)]), path) for path in found]


def _opened(process: bytes) -> Iterator[bytes]:
    for descriptor in os.listdir(process + b"/fd"):
        with contextlib.suppress(OSError):  # closed
            flags = int(_first(_FLAGS, _read(process + b"/fdinfo/" + descriptor)), 8)
            if flags & os.O_ACCMODE:
                yield os.readlink(process + b"/fd/" + descriptor)


def _first(pattern: "re.Pattern[bytes]", text: bytes) -> bytes:
    match = pattern.search(text)
    return match[1] if match else b""


def _read(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()
