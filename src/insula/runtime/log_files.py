# SPDX-License-Identifier: Apache-2.0
"""The two files of a container's log as one sequence of records, also while they are written and turned over.

Their writer and their form: `boot/stdio.py`.  Out of scope: what a line is (`logs.py`).
"""

import os
import select
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from insula.boot.stdio import RECORD
from insula.model import stream

BATCH_BYTES = 1 << 16
"""So much is read at once: no record is longer."""
STREAMS = {stream.STDOUT: "stdout", stream.STDERR: "stderr"}


class Record(NamedTuple):
    time: float
    kind: int
    data: bytes


class Place(NamedTuple):
    """Where a record begins."""

    file: int
    """So many are before it."""
    at: int


class LogFiles:
    """The records of `path`.1 and `path`, whatever is renamed meanwhile."""

    def __init__(self, path: Path, descriptors: Sequence[int] = ()) -> None:
        """descriptors: of its files that are open already; they are this one's from now on."""
        self._path = path
        self._older = path.with_name(path.name + ".1")
        self._open = list(descriptors)
        """The file that is read, then those after it."""
        self._at = 0
        """How much of that file was read."""
        self._passed = 0
        """So many files were read to their end."""
        self._buffer = b""
        self._left_bytes: int | None = None
        """Until the end that was set; None: there is none."""
        if not self._open:
            self._find_next()

    def as_it_is(self) -> "LogFiles":
        """Return the same once more, with nothing but what is there now.  To be called before the first read."""
        with ExitStack() as undo:
            copies = []
            for each in self._open:
                copies.append(os.dup(each))
                undo.callback(os.close, copies[-1])
            same = LogFiles(self._path, copies)
            undo.pop_all()
        same._left_bytes = self.size()
        return same

    def end_here(self) -> None:
        """Give only what is there now.  To be called before the first read."""
        self._left_bytes = self.size()

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    def read(self) -> list[Record]:
        """Read records, in the order they were written.  Empty: none for now."""
        while True:
            if not self._open:
                self._find_next()
            if not self._open or self._left_bytes == 0:
                return []
            # Looked for before the last read: once there is a next file nothing more comes into this one.
            has_next = len(self._open) > 1 or self._find_next()
            data = os.pread(self._open[0], min(BATCH_BYTES, self._left_bytes or BATCH_BYTES), self._at)
            self._at += len(data)
            if data:
                if self._left_bytes is not None:
                    self._left_bytes -= len(data)
                if records := self._parse(data):
                    return records
            elif not has_next:
                return []
            else:
                self._pass()

    @property
    def place(self) -> Place:
        """Where the next record begins."""
        return Place(self._passed, self._at - len(self._buffer))

    def go_to(self, place: Place) -> None:
        """Begin at a place that the same files gave.  To be called before the first read."""
        before = place.at + sum(os.fstat(each).st_size for each in self._open[: place.file])
        if self._left_bytes is not None:
            self._left_bytes -= before
        for _ in range(place.file):
            self._pass()
        self._at = place.at

    def _pass(self) -> None:
        self._buffer, self._at = b"", 0
        self._passed += 1
        os.close(self._open.pop(0))

    def size(self) -> int:
        """Return the bytes of what is there now."""
        return sum(os.fstat(each).st_size for each in self._open)

    def wait(self, seconds: float) -> bool:
        """Wait for more.  Answers whether it came."""
        if self._left_bytes == 0:
            return False
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if os.fstat(self._open[0]).st_size > self._at or self._find_next():
                return True
            _pause(min(left, 0.01))
        return False

    def _find_next(self) -> bool:
        # Open what follows the file at hand: the log itself if it is another one by now, before it what became `.1`
        # in between.  The log is opened first: so `.1` is that file or a newer one, never an older.
        known = {_inode(each) for each in self._open}
        newest = _opened(self._path)
        if newest < 0 and known:
            return False  # between rename and creation: the next look finds it
        try:
            older = _opened(self._older) if newest < 0 or _inode(newest) not in known else -1
        except OSError:  # there are no more descriptors
            if newest >= 0:
                os.close(newest)
            raise
        found: list[int] = []
        for descriptor in (newest, older):
            if descriptor >= 0 and _inode(descriptor) not in known:
                known.add(_inode(descriptor))
                found.insert(0, descriptor)
            elif descriptor >= 0:
                os.close(descriptor)
        self._open += found
        return bool(found)

    def _parse(self, data: bytes) -> list[Record]:
        buffer, records, at = self._buffer + data, [], 0
        while len(buffer) - at >= RECORD.size:
            moment, kind, length = RECORD.unpack_from(buffer, at)
            if kind not in STREAMS or length > BATCH_BYTES:
                at = len(buffer)  # torn by a full disk: go on with what comes
                break
            end = at + RECORD.size + length
            if end > len(buffer):
                break
            records.append(Record(moment, kind, buffer[at + RECORD.size : end]))
            at = end
        self._buffer = buffer[at:]
        return records


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


def _pause(seconds: float) -> None:
    # Nothing tells of a file that grows in another process: the shortest pause that costs little.
    select.poll().poll(seconds * 1000)
